"""The face of backbone families: who reads which file, which published model has these sizes, what exports hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cogvideox.family import CogVideoX
from cogvideox.spec import SPECS as COGVIDEOX_SPECS
from tests.architecture.source import ROOT
from tests.wan.checkpoint.manifest import tiny_transformer
from wan.audio.family import S2V
from wan.backbone import Wan
from wan.checkpoint.identify import family_of_vae, find_kind
from wan.family import (
    Family,
    families,
    family_of_kind,
    find_published,
    get_family,
    published_specs,
    read_config,
    read_spec,
    spec_for,
    write_config,
)
from wan.spec import S2V_SPECS, SPECS

DIGITS = SPECS["digits"].transformer
STRIDES = (4, 8, 8)


def test_wan_has_the_whole_face():
    asked = {name for name in vars(Family) if not name.startswith("_")} | set(Family.__annotations__)
    assert {name for name in asked if not hasattr(Wan, name)} == set()
    assert [type(family) for family in families()] == [CogVideoX, S2V, Wan] and type(get_family(DIGITS)) is Wan


def test_each_kind_has_its_family():
    assert family_of_kind("wan transformer, diffusers").class_name == family_of_kind("vae 2.2").class_name
    assert family_of_kind("umt5") is None and family_of_kind("unknown") is None


def test_a_vae_is_opened_by_its_family():
    assert type(family_of_vae(ROOT / "assets/digits/vae")) is Wan
    with pytest.raises(ValueError, match="holds wan transformer, official weights, not the VAE of a backbone family"):
        family_of_vae(ROOT / "assets/digits/transformer")


def test_s2v_weights_are_told_from_wan():
    _, state = tiny_transformer()
    assert find_kind(state) == "wan transformer, official"
    assert find_kind([*state, "casual_audio_encoder.x"]) == "wan s2v transformer, official"


@pytest.mark.parametrize("name", SPECS)
def test_written_sizes_return(name):
    spec = SPECS[name].transformer
    config = json.loads(json.dumps(write_config(spec)))
    assert config["_class_name"] == "WanTransformer" and read_spec(config) == spec
    assert read_spec({k: v for k, v in config.items() if k != "_class_name"}) == spec, "as earlier versions wrote them"


def test_a_class_of_no_family_is_refused():
    with pytest.raises(ValueError, match="OtherTransformer is not a network of a family of wan.FAMILIES; known: .*Wan"):
        read_spec({**write_config(DIGITS), "_class_name": "OtherTransformer"})


def test_a_stray_configuration_tells_nothing():
    assert read_config({"_class_name": "AutoencoderKLWan", "z_dim": 16}) is None
    family, told = read_config({"_class_name": "WanModel", "dim": 128, "num_heads": 2, "patch_size": [1, 2, 2]})
    assert type(family) is Wan and told == {"dim": 128, "num_heads": 2, "patch_size": (1, 2, 2)}


@pytest.mark.parametrize("changes", [{"rope_theta": 50.0}, {"num_heads": 4}, {"text_len": 20}])
def test_sizes_that_no_shape_tells_leave_a_published_model_its_name(changes):
    own = replace(DIGITS, **changes)
    found = spec_for(own, STRIDES)
    assert found == replace(SPECS["digits"], transformer=own) and found != SPECS["digits"]


def test_other_shapes_are_a_model_of_their_own():
    own = replace(DIGITS, num_layers=3)
    found = spec_for(own, (4, 16, 16))
    assert (found.name, found.strides, found.transformer) == ("custom", (4, 16, 16), own)


def test_a_pair_of_experts_is_another_model_than_one_network():
    large = SPECS["t2v-14B"].transformer
    assert [spec_for(large, STRIDES, n).name for n in (1, 2)] == ["t2v-14B", "t2v-A14B"]


def test_unknown_names_are_refused():
    assert published_specs() == SPECS | S2V_SPECS | COGVIDEOX_SPECS
    with pytest.raises(ValueError, match="spec 'digit' is unknown; write one of .*'digits'"):
        find_published("digit")
