"""Names of models become local paths, or messages that say what to run."""

from __future__ import annotations

from pathlib import Path

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


PATHS = [
    "models/Wan2.1-T2V-1.3B",
    "Checkpoints/mine",
    "wan_models/Wan2.1-T2V-14B",
    "longlive_models/models",
    "runs/try_1",
    "outputs/x",
    "logs/self_forcing",
    "assets/teacher",
    "data/clips",
    "./Wan-AI/Wan2.1-T2V-1.3B",
    "./model",
    "../model",
    "~/model",
    "/data/model",
    "Wan-AI/Wan2.1-T2V-1.3B/",
    "a/b/c",
    "a//b",
    "owner/file.safetensors",
    "owner/weights.PT",
    "model",
    "",
    "C:\\models\\x",
    "my model/x",
]


@pytest.mark.parametrize("name", PATHS)
def test_what_looks_like_a_path_is_never_a_hub_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: pytest.fail(f"{name} was requested"))
    if name:  # the empty path is the folder itself
        with pytest.raises(ValueError, match="is not there"):
            hub.resolve(name)
        assert hub.find_local(name) is None
    assert hub.looks_local(name)


@pytest.mark.parametrize("name", ["Wan-AI/Wan2.1-T2V-1.3B", "gdhe17/Self-Forcing", "zai-org/CogVideoX-5b", "a/b_c.v2"])
def test_a_name_of_the_hub_is_no_path(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not hub.looks_local(name) and hub.looks_local(Path(name))
    (tmp_path / name.split("/")[0]).mkdir()
    assert hub.looks_local(name)  # a folder of that name is here: what is missing lies in it


def test_what_is_missing_is_named_with_what_lies_near(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="modle is not there .*holds: model.*give a path, or a hub name"):
        hub.resolve(tmp_path / "modle")
    with pytest.raises(ValueError, match="there is no folder no/such"):
        hub.resolve("no/such/folder")


ADVICE = {
    "models/Wan2.1-T2V-14B": "download.sh t2v-14B` brings it",
    "models/Wan2.2-TI2V-5B/Wan2.2_VAE.pth": "download.sh ti2v-5B` brings it",
    "wan_models/Wan2.1-T2V-1.3B/": "download.sh t2v-1.3B` brings it to models/Wan2.1-T2V-1.3B",
    "checkpoints/ode_init.pt": "download.sh ode-init` brings it",
    "checkpoints/self_forcing_dmd.pt": "download.sh self-forcing` brings it to models/Self-Forcing/checkpoints/",
    "longlive_models/models/lora.pt": "download.sh longlive` brings it to models/LongLive-1.3B/models/lora.pt",
    "vidprom_filtered_extended_switch.txt": "download.sh vidprom` brings it to prompts/",
    "ckpt/Wan2.2-S2V-14B": "download.sh s2v-14B` brings it to models/Wan2.2-S2V-14B",
}


@pytest.mark.parametrize("path", ADVICE)
def test_the_message_names_the_set_that_brings_it(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in (path, tmp_path / path):
        with pytest.raises(ValueError, match="is not there; `bash scripts/") as caught:
            hub.resolve(name)
        assert ADVICE[path] in str(caught.value)


def test_check_names_what_a_set_brings_alone(tmp_path):
    hub.check(tmp_path, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="lora.pt is not there; `bash scripts/download.sh longlive` brings it"):
        hub.check(tmp_path, tmp_path / "lora.pt")


def test_nothing_is_advised_without_the_table_or_a_set(monkeypatch, tmp_path):
    assert hub.advise("models/mine") is None
    monkeypatch.setattr(hub, "DOWNLOADS", tmp_path / "none.txt")
    assert hub.advise("models/Wan2.1-T2V-1.3B") is None
