"""Sessions: prompts that change now or next, snapshots, rewinds and forks that are exact, other threads."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from pipeline.batch.request import KeyedNoise, Request
from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.sampler import FewStep
from pipeline.session import Session
from pipeline.track import PromptSchedule
from tests import tiny
from utils.rng import Rng
from wan.codec.base import StreamingDecoder
from wan.generation import GenerationConfig
from wan.geometry import Span
from wan.ledger import CacheConfig
from wan.schedule import Schedule

SIGMAS = (1.0, 0.8, 0.5)


class StreamedMean(StreamingDecoder):
    """A VAE whose pixels depend on all latents before; its state has the three kinds of entries that diffusers has."""

    strides, latent_channels = (4, 8, 8), 4

    def decode_stream(self, latents, state=None):
        """Returns (pixels, state)."""
        before = torch.zeros_like(latents[:, :1]) if state is None else state[0]
        running = before + latents.cumsum(1)
        return running, (running[:, -1:], None, "Rep")


def encode(prompts):
    """Text embeddings that depend on the words alone."""
    return torch.stack([tiny.draw("text", p, shape=(4, tiny.SPEC.text_dim)) for p in prompts])


def make_pipeline(config=None, guidance=1.0, chunk=3, first_chunk=0):
    """A causal pipeline of the tiny model."""
    bundle = ModelBundle.of(tiny.denoiser(), StreamedMean(), encode, torch.device("cpu"), torch.float32)
    knobs = GenerationConfig(chunk, first_chunk, cache=config or CacheConfig(9, 2))
    return Causal(knobs, bundle, FewStep(SIGMAS, Schedule(), guidance), tiny.GEOMETRY)


def started(pipeline=None, **fields):
    """A session at the start of "one"."""
    session = Session(pipeline or make_pipeline())
    session.start("one", **fields)
    return session


def watch(session, during):
    """Calls during(number) before each forward of the session, numbered from 1; returns the list of numbers."""
    rollout, calls = session._executor.rollout, []
    inner = rollout.denoiser

    def forward(*arguments):
        calls.append(len(calls) + 1)
        during(calls[-1])
        return inner(*arguments)

    for name in ("spec", "cache_heads", "pinned_runs", "pinned_tokens", "frame_tokens"):
        setattr(forward, name, getattr(inner, name))
    forward.parameters = inner.parameters
    session._executor = replace(session._executor, rollout=replace(rollout, denoiser=forward))
    return calls


def equal(a, b) -> bool:
    """Whether two chunks are equal bit by bit."""
    return a.span == b.span and torch.equal(a.latents, b.latents) and torch.equal(a.pixels, b.pixels)


def batch_video(pipeline, cues, total, seed=0, index=0):
    """The video of batch inference: (frame, prompt) pairs."""
    null = None if pipeline.rollout.sampler.guidance == 1 else ""
    track = PromptSchedule([(frame, pipeline.bundle.condition([prompt], null)) for frame, prompt in cues])
    shape = tiny.GEOMETRY.latent_shape(1)[1:]
    noise = KeyedNoise(Rng(seed), [Request(cues[0][1], index, 0, "")], shape, torch.float32)
    return torch.cat([c.latents for c in pipeline.generate(track, noise, 1, total)], 1)


@pytest.mark.parametrize(("guidance", "first_chunk"), [(1.0, 0), (3.0, 0), (1.0, 1)])
def test_a_session_makes_the_video_of_batch_inference(guidance, first_chunk):
    pipeline = make_pipeline(CacheConfig(9, 2, "write", "bidirectional"), guidance, first_chunk=first_chunk)
    session, made = started(pipeline, seed=3, index=5), []
    for number in range(5):
        if number == 3:
            session.switch_prompt("two")
        made.append(session.step())
    video, start = torch.cat([c.latents for c in made], 1), made[3].span.start
    assert made[-1].span.stop == session.next_frame == video.shape[1]
    wanted = batch_video(pipeline, [(0, "one"), (start, "two")], video.shape[1], seed=3, index=5)
    assert torch.equal(video, tiny.healthy(wanted))
    assert [c.recache_seconds is not None for c in made] == [False, False, False, True, False]
    assert tiny.error(batch_video(pipeline, [(0, "one")], video.shape[1], 3, 5), wanted) > 1e-2
    latents = torch.cat([c.latents for c in made], 1)
    assert tiny.error(torch.cat([c.pixels for c in made], 1), latents.cumsum(1)) < 1e-4


POLICIES = [
    CacheConfig(9, 2, rope, recache, keep)
    for rope in ("write", "read")
    for recache, keep in (("bidirectional", True), ("bidirectional", False), ("causal", True), ("reset", False))
]


@pytest.mark.parametrize("config", POLICIES, ids=str)
def test_a_fork_that_goes_on_is_the_video_that_was_never_forked(config):
    pipeline = make_pipeline(config, guidance=2.0)
    prompts = {3: "two", 6: "three"}
    sessions = [started(pipeline), started(pipeline)]
    for number in range(8):
        if number in (3, 5):  # right at a switch that waits, and after
            stay = sessions[1]
            sessions[1] = stay.fork()
            stay.switch_prompt("elsewhere")
            stay.step()
            stay.close()
        for session in sessions:
            if number in prompts:
                session.switch_prompt(prompts[number])
        if number == 6:
            sessions[1] = sessions[1].fork()  # with a switch in line
        a, b = (session.step() for session in sessions)
        assert equal(a, b), number
    assert sessions[0].prompt == sessions[1].prompt == "three"
    tiny.healthy(a.latents)


@pytest.mark.parametrize("config", POLICIES[:2] + POLICIES[4:6], ids=str)
def test_a_rewound_video_goes_on_alike(config):
    """Through bytes: the snapshot is tensors, and a book that JSON can hold."""
    session = started(make_pipeline(config))
    for _ in range(4):
        session.step()
    session.switch_prompt("two")
    before = session.snapshot()
    tensors, book = save(before["tensors"]), json.dumps(before["book"])
    first = [session.step() for _ in range(4)]
    session.switch_prompt("three")
    session.step()
    session.restore(before)
    assert (session.prompt, session.next_frame) == ("one", 12)
    again = [session.step() for _ in range(4)]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    other = Session(session.pipeline)
    other.restore({"tensors": load(tensors), "book": json.loads(book)})
    assert all(equal(a, other.step()) for a in first)
    assert tiny.error(first[0].latents, started(session.pipeline).step().latents) > 1e-2


@pytest.mark.parametrize("part", ["0.keys", "0.values", "latest", "vae.0"])
def test_every_part_of_a_snapshot_matters(part):
    session = started(make_pipeline(CacheConfig(9, 2, "write", "bidirectional", False)))
    for _ in range(4):
        session.step()
    session.switch_prompt("two")
    before = session.snapshot()
    wanted = [session.step() for _ in range(2)]
    before["tensors"][part] = before["tensors"][part] * 0.5
    if part in ("0.keys", "0.values"):
        before["book"]["waiting"] = []  # else the recache makes them anew
        whole = session.snapshot()
        session.restore({**before, "tensors": {**before["tensors"], part: before["tensors"][part] * 2}})
        wanted = [session.step() for _ in range(2)]
        session.restore(whole)
    session.restore(before)
    again = [session.step() for _ in range(2)]
    assert not any(equal(a, b) for a, b in zip(wanted, again, strict=True))


def test_a_snapshot_is_a_copy():
    session = started()
    session.step()
    before = session.snapshot()
    kept = {name: tensor.clone() for name, tensor in before["tensors"].items()}
    book = json.dumps(before["book"])
    session.switch_prompt("two")
    for _ in range(5):
        session.step()
    assert all(torch.equal(before["tensors"][name], kept[name]) for name in kept)
    assert json.dumps(before["book"]) == book


def test_next_prompts_come_one_a_chunk():
    session = started()
    session.step()
    session.switch_prompt("two")
    session.switch_prompt("three")
    assert session.prompt == "one"
    said = []
    for _ in range(3):
        session.step()
        said.append(session.prompt)
    assert said == ["two", "three", "three"]


@pytest.mark.parametrize("at", [1, 2])
def test_now_gives_the_chunk_up_between_two_steps_and_begins_it_anew(at):
    """The video is the one whose prompt came at that chunk's start: caches and noise are as if nothing had been."""
    pipeline = make_pipeline(CacheConfig(9, 2, "read", "bidirectional"))
    session = started(pipeline)
    made = [session.step() for _ in range(4)]
    calls = watch(session, lambda number: number == at and session.switch_prompt("two", "now"))
    made += [session.step() for _ in range(2)]
    wanted = batch_video(pipeline, [(0, "one"), (12, "two")], 18)
    assert torch.equal(torch.cat([c.latents for c in made], 1), wanted)
    assert made[4].recache_seconds is not None and session.prompt == "two"
    abandoned, recache, whole = at, 1, len(SIGMAS) + 1
    assert len(calls) == abandoned + recache + 2 * whole


