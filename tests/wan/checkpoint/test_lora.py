"""LoRA files of all makers: names, layers of the model, sums, and what is refused by its name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests import tolerance
from tests.wan.checkpoint.lora_files import MAKERS, MODULES, diffusers_name, draw_pairs, underscored, write
from tests.wan.checkpoint.manifest import TRANSFORMERS, manifest, tiny_transformer
from wan.checkpoint.key_maps import lora_state
from wan.checkpoint.lora import LoraPair, add_tensors, combine, lora_file, merge_lora, read_lora
from wan.spec import SPECS

SCALE = 7.5 / 3


@pytest.fixture(scope="module")
def tiny():
    spec, state = tiny_transformer()
    return spec, {name: tensor.double() for name, tensor in state.items()}


def refused(path, tiny=None) -> str:
    """Returns the error of a file that is not read, or does not fit."""
    with pytest.raises(ValueError) as error:
        lora = read_lora(path)
        lora.fit(tiny[1], tiny[0])
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("maker", MAKERS)
def test_lora_of_each_maker_gives_the_same_update(maker, tmp_path, tiny):
    spec, state = tiny
    pairs = draw_pairs(state)
    lora = read_lora(MAKERS[maker](tmp_path / "lora.safetensors", pairs), strength=0.4)
    update = lora.fit(state, spec)
    assert not update.added and update.pairs.keys() == set(MODULES)
    merged = merge_lora(state, update.pairs)
    for module, (a, b) in pairs.items():
        wanted = state[f"{module}.weight"] + 0.4 * SCALE * (b.double() @ a.double())
        torch.testing.assert_close(merged[f"{module}.weight"], wanted, rtol=0, atol=tolerance.EXACT)
    assert {name for name in state if merged[name] is not state[name]} == {f"{m}.weight" for m in MODULES}


def test_tensors_that_are_added_have_no_alpha(tmp_path, tiny):
    spec, state = tiny
    extra = {
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.full((48,), 0.25),
        "diffusion_model.blocks.1.ffn.0.diff_b": torch.full_like(state["blocks.1.ffn.0.bias"], 0.5).float(),
        "diffusion_model.blocks.1.diff_m": torch.ones(1, 6, 48),
    }
    path = write(tmp_path / "l.safetensors", draw_pairs(state), "diffusion_model.", alpha=9, extra=extra)
    update = read_lora(path, strength=2).fit(state, spec)
    summed = add_tensors(state, update.added)
    changes = {"blocks.0.self_attn.norm_q.weight": 0.5, "blocks.1.ffn.0.bias": 1, "blocks.1.modulation": 2}
    assert update.added.keys() == changes.keys()
    for name, change in changes.items():
        torch.testing.assert_close(summed[name], state[name] + change, rtol=0, atol=tolerance.EXACT)


def test_lora_of_a_convolution_is_added_whole(tmp_path, tiny):
    spec, state = tiny
    weight = state["patch_embedding.weight"]
    a, b = torch.randn(2, *weight.shape[1:]), torch.randn(len(weight), 2, 1, 1, 1)
    path = write(tmp_path / "l.safetensors", {"patch_embedding": (a, b)}, "diffusion_model.", alpha=1)
    added = read_lora(path).fit(state, spec).added
    wanted = 0.5 * torch.einsum("or,rchwt->ochwt", b[..., 0, 0, 0], a)
    assert tolerance.rounding(2, 1, 16) > (added["patch_embedding.weight"] - wanted).abs().max()


def test_several_loras_add_up(tmp_path, tiny):
    spec, state = tiny
    first, second = draw_pairs(state), draw_pairs(state, rank=5, seed=7, modules=MODULES[1:3])
    files = [write(tmp_path / f"{i}.safetensors", pairs) for i, pairs in enumerate((first, second))]
    both = combine(read_lora(f, strength=s).fit(state, spec) for f, s in zip(files, (0.5, -2), strict=True))
    assert {pair.a.shape[0] for pair in both.pairs.values()} == {3, 8}
    merged = merge_lora(state, both.pairs)
    for module in MODULES:
        wanted = state[f"{module}.weight"] + 0.5 * (first[module][1] @ first[module][0])
        wanted = wanted - 2 * (second[module][1] @ second[module][0]) if module in second else wanted
        assert (merged[f"{module}.weight"] - wanted).abs().max() < tolerance.rounding(8, 3)


def test_strength_is_part_of_what_tells_updates_apart(tmp_path, tiny):
    path = write(tmp_path / "l.safetensors", draw_pairs(tiny[1]))
    names = [set(read_lora(path, strength=s).fit(tiny[1], tiny[0]).tensors()) for s in (1, 0.5, 0)]
    assert len(names[0]) == 2 * len(MODULES) and names[1] - names[0] == {f"{m}.scale" for m in MODULES}
    assert not names[2]  # strength 0 is no LoRA


def test_longlive_checkpoint_holds_two(tmp_path, tiny):
    pairs = {"generator": draw_pairs(tiny[1], rank=4), "critic": draw_pairs(tiny[1], rank=4, seed=6)}
    torch.save({f"{r}_lora": lora_state(p) for r, p in pairs.items()} | {"step": 3000}, tmp_path / "lora.pt")
    for role, wanted in pairs.items():
        found = read_lora(tmp_path / "lora.pt", role=role).fit(tiny[1], tiny[0]).pairs
        assert all(torch.equal(found[m].a, a) and torch.equal(found[m].b, b) for m, (a, b) in wanted.items())
    with pytest.raises(ValueError, match="holds no teacher_lora; it has: generator_lora, critic_lora, step"):
        read_lora(tmp_path / "lora.pt", role="teacher")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lycoris_blocks_0_ffn_0.lokr_w1", "holds LoKr"),
        ("lora_unet_blocks_0_ffn_0.hada_w1_a", "holds LoHa"),
        ("diffusion_model.blocks.0.ffn.0.dora_scale", "holds DoRA"),
        ("base_model.model.blocks.0.ffn.0.lora_magnitude_vector.weight", "holds DoRA"),
        ("lora_unet_patch_embedding.lora_mid.weight", "holds LoCon with a Tucker core"),
        ("lora_unet_blocks_0_ffn_0.oft_blocks", "holds OFT"),
        ("base_model.model.blocks.0.ffn.0.lora_B.bias", "lora_bias"),
        ("diffusion_model.blocks.0.ffn.0.set_weight", "ComfyUI's replaced weights"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "LoRA of a text encoder"),
        ("text_encoder.block.0.layer.0.SelfAttention.q.lora_A.weight", "LoRA of a text encoder"),
        ("base_model.model.head.head.weight", "1 whole tensors next to its LoRA"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, tiny, name, words):
    path = write(tmp_path / "l.safetensors", draw_pairs(tiny[1]), extra={name: torch.zeros(2, 2)})
    said = refused(path, tiny)
    assert words in said and name in said and ("merge it into its base" in said or "save the file without" in said)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("double_blocks_4_img_attn_qkv", "trained on Flux or HunyuanVideo"),
        ("blocks_0_cross_attn_k_img", "trained on an image-to-video Wan"),
        ("vace_blocks_0_self_attn_q", "trained on a Wan with VACE layers"),
        ("down_blocks_0_attentions_0_proj_in", "trained on a U-Net"),
        ("blocks_7_self_attn_q", "1 layers that this model does not have: lora_unet_blocks_7_self_attn_q"),
    ],
)
def test_lora_of_another_model_is_refused(tmp_path, tiny, module, words):
    pairs = draw_pairs(tiny[1]) | {module: (torch.zeros(3, 48), torch.zeros(48, 3))}
    said = refused(write(tmp_path / "l.safetensors", pairs, "lora_unet_", rename=underscored), tiny)
    assert words in said and module in said and "take a LoRA that was trained on this model" in said


def test_sizes_of_another_model_are_named(tmp_path, tiny):
    pairs = {"blocks.0.ffn.2": (torch.zeros(3, 7), torch.zeros(48, 3)), "blocks.0.norm3": (torch.zeros(1, 1),) * 2}
    said = refused(write(tmp_path / "l.safetensors", pairs), tiny)
    assert "blocks.0.ffn.2.weight is (48, " in said and "blocks.0.norm3.weight is no matrix" in said
    extra = {"blocks.0.self_attn.norm_q.diff": torch.zeros(47), "blocks.0.ffn.0.diff_m": torch.zeros(6)}
    said = refused(write(tmp_path / "l.safetensors", {}, extra=extra), tiny)
    assert "norm_q.weight is (48,), the file adds (47,)" in said and "ffn.0.modulation is no parameter" in said


def test_names_that_could_be_two_layers_are_refused(tmp_path, tiny):
    spec, state = tiny
    twice = state | {"blocks.0.ffn_0.weight": state["blocks.0.ffn.0.weight"]}
    pairs = {"blocks_0_ffn_0": draw_pairs(state, modules=["blocks.0.ffn.0"])["blocks.0.ffn.0"]}
    path = write(tmp_path / "l.safetensors", pairs, "lora_unet_")
    with pytest.raises(ValueError, match="may be blocks.0.ffn.0 or blocks.0.ffn_0 of this model"):
        read_lora(path).fit(twice, spec)
    assert read_lora(path).fit(state, spec).pairs.keys() == {"blocks.0.ffn.0"}


@pytest.mark.parametrize("published", TRANSFORMERS)
def test_kohyas_names_are_clear_in_every_published_model(published, tmp_path):
    spec, state = SPECS[TRANSFORMERS[published]].transformer, manifest(published)[1]
    linear = [n.removesuffix(".weight") for n, t in state.items() if n.endswith(".weight") and t.ndim == 2]
    sizes = {m: state[f"{m}.weight"].shape for m in linear}
    pairs = {m: (torch.zeros(1, i), torch.zeros(o, 1)) for m, (o, i) in sizes.items()}
    for rename in (str, underscored, diffusers_name, lambda m: underscored(diffusers_name(m))):
        lora = read_lora(write(tmp_path / "l.safetensors", pairs, rename=rename), shapes_only=True)
        assert lora.fit(state, spec).pairs.keys() == pairs.keys()


def test_broken_files_are_named(tmp_path, tiny):
    _, state = tiny
    pairs = draw_pairs(state)
    half = write(tmp_path / "half.safetensors", pairs, extra={"blocks.0.ffn.0.lora_A.weight": torch.zeros(3, 48)})
    assert "missing: blocks.0.ffn.0 (b)" in refused(half)
    orphan = write(tmp_path / "orphan.safetensors", pairs, extra={"blocks.0.ffn.0.alpha": torch.ones(())})
    assert "missing: blocks.0.ffn.0 (a), blocks.0.ffn.0 (b)" in refused(orphan)
    ranks = write(tmp_path / "ranks.safetensors", {"blocks.0.ffn.0": (torch.zeros(3, 48), torch.zeros(64, 2))})
    assert "of no common rank" in refused(ranks)
    twice = write(tmp_path / "two.safetensors", pairs, extra=lora_state(pairs))
    assert "it holds two LoRAs, split it" in refused(twice, tiny)
    whole = {"blocks.0.ffn.0": (torch.zeros(3, 48, dtype=torch.int8), torch.zeros(64, 3))}
    assert "is torch.int8" in refused(write(tmp_path / "int.safetensors", whole))
    save_file({k: v.float() for k, v in state.items()}, tmp_path / "base.safetensors")
    assert "holds no LoRA; its first keys" in refused(tmp_path / "base.safetensors")


def test_folder_gives_its_one_lora(tmp_path, tiny):
    pairs = draw_pairs(tiny[1])
    assert lora_file(write(tmp_path / "hub/pytorch_lora_weights.safetensors", pairs).parent).name.startswith("pytorch")
    assert lora_file(write(tmp_path / "own/high.safetensors", pairs).parent).name == "high.safetensors"
    write(tmp_path / "own/low.safetensors", pairs)
    assert "2 files that may be a LoRA; name one file; it has: high.safetensors, low" in refused(tmp_path / "own")
    run = write(tmp_path / "run/export/lora.safetensors", pairs)
    assert f"a run's LoRA is {run}" in refused(tmp_path / "run")


def test_pair_is_scaled_in_the_sum():
    state = {"a.weight": torch.zeros(2, 2, dtype=torch.bfloat16)}
    merged = merge_lora(state, {"a": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 0.3)})
    assert merged["a.weight"].dtype == torch.bfloat16 and torch.all(merged["a.weight"] == torch.tensor(0.3).bfloat16())
