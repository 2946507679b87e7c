"""Published files are recognised by their keys and shapes."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from scripts.convert_weights import main
from tests.architecture.source import ROOT
from tests.wan.checkpoint.manifest import manifest
from wan.checkpoint import tensor_file
from wan.checkpoint.identify import find_kind, identify

KINDS = {
    "wan2.1_t2v_1.3B": ("wan transformer, official", "t2v-1.3B"),
    "wan2.1_t2v_14B": ("wan transformer, official", "t2v-14B or t2v-A14B"),
    "wan2.1_i2v_14B": ("wan transformer, official", "i2v-14B"),
    "wan2.2_ti2v_5B": ("wan transformer, official", "ti2v-5B"),
    "wan2.2_i2v_A14B": ("wan transformer, official", "i2v-A14B"),
    "wan2.2_s2v_14B": ("wan s2v transformer, official", "s2v-14B"),
    "wan2.1_vae": ("vae 2.1", ""),
    "wan2.2_vae": ("vae 2.2", ""),
    "umt5_xxl_encoder": ("umt5", ""),
    "clip_xlm_roberta_vit_h_14": ("clip", ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_published_files_are_recognised(tmp_path, monkeypatch, name):
    _, state = manifest(name)
    monkeypatch.setattr(tensor_file, "read", lambda path, shapes_only=False: state)
    monkeypatch.setattr(tensor_file, "metadata", lambda path: {})
    said = identify(tmp_path / "x.safetensors")
    assert (said.kind, said.size, said.causal) == (*KINDS[name], None)
    assert said.num_tensors == len(state)
    assert said.num_parameters == sum(t.numel() for t in state.values())
    assert any(line.startswith("kind:") and line.endswith(said.kind) for line in said.lines())


@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
@pytest.mark.parametrize("old", [False, True])
def test_an_audio_encoder_is_recognised(tmp_path, monkeypatch, prefix, old):
    """Under the head of a task or not, in the names of today's transformers and of older ones."""
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, tensor in load_file(ROOT / "assets/digits_s2v/audio_encoder/model.safetensors").items():
        for new, before in names.items():
            name = name.replace(new, before) if old else name
        state[f"{prefix}{name}"] = tensor
    monkeypatch.setattr(tensor_file, "read", lambda path, shapes_only=False: state)
    monkeypatch.setattr(tensor_file, "metadata", lambda path: {})
    said = identify(tmp_path / "x.safetensors")
    assert said.kind == ("wav2vec2 under a head" if prefix else "wav2vec2")
    assert said.size == "4 hidden states of width 64" and "causal" not in " ".join(said.lines())
    del state[f"{prefix}feature_extractor.conv_layers.0.conv.weight"]
    assert find_kind(state) == "unknown"


def test_a_model_folder_tells_its_audio_encoder(capsys):
    assert main(["inspect", str(ROOT / "assets/digits_s2v")]) == 0
    told = capsys.readouterr().out.split("[audio_encoder]")[1]
    assert "wav2vec2" in told and "4 hidden states of width 64" in told
