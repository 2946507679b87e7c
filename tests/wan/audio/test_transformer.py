"""The S2V transformer: what hears, what conditions, what silence is, and that full size is the published one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from tests.wan.checkpoint.manifest import manifest, tensor_shapes
from wan.attention.masks import FrameMask
from wan.audio.family import S2V
from wan.audio.motion import motion_runs
from wan.audio.transformer import S2VTransformer
from wan.context import Full, Masked
from wan.family import find_published, get_family
from wan.spec import S2V_SPECS, S2VSpec

MODEL = tiny.s2v_denoiser(dtype=torch.float64)
FRAMES, PORTRAIT = 3, 7  # the reference, and 1 + 1 + 4 frames of motion tokens
CLIP = tiny.latents(FRAMES, dtype=torch.float64, geometry=tiny.S2V_GEOMETRY)


@torch.no_grad()
def predict(condition, context=None, x=CLIP, sigma=0.6, model=MODEL):
    return tiny.healthy(model(x, sigma, condition, context or Full()))


def avatar(**fields):
    return tiny.avatar(frames=FRAMES, dtype=torch.float64, **fields)


def test_full_size_is_the_published_one():
    _, official = manifest("wan2.2_s2v_14B")
    with torch.device("meta"):
        ours = S2VTransformer(find_published("s2v-14B").transformer).state_dict()
    assert tensor_shapes(ours) == tensor_shapes(official)
    assert (len(ours), sum(math.prod(t.shape) for t in ours.values())) == (1260, 16_295_755_609)
    measured = S2V().measure(official)
    assert all(vars(S2V_SPECS["s2v-14B"].transformer)[name] == value for name, value in measured.items())


def test_a_fresh_network_is_the_text_model():
    """Sound, pose and portrait marks begin at zero."""
    torch.manual_seed(0)
    fresh = S2VTransformer(tiny.S2V_SPEC).double()
    plain = tiny.filled(type(tiny.transformer())(tiny.SPEC), dtype=torch.float64)
    fresh.load_state_dict(plain.state_dict(), strict=False)
    condition, alone = avatar(), FrameMask(torch.block_diag(torch.ones(FRAMES, FRAMES), torch.ones(PORTRAIT, PORTRAIT)))
    with torch.no_grad():
        ours = type(MODEL)(fresh)(CLIP, 0.6, condition, Masked(alone, range(FRAMES)))
        wanted = type(MODEL)(plain)(CLIP, 0.6, tiny.condition(dtype=torch.float64), Full())
    assert tiny.error(ours, tiny.healthy(wanted)) < tolerance.EXACT


@pytest.mark.parametrize("name", ["audio", "reference", "motion", "pose"])
def test_each_part_is_seen(name):
    condition = avatar()
    other = replace(condition, **{name: condition.__dict__[name].flip(1) + 1})
    assert tiny.error(predict(condition), predict(other)) > 1e-3


def test_a_frame_hears_its_own_sound():
    """Alone in its block-diagonal mask, a frame changes with nine features and with no other."""
    condition = avatar()
    seen = torch.block_diag(torch.eye(FRAMES), torch.ones(PORTRAIT, PORTRAIT))
    seen[:FRAMES, FRAMES:] = 1
    before = predict(condition, Masked(FrameMask(seen), range(FRAMES)))
    sound = condition.audio.clone()
    sound[:, :, 3:8] += (
        1  # heard by frame 1 (3 .. 8 is 4 f - 5 + ...), and by frame 0 its last one, by frame 2 the last
    )
    after = predict(replace(condition, audio=sound), Masked(FrameMask(seen), range(FRAMES)))
    assert [tiny.error(before[:, f], after[:, f]) > 0 for f in range(FRAMES)] == [True, True, True]
    sound = condition.audio.clone()
    sound[:, :, 8:] += 1
    late = predict(replace(condition, audio=sound), Masked(FrameMask(seen), range(FRAMES)))
    assert [tiny.error(before[:, f], late[:, f]) > 0 for f in range(FRAMES)] == [False, False, True]


def test_null_is_silent_and_keeps_the_portrait():
    condition = avatar()
    silent = replace(condition, text=condition.null_text, audio=torch.zeros_like(condition.audio))
    assert torch.equal(predict(condition.null()), predict(silent))
    assert torch.equal(condition.cut(range(2)).null().heard, condition.null().cut(range(2)).heard)
    assert condition.null().reference is condition.reference and condition.null().motion is condition.motion


def test_speakers_take_their_part_by_their_masks():
    one, both = avatar(), avatar(speakers=2)
    first, second = both.audio[:, :1], both.audio[:, 1:]
    left = torch.zeros(1, 1, 1, *tiny.S2V_GEOMETRY.grid, dtype=torch.float64)
    left[..., :2] = 1
    masks = torch.cat((left, 1 - left), 1)
    apart = predict(replace(one, audio=torch.cat((first, first), 1), speakers=masks))
    assert tiny.error(apart, predict(replace(one, audio=first))) < tolerance.EXACT, "masks that add up to one speaker"
    mixed = predict(replace(one, audio=both.audio, speakers=masks))
    swapped = predict(replace(one, audio=torch.cat((second, first), 1), speakers=masks.flip(1)))
    assert tiny.error(mixed, swapped) < tolerance.EXACT and tiny.error(mixed, apart) > 1e-3


def test_fewer_motion_latents_are_zeros_before():
    condition = avatar()
    few = replace(condition, motion=condition.motion[:, -4:])
    zeros = replace(condition, motion=torch.cat((torch.zeros_like(condition.motion[:, 4:]), few.motion), 1))
    assert torch.equal(predict(few), predict(zeros))
    assert predict(replace(condition, motion=None)).shape == CLIP.shape


def test_precision_upstream_changes_half_precision_alone():
    model = tiny.s2v_denoiser(dtype=torch.float64)
    model.transformer.precision = "upstream"
    assert tiny.error(predict(avatar(), model=model), predict(avatar())) < tolerance.EXACT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio": None}, "needs sound: give Condition.audio=features., zeros for silence"),
        ({"reference": None}, "needs a portrait: give Condition"),
        ({"audio": torch.zeros(1, 2, 12, 3, 6)}, "2 sounds and no masks given"),
        ({"audio": torch.zeros(1, 1, 8, 3, 6)}, "holds the features of pixel frames .0, 8. and those of"),
        ({"speakers": torch.zeros(1, 1, 1, 4, 5)}, r"masks are \[1, 1, 1, 4, 5\]; they must be \[1, 1 sounds, 1 or 3"),
        ({"pose": torch.zeros(1, 2, 4, 8, 8)}, "pose"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        predict(replace(avatar(), **fields))


def test_a_text_model_refuses_sound():
    with pytest.raises(ValueError, match="this model hears none"):
        tiny.denoiser()(tiny.latents(2), 0.5, replace(tiny.condition(), audio=torch.zeros(1, 1, 8, 3, 6)), Full())


def test_motion_patches_need_64_pixels():
    with pytest.raises(ValueError, match="6 x 4 tokens do not fill the coarsest motion patches .* multiples of 64"):
        motion_runs((6, 4))
    assert [run.num_tokens for run in motion_runs((44, 24))] == [1056, 264, 264]


def test_sizes_are_checked():
    spec = S2V_SPECS["digits-s2v"].transformer
    assert type(get_family(spec)) is S2V and spec.audio_layers == 4
    with pytest.raises(ValueError, match=r"audio_inject_layers \[0, 9\] must ascend and lie among the 4 blocks"):
        replace(spec, audio_inject_layers=(0, 9))
    config = {"num_heads": 2, "dim": 128, "_class_name": "WanModel_S2V", "adain_mode": "no_norm"}
    with pytest.raises(ValueError, match="adain_mode is 'no_norm'; S2V networks are read here with adain_mode"):
        S2V().read_config(config, "config.json")
    with pytest.raises(ValueError, match="diffusers has no S2V transformer"):
        S2V().layout("diffusers", {}, spec)
    assert S2VSpec.from_config({"audio_inject_layers": [0, 2], "num_layers": 4}).audio_inject_layers == (0, 2)
