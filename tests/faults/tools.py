"""Command lines and files that the other doors get: migration, evaluation, estimates, plots."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.inputs import Inputs
from tests.faults.judge import EITHER, REFUSED, Attempt, Fault

# Each anchor is a list of nine of the one before: nine letters become nine to the ninth.
NINES = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = f"a: &a [{', '.join('x' * 9)}]\n{NINES}"
OLD_RECIPES = {
    "nothing": "",
    "a list": "- 1\n- 2\n",
    "a number": "5\n",
    "no YAML": "a: [1,\n",
    "a tag": "a: !!python/object/apply:os.system ['true']\n",
    "a tab": "a:\n\t- 1\n",
    "an anchor without end": "a: &a [*a]\n",
    "laughs": LAUGHS,
    "nested": "[" * 3000,
    "unknown key": "lr: 1.0e-6\nlearnig_rate: 3\n",
    "steps of text": "denoising_step_list: [many]\ntrainer: score_distillation\n",
    "steps not falling": "denoising_step_list: [250, 1000]\ntrainer: score_distillation\n",
    "not finite": "lr: .nan\ntrainer: score_distillation\n",
    "latin1": b"a: caf\xe9\n",
    "nul": b"a: \0\n",
    "empty shape": "image_or_video_shape: []\ntrainer: score_distillation\n",
    "a shape of text": "image_or_video_shape: [1, x, 16, 60, 104]\ntrainer: score_distillation\n",
}

V, T, S = "--vae assets/digits/vae", "configs/infer/digits_teacher.yaml", "configs/train/digits_ode_init.yaml"
# name -> (door, its arguments as a shell would split them, a text that the refusal holds)
CALLS = {
    "unknown flag": ("inference.py", "--config_path configs/infer/digits.yaml --nonsense", "--nonsense"),
    "a flag cut short": ("inference.py", "--config x.yaml", "--config"),
    "missing recipe": ("inference.py", "--config_path nowhere.yaml", "nowhere.yaml"),
    "recipe a folder": ("inference.py", "--config_path configs", "configs"),
    "recipe an endless device": ("inference.py", "--config_path /dev/zero", "/dev/zero"),
    "a training recipe": ("inference.py", "--config_path configs/train/digits_teacher.yaml --prompt x", ""),
    "a generation recipe": ("train.py", "--config_path configs/infer/digits.yaml", ""),
    "train without recipe": ("train.py", "", "config_path"),
    "weights as a recipe": (
        "train.py",
        "--config_path assets/digits/student/diffusion_pytorch_model.safetensors",
        "safetensors",
    ),
    "compare nothing": ("scripts/evaluate.py", "compare nowhere nowhere", "nowhere"),
    "measure nothing": ("scripts/evaluate.py", "digits --videos nowhere", "nowhere"),
    "codec nowhere": ("scripts/evaluate.py", "codec --vae nowhere/at/all --clips 1", "nowhere"),
    "codec of no clips": ("scripts/evaluate.py", f"codec {V} --clips 0", "clips"),
    "avatars nowhere": ("scripts/evaluate.py", "avatar --videos nowhere --syncnet random", "nowhere"),
    "an avatar's weights nowhere": (
        "scripts/evaluate.py",
        "avatar --videos . --syncnet nowhere.model",
        "nowhere.model",
    ),
    "no student": ("scripts/estimate_memory.py", "--student wan", "wan"),
    "no ranks": ("scripts/estimate_memory.py", "--student t2v-1.3B --teacher t2v-1.3B --ranks 0", "ranks"),
    "plot nothing": ("scripts/plot_training.py", "nowhere configs/train/digits_teacher.yaml", "nowhere"),
    "export nothing": ("scripts/export_checkpoint.py", "nowhere out.safetensors", "nowhere"),
    "export of a model": ("scripts/export_checkpoint.py", "assets/digits out.safetensors", "assets/digits"),
    "merge nothing": ("scripts/convert_weights.py", "merge nowhere nowhere2 out.safetensors", "nowhere"),
    "inspect a recipe": ("scripts/convert_weights.py", "inspect configs/infer/digits.yaml", "digits.yaml"),
    "inspect a device": ("scripts/convert_weights.py", "inspect /dev/zero", "/dev/zero"),
    "encode no clips": ("scripts/encode_latents.py", f"digits {V} --clips -1 --output o", "clips"),
    "encode 6 frames": ("scripts/encode_latents.py", f"digits {V} --frames 6 --output o", "frames"),
    "encode 10^12 frames": ("scripts/encode_latents.py", f"digits {V} --frames {10**12 + 1} --output o", "frames"),
    "encode nowhere": (
        "scripts/encode_latents.py",
        f"folder {V} --input nowhere --height 32 --width 32 --output o",
        "nowhere",
    ),
    "encode talks nowhere": (
        "scripts/encode_latents.py",
        f"talking {V} --ear assets/digits_s2v/audio_encoder --input nowhere --height 64 --width 64 --output o",
        "nowhere",
    ),
    "encode talks without a video": (
        "scripts/encode_latents.py",
        f"talking {V} --ear assets/digits_s2v/audio_encoder --input assets --height 64 --width 64 --output o",
        "assets",
    ),
    "encode shards of none": ("scripts/encode_latents.py", f"digits {V} --shard_clips 0 --output o", "shard_clips"),
    "a transformer as VAE": (
        "scripts/encode_latents.py",
        "digits --vae assets/digits/transformer --clips 2 --output o",
        "transformer",
    ),
    "pairs of no prompts": (
        "scripts/make_ode_pairs.py",
        f"--teacher {T} --student {S} --prompts nowhere.txt",
        "nowhere.txt",
    ),
    "pairs of a wrong student": (
        "scripts/make_ode_pairs.py",
        f"--teacher {T} --student configs/train/digits_teacher.yaml --prompts prompts/digits.txt",
        "digits_teacher.yaml",
    ),
    "benchmark of nothing": ("scripts/benchmark.py", "infer --config_path nowhere.yaml", "nowhere.yaml"),
}


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields old recipes for the migration, and calls of every door."""
    for name, text in OLD_RECIPES.items():
        yield Fault("old recipe", name, "scripts/migrate_config.py", partial(migrated, text))
    for name, (door, arguments, words) in CALLS.items():
        yield Fault("call", name, door, partial(called, arguments, words))


def migrated(text: str | bytes, folder: Path) -> Attempt:
    path = folder / "old.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Attempt([str(path), str(folder / "out/new.yaml")], (path.name,), EITHER, folder / "out")


def called(arguments: str, words: str, folder: Path) -> Attempt:
    return Attempt(shlex.split(arguments), (words,) if words else (), REFUSED)
