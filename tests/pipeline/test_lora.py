"""LoRAs run live by default, merged they give the same velocity; `model.lora` says which and how strongly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.batch.provenance import settings_hash, video_settings
from pipeline.bundle import _choose_experts, _enter, _network, load_bundle
from pipeline.config import InferConfig, ModelConfig, load_recipe
from pipeline.lora import LoraEntry, parse_loras
from tests import digits_fixture, tiny
from tests.wan.checkpoint.lora_files import MAKERS, draw_pairs
from utils import hub
from utils.config.field import check
from utils.config.text import render
from utils.lora import inject, layers
from wan.checkpoint.key_maps import PEFT_PREFIX, lora_state
from wan.checkpoint.lora_scale import header
from wan.checkpoint.parts import EXPERT_FOLDERS, Parts
from wan.checkpoint.tensor_file import write_safetensors
from wan.checkpoint.weights import export_transformer, read_weights
from wan.config import TextConfig, VAEConfig
from wan.context import Full


@pytest.fixture
def files(tmp_path):
    model = tiny.transformer()
    export_transformer(tmp_path / "base.safetensors", model.state_dict(), model.spec)
    inject(model, rank=4)
    for name, rank, alpha in (("lora", 4, 4), ("style", 2, 3)):
        shapes = {n: (m.in_features, m.out_features) for n, m in layers(model).items()}
        pairs = {n: (torch.randn(rank, i), 0.1 * torch.randn(o, rank)) for n, (i, o) in shapes.items()}
        extra = {f"{PEFT_PREFIX}blocks.0.norm3.diff_b": torch.full((32,), 0.3)} if name == "style" else {}
        write_safetensors(tmp_path / f"{name}.safetensors", lora_state(pairs) | extra, header(rank, alpha))
    return tmp_path


def velocity(files, **knobs):
    config = ModelConfig(checkpoint=str(files / "base.safetensors"), dtype="fp32", **knobs)
    digest = hashlib.sha256()
    denoiser = _network(config, Parts(files, "official"), "", digest, torch.device("cpu"), None, None)
    with torch.no_grad():
        return denoiser(tiny.latents(3), 0.7, tiny.condition(), Full()), denoiser, digest.hexdigest()


def test_live_equals_merged_and_differs_from_the_base(files):
    lora = str(files / "lora.safetensors")
    live, adapted, _ = velocity(files, lora=lora)
    merged, plain, _ = velocity(files, lora=lora, lora_merge=True)
    base, *_ = velocity(files)
    assert layers(adapted) and not layers(plain)
    assert tiny.error(live, merged) < tiny.rounding(passes=1)
    assert tiny.error(live, base) > 10 * tiny.rounding(passes=1)


def test_several_run_live_as_merged_each_at_its_strength(files):
    both = [{"path": str(files / "lora.safetensors"), "strength": 0.5}, str(files / "style.safetensors:-0.25")]
    live, adapted, digest = velocity(files, lora=both)
    merged, _, same = velocity(files, lora=both, lora_merge=True)
    assert {m.r["default"] for m in layers(adapted).values()} == {6} and digest == same
    assert tiny.error(live, merged) < tiny.rounding(passes=1)
    others = ([both[0]], [both[0], str(files / "style.safetensors:-0.3")])
    for velocities, _, other in (velocity(files, lora=lora) for lora in others):
        assert tiny.error(live, velocities) > 10 * tiny.rounding(passes=1) and other != digest
    overruled, _, other = velocity(files, lora=both, lora_alpha=1.0)
    assert tiny.error(live, overruled) > 10 * tiny.rounding(passes=1) and other != digest
    off, bare, _ = velocity(files, lora=[{"path": both[0]["path"], "strength": 0}])
    base, *_ = velocity(files)
    assert torch.equal(off, base) and not layers(bare)


def test_lora_of_strength_one_has_the_hash_it_always_had(files):
    lora, config = str(files / "lora.safetensors"), hashlib.sha256()
    weights = read_weights(files / "base.safetensors")
    _enter(config, weights.state)
    _enter(
        config,
        {
            n.removeprefix(PEFT_PREFIX).replace(".lora_", ".").removesuffix(".weight"): t
            for n, t in load_file(lora).items()
        },
    )
    assert velocity(files, lora=lora)[2] == config.hexdigest()


def test_model_alone_takes_a_lora_for_one_expert_or_both(files):
    parts = Parts(files, "official", dict.fromkeys(EXPERT_FOLDERS, files / "base.safetensors"))
    lora = str(files / "lora.safetensors")
    found = {}
    for entry in ({"path": lora}, {"path": lora, "expert": "high_noise_model"}):
        config = ModelConfig(path=str(files), lora=[entry], dtype="fp32")
        experts = _choose_experts(config, parts)
        networks = [
            _network(config, parts, name, hashlib.sha256(), torch.device("cpu"), None, None) for name in experts
        ]
        found[entry.get("expert", "")] = [bool(layers(network)) for network in networks]
    assert found == {"": [True, True], "high_noise_model": [False, True]}
    for expert, folders in (("high", EXPERT_FOLDERS), ("low_noise_model", ("",))):
        config = ModelConfig(path=str(files), lora=[{"path": lora, "expert": expert}])
        with pytest.raises(ValueError, match=f"names the expert '{expert}', and .* has (low_noise_model|one transf)"):
            _choose_experts(config, Parts(files, "official", dict.fromkeys(folders, files)))


def test_bundle_reads_loras_by_hub_name_and_folder(tmp_path, monkeypatch):
    folder = digits_fixture.model_folder(tmp_path / "model")
    state = read_weights(folder / "transformer").state
    hub_copy = MAKERS["diffusers"](tmp_path / "hub/pytorch_lora_weights.safetensors", draw_pairs(state)).parent
    peft = MAKERS["peft"](tmp_path / "own.safetensors", draw_pairs(state, seed=4))
    monkeypatch.setattr(hub, "find_local", lambda name: hub_copy if str(name) == "owner/style" else Path(name))
    monkeypatch.setattr(hub, "_download", lambda name: {"owner/style": hub_copy}[name])
    config = ModelConfig(path=str(folder), lora=["owner/style:0.5", str(peft)], dtype="fp32")
    loaded = load_bundle(config, VAEConfig(), TextConfig())
    assert {m.r["default"] for m in layers(loaded.denoiser).values()} == {6}


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("", ""),
        (None, ""),
        ([], ""),
        ("a.safetensors", "a.safetensors"),
        (["a.safetensors"], "a.safetensors"),
        ({"path": "a", "strength": 1}, "a"),
        ("a:1.0", "a"),
        ("owner/name:0.8", [{"path": "owner/name", "strength": 0.8}]),
        ("x:y/a.pt:-2e-1", [{"path": "x:y/a.pt", "strength": -0.2}]),
        ("a:b", "a:b"),
        ("a:", "a:"),
        ([{"path": "a:3", "strength": 1}], [{"path": "a:3", "strength": 1.0}]),
        ({"path": "a", "expert": "low_noise_model"}, [{"path": "a", "strength": 1.0, "expert": "low_noise_model"}]),
        (["a", "b:.5"], [{"path": "a", "strength": 1.0}, {"path": "b", "strength": 0.5}]),
    ],
)
def test_entries_are_recorded_in_one_form(given, recorded):
    config = ModelConfig(lora=given)
    check(config)
    assert config.lora == recorded and ModelConfig(lora=config.lora).loras == config.loras


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "lora holds 3; write a path, or a list such as"),
        ([["a"]], r"lora holds \['a'\]"),
        ([""], "lora holds ''"),
        ([{"path": ""}], "an entry has the path ''"),
        ([{"strength": 1}], "an entry has the path None"),
        ([{"path": "a", "weight": 2}], "lora has no weight; an entry is {path, strength}"),
        ([{"path": "a", "strength": "x"}], "the strength of a is 'x'; write a number"),
        ([{"path": "a", "strength": float("nan")}], "strength is nan; write a finite number"),
        ([{"path": "a", "strength": True}], "the strength of a is True"),
        ("a:1e400", "the strength of a:1e400 is inf"),
        ([{"path": "a", "expert": 1}], "the expert of a is 1"),
    ],
)
def test_wrong_entries_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        check(ModelConfig(lora=given))


def test_a_path_with_a_colon_is_a_path_where_it_is_there(tmp_path):
    whole = tmp_path / "style:0.5"
    whole.touch()
    assert parse_loras(str(whole)) == (LoraEntry(str(whole)),)
    assert parse_loras(f"{whole}:0.25") == (LoraEntry(str(whole), 0.25),)
    (tmp_path / "style").touch()
    with pytest.raises(ValueError, match="style:0.5 and .*style are both there; write model.lora="):
        parse_loras(str(whole))


def test_recipe_and_command_line_say_several(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("num_output_frames: 9\nmodel: {lora: [{path: a.pt, strength: 0.5}, b.pt]}\n")
    config, origins = load_recipe(recipe)
    assert config.model.loras == (LoraEntry("a.pt", 0.5), LoraEntry("b.pt"))
    assert load_recipe(recipe, ["model.lora=[c.pt]"])[0].model.lora == "c.pt"
    assert load_recipe(recipe, ["model.lora=''"])[0].model.lora == ""
    with pytest.raises(ValueError, match=rf"{recipe.name}:2: model: lora has no strenght; an entry"):
        recipe.write_text("num_output_frames: 9\nmodel: {lora: [{path: a.pt, strenght: 0.5}]}\n")
        load_recipe(recipe)
    shown = tmp_path / "shown.yaml"
    shown.write_text(render(config, origins))
    assert load_recipe(shown)[0].model == config.model


def test_what_is_recorded_tells_strengths_apart():
    given = {"a": "a.pt", "b": ["a.pt"], "c": "a.pt:0.5", "d": [{"path": "a.pt", "strength": 0.5}], "e": "a.pt:0.6"}
    configs = {name: InferConfig(model=ModelConfig(lora=lora)) for name, lora in given.items()}
    hashes = {name: settings_hash(config) for name, config in configs.items()}
    assert hashes["a"] == hashes["b"] and hashes["c"] == hashes["d"] and len(set(hashes.values())) == 3
    assert video_settings(configs["c"])["model"]["lora"] == [{"path": "a.pt", "strength": 0.5}]
