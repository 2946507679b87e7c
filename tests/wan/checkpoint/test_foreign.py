"""What other programs write is read rightly, or called by its name: formats, families, layers, quantised weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from scripts.convert_weights import main
from tests.wan.checkpoint.manifest import manifest, tiny_transformer
from wan.checkpoint import foreign
from wan.checkpoint.key_maps import config_to_official
from wan.checkpoint.scales import apply_scales
from wan.checkpoint.weights import load_transformer

FORMATS = {
    b"GGUF\x03\0\0\0": "GGUF",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY\x01\0": "numpy",
    b"\x1f\x8b\x08\0": "gzip",
    b"<!doctype html><p>404": "web page",
    b"\n  <HTML>": "web page",
    b'{"weight_map": {}}': "JSON",
    bytes(257) + b"ustar\0": "tar",
    b"\x08\x07\x12\x07pytorch": "ONNX",
}
FAMILIES = {
    "HunyuanVideo": ["double_blocks.3.img_mod.linear.weight", "txt_in.individual_token_refiner.blocks.0.norm1.weight"],
    "Flux": ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
    "LTX-Video": ["patchify_proj.weight", "transformer_blocks.0.scale_shift_table"],
    "CogVideoX": ["patch_embed.proj.weight", "transformer_blocks.0.norm1.linear.weight"],
    "a language model": ["embed_tokens.weight", "layers.0.self_attn.q_proj.weight"],
    "wav2vec 2.0": ["w2v_encoder.w2v_model.feature_extractor.conv_layers.0.0.weight"],
}
ADDED = {
    "VACE": "vace_blocks.7.after_proj.weight",
    "Wan-Animate": "face_adapter.fuser_blocks.0.linear1_kv.weight",
    "Fun Control": "control_adapter.conv.weight",
    "audio": "blocks.2.audio_cross_attn.q_linear.weight",
}
QUANTISED = {
    "bitsandbytes": "blocks.0.ffn.0.weight.quant_map",
    "GPTQ": "blocks.0.ffn.0.qweight",
    "quanto": "blocks.0.ffn.0.weight._data",
    "Nunchaku": "blocks.0.ffn.0.wscales",
}


@pytest.fixture
def tiny(tmp_path):
    """(state, write(state) -> path next to the config.json)."""
    spec, state = tiny_transformer()
    (tmp_path / "config.json").write_text(json.dumps(config_to_official(spec.__dict__)))

    def write(changed, name="m.safetensors"):
        save_file({k: v.contiguous() for k, v in changed.items()}, tmp_path / name)
        return tmp_path / name

    return state, write


@pytest.mark.parametrize("head", FORMATS, ids=FORMATS.values())
def test_format_is_named(tmp_path, head):
    path = tmp_path / "w.safetensors"
    path.write_bytes(head + bytes(600))
    with pytest.raises(ValueError, match=f"{path} is .*{FORMATS[head]}"):
        load_transformer(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_named(tmp_path, family):
    save_file({f"model.{name}": torch.ones(1) for name in FAMILIES[family]}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=f"not a model that is read here, but {family}"):
        load_transformer(tmp_path / "w.safetensors")


def test_no_published_wan_file_is_taken_for_another():
    for name in ("wan2.1_t2v_1.3B", "wan2.1_i2v_14B", "wan2.2_ti2v_5B", "umt5_xxl_encoder", "wan2.1_vae"):
        names = list(manifest(name)[1])
        assert not foreign.name_family(names) and not foreign.name_added(names), name
        assert not foreign.name_quantisation(names)


@pytest.mark.parametrize("what", ADDED)
def test_added_layers_are_named(tiny, tmp_path, capsys, what):
    state, write = tiny
    path = write({**state, ADDED[what]: torch.ones(2, 2)})
    with pytest.raises(ValueError, match=f"holds layers of .*{what}"):
        load_transformer(path)
    assert main(["inspect", str(path)]) == 0 and what in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "o.safetensors"), "--to", "longtake"]) == 2
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("what", QUANTISED)
def test_quantisation_is_named(tiny, what):
    state, write = tiny
    with pytest.raises(ValueError, match=f"quantised by .*{what}"):
        load_transformer(write({**state, QUANTISED[what]: torch.ones(2, 2)}))


@pytest.mark.parametrize("end", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_scales_are_multiplied_out(tiny, end, rows, dtype):
    state, write = tiny
    largest = 100.0 if dtype == torch.int8 else torch.finfo(dtype).max / 2
    wanted, stored = dict(state), {**state, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name in [n for n in state if n.startswith("blocks.") and n.endswith(("attn.q.weight", "ffn.0.weight"))]:
        weight = state[name]
        scale = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().amax().reshape(1)) / largest
        stored[name] = (weight / scale).round().to(dtype) if dtype == torch.int8 else (weight / scale).to(dtype)
        stored[name.removesuffix(".weight") + end] = scale
        stored[name.removesuffix(".weight") + ".scale_input"] = torch.ones(1)
        wanted[name] = stored[name].float() * scale
    found = load_transformer(write(stored))[1]
    assert found.keys() == state.keys() and all(torch.equal(found[n], wanted[n]) for n in state)


def test_scales_take_the_common_type():
    state = {"a.weight": torch.ones(2, 2, dtype=torch.float8_e4m3fn), "a.scale_weight": torch.tensor(3.0)}
    assert apply_scales(state, "f")["a.weight"].dtype == torch.bfloat16
    state |= {"b.weight": torch.ones(2, dtype=torch.float16), "c.weight": torch.ones(2, dtype=torch.float16)}
    made = apply_scales(state, "f")["a.weight"]
    assert made.dtype == torch.float16 and torch.equal(made.float(), torch.full((2, 2), 3.0))


BAD = {
    "a scale without a weight": {"z.scale_weight": torch.ones(1)},
    "marked and without scales": {"scaled_fp8": torch.zeros(1)},
    "another count of scales": {"head.head.scale_weight": torch.ones(3)},
    "a scaled wide weight": {"head.head.scale_weight": torch.ones(1)},
    "int8 without a scale": {"head.head.weight": torch.ones(16, 48, dtype=torch.int8)},
    "complex": {"head.head.bias": torch.ones(16, dtype=torch.complex64)},
    "truth values": {"head.head.bias": torch.ones(16, dtype=torch.bool)},
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_weights_is_refused(tiny, what):
    state, write = tiny
    with pytest.raises(ValueError, match="m.safetensors"):
        load_transformer(write({**state, **BAD[what]}))
