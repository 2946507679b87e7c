"""One recorded case: configuration, weights, inputs and outputs as the original system left them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file


class NotBuilt(Exception):
    """This kind of case needs a part that the project does not have yet."""


class NotATarget(Exception):
    """The recording holds a fault of the original system that is deliberately not ours."""


@dataclass
class Case:
    """A folder of recordings. `weights` maps names to tensors, or role -> such a map if there are several files."""

    path: Path
    config: dict
    inputs: dict[str, torch.Tensor]
    weights: dict
    dtype: torch.dtype = torch.float32
    name: str = field(init=False)

    def __post_init__(self):
        self.name = self.path.name

    @property
    def kind(self) -> str:
        """The letter of its kind."""
        return self.config["case"].split("_")[0]

    def outputs(self) -> dict[str, torch.Tensor]:
        """The recorded results in the case's dtype."""
        name = "outputs_float64" if self.dtype == torch.float64 else "outputs"
        return load_file(self.path / f"{name}.safetensors")

    def draws(self) -> list[torch.Tensor]:
        """The recorded random tensors in call order."""
        return [self.inputs[k] for k in sorted(k for k in self.inputs if k.startswith("draw_"))]

    def noise_like_draws(self) -> list[torch.Tensor]:
        """The recorded normal draws only, in call order."""
        return [self.inputs[k] for k in sorted(k for k in self.inputs if k.startswith("draw_")) if "randn" in k]


def recorded_dtype(folder: Path) -> torch.dtype:
    """Returns float64 if the case was recorded in it too, else float32."""
    return torch.float64 if (folder / "outputs_float64.safetensors").exists() else torch.float32


def load_case(folder: str | Path, dtype: torch.dtype = torch.float32) -> Case:
    """Reads one case folder; floating tensors are converted to `dtype`."""
    folder = Path(folder)
    config = json.loads((folder / "case.json").read_text())
    inputs = _load(folder / "inputs.safetensors", dtype)
    files = sorted(folder.glob("weights*.safetensors"))
    weights = {f.stem.removeprefix("weights").strip("_"): _load(f, dtype) for f in files}
    if list(weights) == [""]:
        weights = weights[""]
    return Case(folder, config, inputs, weights, dtype)


def _load(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if not path.exists():
        return {}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(path).items()}
