"""What goes wrong in a session leaves its video what it would have been: failures, foreign snapshots, bad arguments."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from pipeline.executor import PlainExecutor
from pipeline.session import Session
from pipeline.track import Fixed, Live
from tests import tiny
from tests.pipeline.test_session import equal, make_pipeline, started, watch
from wan.generation import ContextConfig
from wan.geometry import Geometry, Span
from wan.ledger import CacheConfig


class OutOfMemory(RuntimeError):
    """What a forward or the decoder dies of."""


def breaks(session, at: int) -> None:
    """Lets the forward number `at`, counted from now, fail."""

    def during(number):
        if number == at:
            raise OutOfMemory

    watch(session, during)


def half_way(pipeline, **fields):
    """A session in the middle of its video."""
    session = started(pipeline, **fields)
    for _ in range(3):
        session.step()
    return session


class Holder:
    """An executor in the place of a session, for `watch`."""

    def __init__(self, executor):
        self._executor = executor


RECACHES = [("causal", True), ("causal", False), ("bidirectional", True), ("bidirectional", False), ("reset", True)]


@pytest.mark.parametrize("training", [False, True], ids=["ring", "chunks"])
@pytest.mark.parametrize(("recache", "keep"), RECACHES)
def test_executor_chunk_that_failed_runs_again(recache, keep, training):
    """In a pass of the recache, a step, the context pass; of either guidance branch; in both storages."""
    first, spans, noise = tiny.spans(3, 3, 3, 3), [Span(12, 15), Span(15, 18)], tiny.noise()
    texts = [tiny.condition(seed=number) for number in range(3)]
    rolls = tiny.rollout(tiny.denoiser(), CacheConfig(9, 2, "write", recache, keep), guidance=2.0, training=training)
    executor, before = PlainExecutor(rolls), tiny.start(rolls, first)

    def video(at: int) -> list[torch.Tensor]:
        """The latents of two chunks, each under a new condition; forward `at` of the first one fails once."""
        state = before.fork()
        if at:
            holder = Holder(executor)
            breaks(holder, at)
            with pytest.raises(OutOfMemory):
                holder._executor.generate_chunk(state, Fixed(texts[1]), spans[0], noise)
        pairs = zip(texts[1:], spans, strict=True)
        return [executor.generate_chunk(state, Fixed(text), span, noise).latents for text, span in pairs]

    with torch.no_grad():
        list(executor.run(before, Fixed(texts[0]), first, noise))
        wanted = video(0)
        calls = 2 * ({"causal": 3, "bidirectional": 1, "reset": 0}[recache] + len(tiny.SIGMAS) + 1)
        for at in range(1, calls + 1):
            assert all(torch.equal(a, b) for a, b in zip(video(at), wanted, strict=True)), at
    tiny.healthy(wanted[-1])


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_session_fork_after_failed_recache(recache, at):
    pipeline = make_pipeline(CacheConfig(9, 2, recache=recache))
    sessions = [started(pipeline), started(pipeline)]
    for session in sessions:
        for _ in range(4):
            session.step()
        session.switch_prompt("two")
        session.switch_prompt("three")
    wanted = [sessions[0].step() for _ in range(3)]
    breaks(sessions[1], at)
    with pytest.raises(OutOfMemory):
        sessions[1].step()
    others, session = [sessions[1].fork(), Session(pipeline)], sessions[1]
    others[1].restore(session.snapshot())
    for other in others:
        assert (other.prompt, other.next_frame) == ("two", 12)
        assert all(equal(other.step(), chunk) for chunk in wanted)
    assert all(equal(session.step(), chunk) for chunk in wanted), "one prompt a chunk, the second still waits"


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
def test_a_prompt_taken_back_after_a_failure_makes_the_torn_cache_anew(recache):
    session = half_way(make_pipeline(CacheConfig(9, 2, recache=recache)))
    assert session.step().recache_seconds is None
    session.switch_prompt("two")
    breaks(session, 1)
    with pytest.raises(OutOfMemory):
        session.step()
    session.switch_prompt("one", "now")
    assert session.step().recache_seconds is not None and session.step().recache_seconds is None


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
def test_a_prompt_that_comes_now_in_the_first_chunk_has_nothing_to_recache(recache):
    session = started(make_pipeline(CacheConfig(9, 2, recache=recache)))
    watch(session, lambda number: number == 1 and session.switch_prompt("two", "now"))
    other = Session(session.pipeline)
    other.start("two")
    assert equal(session.step(), other.step())


def test_the_condition_of_a_chunk_stays_where_it_is_asked_for_again():
    live, span = Live("a", tiny.condition()), Span(3, 6)
    live.switch("b", tiny.condition())
    live.switch("c", tiny.condition())
    names = []
    for _ in range(2):
        live.at(span)
        names.append(live.name)
    live.switch("d", tiny.condition(), now=True)
    live.switch("e", tiny.condition())
    for requested in (span, span, Span(6, 9)):
        live.at(requested)
        names.append(live.name)
    assert names == ["b", "b", "d", "d", "e"]


FOREIGN = {
    "generation.cache.rope was write and is read": dict(config=CacheConfig(9, 2, "read")),
    "generation.cache.sink_frames was 2 and is 4": dict(config=CacheConfig(9, 4)),
    "generation.cache.window_frames was 9 and is 6": dict(config=CacheConfig(6, 2)),
    "generation.chunk was 3 and is 2": dict(chunk=2),
    "generation.first_chunk was 0 and is 1": dict(first_chunk=1),
    "sampler.guidance was 1.0 and is 2.0": dict(guidance=2.0),
}


def change_geometry(pipeline):
    pipeline.rollout = replace(pipeline.rollout, geometry=Geometry(48, 32, latent_channels=4))
    pipeline.executor = PlainExecutor(pipeline.rollout)


def change_dtype(pipeline):
    pipeline.bundle.dtype = torch.bfloat16


def change_weights(pipeline):
    pipeline.bundle.weights_hash = "another"


def change_context(pipeline):
    pipeline.generation.context = ContextConfig(0.1)


def change_steps(pipeline):
    pipeline.rollout.sampler.sigmas = (1.0, 0.7, 0.5)


CHANGED = {
    "geometry.height was 32 and is 48": change_geometry,
    "dtype was torch.float32 and is torch.bfloat16": change_dtype,
    "weights was  and is another": change_weights,
    "generation.context.sigma was 0.0 and is 0.1": change_context,
    "sampler.sigmas.1 was 0.8 and is 0.7": change_steps,
}


@pytest.mark.parametrize("words", [*FOREIGN, *CHANGED, "decode was True and is False"])
def test_a_snapshot_of_another_pipeline_is_refused_and_the_running_video_stays(words):
    snapshot = half_way(make_pipeline()).snapshot()
    pipelines = [make_pipeline(**FOREIGN.get(words, {})) for _ in range(2)]
    for pipeline in pipelines:
        CHANGED.get(words, id)(pipeline)
    sessions = [Session(pipeline, decode="decode" not in words) for pipeline in pipelines]
    for session in sessions:
        session.start("two", seed=7)
        session.step()
    with pytest.raises(ValueError, match=rf"the snapshot does not fit: .*{words}.*restore it in a session like"):
        sessions[0].restore(snapshot)
    sessions[0].switch_prompt("three")
    sessions[1].switch_prompt("three")
    a, b = (session.step() for session in sessions)
    assert torch.equal(a.latents, b.latents) and a.span == b.span


def damaged():
    """Yields (name, snapshot that was changed)."""
    whole = half_way(make_pipeline()).snapshot()
    yield from {"empty": {}, "none": None, "no book": {"tensors": whole["tensors"]}, "a text": "x"}.items()
    for key in whole["book"]:
        yield f"no {key}", {**whole, "book": {k: v for k, v in whole["book"].items() if k != key}}
    for key in whole["tensors"]:
        yield f"no {key}", {**whole, "tensors": {k: v for k, v in whole["tensors"].items() if k != key}}
        yield f"half of {key}", {**whole, "tensors": whole["tensors"] | {key: whole["tensors"][key][..., :1]}}
    for part, value in (("keys", {"seed": -1}), ("keys", {"seed": 0, "index": "0"}), ("prompt", 5), ("waiting", [5])):
        book = copy.deepcopy(whole["book"])
        book[part] = book[part] | value if isinstance(value, dict) else value
        yield f"{part} {value}", {**whole, "book": book}


def test_a_damaged_snapshot_is_refused_and_the_running_video_stays():
    session, twin = (half_way(make_pipeline()) for _ in range(2))
    for name, snapshot in damaged():
        with pytest.raises(ValueError, match="snapshot|seed|index|prompt"):
            session.restore(snapshot)
            pytest.fail(name)
    assert equal(session.step(), twin.step())


def test_a_restore_that_fails_on_its_way_leaves_the_running_video(monkeypatch):
    session, twin = (half_way(make_pipeline()) for _ in range(2))
    before = twin.snapshot()
    session.switch_prompt("two")
    twin.switch_prompt("two")
    with monkeypatch.context() as patch:
        patch.setattr("wan.cache.Ring.write_frame", lambda *_: (_ for _ in ()).throw(OutOfMemory))
        with pytest.raises(OutOfMemory):
            session.restore(before)
    assert equal(session.step(), twin.step())


@pytest.mark.parametrize("window", [9, -1])
def test_a_video_ends_at_its_length_whatever_bounds_the_cache(window):
    session = started(make_pipeline(CacheConfig(window, 2)), max_frames=8)
    chunks = [session.step() for _ in range(2)]
    session.switch_prompt("two")
    calls = watch(session, lambda number: None)
    for one in (session, session.fork()):
        with pytest.raises(
            ValueError, match=r"\[6, 9\), goes beyond the video's length: max_frames is 8; start a long"
        ):
            one.step()
    assert not calls and session.prompt == "one" and session.next_frame == chunks[-1].span.stop == 6
    assert session.snapshot()["book"]["waiting"] == [["two", False]]


ARGUMENTS = [
    ({"prompt": None}, "the prompt is None, not a text; write one"),
    ({"prompt": 5}, "the prompt is 5, not a text"),
    ({"negative": None}, "the negative prompt is None, not a text; write one, or '' for none"),
    ({"seed": "x"}, "seed is 'x'; write a whole number, 0 or more"),
    ({"seed": -1}, "seed is -1; write a whole number, 0 or more"),
    ({"seed": 0.5}, "seed is 0.5; write a whole number"),
    ({"seed": True}, "seed is True; write a whole number"),
    ({"index": -2}, "index is -2; write a whole number, 0 or more"),
    ({"max_frames": 0}, "max_frames is 0; write a whole number, 1 or more"),
    ({"max_frames": 6.0}, "max_frames is 6.0; write a whole number"),
    ({"given": [[0.0]]}, r"given latents are of type list; write a tensor \[1, F, C, h, w\]"),
    ({"given": torch.full((1, 3, 4, 4, 6), torch.nan)}, "given latents are not all finite in torch.float32"),
    ({"given": torch.full((1, 3, 4, 4, 6), 1e300, dtype=torch.float64)}, "given latents are not all finite"),
]


def test_arguments_that_cannot_be_are_refused_with_advice_and_the_running_video_stays():
    session, twin = (half_way(make_pipeline()) for _ in range(2))
    for fields, words in ARGUMENTS:
        with pytest.raises(ValueError, match=words):
            session.start(**{"prompt": "one", **fields})
    for text in (None, 5, ["two"]):
        with pytest.raises(ValueError, match="not a text; write one"):
            session.switch_prompt(text)
    assert equal(session.step(), twin.step())


def test_a_start_that_fails_on_its_way_leaves_no_video():
    session, given = half_way(make_pipeline()), tiny.latents(3)
    breaks(session, 1)
    with pytest.raises(OutOfMemory):
        session.start("one", given=given)
    with pytest.raises(ValueError, match="no video is running"):
        session.step()
    assert [chunk.given for chunk in session.start("one", given=given)] == [True]


def test_a_flood_of_switches_does_not_keep_a_chunk_from_being_made():
    session = half_way(make_pipeline())
    watch(session, lambda number: session.switch_prompt(f"{number}", "now") if number < 200 else None)
    chunk = session.step()
    assert chunk.span.start == 9 and int(session.prompt) < 40, "finished under one of the first"
    assert session.step().span.start == chunk.span.stop


@pytest.mark.parametrize(
    ("name", "value"), [("next_frame", 100), ("next_frame", 3), ("vae", None), ("vae", []), ("rollout", {})]
)
def test_a_book_that_was_changed_is_refused(name, value):
    session = half_way(make_pipeline())
    snapshot = session.snapshot()
    changed = {**snapshot, "book": {**snapshot["book"], name: value}}
    with pytest.raises(ValueError, match="the snapshot cannot be read"):
        session.restore(changed)
    assert session.step().span.start == 9, "the running video stays"
