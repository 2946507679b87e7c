"""Talking clips as samples: windows, what counts, what is heard, and rollouts on them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests import tiny
from trainer.sources.config import TalkingConfig, TalkingRolloutConfig
from utils.config.field import check
from utils.data.latents import write_shard
from utils.data.records import BadRecord
from utils.data.talking import TalkingFolder
from utils.rng import Rng
from wan.condition import Condition
from wan.generation import GenerationConfig, PortraitConfig, StepsConfig
from wan.ledger import CacheConfig

CLIPS, FRAMES, WINDOW = 6, 15, 9
GENERATION = GenerationConfig(
    steps=StepsConfig((1000.0, 600.0), 1.0, warp=False, eta=1.0),
    cache=CacheConfig(9, rope="read", content="same_step"),
    portrait=PortraitConfig((24, 24)),
)
RNG, MODEL = Rng(0), tiny.s2v_denoiser()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("talks")
    latents = torch.arange(CLIPS)[:, None, None, None, None] + tiny.draw("l", shape=(CLIPS, FRAMES, 4, 8, 8)) * 0.1
    spec = MODEL.spec
    audio = torch.arange(4 * FRAMES)[None, None, :, None, None].expand(CLIPS, 1, -1, spec.audio_layers, spec.audio_dim)
    reference = tiny.draw("r", shape=(CLIPS, 1, 4, 8, 8))
    write_shard(
        path, 0, latents, [f"clip {n}" for n in range(CLIPS)], extra={"audio": audio.float(), "reference": reference}
    )
    return path


def text(prompts, null=True):
    rows = torch.stack([tiny.draw("text", prompt, shape=(4, tiny.SPEC.text_dim)) for prompt in prompts])
    return Condition(rows, rows if null else None)


ROLES = SimpleNamespace(device="cpu", condition=text, generator=MODEL, vae=SimpleNamespace(strides=(4, 8, 8)))


def source(folder, **knobs):
    return TalkingConfig(path=str(folder), batch=4, frames=WINDOW, **knobs).build(GENERATION)


def test_a_window_has_its_own_sound(folder):
    made = source(folder, starts=0.0, silence=0.0, dropout=0.0).next(0, ROLES, RNG)
    heard = made.condition.cut(range(WINDOW)).heard[:, 0, :, :, 0, 0]
    for row in range(4):
        first = int(heard[row, 0, -1]) - 3  # the newest feature that its first frame hears
        assert first % 12 == 0 and first > 0
        wanted = torch.stack([torch.arange(first + 4 * f - 5, first + 4 * f + 4) for f in range(WINDOW)])
        assert torch.equal(heard[row], wanted.float())


def test_at_the_start_the_first_feature_is_repeated(folder):
    made = source(folder, starts=1.0, silence=0.0).next(0, ROLES, RNG)
    heard = made.condition.cut(range(WINDOW)).heard[0, 0, :, :, 0, 0]
    assert heard[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3] and heard[1].tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert made.frame_mask is None


def test_behind_a_still_a_window_of_the_middle_counts_from_its_second_chunk_on(folder):
    made = source(folder, starts=0.5).next(1, ROLES, RNG)
    rows = {tuple(row) for row in made.frame_mask.tolist()}
    assert rows == {(True,) * 9, (False,) * 3 + (True,) * 6}
    past = source(folder, starts=0.0, motion="past").next(1, ROLES, RNG)
    assert past.frame_mask is None
    clip = past.latents[0].mean().round()  # every clip's latents lie around its number
    assert (past.condition.motion[0, -3:].mean((1, 2, 3)).round() == clip).all()


def test_silence_and_dropout_are_drawn_by_sample(folder):
    quiet = source(folder, silence=0.999, dropout=0.999).next(0, ROLES, RNG)
    assert not quiet.condition.audio.any() and set(quiet.prompts) == {""}
    whole, half = source(folder), source(folder)
    both = whole.next(3, ROLES, RNG)
    part = half.next(3, ROLES, RNG, index=range(14, 16))
    assert torch.equal(both.latents[2:], part.latents) and torch.equal(both.condition.audio[2:], part.condition.audio)


def test_a_rollout_is_scored_on_its_last_frames(folder):
    config = TalkingRolloutConfig(clips=str(folder), batch=2, frames=12, loss_frames=9, height=64, width=64)
    roller = config.build(GENERATION)
    MODEL.transformer.requires_grad_(True)
    try:
        sample = roller.next(0, ROLES, RNG)
    finally:
        MODEL.transformer.requires_grad_(False)
    assert sample.latents.shape == (2, 9, 4, 8, 8) and sample.latents.requires_grad and sample.frame_mask is None
    assert sample.condition.heard.shape[2] == 9 and sample.condition.motion.shape[1] == 19
    assert not torch.equal(sample.condition.motion[:, -1], sample.condition.reference[:, 0]), "what was before"
    assert torch.equal(sample.condition.motion[:, 0], sample.condition.reference[:, 0])
    again = roller.next(0, ROLES, RNG, with_grad=False)
    assert torch.equal(again.latents, sample.latents.detach()) and not again.latents.requires_grad


def test_the_history_is_corrupted_by_sample(folder):
    """A level of its own for each sample, the same whoever holds it; the generator's motion alone in a rollout."""
    clean, made = (source(folder, corruption=most).next(0, ROLES, RNG) for most in (0.0, 0.5))
    assert torch.equal(clean.latents, made.latents) and torch.equal(clean.condition.audio, made.condition.audio)
    still, moved = clean.condition.motion, made.condition.motion
    levels = (still - moved).flatten(1).std(1) / (still.flatten(1).std(1) ** 2 + 1).sqrt()  # of s (noise - motion)
    assert ((levels > 0) & (levels < 0.6)).all() and levels.max() - levels.min() > 0.05
    part = source(folder, corruption=0.5).next(0, ROLES, RNG, index=made.index[2:4])
    assert torch.equal(part.condition.motion, moved[2:4])


def test_a_rollout_sees_another_history_than_its_score(folder):
    config = TalkingRolloutConfig(clips=str(folder), batch=2, frames=9, loss_frames=9, height=64, width=64)
    with torch.no_grad():
        made = replace(config, corruption=0.5).build(GENERATION).next(0, ROLES, RNG, with_grad=False)
        other = config.build(GENERATION).next(0, ROLES, RNG, with_grad=False)
    assert torch.equal(made.condition.motion, other.condition.motion)
    assert not torch.equal(made.latents[:, :3], other.latents[:, :3])


def test_wrong_knobs_and_shards_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="motion is 'fast'; write still or past"):
        check(TalkingConfig(path="x", motion="fast"))
    with pytest.raises(ValueError, match="leave prompts and given out"):
        check(TalkingRolloutConfig(clips="x", given=3))
    write_shard(tmp_path, 0, torch.zeros(1, 3, 4, 8, 8), ["x"])
    with pytest.raises(BadRecord):
        TalkingFolder(tmp_path)
