"""An ancestor's recipe as text, for tests that change some lines of it."""

from __future__ import annotations

from pathlib import Path

import trainer.config
from scripts import migrate_config

DMD = """\
trainer: score_distillation
distribution_loss: dmd
generator_ckpt: ode.pt
real_name: Wan2.1-T2V-14B
denoising_step_list: [1000, 500]
warp_denoising_step: true
timestep_shift: 5.0
guidance_scale: 3.0
lr: 1.0e-06
data_path: prompts.txt
num_frame_per_block: 3
model_kwargs: {timestep_shift: 5.0}
"""


def write(folder: Path, text: str, base: str = DMD, name: str = "old.yaml") -> Path:
    """Writes the recipe with some keys of another value; returns its path."""
    own = {line.partition(":")[0] for line in text.splitlines() if line[:1] not in (" ", "-")}
    kept = [line for line in base.splitlines() if line.partition(":")[0] not in own]
    path = folder / name
    path.write_text("\n".join([*kept, text]))
    return path


def load(folder: Path, text: str, **flags):
    """Returns (the typed training configuration, what was read) of such a recipe."""
    recipe, old = migrate_config.migrate(write(folder, text), **flags)
    (folder / "new.yaml").write_text(recipe)
    return trainer.config.load_recipe(folder / "new.yaml")[0], old


def error(folder: Path, text: str, capsys, *flags: str) -> str:
    """Returns the one line with which the tool refuses such a recipe."""
    assert migrate_config.main([str(write(folder, text)), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed.err
    return printed.err.removeprefix("migrate_config.py: ").strip()
