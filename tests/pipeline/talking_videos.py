"""Talking videos of a tiny model with random weights: python -m tests.pipeline.talking_videos FOLDER [--resume]

FOLDER holds the portrait `face.png` and the sound `voice.wav`; the videos come into FOLDER/out.
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.batch.request import Avatar, Request
from pipeline.batch.resume import to_make
from pipeline.batch.run import Run
from pipeline.config import AudioDrivenConfig, InferConfig, MultiStepConfig, OutputConfig
from tests import avatar_fixture as avatar
from utils.log import VideoProgress
from wan.audio.config import AudioConfig

SECONDS = 6.0


def prepare(folder: Path, pitch: float = 220.0, rate: int = 44_100) -> None:
    """Writes a portrait, and a stereo sound: a hum at the left, one of twice the pitch at the right."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(avatar.TALK.picture).save(folder / "face.png")
    time = np.arange(int(SECONDS * rate)) / rate
    sides = [np.sin(2 * np.pi * pitch * factor * time) * 9_000 for factor in (1, 2)]
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.stack(sides, 1).astype("<i2").tobytes())


def make(folder: Path, resume: bool = False) -> None:
    """Generates the video of a folder, with a snapshot every second of it."""
    config = InferConfig(
        pipeline=AudioDrivenConfig(audio=AudioConfig(left=2.0), encoder=str(avatar.EAR)),
        generation=avatar.GENERATION,
        sampler=MultiStepConfig("euler", 2, guidance=1.0, grid="table"),
        output=OutputConfig(folder=str(folder / "out"), save_every_seconds=1.0, resume=resume, gif=True),
        **{"height": 64, "width": 64},
    )
    request = Request(
        "a red three moves left", 0, 0, "talk", avatar=Avatar(folder / "face.png", (folder / "voice.wav",))
    )
    with VideoProgress(1, 8) as bar:
        Run(config, avatar.bundle()).batch([request], to_make([request], config.output), bar)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]), "--resume" in sys.argv[2:])
