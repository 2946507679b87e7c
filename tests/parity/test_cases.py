"""The committed cases: one of each kind, against the numbers of the original systems."""

from pathlib import Path

import pytest
import torch

from tests.parity.__main__ import check, compare
from tests.parity.case import load_case, recorded_dtype

CASES = sorted(p.parent for p in (Path(__file__).parent / "cases").glob("*/case.json"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "fp32"])
@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_case_matches_the_recording(folder, dtype):
    if recorded_dtype(folder) != torch.float64 == dtype:
        pytest.skip("recorded in fp32 alone: tables are fp32")
    status, line = check(folder, dtype)
    assert status == "pass", line


def test_a_small_error_fails():
    """The comparison itself can fail: by value, by a missing output, by shape, by NaN."""
    case = load_case(CASES[0], torch.float64)
    wanted = case.outputs()
    name = next(iter(wanted))
    assert compare(wanted, wanted, case)[2]
    assert not compare({**wanted, name: wanted[name] + 1e-8}, wanted, case)[2]
    assert not compare({k: v for k, v in wanted.items() if k != name}, wanted, case)[2]
    assert not compare({**wanted, name: wanted[name][..., :-1]}, wanted, case)[2]
    assert not compare({**wanted, name: wanted[name] * torch.nan}, wanted, case)[2]
