"""Files of every kind that users have are recognised, loaded strictly, merged and exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.wan.checkpoint.manifest import same, tiny_transformer
from wan.checkpoint.identify import identify
from wan.checkpoint.key_maps import config_to_diffusers, config_to_official, lora_state, transformer_to_diffusers
from wan.checkpoint.weights import Sizes, export_transformer, load_strict, load_transformer
from wan.spec import SPECS


@pytest.fixture(scope="module")
def tiny():
    return tiny_transformer()


@pytest.fixture
def digits():
    """(spec, weights) of the one published model that is small: its files need no config.json."""
    spec = SPECS["digits"].transformer
    return tiny_transformer(4, **{k: v for k, v in asdict(spec).items() if k != "num_layers"})


def write_folder(folder, state, config, name="diffusion_pytorch_model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def wrapped(state, prefix="model."):
    return {prefix + k: v for k, v in state.items()}


# ---- folders ---------------------------------------------------------------------------------------


def test_official_folder(tmp_path, tiny):
    spec, state = tiny
    folder = write_folder(tmp_path / "m", state, config_to_official(asdict(spec)))
    assert "patch_size" not in json.loads((folder / "config.json").read_text())
    found_spec, found = load_transformer(folder)
    assert found_spec == spec and same(found, state)


def test_sharded_folder(tmp_path, tiny):
    spec, state = tiny
    folder = tmp_path / "m"
    names = sorted(state)
    parts = {f"diffusion_pytorch_model-0000{i}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, part in parts.items():
        write_folder(folder, {k: state[k] for k in part}, config_to_official(asdict(spec)), file)
    index = {"weight_map": {k: file for file, part in parts.items() for k in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(load_transformer(folder)[1], state)
    (folder / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="is without 1 of 3 shards: diffusion_pytorch_model-00001-of-00003"):
        load_transformer(folder)


@pytest.mark.parametrize("image_dim, in_dim", [(0, 16), (24, 36)])
def test_diffusers_folder(tmp_path, image_dim, in_dim):
    spec, state = tiny_transformer(image_dim=image_dim, in_dim=in_dim, model_type="i2v" if image_dim else "t2v")
    write_folder(tmp_path / "transformer", transformer_to_diffusers(state), config_to_diffusers(asdict(spec)))
    found_spec, found = load_transformer(tmp_path)
    assert found_spec == spec and same(found, state)
    assert identify(tmp_path / "transformer").kind == "wan transformer, diffusers"


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_two_experts(tmp_path, layout):
    spec, low = tiny_transformer()
    high = {k: v + 1 for k, v in low.items()}
    config = config_to_official(asdict(spec))
    names = ("low_noise_model", "high_noise_model") if layout == "official" else ("transformer_2", "transformer")
    for folder, state in zip(names, (low, high), strict=True):
        write_folder(tmp_path / folder, state, config)
    assert same(load_transformer(tmp_path, expert="low_noise_model")[1], low)
    assert same(load_transformer(tmp_path, expert="high_noise_model")[1], high)
    with pytest.raises(ValueError, match="2 experts; name one of low_noise_model, high_noise_model"):
        load_transformer(tmp_path)
    if layout == "official":
        shutil.rmtree(tmp_path / "low_noise_model")
        with pytest.raises(ValueError, match="low_noise_model/ is missing"):
            load_transformer(tmp_path)


# ---- training checkpoints --------------------------------------------------------------------------


def test_self_forcing_ema(tmp_path, digits):
    spec, state = digits
    torch.save({"generator_ema": wrapped(state)}, tmp_path / "self_forcing_dmd.pt")
    found_spec, found = load_transformer(tmp_path / "self_forcing_dmd.pt", use_ema=True)
    assert found_spec == spec and same(found, state)
    with pytest.raises(ValueError, match="holds no generator or model or state_dict.*set use_ema"):
        load_transformer(tmp_path / "self_forcing_dmd.pt")
    said = identify(tmp_path / "self_forcing_dmd.pt")
    assert (said.causal, said.has_ema, said.size) == (None, True, "digits")
    assert said.num_tensors == len(state)


@pytest.mark.parametrize("key", ["generator", "model", "state_dict", None])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrapper_keys(tmp_path, digits, key, legacy):
    _, state = digits
    content = wrapped(state) if key is None else {key: wrapped(state), "step": 7}
    torch.save(content, tmp_path / "ode_init.pt", _use_new_zipfile_serialization=not legacy)
    assert same(load_transformer(tmp_path / "ode_init.pt")[1], state)
    with pytest.raises(ValueError, match="leave use_ema out"):
        load_transformer(tmp_path / "ode_init.pt", use_ema=True)


def test_training_checkpoint_tells_weights_apart(tmp_path, digits):
    _, state = digits
    critic, ema = ({k: v + n for k, v in state.items()} for n in (1, 2))
    fsdp = {k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for k, v in ema.items()}
    content = {"generator": wrapped(state), "critic": wrapped(critic)}
    content["generator_ema"] = wrapped(fsdp, "model._fsdp_wrapped_module.")
    torch.save(content, tmp_path / "model.pt")
    assert same(load_transformer(tmp_path / "model.pt")[1], state)
    assert same(load_transformer(tmp_path / "model.pt", use_ema=True)[1], ema)
    assert same(load_transformer(tmp_path / "model.pt", role="critic")[1], critic)
    assert identify(tmp_path / "model.pt").holds == ("generator", "critic", "generator_ema")


def test_the_educational_ancestor_is_refused_with_the_reason(tmp_path):
    content = {"step": 3, "generator_state_dict": {"patch_embedding.weight": torch.zeros(4, 3, 1, 4, 4)}}
    torch.save(content, tmp_path / "checkpoint_final.pt")
    said = identify(tmp_path / "checkpoint_final.pt")
    assert said.kind == "educational (refused)" and "another architecture" in said.refused
    with pytest.raises(ValueError, match="another architecture"):
        load_transformer(tmp_path / "checkpoint_final.pt")


def test_other_sizes_need_a_configuration(tmp_path, tiny):
    spec, state = tiny
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="sizes of no published model .dim 48.*config.json.*num_heads"):
        load_transformer(tmp_path / "a.safetensors")
    assert load_transformer(tmp_path / "a.safetensors", chosen=Sizes(spec, "a recipe"))[0] == spec
    with pytest.raises(ValueError, match=r"the weights of .*a.safetensors: ffn_dim 80; a recipe: ffn_dim 81"):
        load_transformer(tmp_path / "a.safetensors", chosen=Sizes(replace(spec, ffn_dim=81), "a recipe"))
    (tmp_path / "config.json").write_text(json.dumps(config_to_official(asdict(replace(spec, num_layers=3)))))
    with pytest.raises(ValueError, match=r"the weights of .*a.safetensors: num_layers 2; .*config.json: num_layers 3"):
        load_transformer(tmp_path / "a.safetensors")


# ---- LoRA ------------------------------------------------------------------------------------------


def lora_for(state, rank=4, seed=5):
    rng = torch.Generator().manual_seed(seed)
    modules = [n.removesuffix(".weight") for n, t in state.items() if n.startswith("blocks.") and t.ndim == 2]
    return {
        m: (
            torch.randn(rank, state[f"{m}.weight"].shape[1], generator=rng),
            torch.randn(state[f"{m}.weight"].shape[0], rank, generator=rng),
        )
        for m in modules
    }


def test_lora_of_a_checkpoint_is_no_model(tmp_path, tiny):
    pairs = lora_for(tiny[1])
    assert len(pairs) == 20  # ten linears a block
    content = {"generator_lora": lora_state(pairs), "critic_lora": lora_state(lora_for(tiny[1], seed=6)), "step": 3000}
    torch.save(content, tmp_path / "lora.pt")
    said = identify(tmp_path / "lora.pt")
    assert (said.kind, said.lora["rank"], said.causal) == ("longlive lora", "4", None)
    assert said.size == "20 pairs over 2 blocks of width 48"
    with pytest.raises(ValueError, match="it is a LoRA"):
        load_transformer(tmp_path / "lora.pt")
    save_file(lora_state(pairs), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="holds weights of the kind 'lora over a transformer'"):
        load_transformer(tmp_path / "bare.safetensors")


# ---- our export ------------------------------------------------------------------------------------


def test_export_returns_with_its_sizes(tmp_path, tiny):
    spec, state = tiny
    spec = replace(spec, rope_theta=100.0, text_len=12)
    state = {k: v.to(torch.bfloat16) for k, v in state.items()}
    export_transformer(tmp_path / "out" / "x.safetensors", state, spec, {"causal": True, "step": 5})
    found_spec, found = load_transformer(tmp_path / "out" / "x.safetensors")
    assert found_spec == spec and same(found, state)
    said = identify(tmp_path / "out" / "x.safetensors")
    assert (said.kind, said.causal, said.notes["step"], said.dtype) == ("longtake export", True, 5, "bfloat16")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.safetensors"]


def test_a_failed_export_leaves_the_old_file_and_no_half(tmp_path, tiny, monkeypatch):
    spec, state = tiny
    path = tmp_path / "x.safetensors"
    export_transformer(path, state, spec)
    before = path.read_bytes()

    def fail(state, partial, notes):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        export_transformer(path, {}, spec)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


# ---- strict loading --------------------------------------------------------------------------------


class Pair(nn.Module):
    """Two linears, the second of which may share the first one's weight."""

    def __init__(self, tied: bool):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.b.weight = self.a.weight


