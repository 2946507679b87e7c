"""The transformer's layout, clocks and conditions, and the two experts; its numbers are parity's business."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from wan.attention.masks import causal
from wan.condition import Condition
from wan.context import Cached, Full, Masked
from wan.denoiser import Denoiser, ExpertDenoiser
from wan.geometry import Span
from wan.layers import sinusoid
from wan.ledger import CacheConfig
from wan.spec import CLIP_TOKENS, SPECS, TransformerSpec
from wan.tokens import Run
from wan.transformer import RunInput, WanTransformer

pytestmark = pytest.mark.usefixtures("float64")
WIDE = torch.float64
MODEL, TEXT, X = tiny.denoiser(dtype=WIDE), tiny.condition(2, dtype=WIDE), tiny.latents(4, 2, dtype=WIDE)


@torch.no_grad()
def velocity(x=X, sigma=0.7, condition=TEXT, context=None, model=MODEL, **fields) -> torch.Tensor:
    return tiny.healthy(model(x, sigma, condition, context or Full(), **fields))


def test_a_new_model_predicts_nothing_and_a_drawn_one_does():
    fresh = Denoiser(WanTransformer(tiny.SPEC))
    with torch.no_grad():
        assert fresh(X, 0.7, TEXT, Full()).abs().max() == 0
    assert all(weight.abs().min() > 0 for weight in MODEL.parameters())
    assert velocity().shape == X.shape


def test_tokens_lie_by_patch_row_column_and_channel():
    """A token's features are (row in the patch, column in the patch, channel); tokens go row by row."""
    tokens = torch.arange(2 * 3 * 2 * 3 * 16.0).reshape(2, 3 * 6, 16)
    image = MODEL.transformer.unpatchify(tokens, Run("video", range(3), range(2), range(3)))
    assert image.shape == (2, 3, 4, 4, 6)
    for b, f, c, y, x in [(0, 0, 0, 0, 0), (1, 2, 3, 3, 5), (0, 1, 2, 1, 4), (1, 0, 1, 2, 3)]:
        feature = ((y % 2) * 2 + x % 2) * 4 + c
        assert image[b, f, c, y, x] == tokens[b, f * 6 + (y // 2) * 3 + x // 2, feature]


def test_patches_see_their_own_pixels():
    with torch.no_grad():
        before = MODEL.transformer.embed_patches(X, TEXT)
        changed = X.clone()
        changed[:, 2, :, 3, 1] += 1  # frame 2, second row of patches, first column
        moved = (MODEL.transformer.embed_patches(changed, TEXT) - before).abs().amax((0, 2))
    assert moved.nonzero().flatten().tolist() == [2 * 6 + 3]


@pytest.mark.parametrize(
    "sigma",
    [torch.tensor([0.7, 0.7], dtype=WIDE), torch.full((2, 4), 0.7, dtype=WIDE), torch.full((2, 1), 0.7, dtype=WIDE)],
    ids=["per sample", "per frame", "one per sample"],
)
def test_one_sigma_in_every_form(sigma):
    assert tiny.error(velocity(sigma=sigma), velocity()) < tolerance.EXACT


def test_sigma_is_per_sample_and_per_frame():
    given = velocity(sigma=torch.tensor([0.7, 0.2], dtype=WIDE))
    assert tiny.error(given[0], velocity()[0]) < tolerance.EXACT
    assert tiny.error(given[1], velocity(sigma=0.2)[1]) < tolerance.EXACT
    mask, frames = causal(tiny.spans(1, 1, 1, 1)), torch.full((2, 4), 0.7, dtype=WIDE)
    frames[:, 2] = 0.3
    moved = (velocity(sigma=frames, context=Masked(mask)) - velocity(context=Masked(mask))).abs().amax((0, 2, 3, 4))
    assert moved[:2].max() < tolerance.EXACT and moved[2:].min() > 1e-2, "a frame's sigma reaches those that see it"


def test_frames_see_no_future():
    mask, changed = causal(tiny.spans(2, 2)), X.clone()
    changed[:, 2:] += 1
    moved = (velocity(changed, context=Masked(mask)) - velocity(context=Masked(mask))).abs().amax((0, 2, 3, 4))
    assert moved[:2].max() == 0 and moved[2:].min() > 1e-2
    assert tiny.error(velocity(changed)[:, :2], velocity()[:, :2]) > 1e-2, "with full context they do"


def test_positions_shift_freely_together():
    assert tiny.error(velocity(context=Full(range(7, 11))), velocity()) < tolerance.EXACT
    assert tiny.error(velocity(context=Full([0, 1, 2, 9])), velocity()) > tolerance.DIFFERENT


def test_the_video_run_is_predicted():
    clean = RunInput(tiny.latents(4, 2, seed=5), torch.zeros(2, 4, dtype=WIDE), "clean")
    given = velocity(sigma=torch.full((2, 4), 0.7, dtype=WIDE), clean=clean)
    assert given.shape == X.shape
    assert tiny.error(given, velocity()) > 1e-2, "the clean half is seen"
    other = replace(clean, sigma=torch.full((2, 4), 0.5))
    assert tiny.error(given, velocity(sigma=torch.full((2, 4), 0.7), clean=other)) > 1e-2, "with its own sigma"
    assert tiny.error(given, velocity(clean=clean)) < tolerance.EXACT, "one sigma for the noisy half"


def test_sinusoid_is_exact():
    wave = sinusoid(torch.tensor([999.9], dtype=torch.float64), 64)
    rates = torch.tensor([10000.0 ** (-i / 32) for i in range(32)], dtype=torch.float64)
    assert tiny.error(wave[0], torch.cat(((999.9 * rates).cos(), (999.9 * rates).sin()))) < 1e-9
    assert tiny.error(sinusoid(torch.tensor([999.0]), 64), wave) > 1e-2


def test_sizes_change_from_call_to_call():
    """Nothing about a size is kept: the same model, three resolutions and lengths, and back."""
    wanted = velocity()
    for num_frames, rows, columns in ((1, 2, 2), (3, 8, 4), (7, 2, 10)):
        x = tiny.draw("x", shape=(2, num_frames, 4, rows, columns))
        assert velocity(x).shape == x.shape
    assert torch.equal(velocity(), wanted)


@pytest.mark.parametrize("head_dim", [2, 4, 10, 14, 22])
def test_any_head_width(head_dim):
    model = tiny.denoiser(dim=4 * head_dim, num_heads=4)
    assert velocity(model=model).shape == X.shape


def test_options_of_the_spec():
    model = tiny.denoiser(qk_norm=False, cross_attn_norm=False)
    names = dict(model.named_parameters())
    assert not [n for n in names if "norm" in n]
    assert tiny.error(velocity(model=model), velocity()) > 1e-2
    assert tiny.error(velocity(model=tiny.denoiser(rope_theta=50.0)), velocity()) > 1e-3


def image_model():
    return tiny.denoiser(in_dim=9, image_dim=12)


def image_condition(frames: int = 6) -> Condition:
    image = tiny.draw("image", shape=(2, CLIP_TOKENS, 12))
    return tiny.condition(2, image=image, channels=tiny.draw("channels", shape=(2, frames, 5, 4, 6)))


def test_transformer_sees_image_condition_of_the_span():
    model, whole = image_model(), image_condition()
    given = whole.cut(Span(2, 6))
    assert given.key == whole.key and torch.equal(given.channels, whole.channels[:, 2:6])
    wanted = velocity(condition=given, model=model)
    for other in (replace(given, image=given.image.flip(1), key="flipped"), whole.cut(Span(0, 4))):
        moved = tiny.error(velocity(condition=other, model=model), wanted)
        assert (moved > 1e-2) == (other.key == whole.key), "attention forgets the order of tokens, channels do not"
    assert (
        tiny.error(velocity(condition=replace(given, image=-given.image, key="negative"), model=model), wanted) > 1e-2
    )
    null = whole.null()
    assert null.image is whole.image and null.channels is whole.channels, "guidance is about the text alone"


def cached(window: int, chunk: int, num_frames: int):
    return Cached(tiny.ring(MODEL, CacheConfig(window), chunk, batch=2), Span(0, num_frames))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: velocity(tiny.draw("x", shape=(2, 4, 5, 4, 6))), "takes 4 channels and got 5"),
        (lambda: velocity(model=image_model()), "takes 9 channels and got 4"),
        (lambda: velocity(condition=tiny.condition(2, num_tokens=6)), "6 text tokens given; the model takes 5"),
        (lambda: velocity(context=Full(range(3))), "3 positions for 4 frames"),
        (lambda: velocity(context=cached(9, 3, 3)), r"4 frames given for the span \[0, 3\)"),
        (
            lambda: velocity(clean=RunInput(X, torch.zeros(2, 4), "clean"), context=cached(9, 4, 4)),
            r"runs \['clean', 'video'\] given; a cached forward",
        ),
        (lambda: replace(TEXT, null_text=None).null(), "guidance needs the encoded negative prompt"),
        (lambda: replace(tiny.SPEC, num_heads=3), "dim 32 is not a multiple of num_heads 3"),
        (lambda: replace(tiny.SPEC, dim=6), "head width 3 is odd"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_or_cut_image_tokens_are_refused():
    with pytest.raises(ValueError, match="conditioned on an image"):
        velocity(condition=replace(image_condition(4), image=None), model=image_model())
    with pytest.raises(ValueError, match="5 image tokens given; CLIP ViT-H/14 makes 257"):
        velocity(condition=replace(image_condition(4), image=torch.zeros(2, 5, 12)), model=image_model())


def test_two_experts():
    low, high = tiny.denoiser(1), tiny.denoiser(2)
    both = ExpertDenoiser(low, high, boundary=0.875)
    for sigma, chosen in ((1.0, high), (0.875, high), (0.87, low), (0.0, low)):
        assert torch.equal(velocity(sigma=sigma, model=both), velocity(sigma=sigma, model=chosen))
    assert tiny.error(velocity(model=low), velocity(model=high)) > 0.1
    assert (both.expert(0.9), both.expert(0.5), both.spec) == (1, 0, low.spec)
    with pytest.raises(ValueError, match="give a float"):
        velocity(sigma=torch.tensor([0.7]), model=both)


def test_config_files_of_models():
    config = {"dim": 32, "num_heads": 2, "patch_size": [1, 2, 2], "_class_name": "WanModel"}
    spec = TransformerSpec.from_config(config)
    assert (spec.dim, spec.patch_size, spec.head_dim) == (32, (1, 2, 2), 16)
    assert {s.transformer.head_dim for s in SPECS.values()} == {128, 64}
