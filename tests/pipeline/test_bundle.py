"""The parts of a model: which spec they are, text embeddings, hashes."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.bundle import DTYPES, load_bundle
from pipeline.causal import Causal
from pipeline.config import FewStepConfig, ModelConfig, OffloadConfig
from tests import digits_fixture, tiny
from utils.config.field import check
from wan.config import TextConfig, VAEConfig
from wan.generation import GenerationConfig, StepsConfig
from wan.geometry import Geometry
from wan.ledger import CacheConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return digits_fixture.model_folder(tmp_path_factory.mktemp("kit"))


def bundle(folder, **model):
    return load_bundle(ModelConfig(str(folder), **{"dtype": "fp32", **model}), VAEConfig(), TextConfig("fp32"))


def test_the_digits_model_is_recognised(folder):
    loaded = bundle(folder)
    assert loaded.spec.name == "digits" and not loaded.joins_image and loaded.image is None
    assert loaded.vae.spatial_stride == loaded.spec.strides[1] == loaded.spec.strides[2]
    weights = [*loaded.denoiser.parameters(), *loaded.vae.parameters(), *loaded.text.encoder.parameters()]
    assert not any(w.requires_grad or w.is_meta for w in weights)
    assert not loaded.denoiser.transformer.training and not loaded.vae.training


def test_unknown_sizes_become_a_model_of_their_own(tmp_path):
    loaded = bundle(digits_fixture.model_folder(tmp_path / "own", num_layers=2, ffn_dim=96))
    assert loaded.spec.name == "custom" and loaded.spec.strides == (4, 8, 8)
    assert loaded.spec.transformer == dataclasses.replace(digits_fixture.DIGITS, num_layers=2, ffn_dim=96)
    assert Geometry.of(loaded.spec, 32, 48).latent_shape(2) == (2, 16, 4, 6)


def test_a_named_spec_must_have_as_many_transformers(folder):
    with pytest.raises(ValueError, match=r"t2v-A14B has 2 transformer\(s\)"):
        bundle(folder, spec="t2v-A14B")


def test_the_hash_tells_weights_apart_and_nothing_else(folder, tmp_path):
    first, again = bundle(folder), bundle(folder)
    assert first.weights_hash == again.weights_hash
    other = digits_fixture.model_folder(tmp_path / "other", rope_theta=50.0)
    path = other / "transformer/diffusion_pytorch_model.safetensors"
    assert bundle(other).weights_hash == first.weights_hash
    state = load_file(path)
    state["blocks.2.ffn.0.bias"][0] += 1
    save_file(state, path)
    assert bundle(other).weights_hash != first.weights_hash


def test_each_prompt_is_encoded_alone_and_once(folder):
    loaded, calls = bundle(folder), []
    encode = loaded.text.encoder
    loaded.text.encoder = lambda prompts: calls.append(prompts) or encode(prompts)
    a, b = digits_fixture.PROMPTS[:2]
    both = loaded.condition([a, b, a], "")
    assert calls == [[""], [a], [b]]
    assert both.text.shape == both.null_text.shape == (3, 12, 64)
    assert torch.equal(both.text[0], both.text[2]) and not torch.equal(both.text[0], both.text[1])
    alone = loaded.condition([b], None)
    assert torch.equal(alone.text[0], both.text[1]) and alone.null_text is None and len(calls) == 3


def bare(folder, path):
    """Returns a copy of a model's weights without its config.json."""
    shutil.copy(folder / "transformer/diffusion_pytorch_model.safetensors", path)
    return path


@pytest.mark.parametrize(("name", "value"), [("rope_theta", 10000.0), ("num_heads", 4), ("text_len", 20)])
def test_a_checkpoints_own_sizes_win_over_the_model_folders(folder, tmp_path, name, value):
    other = digits_fixture.model_folder(tmp_path / "other", **{name: value})
    loaded = bundle(folder, checkpoint=str(other / "transformer"))
    sizes = dataclasses.replace(digits_fixture.DIGITS, **{name: value})
    assert loaded.denoiser.spec == loaded.spec.transformer == sizes
    assert loaded.spec.name == "digits" and loaded.text.encoder.text_len == sizes.text_len
    without = bundle(folder, checkpoint=str(bare(other, tmp_path / "bare.safetensors")))
    assert without.denoiser.spec == digits_fixture.DIGITS, "a file that tells nothing takes the folder's sizes"


def test_a_contradiction_names_both_files_and_the_keys(folder, tmp_path):
    other = digits_fixture.model_folder(tmp_path / "other", num_layers=2, rope_theta=50.0) / "transformer"
    with pytest.raises(ValueError) as said:
        bundle(folder, checkpoint=str(other))
    words = f"{other}/config.json: num_layers 2; {folder}/transformer/config.json: num_layers 4. They contradict"
    assert words in str(said.value) and "or one without a transformer" in str(said.value)
    lone = bare(other.parent, tmp_path / "lone.safetensors")
    with pytest.raises(ValueError, match=f"the weights of {lone}: num_layers 2; {folder}/transformer/config.json"):
        bundle(folder, checkpoint=str(lone))
    parts = digits_fixture.link_parts(tmp_path / "parts")
    assert bundle(parts, checkpoint=str(other)).denoiser.spec.num_layers == 2, (
        "a folder without transformer says nothing"
    )