def test_now_in_the_last_step_comes_with_the_next_chunk():
    pipeline = make_pipeline()
    session = started(pipeline)
    calls = watch(session, lambda number: number == len(SIGMAS) and session.switch_prompt("two", "now"))
    made = [session.step() for _ in range(3)]
    wanted = batch_video(pipeline, [(0, "one"), (3, "two")], 9)
    assert torch.equal(torch.cat([c.latents for c in made], 1), wanted)
    assert len(calls) == 3 * (len(SIGMAS) + 1) + 1, "one chunk was recached, none given up"


def test_next_does_not_disturb_the_chunk_in_the_making():
    pipeline = make_pipeline()
    session = started(pipeline)
    watch(session, lambda number: number == 2 and session.switch_prompt("two", "next"))
    made = [session.step() for _ in range(2)]
    wanted = batch_video(pipeline, [(0, "one"), (3, "two")], 6)
    assert torch.equal(torch.cat([c.latents for c in made], 1), wanted)


def test_now_drops_what_waits():
    session = started()
    session.step()
    for text, when in (("two", "next"), ("three", "next"), ("four", "now"), ("five", "next")):
        session.switch_prompt(text, when)
    said = []
    for _ in range(3):
        session.step()
        said.append(session.prompt)
    assert said == ["four", "five", "five"]


