"""Streaming long tuning: stretches make the video of one rollout; what is scored, by which prompt, what stays."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.rollout import Rollout
from pipeline.sampler import RandomExit
from pipeline.track import PromptSchedule
from tests import digits_fixture, tiny
from tests.architecture.source import ROOT
from tests.digits_fixture import PROMPTS
from tests.trainer import stream_fixture
from tests.trainer.stream_fixture import SECOND
from trainer.checkpoint.dcp import Own
from trainer.sources.config import StreamConfig
from trainer.sources.latents import epoch_row
from trainer.sources.stream import StreamSource
from utils.config.field import check
from utils.digits.schedules import VALUES, changed
from utils.digits.world import parse_prompt
from utils.rng import Rng
from wan.denoiser import Denoiser
from wan.geometry import chunks

RNG = Rng(5)


class PictureVae:
    """Three latent channels are the picture; a fast stand-in for the codec."""

    strides = (4, 8, 8)

    def decode(self, latents):
        return latents[:, :, :3].clamp(-1, 1)

    def last_frame(self, latents):
        return self.decode(latents)[:, -1:]

    def encode(self, pixels):
        return pixels.repeat(1, 1, 6, 1, 1)[:, :, :16]


@pytest.fixture(scope="module")
def method(distill_recipe, tmp_path_factory):
    """A training whose networks the tests share; two blocks, for the first one's keys know no prompt."""
    recipe, _ = distill_recipe
    folder = tmp_path_factory.mktemp("stream")
    weights = digits_fixture.model_folder(folder / "two", num_layers=2, ffn_dim=64) / "transformer"
    given = stream_fixture.overrides(folder, recipe.parent / "prompts.txt", "switch_frames: 7")
    made = stream_fixture.build(recipe, [*given, f"trainer.generator.weights={weights}"])
    made.roles.vae = PictureVae()
    return made


@pytest.fixture
def source(method):
    """source(**knobs) -> a stream with these knobs, `cache` among them; by default it switches at frame 7."""

    def build(cache=method.generation.cache, **knobs):
        return replace(method.config.source, **knobs).build(replace(method.generation, cache=cache))

    return build


def plain(**knobs) -> dict:
    """Knobs of a stream without switches."""
    return {"switch_prompts": "", "switch_frames": (), **knobs}


def take(stream: StreamSource, roles, steps, with_grad=False) -> list:
    """Returns the samples of some steps of one video batch, (sample, video, frames made) each."""
    taken = []
    for step in steps:
        sample = stream.next(step, roles, RNG, with_grad)
        (video,) = stream.videos.values()
        taken.append((sample, video, video.length))
    return taken


def test_the_loss_window_holds_the_past_and_counts_the_new(source, method):
    stream, roles, vae = source(**plain(max_frames=60)), method.roles, method.roles.vae
    video, drawn = None, set()
    for step in range(8):
        before, start = (video.previous, video.length) if video else (None, 0)
        sample = stream.next(step, roles, RNG, with_grad=False)
        (video,) = stream.videos.values()
        count = video.length - start
        assert sample.latents.shape[1] == 6 == video.previous.shape[1]
        assert torch.equal(sample.latents[:, 6 - count :], video.previous[:, 6 - count :])
        if before is None:
            assert count == 6 and sample.frame_mask is None
            continue
        drawn.add(count)
        assert sample.frame_mask.tolist() == [False] * (6 - count) + [True] * count
        assert torch.equal(sample.latents[:, 1 : 6 - count], before[:, count + 1 :])
        pixels = vae.decode(torch.cat((before, video.previous[:, 6 - count :]), 1)[:, : count + 1])
        assert torch.equal(sample.latents[:, 0], vae.encode(pixels[:, -1:])[:, 0])
    assert drawn == {2, 4}, "no new stretch is the whole window, both others are drawn"


def one_video(stream, video, roles, steps, lengths) -> torch.Tensor:
    """Returns the latents of the same video by one call of the rollout, from the draws of the stretches."""
    spans, exits, noises, start = [], {}, {}, 0
    for step, stop in zip(steps, lengths, strict=True):
        part = chunks(stop - start, 2, start=start)
        noise = stream.noise(step, stream.index(step), video.rollout.geometry, RNG)
        exits |= dict(zip(part, stream.exits(step, len(part), RNG, start), strict=True))
        noises |= dict.fromkeys(part, noise)
        spans, start = spans + part, stop
    sampler = RandomExit(stream.few_steps(), exits.__getitem__)
    rollout = replace(video.rollout, sampler=sampler)
    with torch.no_grad():
        state, track = rollout.start(2, 2, video.max_frames), PromptSchedule(video.track.cues)
        made = PlainExecutor(rollout).run(state, track, spans, lambda s, k: noises[s](s, k))
        return torch.cat([chunk.latents for chunk in made], 1)


