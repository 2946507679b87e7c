"""The converter: what it says of files, and that there and back gives the same bits."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.convert_weights import main
from tests.parity.case import load_case
from tests.tolerance import rounding
from tests.wan.checkpoint.lora_files import MAKERS, draw_pairs
from tests.wan.checkpoint.manifest import numbered, same, tiny_transformer
from wan.checkpoint.key_maps import config_to_official, lora_state
from wan.checkpoint.library import (
    IMAGE_CONFIG,
    TEXT_CONFIG,
    VAE_CONFIGS,
    build_image_model,
    build_text_model,
    build_vae,
)
from wan.checkpoint.lora import LoraPair, merge_lora
from wan.checkpoint.weights import export_transformer, load_transformer
from wan.spec import SPECS

ROOT = Path(__file__).resolve().parents[2]
MIXED = ("kohya", "peft")
SHAPES = {
    "t2v": {},
    "i2v with CLIP": {"model_type": "i2v", "in_dim": 36, "image_dim": 24},
    "ti2v": {"model_type": "ti2v", "in_dim": 48, "out_dim": 48},
    "another theta": {"rope_theta": 100.0, "text_len": 12},
}


@pytest.fixture(params=sorted(SHAPES))
def model(request, tmp_path):
    """(spec, weights in mixed precision, official folder)."""
    spec, state = tiny_transformer(**SHAPES[request.param])
    state = {k: v if "norm" in k else v.to(torch.bfloat16) for k, v in state.items()}
    folder = tmp_path / "official"
    folder.mkdir()
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_official(asdict(spec))))
    return spec, state, folder


def run(*args) -> int:
    return main([str(a) for a in args])


def test_there_and_back_gives_the_same_bits(model, tmp_path):
    spec, state, folder = model
    steps = [("diffusers", "a"), ("longtake", "b.safetensors"), ("official", "c"), ("longtake", "d.safetensors")]
    steps += [("diffusers", "e"), ("official", "f")]
    source = folder
    for to, name in steps:
        assert run("convert", source, tmp_path / name, "--to", to) == 0
        source = tmp_path / name
        found_spec, found = load_transformer(source)
        assert found_spec == spec and same(found, state)
    assert json.loads((tmp_path / "f" / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (tmp_path / "f" / "diffusion_pytorch_model.safetensors").read_bytes() == (
        tmp_path / "c" / "diffusion_pytorch_model.safetensors"
    ).read_bytes()


def test_diffusers_itself_opens_the_folder(model, tmp_path):
    from diffusers import WanTransformer3DModel

    spec, state, folder = model
    assert run("convert", folder, tmp_path / "theirs", "--to", "diffusers") == 0
    theirs, printed = WanTransformer3DModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not printed["missing_keys"] and not printed["unexpected_keys"] and not printed["mismatched_keys"]
    assert torch.equal(theirs.blocks[1].attn2.to_out[0].weight, state["blocks.1.cross_attn.o.weight"].float())


def test_a_training_checkpoint_is_converted(tmp_path, capsys):
    spec = SPECS["digits"].transformer
    _, state = tiny_transformer(4, **{k: v for k, v in asdict(spec).items() if k != "num_layers"})
    ema = {f"model._fsdp_wrapped_module.{k}": v * 2 for k, v in state.items()}
    torch.save({"generator": {f"model.{k}": v for k, v in state.items()}, "generator_ema": ema}, tmp_path / "model.pt")
    assert run("convert", tmp_path / "model.pt", tmp_path / "o.safetensors", "--to", "longtake", "--use_ema") == 0
    assert torch.equal(load_file(tmp_path / "o.safetensors")["head.head.bias"], state["head.head.bias"] * 2)
    capsys.readouterr()
    assert run("inspect", tmp_path / "model.pt", tmp_path / "o.safetensors") == 0
    printed = capsys.readouterr().out
    for part in (
        "wan transformer, official",
        "digits",
        "holds:      generator, generator_ema",
        "longtake export",
    ):
        assert part in printed
    assert printed.count("causal:     not told by the keys") == 2 and printed.count("ema:        yes") == 1


def test_merging(model, tmp_path):
    spec, state, folder = model
    rng = torch.Generator().manual_seed(3)
    pairs = {
        n.removesuffix(".weight"): (
            torch.randn(4, t.shape[1], generator=rng) * 0.1,
            torch.randn(t.shape[0], 4, generator=rng) * 0.1,
        )
        for n, t in state.items()
        if n.startswith("blocks.") and t.ndim == 2
    }
    torch.save({"generator_lora": lora_state(pairs), "step": 1}, tmp_path / "lora.pt")
    assert run("merge", folder, tmp_path / "lora.pt", tmp_path / "m.safetensors", "--alpha", 8) == 0
    merged = load_transformer(tmp_path / "m.safetensors")[1]
    twice = {name: LoraPair(*pair, 2.0) for name, pair in pairs.items()}
    assert same(merged, merge_lora(state, twice)) and not same(merged, state)
    assert run("merge", folder, tmp_path / "lora.pt", tmp_path / "theirs", "--to", "diffusers", "--alpha", 8) == 0
    assert run("convert", tmp_path / "theirs", tmp_path / "back", "--to", "official") == 0
    assert same(load_transformer(tmp_path / "back")[1], merged)


def test_several_loras_are_merged_at_their_strength(tmp_path, capsys):
    spec, state = tiny_transformer()
    export_transformer(tmp_path / "base.safetensors", state, spec)
    files = [
        MAKERS[maker](tmp_path / f"{maker}.safetensors", draw_pairs(state, seed=i)) for i, maker in enumerate(MIXED)
    ]
    assert run("merge", tmp_path / "base.safetensors", f"{files[0]}:0.5", files[1], tmp_path / "m.safetensors") == 0
    said = capsys.readouterr().out
    assert said.count("strength 2.5 (alpha / rank; from") == 2 and "times 0.5" in said
    wanted = dict(state)
    for seed, strength in ((0, 0.5 * 2.5), (1, 2.5)):
        pairs = draw_pairs(state, seed=seed)
        wanted = merge_lora(wanted, {name: LoraPair(*pair, strength) for name, pair in pairs.items()})
    merged = load_transformer(tmp_path / "m.safetensors")[1]
    assert max((merged[n] - wanted[n]).abs().max() for n in wanted) < rounding(6, 3)
    assert run("inspect", *files) == 0
    said = capsys.readouterr().out
    for row in ("rank:       3", "alpha:      7.5", "strength:   2.5 (alpha / rank; from", "adapter_config.json"):
        assert row in said


def vae_config(family):
    return VAE_CONFIGS[family] | {"dim": 4, "dec_dim": 4}


@pytest.mark.parametrize("family", ["vae 2.1", "vae 2.2"])
def test_vaes_there_and_back(tmp_path, monkeypatch, family):
    from diffusers import AutoencoderKLWan

    monkeypatch.setitem(VAE_CONFIGS, family, vae_config(family))
    state = numbered(build_vae(vae_config(family), "meta").state_dict())
    save_file(state, tmp_path / "vae.safetensors")
    assert run("convert", tmp_path / "vae.safetensors", tmp_path / "Wan_VAE.pth", "--to", "official") == 0
    assert "conv1.weight" in torch.load(tmp_path / "Wan_VAE.pth", weights_only=True)
    assert run("convert", tmp_path / "Wan_VAE.pth", tmp_path / "vae", "--to", "diffusers") == 0
    assert same(load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors"), state)
    assert same(AutoencoderKLWan.from_pretrained(tmp_path / "vae").state_dict(), state)


def test_text_and_image_encoders_there_and_back(tmp_path, monkeypatch):
    from transformers import CLIPVisionModelWithProjection, UMT5EncoderModel

    text = TEXT_CONFIG | {"vocab": 40, "dim": 16, "dim_attn": 16, "dim_ffn": 24, "num_heads": 2, "num_layers": 2}
    image = IMAGE_CONFIG | {"dim": 16, "dim_ffn": 24, "dim_out": 8, "num_heads": 2, "num_layers": 2, "image_size": 28}
    monkeypatch.setattr("wan.checkpoint.library.TEXT_CONFIG", text)
    monkeypatch.setattr("wan.checkpoint.library.IMAGE_CONFIG", image)
    for model, theirs in (
        (build_text_model(text), UMT5EncoderModel),
        (build_image_model(image), CLIPVisionModelWithProjection),
    ):
        stem = tmp_path / theirs.__name__
        model.save_pretrained(stem)
        assert run("convert", stem, stem.with_suffix(".pth"), "--to", "official") == 0
        assert run("convert", stem.with_suffix(".pth"), tmp_path / f"{stem.name}_back", "--to", "diffusers") == 0
        back = theirs.from_pretrained(tmp_path / f"{stem.name}_back")
        assert same(back.state_dict(), model.state_dict())


def test_a_model_directory_is_described_part_by_part(model, tmp_path, capsys):
    _, _, folder = model
    torch.save(load_case(ROOT / "tests" / "parity" / "cases" / "J_wan21_vae").weights, folder / "Wan2.1_VAE.pth")
    assert run("inspect", folder) == 0
    printed = capsys.readouterr().out
    for part in (
        "official layout",
        "[transformer]",
        "wan transformer, official",
        "[vae]",
        "vae 2.1",
        "tokenizer:  none",
    ):
        assert part in printed


def test_bad_input_is_one_line_and_exit_2(model, tmp_path, capsys):
    _, _, folder = model
    torch.save({"generator_state_dict": {"x": torch.zeros(1)}}, tmp_path / "edu.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    shutil.copytree(folder, tmp_path / "there")
    for args, message in (
        (("inspect", tmp_path / "no.pt"), "no.pt is missing"),
        (("inspect", tmp_path / "broken.safetensors"), "broken.safetensors is truncated or damaged"),
        (("convert", tmp_path / "edu.pt", tmp_path / "o", "--to", "official"), "another architecture"),
        (("convert", folder, tmp_path / "there", "--to", "official"), "exists; give --overwrite"),
        (("convert", folder, folder, "--to", "official", "--overwrite"), "SRC itself"),
        (("convert", folder, tmp_path / "o", "--to", "longtake"), "in .safetensors"),
        (("convert", folder, tmp_path / "o", "--to", "official", "--use_ema"), "leave use_ema out"),
        (("merge", folder, folder, tmp_path / "o.safetensors"), "holds no LoRA"),
    ):
        assert run(*args) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1 and printed.startswith("convert_weights.py: ")
    assert not (tmp_path / "o").exists()
    assert run("inspect", tmp_path / "edu.pt") == 0  # told, not refused: it says what the file is
    assert "refused:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        run("convert", folder, tmp_path / "o", "--to", "onnx")
    assert end.value.code == 2