def test_another_thread_switches_while_a_step_runs():
    """`switch_prompt` does not wait for the step; a snapshot does, and sees whole chunks alone."""
    session, inside, go_on = started(), threading.Event(), threading.Event()

    def during(number):
        if number == 1:
            inside.set()
            assert go_on.wait(60)

    watch(session, during)
    made, taken = [], []
    stepping = threading.Thread(target=lambda: made.append(session.step()))
    stepping.start()
    assert inside.wait(60)
    switching = threading.Thread(target=lambda: session.switch_prompt("two", "now"))
    switching.start()
    switching.join(60)
    assert not switching.is_alive(), "switch_prompt waited for the step"
    looking = threading.Thread(target=lambda: taken.append(session.snapshot()["book"]["next_frame"]))
    looking.start()
    looking.join(0.1)
    assert looking.is_alive() and not taken
    go_on.set()
    for thread in (stepping, looking):
        thread.join(60)
    assert taken == [3] and session.prompt == "two"
    assert torch.equal(made[0].latents, batch_video(session.pipeline, [(0, "two")], 3))


def test_sessions_of_one_pipeline_do_not_mix():
    pipeline = make_pipeline()
    alone = [started(pipeline, seed=s) for s in (0, 1)]
    wanted = [[session.step() for _ in range(3)] for session in alone]
    a, b = (started(pipeline, seed=s) for s in (0, 1))
    made = [(a.step(), b.step()) for _ in range(3)]
    assert all(equal(x, w) and equal(y, v) for (x, y), w, v in zip(made, *wanted, strict=True))
    assert not equal(*made[0])


