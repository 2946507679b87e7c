"""Names of models become local paths, or messages that say what to run."""

from __future__ import annotations

import pytest

from utils import hub


def test_a_local_path_wins(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"x")
    assert hub.resolve(str(file)) == file


def test_a_hub_name_is_downloaded_once(monkeypatch, tmp_path):
    requested = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: requested.append(name) or str(tmp_path))
    assert hub.resolve("Wan-AI/Wan2.1-T2V-1.3B") == tmp_path
    assert requested == ["Wan-AI/Wan2.1-T2V-1.3B"]


def test_offline_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    command = "hf download Wan-AI/Wan2.1-T2V-1.3B --local-dir models/Wan2.1-T2V-1.3B"
    with pytest.raises(ValueError, match=f"Wan-AI/Wan2.1-T2V-1.3B is neither .* run: {command}$"):
        hub.resolve("Wan-AI/Wan2.1-T2V-1.3B")


def test_no_network_names_the_command(monkeypatch):
    def fail(name):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ValueError, match="Name or service not known.*run: hf download a/b --local-dir models/b"):
        hub.resolve("a/b")


def test_what_is_neither_path_nor_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: pytest.fail("asked the hub"))
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="modle is not a path on this machine and no hub name .*; .* holds: model"):
        hub.resolve(tmp_path / "modle")
    with pytest.raises(ValueError, match="no hub name of the form owner/model"):
        hub.resolve("a/b/c")
