"""A digits model with random weights next to the shipped codec and text encoder, and a fast recipe for it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

import inference
from tests import tiny, tolerance
from tests.architecture.source import ROOT
from trainer.export import write_transformer
from utils.data.latents import write_shard
from wan.spec import SPECS
from wan.transformer import WanTransformer

DIGITS = SPECS["digits"].transformer
PROMPTS = ("a red three moves right", "a green seven moves up", "a blue two moves left")
RECIPE = """
model: {{path: {model}, dtype: fp32}}
pipeline: {{name: causal}}
generation: {{chunk: 1, cache: {{window_frames: 3, sink_frames: 1}}}}
sampler: {{name: multi_step, solver: unipc, num_steps: 2, shift: 3.0, guidance: 3.0}}
text: {{dtype: fp32}}
output: {{sheet: false}}
height: 32
width: 32
num_output_frames: 3
threads: 1
"""


def rounding(passes: int, guidance: float = 3.0) -> float:
    """Returns `tolerance.rounding` of latents behind so many passes in series, each mixed as guidance mixes two."""
    return tolerance.rounding(DIGITS.ffn_dim, (15 * DIGITS.num_layers + 6) * passes, magnitude=2 * guidance - 1)


def link_parts(folder: Path, parts=("vae", "text_encoder", "tokenizer")) -> Path:
    """Links the shipped parts of the digits model into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        (folder / part).symlink_to(ROOT / "assets/digits" / part, target_is_directory=True)
    return folder


def model_folder(folder: Path, **changes) -> Path:
    """Returns a model folder whose transformer has the digits sizes, fields changed by `changes`, and drawn weights."""
    sizes = asdict(replace(DIGITS, **changes))
    network: WanTransformer = tiny.transformer(0, **sizes)
    write_transformer(link_parts(folder), network.spec, network.state_dict(), torch.float32)
    return folder


def write_recipe(path: Path, model: Path) -> Path:
    """Writes the fast recipe: 3 latent frames of 32 x 32 pixels, one a chunk, 2 steps."""
    path.write_text(RECIPE.format(model=model))
    return path


class Door:
    """Runs inference.py in this process: `door(*arguments)` -> exit status; `door.error` is what stderr got."""

    def __init__(self, recipe: Path, model: Path, capsys):
        self.recipe, self.model, self.capsys, self.error, self.said = recipe, model, capsys, "", ""

    def __call__(self, *arguments) -> int:
        self.capsys.readouterr()
        try:
            status = inference.main(["--config_path", str(self.recipe), *map(str, arguments)])
        except SystemExit as end:  # argparse
            status = end.code
        self.said, self.error = self.capsys.readouterr()
        return status

    def fails(self, *arguments) -> str:
        """Returns what was said, all problems of it, after asserting that bad input was refused."""
        status = self(*arguments)
        assert status == 2, (status, self.error)
        assert "Traceback" not in self.error
        lines = self.error.strip().splitlines()
        begins = [n for n, line in enumerate(lines) if line.startswith(("inference.py: ", "train.py: "))]
        return "\n".join(lines[begins[-1] if begins else -1 :])


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Returns name -> content of the files in a folder, hidden ones too."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob(pattern)) if p.is_file()}


def videos(folder: Path) -> dict[str, bytes]:
    """Returns name -> content of the videos in a folder."""
    return files(folder, "*.mp4")


def latent_folder(folder: Path, num_clips: int = 4, num_frames: int = 4, size: int = 4) -> Path:
    """Writes one shard of smooth random latents [N, F, 16, size, size] with digits prompts."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(num_clips)]
    latents = tiny.draw("latents", shape=(num_clips, 1, 16, size, size)).expand(-1, num_frames, -1, -1, -1)
    write_shard(folder, 0, latents.contiguous(), prompts)
    return folder


FLOW = """
model: {model}
steps: 6
log_every: 1
generation: {{chunk: 2, steps: {{shift: 3.0}}}}
trainer:
  generator: {{weights: {weights}}}
  source: {{name: latents, path: {latents}, batch: 2, frames: 4, dropout: 0.25}}
  loss: {{name: flow, mode: diffusion_forcing}}
  optim: {{name: adamw, lr: 2.0e-3}}
  ema: {{decay: 0.9}}
  text: {{dtype: fp32}}
checkpoint: {{every: 2}}
"""


def flow_recipe(folder: Path) -> Path:
    """Writes the recipe of a causal regression of a one-block network on tiny latents: milliseconds a step."""
    weights = model_folder(folder / "start", num_layers=1, ffn_dim=64) / "transformer"
    path = folder / "tiny.yaml"
    latents = latent_folder(folder / "latents")
    path.write_text(FLOW.format(model=ROOT / "assets/digits", weights=weights, latents=latents))
    return path


DISTILL = """
model: {model}
steps: 6
log_every: 1
generation: {{chunk: 2, steps: {{steps: [1000, 500], shift: 3.0}}, cache: {{window_frames: 4}}}}
trainer:
  name: distill
  generator: {{weights: {weights}}}
  teacher: {{weights: {weights}}}
  critic: {{weights: {weights}}}
  source:
    name: rollout
    prompts: {prompts}
    batch: 4
    frames: 4
    loss_frames: 4
    height: 32
    width: 32
  loss: {{name: dmd, score: {{real_guidance: 3.0, shift: 3.0}}}}
  optim: {{name: adamw, lr: 2.0e-4}}
  critic_optim: {{name: adamw, lr: 4.0e-4}}
  critic_updates_per_generator_update: 2
  ema: {{decay: 0.9}}
  text: {{dtype: fp32}}
checkpoint: {{every: 2}}
"""


def distill_recipe(folder: Path) -> tuple[Path, Path]:
    """Writes (recipe, clips): a DMD of one-block networks on rollouts of two chunks, and clips of its size."""
    weights = model_folder(folder / "start", num_layers=1, ffn_dim=64) / "transformer"
    clips, prompts, path = latent_folder(folder / "clips"), folder / "prompts.txt", folder / "tiny.yaml"
    prompts.write_text("\n".join(PROMPTS))
    path.write_text(DISTILL.format(model=ROOT / "assets/digits", weights=weights, prompts=prompts))
    return path, clips


def exit_status(main, *arguments, **options) -> int:
    """Returns the status that a door ends with, whether it returns it or argparse exits."""
    try:
        return main(*arguments, **options)
    except SystemExit as end:
        return end.code
