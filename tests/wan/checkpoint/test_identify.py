"""Published files are recognised by their keys and shapes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize(("prefix", "adapter"), [("", ".default"), ("base_model.model.", ""), ("diffusion_model.", "")])
def test_a_loras_modules_are_told_by_kind(tmp_path, capsys, prefix, adapter):
    """Live-Avatar's: the published targets, in the blocks and in the audio injector, of every name of the model."""
    shapes = manifest("wan2.2_s2v_14B")[1]
    ends = tuple(f".{end}.weight" for end in ("q", "k", "v", "o", "ffn.0", "ffn.2"))
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith(ends)]
    state = {
        f"{prefix}{module}.lora_{half}{adapter}.weight": torch.zeros(shape)
        for module in modules
        for half, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    save_file(state, tmp_path / "liveavatar.safetensors")
    assert main(["inspect", str(tmp_path / "liveavatar.safetensors")]) == 0
    told = capsys.readouterr().out
    kinds = "448 = 400 blocks (160 cross_attn, 160 self_attn, 80 ffn) + 48 audio_injector.injector"
    assert f"modules:    {kinds}\n" in told and "rank:       2\n" in told


def test_modules_of_other_makers_names(tmp_path):
    names = ["lora_unet_blocks_11_self_attn_q", "lora_unet_blocks_3_ffn_0", "lora_unet_text_embedding_2"]
    state = {f"{n}.{end}": torch.zeros(2, 2) for n in names for end in ("lora_up.weight", "lora_down.weight")}
    state |= {"lora_unet_head_head.diff": torch.zeros(2, 2)}
    save_file(state, tmp_path / "l.safetensors")
    said = identify(tmp_path / "l.safetensors").lora["modules"]
    assert said == "4 = 2 blocks (1 ffn, 1 self_attn) + 1 head_head + 1 text_embedding"
