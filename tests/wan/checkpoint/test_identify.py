"""Published files are recognised by their keys and shapes."""

from __future__ import annotations

import pytest

from tests.wan.checkpoint.manifest import manifest
from wan.checkpoint import tensor_file
from wan.checkpoint.identify import identify

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
