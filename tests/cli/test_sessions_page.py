"""The session of docs/inference.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.architecture.source import ROOT
from utils.media.video import read_video

PAGE = (ROOT / "docs/inference.md").read_text()


def find_code() -> str:
    """Returns the block that makes a session."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "load_bundle" in block]
    return code


def test_the_pages_session_runs_and_writes_its_video(tmp_path, monkeypatch):
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    names: dict = {}
    exec(compile(find_code(), "docs/inference.md", "exec"), names)
    chunks, again = names["chunks"], names["again"]
    assert torch.equal(chunks[-1].latents, again.latents) and not torch.equal(chunks[0].latents, again.latents)
    frames = read_video(Path("outputs/session.mp4"))[0]
    assert len(frames) == sum(chunk.pixels.shape[1] for chunk in chunks) == 45
