"""When a prompt that is asked for comes: rounding of times, chunks, several at once; tracks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batch.provenance import schedule_facts
from pipeline.batch.schedule import check_switches, requested_frames, video_length
from pipeline.track import Fixed, Live, PromptSchedule
from tests import tiny
from utils.data.schedules import FRAME, PIXEL_FRAME, SECOND, Cue, Moment, ScheduleLine
from wan.geometry import Span, chunks

FPS = 8.0


def line(*ends, **fields) -> ScheduleLine:
    """A video of prompts with these ends: 6 = latent frame, "p9" = pixel frame, "4.5s", None."""
    units = {"p": PIXEL_FRAME, "s": SECOND}
    cues = []
    for number, end in enumerate(ends):
        if isinstance(end, str):
            unit = next(units[c] for c in end if c in units)
            cues.append(Cue(str(number), Moment(float(end.strip("ps")), unit)))
        else:
            cues.append(Cue(str(number), None if end is None else Moment(end, FRAME)))
    return ScheduleLine("videos.jsonl, line 3", 3, tuple(cues), **fields)


def frames(*ends) -> list[int]:
    return requested_frames(line(*ends), tiny.GEOMETRY, FPS)


def test_a_time_is_the_latent_frame_that_holds_it():
    """Latent frame 0 holds pixel frame 0, frame 1 holds 1 to 4, frame 2 holds 5 to 8."""
    assert [frames(f"p{p}", None)[1] for p in range(1, 10)] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert frames("0.5s", "0.624s", "0.625s", None) == [0, 1, 1, 2]
    assert frames(3, "p20", "4.1s", 99, None) == [0, 3, 5, 8, 99]
    assert frames("p1", None) == frames(1, None) == [0, 1]
    assert requested_frames(line("4.1s", None), tiny.GEOMETRY, 10.0) == requested_frames(
        line("p41", None), tiny.GEOMETRY, 10.0
    )


@given(st.integers(0, 400))
def test_frames_and_pixels_agree(pixel):
    frame = tiny.GEOMETRY.latent_frame_at(pixel)
    assert tiny.GEOMETRY.pixel_frames(frame) <= pixel < tiny.GEOMETRY.pixel_frames(frame + 1)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((6, "p5", None), r"prompts\[1\] ends at pixel frame 5, which is not after"),
        ((6, "p21", None), r"prompts\[1\] ends at pixel frame 21, which is not after"),
        (("9s", 2, None), r"prompts\[1\] ends at latent frame 2"),
        (("0.1s", None), r"prompts\[0\] ends at second 0.1, in the video's first latent frame"),
    ],
)
def test_times_of_two_units_must_ascend(ends, message):
    with pytest.raises(ValueError, match=f"videos.jsonl, line 3: {message}"):
        frames(*ends)


def test_the_length_of_a_video():
    def length(*ends, note=None):
        return video_length(line(*ends, length=note), tiny.GEOMETRY, FPS)

    assert length(6, None) is None
    assert length(6, 13) == (13, True)
    assert length(6, None, note=Moment(12, FRAME)) == (12, False)
    assert length(6, "p41") == (11, True) and length(6, "p42") == (12, True)
    assert length(6, None, note=Moment(10, SECOND)) == (tiny.GEOMETRY.latent_frames_for(10, FPS), True)
    with pytest.raises(ValueError, match="the last prompt ends at pixel frame 3, before"):
        length(6, "p3")


SPANS = chunks(30, 3)


def starts(requested, spans=SPANS) -> list[int]:
    """Where each prompt comes."""
    script = PromptSchedule([(frame, tiny.condition()) for frame in requested])
    for span in spans:
        script.at(span)
    return script.taken


def test_a_prompt_comes_with_the_first_chunk_at_or_after_its_frame():
    assert starts([0, 6, 13, 15]) == [0, 6, 15, 18]
    published = chunks(240, 3)
    assert starts([0, 40, 80, 120, 160, 200], published) == [0, 42, 81, 120, 162, 201]


def test_one_prompt_a_chunk_and_the_others_wait():
    assert starts([0, 1, 2, 3, 4]) == [0, 3, 6, 9, 12]
    assert starts([0, 0]) == [0, 0]


@given(st.lists(st.integers(1, 29), max_size=6), st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_prompts_come_late_never_early_and_in_order(requested, lengths):
    requested = [0, *sorted(requested)]
    taken = starts(requested, tiny.spans(*lengths))
    assert all(frame >= want for frame, want in zip(taken, requested, strict=False))
    assert len(set(taken)) == len(taken)
    borders = [span.start for span in tiny.spans(*lengths)]
    free = [b for b in borders if b not in taken]
    for frame, want in zip(taken[1:], requested[1:], strict=False):
        assert not [b for b in free if want <= b < frame], "a free chunk was passed over"


def test_asking_twice_for_a_chunk_changes_nothing():
    script = PromptSchedule([(0, "a"), (1, "b"), (2, "c")])
    assert [script.advance(span) for span in (SPANS[0], SPANS[1], SPANS[1], SPANS[2])] == [0, 1, 1, 2]


@pytest.mark.parametrize("cues", [[], [(3, "a")], [(0, "a"), (6, "b"), (3, "c")]])
def test_a_script_begins_at_0_and_does_not_go_back(cues):
    with pytest.raises(ValueError, match="begin at 0 and do not go back"):
        PromptSchedule(cues)


def test_a_prompt_that_never_comes_is_refused():
    check_switches(line(27, None), [0, 27], SPANS)
    with pytest.raises(ValueError, match=r"line 3: prompts\[1\] would start at latent frame 28, after the last"):
        check_switches(line(28, None), [0, 28], SPANS)
    with pytest.raises(ValueError, match=r"prompts\[2\]"):
        check_switches(line(26, 27, None), [0, 26, 27], SPANS)


def test_the_report_says_when_each_prompt_was_asked_for_and_came():
    script = PromptSchedule([(0, None), (4, None), (5, None)])
    for span in SPANS:
        script.advance(span)
    assert schedule_facts(line(4, 5, None), script, [0.25, 0.5]) == [
        {"text": "0", "asked_frame": 0, "frame": 0, "recache_ms": None},
        {"text": "1", "asked_frame": 4, "frame": 6, "recache_ms": 250.0},
        {"text": "2", "asked_frame": 5, "frame": 9, "recache_ms": 500.0},
    ]


def test_tracks_are_not_urgent_unless_someone_asks_now():
    text = tiny.condition()
    live = Live("a", text)
    assert (
        not Fixed(text).preempt_requested()
        and not PromptSchedule([(0, text)]).preempt_requested()
        and not live.preempt_requested()
    )
    live.switch("b", text)
    assert not live.preempt_requested()
    live.switch("c", text, now=True)
    assert live.preempt_requested() and live.waiting() == [("c", True)]
    live.at(Span(0, 3))
    assert not live.preempt_requested() and live.name == "c"
