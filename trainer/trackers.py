"""Trackers next to metrics.jsonl: wandb (offline too) and tensorboard. They get values that were read once for all.

A tracker has `start(step)`, `log(row)`, `videos(step, folder)` and `finish()`; only rank 0 has any.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.atomic import atomic_write
from utils.config.field import file_path
from utils.parallel import ranks

MODES = ("offline", "online")
SHEET = "contact_sheet.png"  # of a preview's folder


@dataclass
class TrackConfig:
    """Where metrics and previews go next to the run's own metrics.jsonl.

    wandb_mode: offline (`wandb sync` uploads later) | online. wandb_dir: the folder of wandb's files, by default
    the run's. wandb_name: how the run is called there, by default as its folder. tensorboard: <run>/tensorboard.
    """

    wandb: bool = False
    wandb_mode: str = "offline"
    wandb_project: str = "longtake"
    wandb_entity: str = ""
    wandb_name: str = ""
    wandb_dir: str = file_path()
    tensorboard: bool = False

    def problems(self) -> Iterator[str]:
        if self.wandb_mode not in MODES:
            yield f"wandb_mode is {self.wandb_mode!r}; write one of {MODES}, or wandb: false for none"

    def missing(self) -> dict[str, str]:
        """Returns knob -> what to do, for each tracker that is asked for and whose package is not installed."""
        wanted = {name: on for name, on in (("wandb", self.wandb), ("tensorboard", self.tensorboard)) if on}
        return {
            name: f"the package {name} is not installed; run `pip install -e .[track]`, or write track.{name}=false"
            for name in wanted
            if importlib.util.find_spec(name) is None
        }

    def build(self, run: str | Path, config: dict) -> list:
        """Returns the trackers of a run; `config`: its configuration as a tree. Other ranks than the first have none.

        Errors: ValueError for a package that is not installed.
        """
        if missing := self.missing():
            raise ValueError("\n".join(f"track.{name}: {text}" for name, text in missing.items()))
        if ranks.rank():
            return []
        wandb = [Wandb(run, self, config)] if self.wandb else []
        return wandb + ([TensorBoard(run)] if self.tensorboard else [])


class Wandb:
    """One run of Weights & Biases; a resumed training goes on in the same one."""

    def __init__(self, run: str | Path, track: TrackConfig, config: dict):
        self.run, self.track, self.config = Path(run), track, config
        self.session: Any = None

    def start(self, step: int) -> None:
        """Opens the session. Errors: ValueError if wandb refuses (no key, no network)."""
        import wandb

        folder = Path(self.track.wandb_dir or self.run)
        folder.mkdir(parents=True, exist_ok=True)  # where it is missing wandb takes the system's temporary folder
        try:
            self.session = wandb.init(
                project=self.track.wandb_project,
                entity=self.track.wandb_entity or None,
                name=self.track.wandb_name or self.run.resolve().name,
                id=self._identity(step),
                dir=folder,
                mode=self.track.wandb_mode,  # type: ignore[arg-type]  # checked when the recipe was read
                config=self.config,
                resume="allow" if self.track.wandb_mode == "online" else None,
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"wandb does not start: {error}. Log in (`wandb login`), or write track.wandb_mode=offline"
            ) from error

    def log(self, row: dict) -> None:
        """Takes the values of one step. Steps that a resumed run repeats are equal, and wandb drops them."""
        self.session.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def videos(self, step: int, folder: Path) -> None:
        """Takes a preview: its videos and contact sheet."""
        import wandb

        shown = {"previews/sheet": wandb.Image(str(folder / SHEET))}
        for number, path in enumerate(sorted(folder.glob("*.mp4"))):
            shown[f"previews/video_{number}"] = wandb.Video(str(path), format="mp4", caption=path.stem)
        self.session.log(shown, step=step)

    def finish(self) -> None:
        self.session.finish()

    def _identity(self, step: int) -> str:
        """Returns the run's name inside wandb: that of the earlier part where a training goes on."""
        path = self.run / "wandb_id.txt"
        if step and path.exists():
            return path.read_text(encoding="utf-8").strip()
        identity = secrets.token_hex(4)  # a name, no draw of the training
        atomic_write(path, f"{identity}\n".encode())
        return identity


class TensorBoard:
    """Event files in `<run>/tensorboard`; what a resumed run repeats replaces what was there."""

    def __init__(self, run: str | Path):
        self.folder = Path(run) / "tensorboard"
        self.writer: Any = None

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(self.folder, purge_step=step)

    def log(self, row: dict) -> None:
        """Takes the values of one step."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def videos(self, step: int, folder: Path) -> None:
        """Takes a preview's contact sheet."""
        import numpy as np
        from PIL import Image

        with Image.open(folder / SHEET) as sheet:
            self.writer.add_image("previews/sheet", np.array(sheet), step, dataformats="HWC")
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()
