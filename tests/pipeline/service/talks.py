"""Talks for the tests of the service, and jobs that ask for them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.service.controls import MOST_CLIPS, Choice, Controls
from pipeline.service.jobs import Job
from tests.architecture.source import ROOT
from tests.utils.media.test_audio import save
from utils.digits.speaking import random_talk

RECIPE = ROOT / "configs/infer/digits_avatar.yaml"
TALK = random_talk(1, 33, seed=12)  # of four seconds
LONG = random_talk(2, 801, seed=13)  # of a hundred


def write_talk(folder: Path, talk=TALK, name: str = "talk") -> tuple[Path, Path]:
    """Returns the portrait and the sound of a talk, as files."""
    face, voice = folder / f"{name}.png", folder / f"{name}.wav"
    Image.fromarray(talk.picture).save(face)
    save(voice, 16_000, samples=talk.sound[None])
    return face, voice


def choice(controls: Controls, face: Path, voice: Path, prompt: str = TALK.prompt, **changed) -> Choice:
    """Returns what a user chose who changed these controls alone."""
    same = {
        "num_clip": MOST_CLIPS,
        "num_steps": controls.num_steps,
        "guidance": controls.guidance,
        "infer_frames": controls.window,
        "size": controls.sizes[0],
        "seed": controls.seed,
        "solver": controls.solvers[0],
        "lora": controls.lora,
    }
    return Choice(str(face), (str(voice),), prompt, **(same | changed))


def job(worker, controls: Controls, owner: str, *files, **changed) -> Job:
    """Returns a job that was checked as the page does."""
    made = Job(owner, controls.overrides(choice(controls, *files, **changed)))
    worker.check(made)
    return made
