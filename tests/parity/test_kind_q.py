"""The streaming case once more: what is not a target is the ancestor's leak, and a missing recache is seen."""

from pathlib import Path

import torch

from pipeline.rollout import Rollout
from tests.parity import kind_q
from tests.parity.__main__ import check, limit
from tests.parity.case import load_case
from tests.parity.recorded import as_recorded

CASE = Path(__file__).parent / "cases" / "Q_stream_switch_early"


def test_what_is_no_target_is_their_leak():
    """`grad_generator_j` is our gradient plus the leak through their slots, before the switch and after."""
    case = load_case(CASE, torch.float64)
    wanted = case.outputs()
    with as_recorded(case.dtype):
        leaky = kind_q.with_leak(case)
    names = [name for name in leaky if name in wanted and "_norm" not in name]
    assert {name.split(".")[0] for name in names} == {"grad_generator_0", "grad_generator_2"}
    assert max(float((leaky[name] - wanted[name]).abs().max()) for name in names) < limit(names[0], case)
    detached = name_pairs(wanted)
    assert max(float((wanted[a] - wanted[b]).abs().max()) for a, b in detached) > 1e-3, "there was a leak"


def name_pairs(wanted) -> list[tuple[str, str]]:
    names = [name for name in wanted if name.startswith("gradD_generator") and "_norm" not in name]
    return [(name, name.replace("gradD", "grad", 1)) for name in names]


def test_a_missing_recache_fails(monkeypatch):
    monkeypatch.setattr(Rollout, "recache", lambda self, state, condition: None)
    assert check(CASE)[0] == "FAIL"