def stretched(stream, roles, steps, with_grad=False):
    """Returns (the video's latents put together from the samples' new frames, the video, lengths)."""
    parts, lengths, before = [], [], 0
    taken = take(stream, roles, steps, with_grad)
    for sample, _, length in taken:
        parts.append(sample.latents.detach()[:, before - length :])
        lengths.append(length)
        before = length
    return torch.cat(parts, 1), taken[-1][1], lengths


@pytest.mark.parametrize("recache", ["causal", "bidirectional", "reset"])
def test_stream_segments_make_one_rollout(source, method, recache, monkeypatch):
    cache = replace(method.generation.cache, recache=recache)
    stream, steps = source(max_frames=30, cache=cache), range(7)
    made, video, lengths = stretched(stream, method.roles, steps)
    assert video.switch == 7 and video.track.taken == [0, 8], "asked inside a chunk, it comes with the next"
    assert torch.equal(made, one_video(stream, video, method.roles, steps, lengths))
    monkeypatch.setattr(Rollout, "recache", lambda self, state, condition: None)
    skipped, *_ = stretched(source(max_frames=30, cache=cache), method.roles, steps)
    assert torch.equal(made[:, :8], skipped[:, :8]) and not torch.allclose(made[:, 8:10], skipped[:, 8:10], atol=1e-4)


def test_gradient_flows_into_new_frames_after_the_switch_alone(source, method):
    stream, roles, straddled = source(max_frames=60, switch_frames=13), method.roles, False
    weight = roles.generator.transformer.blocks[0].ffn[0].weight
    for step in range(6):
        before = video.length if (video := next(iter(stream.videos.values()), None)) else 0
        sample = stream.next(step, roles, RNG, with_grad=True)
        (video,) = stream.videos.values()
        first = max(before, 14) if before < 14 < video.length else before
        grads = [
            torch.autograd.grad(sample.latents[:, f].sum(), weight, retain_graph=True, allow_unused=True)[0]
            if sample.latents.requires_grad
            else None
            for f in range(6)
        ]
        got = [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]
        assert got == [f >= first for f in range(video.length - 6, video.length)], (before, video.length)
        if before < 14 < video.length:
            straddled = True
            counted = [True] * 6 if sample.frame_mask is None else sample.frame_mask.tolist()
            assert sum(counted) == video.length - before, "frames before the switch count all the same"
    assert video.track.taken == [0, 14] and straddled


def test_the_prompt_in_force_is_that_of_the_last_frame(source, method):
    stream, text = source(max_frames=30), method.roles.text
    second = dict(zip(PROMPTS, SECOND, strict=True))
    first = None
    for sample, _, length in take(stream, method.roles, range(6)):
        first = first or sample.prompts
        wanted = first if length <= 8 else [second[prompt] for prompt in first]
        assert sample.prompts == wanted
        assert torch.equal(sample.condition.text, text(wanted))
        assert torch.equal(sample.condition.null_text, text([""]).expand(2, -1, -1))


def test_videos_end_and_the_next_prompts_begin(source, method):
    stream = source(max_frames=[8, 14], switch_frames=[3, 9])
    ends, prompts, seen = {}, {}, set()
    for step in range(40):
        sample = stream.next(step, method.roles, RNG, with_grad=False)
        (video,) = stream.videos.values()
        assert video.length <= video.max_frames
        ends[video.number] = video.length
        seen.add((video.max_frames, video.switch))
        prompts.setdefault(video.number, sample.prompts)
    assert list(ends) == list(range(len(ends))) and len(ends) > 8
    assert seen == {(8, 3), (14, 3), (14, 9)}, "a switch behind the end of the video is not drawn"
    lines = list(PROMPTS)
    for number, given in list(prompts.items())[:-1]:
        rows = [epoch_row(number * 2 + place, 3, RNG) for place in range(2)]
        first = [lines[row] for row in rows]
        assert given in (first, [SECOND[row] for row in rows])


