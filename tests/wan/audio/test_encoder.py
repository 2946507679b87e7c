"""The audio encoder: nine features a latent frame are the published causal convolution over the whole clip."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests import tiny, tolerance
from wan.condition import Condition

ENCODER = tiny.s2v_denoiser(dtype=torch.float64).transformer.casual_audio_encoder
FRAMES = 5


def clip(frames: int = FRAMES, **fields) -> Condition:
    """Returns the sound of a clip."""
    return tiny.avatar(frames=frames, dtype=torch.float64, **fields)


@torch.no_grad()
def published(features_TLC: torch.Tensor, prefix: int):
    """Returns tokens and global tokens of a clip, written out: the first frame repeated, causal convolutions."""
    weights = functional.silu(ENCODER.weights[0, :, 0, 0])
    sound = torch.cat((features_TLC[:1].expand(prefix, -1, -1), features_TLC))
    x = (sound * (weights / weights.sum())[:, None]).sum(1).T[None]
    parts = ENCODER.encoder

    def causal(x, layer, stride):
        padded = functional.pad(x, (2, 0), mode="replicate")
        return functional.conv1d(padded, layer.conv.weight, layer.conv.bias, stride)

    def settle(x):
        return functional.silu(functional.layer_norm(x.transpose(1, 2), (x.shape[1],), eps=1e-6)).transpose(1, 2)

    def rest(x):
        return settle(causal(settle(causal(x, parts.conv2, 2)), parts.conv3, 2))

    local = causal(x, parts.conv1_local, 1).unflatten(1, (parts.num_tokens, -1))[0]
    dropped = (prefix + 3) // 4
    tokens = rest(settle(local)).permute(2, 0, 1)[dropped:]
    padding = parts.padding_tokens[0].expand(len(tokens), -1, -1)
    whole = parts.final_linear(rest(settle(causal(x, parts.conv1_global, 1)))[0].T[dropped:])
    return torch.cat((tokens, padding), 1), whole


@pytest.mark.parametrize("prefix", [1, 5, 73])
def test_nine_features_are_the_published_convolution(prefix):
    condition = clip()
    tokens, whole = ENCODER(condition.hear(range(FRAMES)))
    wanted = published(condition.audio[0, 0], prefix)
    assert tiny.error(tokens[0, 0], tiny.healthy(wanted[0])) < tolerance.EXACT
    assert tiny.error(whole[0, 0], wanted[1]) < tolerance.EXACT


def test_a_chunk_alone_is_a_clip_of_its_own():
    condition = clip(audio_chunk=3)
    tokens, _ = ENCODER(condition.hear(range(3, 5)))
    wanted, _ = published(condition.audio[0, 0, 12:20], 1)
    assert tiny.error(tokens[0, 0], wanted) < tolerance.EXACT
    past, _ = ENCODER(clip().hear(range(3, 5)))
    assert tiny.error(past[0, 0], wanted) > 0.1, "with its past it is another"


def test_whole_clips_and_their_chunks_hear_the_same():
    condition = clip(6, audio_chunk=3)
    whole = condition.hear(range(6))
    assert torch.equal(whole, torch.cat([condition.hear(range(0, 3)), condition.hear(range(3, 6))], 2))


def test_a_window_of_the_sound_is_enough():
    condition, late = clip(8), clip(8)
    late = Condition(late.text, audio=late.audio[:, :, 12:], audio_start=3, key=late.key)
    assert torch.equal(late.cut(range(5, 8)).heard, condition.cut(range(5, 8)).heard)
    with pytest.raises(ValueError, match=r"holds the features of pixel frames \[12, 32\) and those of \[11, 24\)"):
        late.cut(range(4, 6))
    with pytest.raises(ValueError, match="those of .27, 36. are asked for"):
        late.cut(range(8, 9))


def test_sound_of_another_model_is_refused():
    heard = clip().hear(range(2))
    with pytest.raises(ValueError, match="9 feature frames of 2 hidden states given for a latent frame; the model"):
        ENCODER(heard[..., :2, :])