def test_strict_loading_names_what_is_wrong():
    model = Pair(False)
    good = {k: v + 1 for k, v in model.state_dict().items()}
    load_strict(model, good, "the pair")
    assert same(model.state_dict(), good)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bad = {k: v + 1 for k, v in good.items() if k != "a.bias"} | {
        "b.weight": torch.zeros(2, 3),
        "c.bias": torch.zeros(1),
    }
    with pytest.raises(ValueError) as error:
        load_strict(model, bad, "the pair")
    for part in ("the pair", "1 missing: a.bias", "1 unexpected: c.bias", "b.weight (file (2, 3), model (3, 3))"):
        assert part in str(error.value)
    assert same(model.state_dict(), before)  # nothing was half loaded


def test_strict_loading_lists_ten():
    with pytest.raises(ValueError) as error:
        load_strict(Pair(False), {f"x{i:02d}": torch.zeros(1) for i in range(12)}, "it")
    assert "12 unexpected" in str(error.value) and "x09" in str(error.value) and "x10" not in str(error.value)


def test_a_tied_tensor_counts_once():
    model, state = Pair(True), Pair(False).state_dict()
    del state["b.weight"]
    load_strict(model, state, "tied")
    assert torch.equal(model.b.weight, state["a.weight"])
    with pytest.raises(ValueError, match="1 missing: b.weight"):
        load_strict(Pair(False), state, "not tied")


def test_hints(tiny):
    from wan.transformer import WanTransformer

    spec, state = tiny
    model = WanTransformer(spec)
    with pytest.raises(ValueError, match="Hint: these look like wan transformer, diffusers keys"):
        load_strict(model, transformer_to_diffusers(state), "it")
    with pytest.raises(ValueError, match="Hint: the keys carry prefixes"):
        load_strict(model, wrapped(state), "it")
    with pytest.raises(ValueError, match="Hint: .* another size"):
        load_strict(model, tiny_transformer(dim=60)[1], "it")
    with pytest.raises(ValueError, match="Hint: these look like lora"):
        load_strict(model, lora_state(lora_for(state)), "it")
    load_strict(model, state, "it")
