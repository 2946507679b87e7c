"""How a video answers a prompt switch: synthetic videos whose answer, and its faults, are known."""

import json
from collections import Counter

import numpy as np
import pytest

from tests.architecture.source import ROOT
from utils.data.schedules import read_schedules
from utils.digits.schedules import ORDERS, VALUES, switch_schedules
from utils.digits.switch import ATTRIBUTES, NUMBERS, Switch, find_switches, respond, summary
from utils.digits.world import Subject, balanced_prompts, parse_prompt, quantise, render

CHUNK, AT, FRAMES = 12, 49, 49 + 72
OLD = Subject("red", 3, "right")
NEW = {"colour": Subject("blue", 3, "right"), "direction": Subject("red", 3, "up"), "digit": Subject("red", 0, "right")}


def video(new: Subject, late: int = 0, moved: int = 0) -> np.ndarray:
    """Returns a clip that shows OLD and then `new`, `late` pixel frames after AT, where the digit leaps `moved`."""
    border = AT + late
    rng = np.random.default_rng(0)
    before = quantise(render([OLD], border, rng))
    after = quantise(render([new], FRAMES - border, np.random.default_rng(0)))
    way = np.array({"right": (1, 0), "up": (0, -1)}[OLD.direction]) * 2 * border
    after = np.roll(after, (way[1], way[0] + moved), (1, 2))  # goes on where the old one was
    return np.concatenate([before, after])


def response(clip, attribute) -> dict:
    kept = tuple(name for name in ATTRIBUTES if name != attribute)
    return respond(clip, Switch(attribute, kept, NEW[attribute], AT, FRAMES), CHUNK)


@pytest.mark.parametrize("attribute", NEW)
def test_an_answer_at_once_takes_one_chunk_and_does_not_jump(attribute):
    found = response(video(NEW[attribute]), attribute)
    assert (found["reached"], found["chunks"], found["attribute"]) == (1, 1, attribute)
    assert found["kept"] > 0.95 and found["usual"] == pytest.approx(2, abs=0.1)
    assert found["jump"] < (2.1 if attribute != "digit" else 6), "another digit has another centre"
    assert len(found["curve"]) == 3 + 6 and found["curve"][:3].max() < 0.1 and found["curve"][4:].min() > 0.9


@pytest.mark.parametrize("late", [0, 1, 3])
def test_chunks_are_counted_from_the_first_under_the_new_prompt(late):
    assert response(video(NEW["colour"], late * CHUNK), "colour")["chunks"] == 1 + late


def test_a_video_that_never_answers():
    found = response(video(OLD), "colour")
    assert found["reached"] == 0 and np.isnan(found["chunks"]) and found["kept"] == 1


def test_a_passing_hit_is_no_answer():
    clip, answered = video(OLD), video(NEW["colour"])
    clip[AT + CHUNK : AT + 2 * CHUNK] = answered[AT + CHUNK : AT + 2 * CHUNK]
    found = response(clip, "colour")
    assert found["curve"][4] == 1 and found["reached"] == 0


def test_a_leap_is_seen_also_where_the_answer_is_late():
    assert response(video(NEW["colour"], moved=20), "colour")["jump"] == pytest.approx(22, abs=0.5)
    assert response(video(NEW["colour"], late=CHUNK, moved=20), "colour")["jump"] == pytest.approx(22, abs=0.5)
    assert response(video(NEW["colour"], moved=20), "colour")["usual"] == pytest.approx(2, abs=0.1)


def test_what_did_not_change_has_to_stay():
    other = Subject("blue", 0, "right")
    assert response(video(other), "colour")["kept"] == pytest.approx(0.5, abs=0.05), "the digit is gone"


def test_flicker_is_that_of_the_border_over_the_usual():
    quiet, loud = response(video(OLD), "colour"), response(video(NEW["colour"], moved=20), "colour")
    assert quiet["flicker"] == pytest.approx(1, abs=0.3) and loud["flicker"] > 2
    dark = np.zeros((FRAMES, 64, 64, 3), np.uint8)
    found = response(dark, "colour")
    assert np.isnan(found["flicker"]) and np.isnan(found["jump"]) and found["kept"] == 0


def test_switches_are_read_off_the_prompts():
    cues = [(OLD, 0), (NEW["colour"], 49), (Subject("blue", 5, "right"), 97)]
    first, second = find_switches(cues, 200)
    assert (first.attribute, first.at, first.stop, first.wanted) == ("colour", 49, 97, NEW["colour"])
    assert (second.attribute, second.at, second.stop) == ("digit", 97, 200)
    both = find_switches([(OLD, 0), (Subject("blue", 5, "right"), 49)], 200)
    assert [(s.attribute, s.kept) for s in both] == [("colour", ("direction",)), ("digit", ("direction",))]
    with pytest.raises(ValueError, match=r"prompts\[1\] asks for .* again"):
        find_switches([(OLD, 0), (OLD, 49)], 200)


@pytest.mark.parametrize(("at", "stop"), [(39, 121), (49, 84), (49, 122)])
def test_a_change_too_near_to_another_or_to_an_end_is_refused(at, stop):
    with pytest.raises(ValueError, match="needs 3 chunks of 12"):
        respond(video(OLD), Switch("colour", ("digit",), OLD, at, stop), CHUNK)


def test_a_video_counts_once_under_all():
    def message(attribute, chunks):
        numbers = dict.fromkeys(NUMBERS, 1.0)
        return {"attribute": attribute, "curve": np.ones(4), **numbers, "chunks": chunks}

    videos = [[message("colour", 1.0), message("digit", 3.0)], [message("colour", 4.0), message("digit", np.nan)]]
    rows = summary(videos)
    assert list(rows) == ["all", "colour", "digit"] and rows["all"]["switches"] == 4
    assert rows["all"]["chunks"]["mean"] == 3 and rows["digit"]["chunks"]["mean"] == 3
    assert rows["colour"]["chunks"] == {"mean": 2.5, "low": 1.0, "high": 4.0} and rows["digit"]["curve"] == [1] * 4


def test_the_committed_scripts_follow_their_rule():
    path = ROOT / "prompts/digits_switch_32.jsonl"
    assert path.read_text() == "".join(json.dumps(line) + "\n" for line in switch_schedules())
    lines = read_schedules(path)
    assert [line.cues[0].text for line in lines] == balanced_prompts(32)
    places = Counter()
    for line in lines:
        subjects = [parse_prompt(cue.text)[0] for cue in line.cues]
        cues = [(subject, 40 * k) for k, subject in enumerate(subjects)]
        order = tuple(switch.attribute for switch in find_switches(cues, 200))
        assert order in ORDERS and [cue.end.value for cue in line.cues] == [30, 60, 90, 120]
        places.update(enumerate(order))
    assert set(VALUES) == set(ATTRIBUTES) and set(places.values()) <= {10, 11, 12}
