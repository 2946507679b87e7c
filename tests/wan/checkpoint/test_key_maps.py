"""Every official name and shape has its place in the library's model, and every map has its way back."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.wan.checkpoint.manifest import TRANSFORMERS, manifest, numbered, same, tensor_shapes, tiny_transformer
from wan.checkpoint.encoder_maps import (
    CLIP_DROPPED,
    image_to_official,
    image_to_transformers,
    text_to_official,
    text_to_transformers,
    vae_to_diffusers,
    vae_to_official,
)
from wan.checkpoint.key_maps import (
    INNER_PREFIXES,
    OUTER_PREFIXES,
    clean_name,
    clean_names,
    config_from_diffusers,
    config_to_diffusers,
    is_lora,
    lora_state,
    module_names,
    parse_lora_name,
    transformer_to_diffusers,
    transformer_to_official,
)
from wan.checkpoint.library import (
    IMAGE_CONFIG,
    TEXT_CONFIG,
    VAE_CONFIGS,
    build_image_model,
    build_text_model,
    build_vae,
)
from wan.spec import SPECS


def diffusers_transformer(spec):
    from diffusers import WanTransformer3DModel

    config = config_to_diffusers(asdict(spec))
    known = {k: v for k, v in config.items() if k not in ("_class_name", "model_type", "text_len", "rope_theta")}
    with torch.device("meta"):
        return WanTransformer3DModel(**known)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_match_their_manifests(name):
    from wan.transformer import WanTransformer

    spec = SPECS[TRANSFORMERS[name]].transformer
    _, official = manifest(name)
    with torch.device("meta"):
        ours = WanTransformer(spec).state_dict()
    assert tensor_shapes(ours) == tensor_shapes(official)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_fill_diffusers(name):
    spec = SPECS[TRANSFORMERS[name]].transformer
    _, official = manifest(name)
    renamed = transformer_to_diffusers(official)
    assert tensor_shapes(renamed) == tensor_shapes(diffusers_transformer(spec).state_dict())
    assert tensor_shapes(transformer_to_official(renamed)) == tensor_shapes(official)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_configs_return(name):
    config = asdict(SPECS[name].transformer)
    there = config_to_diffusers(config)
    assert {**config_from_diffusers(there), "patch_size": config["patch_size"]} == config


@pytest.mark.parametrize("name, family", [("wan2.1_vae", "vae 2.1"), ("wan2.2_vae", "vae 2.2")])
def test_vaes_fill_diffusers(name, family):
    config, official = manifest(name)
    ours = VAE_CONFIGS[family]
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in ours.items()} == {
        k: v for k, v in config.items() if k != "dropout"
    }
    model = build_vae(ours, "meta")
    assert tensor_shapes(vae_to_diffusers(official)) == tensor_shapes(model.state_dict())
    assert tensor_shapes(vae_to_official(model.state_dict())) == tensor_shapes(official)


@pytest.mark.parametrize("patch", [None, 2])
@pytest.mark.parametrize("blocks", [1, 3])
def test_vae_maps_return_at_other_depths(patch, blocks):
    config = {**VAE_CONFIGS["vae 2.2" if patch else "vae 2.1"], "dim": 4, "dec_dim": 4, "num_res_blocks": blocks}
    state = numbered(build_vae(config, "meta").state_dict())
    official = vae_to_official(state)
    assert ("encoder.downsamples.0.downsamples.0.residual.0.gamma" in official) == bool(patch)
    assert same(vae_to_diffusers(official), state)


def test_text_encoder_fills_transformers():
    config, official = manifest("umt5_xxl_encoder")
    assert TEXT_CONFIG == {k: v for k, v in config.items() if k not in ("shared_pos", "dropout")}
    model = build_text_model(TEXT_CONFIG, "meta")
    renamed = text_to_transformers(official)
    once = {n: p for n, p in model.named_parameters()}  # a tied tensor stands here once
    assert tensor_shapes(renamed) == tensor_shapes(once)
    assert tensor_shapes(text_to_official(renamed)) == tensor_shapes(official)


def test_text_encoder_returns_from_a_state_dict_with_both_names():
    config = {**TEXT_CONFIG, "vocab": 20, "dim": 16, "dim_attn": 16, "dim_ffn": 24, "num_heads": 2, "num_layers": 2}
    both = build_text_model(config).state_dict()
    assert "encoder.embed_tokens.weight" in both
    official = text_to_official(both)
    assert len(official) == 2 + 10 * 2
    assert torch.equal(official["token_embedding.weight"], both["shared.weight"])
    both["encoder.embed_tokens.weight"] = both["shared.weight"] + 1
    with pytest.raises(ValueError, match="embed_tokens"):
        text_to_official(both)


def test_clip_fills_transformers():
    _, official = manifest("clip_xlm_roberta_vit_h_14")
    renamed = image_to_transformers(official)
    model = build_image_model(IMAGE_CONFIG, "meta")
    assert tensor_shapes(renamed) == tensor_shapes(model.state_dict())
    visual = {n: t for n, t in official.items() if n.startswith("visual.")}
    assert tensor_shapes(image_to_official(renamed)) == tensor_shapes(visual)
    dropped = official.keys() - visual.keys()
    assert dropped and all(n.startswith(CLIP_DROPPED) for n in dropped)
    with pytest.raises(ValueError, match="visual.extra"):
        image_to_transformers({**official, "visual.extra": official["log_scale"]})
    with pytest.raises(ValueError, match="audio.weight"):
        image_to_transformers({**official, "audio.weight": official["log_scale"]})


def test_clip_returns_bit_for_bit():
    config = {**IMAGE_CONFIG, "dim": 16, "dim_ffn": 24, "dim_out": 8, "num_heads": 2, "num_layers": 2, "image_size": 28}
    state = numbered(build_image_model(config, "meta").state_dict())
    official = image_to_official(state)
    q = official["visual.transformer.1.attn.to_qkv.weight"][:16]
    assert torch.equal(q, state["vision_model.encoder.layers.1.self_attn.q_proj.weight"])
    assert torch.equal(official["visual.head"], state["visual_projection.weight"].t())
    assert same(image_to_transformers(official), state)


@pytest.mark.parametrize("image_dim", [0, 24])
def test_transformer_maps_return_bit_for_bit(image_dim):
    _, state = tiny_transformer(image_dim=image_dim)
    assert same(transformer_to_official(transformer_to_diffusers(state)), state)


def test_an_unknown_name_is_an_error():
    _, state = tiny_transformer()
    for name in ("blocks.0.self_attn.q.scale", "blocks.0.audio.q.weight", "patch_embedding.weight.extra", "head"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            transformer_to_diffusers({**state, name: torch.zeros(1)})
    with pytest.raises(ValueError, match="not keys of a diffusers"):
        transformer_to_official(state)


@given(st.lists(st.sampled_from(OUTER_PREFIXES), max_size=3), st.lists(st.sampled_from(INNER_PREFIXES), max_size=3))
def test_prefixes_vanish_in_any_order(outer, inner):
    name = "".join(outer) + "".join(inner) + "blocks.3." + "".join(inner) + "self_attn.q.weight"
    assert clean_name(name) == "blocks.3.self_attn.q.weight"


def test_two_names_that_become_one_are_an_error():
    with pytest.raises(ValueError, match="both become 'head.head.bias'"):
        clean_names({"model.head.head.bias": torch.zeros(1), "module.head.head.bias": torch.zeros(1)})


@pytest.mark.parametrize("adapter", ["", "default.", "stage_2."])
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "transformer.", "diffusion_model._fsdp_wrapped_module."])
def test_lora_names_are_split_and_their_prefixes_go(adapter, prefix):
    for half in "AB":
        module, role = parse_lora_name(f"{prefix}blocks.11.ffn.2.lora_{half}.{adapter}weight")
        assert role == half.lower() and list(module_names(module))[-1] == "blocks.11.ffn.2"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lora_unet_blocks_3_ffn_0.lora_down.weight", ("lora_unet_blocks_3_ffn_0", "a")),
        ("a.b.lora.up.weight", ("a.b", "b")),
        ("a.b.alpha", ("a.b", "alpha")),
        ("a.norm_q.diff", ("a.norm_q", "weight")),
        ("a.norm3.diff_b", ("a.norm3", "bias")),
        ("blocks.0.diff_m", ("blocks.0", "modulation")),
        ("blocks.0.ffn.0.weight", None),
        ("blocks.0.ffn.0.bias", None),
    ],
)
def test_lora_name_of_each_maker(name, found):
    assert parse_lora_name(name) == found


@pytest.mark.parametrize(
    ("names", "lora"),
    [
        (["a.lora_A.weight", "a.lora_B.weight", "a.alpha"], True),
        (["a.lokr_w1", "a.lokr_w2"], True),
        (["a.diff_b"], True),
        (["a.alpha"], False),  # a model may have a parameter of this name
        (["a.weight", "a.bias", "b.weight", "b.diff"], False),
        ([], False),
    ],
)
def test_adapter_files_are_recognised_by_most_of_their_names(names, lora):
    assert is_lora(names) == lora


def test_lora_state_has_the_names_of_peft():
    pairs = {m: (torch.zeros(3, 8), torch.zeros(8, 3)) for m in ("blocks.0.cross_attn.v", "blocks.1.ffn.0")}
    assert set(lora_state(pairs)) == {f"base_model.model.{m}.lora_{half}.weight" for m in pairs for half in "AB"}
