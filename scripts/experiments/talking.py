"""The talking digits as an experiment: trainings, videos to sounds that were never heard, metrics, gates.

Rows measure models on the same sounds: as long as a training clip (1x), twenty times as long, and at 1x with the sound
shifted by six frames, silenced, or taken from another video. `real` and `codec` are the ceilings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.atomic import atomic_write, write_json
from utils.digits.speaking import FPS, RATE, Talk, random_talk
from utils.digits.talks import measure_talks, read_talk
from utils.json_reader import read_json

SEED = 900  # of the sounds, which no training drew
FRAMES = {"1x": 33, "20x": 717}  # pixel frames: 9 latent frames, a training clip, and 180
COUNTS = {"1x": 64, "20x": 16}
SHIFT = 6  # frames
SOUNDS = ("1x", "20x", "shifted", "silent", "other")
SHORT = SOUNDS[:2]
RECIPES = "configs/train/digits_avatar_{}.yaml"
INFER = "configs/infer/digits_avatar.yaml"


@dataclass(frozen=True)
class Model:
    """One model. title: in the tables; train: its training, a recipe's name; words: key=value of inference."""

    title: str
    train: str
    words: tuple[str, ...]
    sounds: tuple[str, ...] = SOUNDS
    needs: tuple[str, ...] = ()


def solver(steps: int, guidance: float, name: str = "euler") -> tuple[str, ...]:
    """Returns the words of a guided solver."""
    words = ("sampler.name=multi_step", f"sampler.solver={name}", f"sampler.num_steps={steps}")
    return (*words, f"sampler.guidance={guidance}")


CLIPS = "pipeline.clip_frames=9"
MODELS = {
    "teacher": Model("teacher: whole clips, motion carried over", "teacher", (CLIPS, *solver(20, 2.0, "unipc")), SHORT),
    "sft": Model("same-step training, 8 steps, guided", "sft", solver(8, 2.0)),
    "df": Model("diffusion forcing, 8 steps, guided, same-step caches", "df", solver(8, 2.0), SHORT),
    "student": Model("self-forcing DMD, 4 steps", "distill", (), needs=("teacher", "sft")),
}


def make_talks(sound: str) -> list[Talk]:
    """Returns the clips whose sounds a row hears, at the length of the row."""
    frames = FRAMES.get(sound, FRAMES["1x"])
    return [random_talk(index, frames, SEED) for index in range(COUNTS.get(sound, COUNTS["1x"]))]


def heard(talks: Sequence[Talk], index: int, sound: str) -> np.ndarray:
    """Returns the sound that video `index` of a row is given."""
    own = talks[index].sound
    if sound == "silent":
        return np.zeros_like(own)
    if sound == "shifted":
        pause = np.zeros(SHIFT * RATE // FPS, np.float32)
        return np.concatenate((pause, own))[: len(own)]
    return talks[(index + 1) % len(talks)].sound if sound == "other" else own


def write_inputs(folder: Path, sound: str) -> Path:
    """Writes portraits, sounds and the list of a row; returns the list. Files that are there stay."""
    from PIL import Image

    path, talks = folder / sound / "talks.jsonl", make_talks(sound)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, talk in enumerate(talks):
        Image.fromarray(talk.picture).save(path.parent / f"{index:03d}.png")
        write_wave(path.parent / f"{index:03d}.wav", heard(talks, index, sound))
        line = {"image": f"{index:03d}.png", "audio": f"{index:03d}.wav", "prompt": talk.prompt, "name": f"{index:03d}"}
        lines.append(json.dumps(line))
    atomic_write(path, ("\n".join(lines) + "\n").encode())
    return path


def write_wave(path: Path, samples: np.ndarray) -> None:
    """Writes a sound of one channel at 16 kHz as a WAV file of 16 bits."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def read_video(path: Path) -> np.ndarray:
    """Returns all frames [P, H, W, 3] of a video."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def measure(videos: Sequence[np.ndarray], sound: str) -> dict:
    """Returns the metrics of a row's videos against the law of each one's own clip."""
    talks = make_talks(sound)[: len(videos)]
    read = [read_talk(video, talk.subject) for video, talk in zip(videos, talks, strict=True)]
    first = {"law": list(talks[0].rows[: len(videos[0])]), "row": list(read[0]["row"])}
    return plain(measure_talks(read, [talk.rows for talk in talks]) | {"first": first})


def plain(value):
    """Returns numbers as JSON has them: four digits, NaN as None."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else round(float(value), 4)
    return int(value) if isinstance(value, np.integer) else value


def through_codec(talks: Sequence[Talk], folder: str) -> list[np.ndarray]:
    """Returns real clips encoded behind their still and decoded as a video is."""
    import torch

    from utils.media.image import to_uint8
    from wan.audio.features import DROPPED
    from wan.checkpoint.identify import family_of_vae
    from wan.codec.still import PrimedDecoder, behind_still, split_still
    from wan.config import VAEConfig

    vae, videos = family_of_vae(folder).open_vae(Path(folder), VAEConfig(), torch.device("cpu")), []
    with torch.no_grad():
        for talk in talks:
            parts = (torch.from_numpy(x / 127.5 - 1).float().movedim(-1, -3) for x in (talk.picture, talk.frames))
            still, moving = split_still(vae.encode(behind_still(*parts, DROPPED)[None]))
            pixels, _ = PrimedDecoder(vae, still).decode_stream(moving)
            videos.append(to_uint8(pixels[0]))
    return videos


def record_real(folder: Path) -> None:
    """Measures real clips, as they are, through the codec, and against another's sound."""
    talks = make_talks("1x")
    laws, read = [talk.rows for talk in talks], [read_talk(talk.frames, talk.subject) for talk in talks]
    rows = {"real": plain(measure_talks(read, laws)), "other": plain(measure_talks(read, laws[1:] + laws[:1]))}
    videos = through_codec(talks, "assets/digits/vae")
    write_json(folder / "real.json", {**rows, "codec": measure(videos, "1x")})


def record_row(name: str, sound: str, videos: Path, folder: Path, facts: dict) -> None:
    """Measures the videos of one model on one kind of sound; other sounds in its record stay where the facts do."""
    made = [read_video(path) for path in sorted(videos.glob("*-0.mp4"))]
    path = folder / f"{name}.json"
    before = read_json(path) if path.exists() else {}
    kept = before.get("sounds", {}) if before.get("facts") == facts else {}
    seconds = sum(read_json(p)["seconds"]["total"] for p in sorted(videos.glob("*-0.json")))
    row = measure(made, sound) | {"seconds": round(seconds, 1)}
    sounds = {key: {**kept, sound: row}[key] for key in SOUNDS if key in {**kept, sound: row}}
    write_json(path, {"row": name, "title": MODELS[name].title, "facts": facts, "sounds": sounds})
