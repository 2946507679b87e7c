"""Writes prompt schedules of digits videos that change one attribute at a time, to measure how videos answer.

python -m utils.digits.schedules > prompts/digits_switch_32.jsonl
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np

from utils.digits.world import COLOURS, DIGITS, DIRECTIONS, Subject, balanced_prompts, parse_prompt

VALUES = {"colour": tuple(COLOURS), "direction": tuple(DIRECTIONS), "digit": tuple(range(len(DIGITS)))}
ORDERS = tuple(itertools.permutations(VALUES))
COUNT, EVERY, SEED = 32, 30, 0  # videos; latent frames from one change to the next, ten chunks of three


def switch_schedules(count: int = COUNT, every: int = EVERY, seed: int = SEED) -> list[dict]:
    """Returns the lines of a schedule file, a video each: {"prompts": [{"text", "end_frame"}, ...]}.

    Video i begins with balanced prompt i and changes colour, direction and digit, each once, in order i of the six
    possible ones: every attribute is changed in every video, and stands first, second and third equally often. The
    new value is drawn by (seed, i) among all others, so nobody chose. All videos share their frames.
    """
    lines = []
    for number, prompt in enumerate(balanced_prompts(count)):
        rng = np.random.default_rng((seed, number))
        subjects = parse_prompt(prompt)
        for attribute in ORDERS[number % len(ORDERS)]:
            subjects.append(changed(subjects[-1], attribute, rng))
        cues = [{"text": subject.text(), "end_frame": every * (k + 1)} for k, subject in enumerate(subjects)]
        lines.append({"prompts": cues})
    return lines


def changed(subject: Subject, attribute: str, rng: np.random.Generator) -> Subject:
    """Returns the subject with another value of `attribute`, drawn uniformly."""
    others = [value for value in VALUES[attribute] if value != vars(subject)[attribute]]
    return replace(subject, **{attribute: others[rng.integers(len(others))]})


def main() -> None:
    """Prints the committed file."""
    for line in switch_schedules():
        print(json.dumps(line))


if __name__ == "__main__":
    main()
