"""The VAE's loaders: official file, diffusers folder, single safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.case import load_case
from tests.wan.checkpoint.manifest import numbered
from wan.checkpoint.encoder_maps import vae_to_diffusers, vae_to_official
from wan.checkpoint.library import VAE_CONFIGS, build_vae, load_vae

CASES = Path(__file__).resolve().parents[2] / "parity" / "cases"
SMALL = {"vae 2.1": {"dim": 4}, "vae 2.2": {"dim": 4, "dec_dim": 4}}


@pytest.fixture(params=sorted(SMALL))
def small(request, monkeypatch):
    """(family, weights in diffusers names) of a small VAE that stands in for the published one."""
    config = VAE_CONFIGS[request.param] | SMALL[request.param]
    monkeypatch.setitem(VAE_CONFIGS, request.param, config)
    return request.param, numbered(build_vae(config, "meta").state_dict())


def equal(model, state) -> bool:
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[k], state[k]) for k in state)


def test_official_file_and_single_safetensors(small, tmp_path):
    family, state = small
    torch.save(vae_to_official(state), tmp_path / "Wan_VAE.pth")
    save_file(state, tmp_path / "vae.safetensors")
    for name in ("Wan_VAE.pth", "vae.safetensors"):
        model = load_vae(tmp_path / name)
        assert equal(model, state) and not model.training
        assert model.config.z_dim == VAE_CONFIGS[family]["z_dim"]
        assert list(model.config.latents_mean) == list(VAE_CONFIGS[family]["latent_mean"])
    assert load_vae(tmp_path / "vae.safetensors", torch.bfloat16).dtype == torch.bfloat16


def test_strides(small):
    family, _ = small
    config = build_vae(VAE_CONFIGS[family], "meta").config
    assert (config.scale_factor_temporal, config.scale_factor_spatial) == (4, 8 if family == "vae 2.1" else 16)


def test_diffusers_folder(tmp_path):
    case = load_case(CASES / "J_wan21_vae")
    config = case.config["config"] | {k: case.config[k] for k in ("latent_mean", "latent_std")}
    model = build_vae(config)
    model.load_state_dict(vae_to_diffusers(case.weights))
    model.save_pretrained(tmp_path / "vae")
    loaded = load_vae(tmp_path / "vae")
    assert equal(loaded, model.state_dict()) and loaded.config.base_dim == config["dim"]


def test_a_vae_of_another_size_or_none_is_named(tmp_path):
    case = load_case(CASES / "J_wan21_vae")
    torch.save(case.weights, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match="Wan2.1_VAE.pth does not fit.*mis-shaped.*another size"):
        load_vae(tmp_path / "Wan2.1_VAE.pth")
    torch.save(load_case(CASES / "J_umt5_encoder").weights, tmp_path / "t5.pth")
    with pytest.raises(ValueError, match="t5.pth holds umt5 weights, no Wan VAE"):
        load_vae(tmp_path / "t5.pth")
