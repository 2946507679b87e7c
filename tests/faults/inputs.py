"""The good inputs that faults are damages of: a small digits model, lists, videos, latents, a run and a snapshot."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import digits_fixture
from tests.architecture.source import ROOT
from tests.faults.attempts import call
from tests.faults.judge import Attempt
from utils.data.prompts import read_prompts


@dataclass(frozen=True)
class Inputs:
    """Paths of good inputs; faults copy what they damage."""

    recipe: Path  # of generation: a one-block model, 3 latent frames of 32 x 32 pixels
    model: Path
    weights: Path  # its transformer folder
    archive: Path  # the same weights as a torch archive
    lora: Path
    training: Path  # a recipe of regression on `latents`
    latents: Path  # a folder of shards
    lmdb: Path
    run: Path  # a finished run with checkpoints
    videos: Path  # two videos with their JSON
    snapshots: Path  # an output folder in which a run was interrupted

    def generate(self, folder: Path, *arguments, prompt: str = digits_fixture.PROMPTS[0]) -> list[str]:
        """Returns the arguments of inference.py for one short video into `folder`/out."""
        given = ["--prompt", prompt] if prompt else []
        return ["--config_path", str(self.recipe), *given, "--output_folder", str(folder / "out"), *map(str, arguments)]

    def train(self, folder: Path, *arguments) -> list[str]:
        """Returns the arguments of train.py for two steps into `folder`/run."""
        return ["--config_path", str(self.training), "--logdir", str(folder / "run"), "steps=2", *map(str, arguments)]


def make(folder: Path) -> Inputs:
    """Makes all good inputs with the doors themselves. Errors: RuntimeError with what a door said."""
    folder.mkdir(parents=True, exist_ok=True)
    model = digits_fixture.model_folder(folder / "model", num_layers=1, ffn_dim=64)
    recipe = digits_fixture.write_recipe(folder / "recipe.yaml", model)
    weights, archive, lora = model / "transformer", folder / "weights.pt", folder / "lora.safetensors"
    state = load_file(next(weights.glob("*.safetensors")))
    torch.save({"generator": {f"model.{name}": value for name, value in state.items()}}, archive)
    save_file(_lora(state), lora, metadata={"format": "pt"})
    training = digits_fixture.flow_recipe(folder)
    made = Inputs(
        recipe, model, weights, archive, lora, training, folder / "latents",
        folder / "lmdb", folder / "done/run", folder / "first/out", folder / "stopped/out",
    )  # fmt: skip
    _run("train.py", made.train(folder / "done", "checkpoint.every=1"))
    for prompt in digits_fixture.PROMPTS[:2]:
        _run("inference.py", made.generate(folder / "first", prompt=prompt))
    _run("scripts/encode_latents.py", ["lmdb", "--input", str(made.latents), "--output", str(made.lmdb)])
    stopped = made.generate(folder / "stopped", "output.save_every_seconds=0.1", "num_output_frames=12")
    _run("inference.py", stopped, _interrupt_after_snapshot, expected=130)
    return made


def copied(source: Path, target: Path) -> Path:
    """Copies a file or a folder (links stay links) and returns the copy."""
    if source.is_dir():
        return Path(shutil.copytree(source, target, symlinks=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, target))


def prompts() -> list[str]:
    """Returns the first prompts of the shipped list."""
    return read_prompts(ROOT / "prompts/digits.txt")


def captions(folder: Path, names: list[str]) -> None:
    """Writes a caption next to each media file."""
    for name in names:
        (folder / name).with_suffix(".txt").write_text(digits_fixture.PROMPTS[0])


def one_line(value) -> str:
    return json.dumps(value) + "\n"


def _lora(state: dict) -> dict:
    """A LoRA of rank 2 on the first block's query, in PEFT's names."""
    out, width = state["blocks.0.self_attn.q.weight"].shape
    name = "base_model.model.blocks.0.self_attn.q"
    return {f"{name}.lora_A.weight": torch.ones(2, width) / 100, f"{name}.lora_B.weight": torch.ones(out, 2) / 100}


def _interrupt_after_snapshot() -> None:
    """Makes this process act as if Ctrl-C came right after the first snapshot."""
    from pipeline.batch.resume import ResumeState

    write = ResumeState.write

    def interrupted(self, *arguments, **named):
        write(self, *arguments, **named)
        raise KeyboardInterrupt

    ResumeState.write = interrupted


def _run(door: str, arguments: list[str], before: Callable[[], None] = lambda: None, expected: int = 0) -> None:
    """Runs a door in a fork from the checkout and waits for it."""
    said = Path(tempfile.gettempdir()) / f"{Path(door).stem}-{os.getpid()}.log"
    pid = os.fork()
    if not pid:
        status, output = 1, os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(ROOT)
            before()
            status = call(door, Attempt(arguments), said.with_suffix(".home"))
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = said.read_text(errors="replace")
    said.unlink()
    shutil.rmtree(said.with_suffix(".home"), ignore_errors=True)
    if status != expected:
        raise RuntimeError(f"{door} {' '.join(arguments)}: status {status} instead of {expected}\n{text}")