def test_what_cannot_be_is_refused():
    session = Session(make_pipeline())
    for call in (session.step, session.snapshot, lambda: session.switch_prompt("two")):
        with pytest.raises(ValueError, match=r"no video is running; call start"):
            call()
    session.start("one")
    with pytest.raises(ValueError, match="when is 'soon'; write 'now' or 'next'"):
        session.switch_prompt("two", "soon")
    with pytest.raises(ValueError, match="the prompt is empty"):
        session.switch_prompt(" ")
    with pytest.raises(ValueError, match="set a window"):
        started(make_pipeline(CacheConfig(-1)))
    session.close()
    session.close()
    for call in (session.step, lambda: session.start("one"), session.fork, lambda: session.switch_prompt("two")):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert session._state is None, "its caches are gone"


@pytest.mark.parametrize(("count", "guidance", "first_chunk"), [(2, 1.0, 0), (4, 3.0, 0), (3, 1.0, 1)])
def test_a_session_that_starts_with_the_frames_of_a_video_goes_on_as_it_did(count, guidance, first_chunk):
    """Latents, cache, recache and decoder: whatever follows is what followed, bit by bit."""
    pipeline = make_pipeline(CacheConfig(9, 2), guidance, first_chunk=first_chunk)
    whole = started(pipeline, seed=3)
    made = [whole.step() for _ in range(count)]
    session = Session(pipeline)
    given = session.start("one", seed=3, given=torch.cat([c.latents for c in made], 1))
    assert [c.given for c in given] == [True] * count
    assert all(equal(a, b) for a, b in zip(given, made, strict=True))
    assert session.next_frame == whole.next_frame
    a, b = session.snapshot(), whole.snapshot()
    assert a["book"] == b["book"] and all(torch.equal(a["tensors"][n], b["tensors"][n]) for n in b["tensors"])
    sessions = [whole, session, session.fork()]
    for number in range(4):
        if number == 1:
            for one in sessions:
                one.switch_prompt("two")
        first, *others = (one.step() for one in sessions)
        assert all(equal(first, other) for other in others) and not first.given
    tiny.healthy(first.latents)
    other = Session(pipeline)
    other.start("one", seed=3, given=tiny.latents(given[-1].span.stop, seed=9))
    session.restore(a)
    assert tiny.error(other.step().latents, session.step().latents) > 1e-2


def test_given_latents_that_do_not_fit_are_refused():
    session = Session(make_pipeline())
    for shape in ((1, 0, 4, 4, 6), (2, 3, 4, 4, 6), (1, 3, 4, 4, 4), (3, 4, 4, 6)):
        with pytest.raises(ValueError, match=r"this video takes \[1, F, 4, 4, 6\]"):
            session.start("one", given=torch.zeros(shape))
    with pytest.raises(ValueError, match="3 latent frames are given and max_frames is 3; write more"):
        session.start("one", given=tiny.latents(3), max_frames=3)
    with pytest.raises(ValueError, match="no video is running"):
        session.step()
    assert session.start("one") == []


def test_a_video_of_known_length_needs_no_window():
    session = started(make_pipeline(CacheConfig(-1)), max_frames=6)
    spans = [session.step().span for _ in range(2)]
    assert spans == [Span(0, 3), Span(3, 6)]
    with pytest.raises(ValueError, match="length"):
        session.step()


def test_without_decoding_there_are_no_pixels():
    session = Session(make_pipeline(), decode=False)
    session.start("one")
    assert session.step().pixels is None and session.snapshot()["book"]["vae"] is None