def test_a_named_spec_must_be_that_of_the_configuration(tmp_path):
    other = digits_fixture.model_folder(tmp_path / "other", rope_theta=50.0)
    words = f"{other}/transformer/config.json: rope_theta 50.0; model.spec=digits: rope_theta 100.0. They contradict"
    with pytest.raises(ValueError, match=words):
        bundle(other, spec="digits")
    with pytest.raises(ValueError, match=words):
        bundle(other, spec="digits", checkpoint=str(other / "transformer"))
    named = bundle(other, spec="digits", checkpoint=str(bare(other, tmp_path / "bare.safetensors")))
    assert named.denoiser.spec == digits_fixture.DIGITS, "model.spec tells the sizes of a file that tells none"


def test_keys_that_do_not_fit_name_the_configuration_that_was_used(folder, tmp_path):
    state = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    path = tmp_path / "more.safetensors"
    save_file(state | {"gains.0": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=rf"more.safetensors \(sizes of {folder}/transformer/config.json\).*gains.0"):
        bundle(folder, checkpoint=str(path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_that_of_the_weights(folder, dtype):
    loaded = bundle(folder, dtype=dtype)
    assert {w.dtype for w in loaded.denoiser.parameters()} == {DTYPES[dtype]} == {loaded.dtype}
    assert loaded.encode(["a red three moves right"]).dtype == DTYPES[dtype]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dtype": "fp16"}, "model.dtype must be one of"),
        ({"precision": "high"}, "model.precision one of"),
        ({"spec": "digit"}, "is unknown; write one of"),
        ({"lora": 5}, "lora holds 5; write a path"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": -2.0}, "lora_alpha is -2.0; write 0 to"),
    ],
)
def test_wrong_knobs_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        check(ModelConfig(**wrong))


def test_eight_bit_linears_are_other_weights_and_never_silent(folder, caplog):
    plain, narrow, rows = (bundle(folder, dtype="bf16", linears=kind) for kind in ("weights", "fp8", "fp8_rows"))
    assert len({b.weights_hash for b in (plain, narrow, rows)}) == 3
    kinds = [type(b.denoiser.transformer.blocks[0].ffn[0]).__name__ for b in (plain, narrow, rows)]
    assert kinds == ["Linear", "Float8Linear", "Float8Linear"]
    assert isinstance(narrow.denoiser.transformer.head.head, torch.nn.Linear)


def test_a_device_without_eight_bits_is_told_before_weights_are_read(folder, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("only for compute capability 8.9 or more")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    monkeypatch.setattr("pipeline.bundle.find_parts", lambda *_: pytest.fail("weights were looked for"))
    with pytest.raises(ValueError, match=r"no 8-bit product.*8\.9.*model\.linears=weights"):
        bundle(folder, dtype="bf16", linears="fp8")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"linears": "int8"}, "write one of"),
        ({"linears": "fp8", "dtype": "fp32"}, "model.dtype=bf16"),
        ({"linears": "fp8", "dtype": "bf16", "lora": "style.safetensors"}, "style.safetensors runs next to them"),
        ({"offload": OffloadConfig(caches="disk")}, "model.offload.caches is 'disk'"),
    ],
)
def test_knobs_that_cannot_be_are_told(model, words):
    config = ModelConfig(**model)
    assert any(words in problem for problem in [*config.problems(), *config.offload.problems()])
    merged = ModelConfig(linears="fp8", lora="style.safetensors", lora_merge=True)
    assert not [*merged.problems()]


def test_offloaded_parts_make_the_same_video(folder):
    """Encoders that visit, blocks that take turns, caches in CPU memory: the same bits, here with the CPU as device."""
    videos = []
    for offload in (OffloadConfig(), OffloadConfig(True, True, "cpu"), OffloadConfig(caches="staged")):
        loaded = bundle(folder, offload=offload)
        knobs = GenerationConfig(steps=StepsConfig([1000, 500]), cache=CacheConfig(6, 1))
        pipeline = Causal(knobs, loaded, FewStepConfig().build(knobs.steps), Geometry.of(loaded.spec, 0, 0))
        condition = loaded.condition(["a red three moves left"], None)
        noise = tiny.noise(geometry=pipeline.rollout.geometry)
        made = list(pipeline.generate(condition, noise, 1, 12))
        videos.append(torch.cat([chunk.latents for chunk in made], 1))
    assert torch.equal(videos[0], tiny.healthy(videos[1])) and torch.equal(videos[0], videos[2])
    assert type(loaded.text.encoder).__name__ == "TextEncoder"
    offloaded = bundle(folder, offload=OffloadConfig(parts=True))
    assert type(offloaded.text.encoder).__name__ == "Visiting" and offloaded.text.find_cut("a") is None
