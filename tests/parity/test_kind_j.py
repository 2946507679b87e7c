"""Twins of the committed cases of kind J, which must fail."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.parity import kind_j
from tests.parity.__main__ import compare
from tests.parity.case import load_case

CASES = Path(__file__).parent / "cases"


def test_padding_seen_by_the_text_encoder_is_noticed():
    case = load_case(CASES / "J_umt5_encoder")
    wanted = case.outputs()
    case.inputs["mask"] = torch.ones_like(case.inputs["mask"])
    assert not compare(kind_j.run(case), wanted, case)[2]


def test_a_stream_that_forgets_its_state_is_noticed(monkeypatch):
    case = load_case(CASES / "J_wan21_vae")
    decode = kind_j.decode_features

    def forgetful(model, x, state=None):
        state = state and [torch.zeros_like(s) if isinstance(s, torch.Tensor) else s for s in state]
        return decode(model, x, state)

    monkeypatch.setattr(kind_j, "decode_features", forgetful)
    assert not compare(kind_j.run(case), case.outputs(), case)[2]


def test_latents_left_unscaled_are_noticed(monkeypatch):
    case = load_case(CASES / "J_wan22_vae")
    monkeypatch.setattr(kind_j.StreamingVAE, "denormalise", lambda self, x: x.transpose(1, 2))
    assert not compare(kind_j.run(case), case.outputs(), case)[2]