def test_an_unscored_first_stretch_is_followed_by_a_scored_one(source, method):
    stream = source(**plain(train_first_chunk=False))
    sample = stream.next(0, method.roles, RNG, with_grad=True)
    (video,) = stream.videos.values()
    count = int(sample.frame_mask.sum())
    assert video.length == 6 + count and sample.latents.requires_grad
    with pytest.raises(ValueError, match="max_frames is 6; write at least 8"):
        check(source(**plain(train_first_chunk=False, max_frames=6)).config)


def unwrapped(state):
    """Returns a state as a checkpoint gives it back on one rank: a copy, tensors of their own plain."""
    if isinstance(state, dict):
        return {name: unwrapped(value) for name, value in state.items()}
    if isinstance(state, list):
        return [unwrapped(value) for value in state]
    return state.tensor.clone() if isinstance(state, Own) else state


def test_stream_resumes_state_without_cache_content(source, method, caplog):
    """A knob that a checkpoint does not have has its default; where another value is wanted, videos begin anew."""
    stream = source(max_frames=30)
    take(stream, method.roles, range(3))
    saved, shares = stream.state_dict(), list(stream.videos)
    wanted = take(stream, method.roles, [3])[0][0].latents
    for knob, goes_on in (("content", True), ("sink_frames", False)):
        old, again = unwrapped(saved), source(max_frames=30)
        old["fits"] = copy.deepcopy(old["fits"])
        del old["fits"]["generation"]["cache"][knob]
        again.load_state_dict(old, shares, method.roles)
        assert bool(again.videos) == goes_on and ("begin anew" in caplog.text) != goes_on
        if goes_on:
            assert torch.equal(take(again, method.roles, [3])[0][0].latents, wanted)


def held(video) -> tuple[int, bool]:
    """Returns (bytes of memory that the video's caches keep alive, whether anything kept has gradient)."""
    tensors = [t for cache in video.state.caches[0] for kept in cache._kept for pair in kept.values() for t in pair]
    tensors += [video.previous, *(chunk.latents for chunk in video.state.latest)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()), any(t.requires_grad for t in tensors)


def test_what_stays_has_no_gradient_and_does_not_grow(source, method):
    cache = replace(method.generation.cache, recache="bidirectional", keep_sink=False)
    stream, sizes = source(max_frames=80, switch_frames=21, cache=cache), []
    for _, video, length in take(stream, method.roles, range(20), with_grad=True):
        size, with_grad = held(video)
        assert not with_grad
        sizes.append((length, size))
    full = {size for length, size in sizes if length >= 8 and not 20 < length < 30}
    assert len(full) == 1 and sizes[-1][0] > 60, sizes


def test_all_shares_do_the_same_forwards_with_and_without_gradient(source, method, monkeypatch):
    calls, forward = [], Denoiser.forward
    monkeypatch.setattr(
        Denoiser, "forward", lambda self, x, *rest: (calls.append(x.shape[1]), forward(self, x, *rest))[1]
    )
    done = []
    for place, with_grad in ((0, True), (1, True), (0, False)):
        stream = source(exit_per_chunk=True, switch_frames=[3, 7, 9], max_frames=[10, 14])
        calls.clear()
        for step in range(6):
            base = stream.index(step).start
            stream.next(step, method.roles, RNG, with_grad, range(base + place, base + place + 1))
        done.append(list(calls))
    assert done[0] == done[1] == done[2] and len(done[0]) > 25


def test_a_part_has_videos_of_its_own_and_changes_nothing(source, method):
    whole, parts = source(), source()
    for step in range(5):
        sample = whole.next(step, method.roles, RNG, with_grad=False)
        rows = [parts.next(step, method.roles, RNG, False, range(n, n + 1)) for n in whole.index(step)]
        assert [row.prompts[0] for row in rows] == sample.prompts
        made = torch.cat([row.latents for row in rows])
        assert tiny.error(made, sample.latents) < digits_fixture.rounding(passes=21)
    assert len(parts.videos) == 2


def test_a_switch_range_is_drawn_in_chunks(source):
    config = source(switch_frames=(), switch_range=(3, 8)).config
    assert config.switches(2) == (3, 5, 7) and isinstance(config, StreamConfig)


def test_the_digits_switch_file_is_made_by_its_rule():
    """The command in docs/training.md."""
    files = [(ROOT / f"prompts/digits_{name}.txt").read_text().splitlines() for name in ("all", "switch")]
    for number, (line, switch) in enumerate(zip(*files, strict=True)):
        rng = np.random.default_rng((0, number))
        assert switch == changed(parse_prompt(line)[0], list(VALUES)[number % 3], rng).text() != line
