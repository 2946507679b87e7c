"""`python -m tests.parity DIR [--kinds B,C,...]`: every recorded case of a folder against our code.

In float64 where the case has such a recording: what is left then does not depend on the CPU's order of sums.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from tests import tolerance
from tests.parity.case import NotATarget, NotBuilt, load_case, recorded_dtype
from tests.parity.recorded import as_recorded

KINDS = {
    "B": "tests.parity.kind_b",
    "C": "tests.parity.kind_c",
    "D": "tests.parity.kind_c",
    "E": "tests.parity.kind_e",
    "F": "tests.parity.kind_f",
    "G": "tests.parity.kind_g",
    "H": "tests.parity.kind_h",
    "I": "tests.parity.kind_i",
    "J": "tests.parity.kind_j",
    "K": "tests.parity.kind_k",
    "L": "tests.parity.kind_l",
    "M": "tests.parity.kind_m",
    "O": "tests.parity.kind_o",
    "Q": "tests.parity.kind_q",
}


NOISES = 30  # fp32: how many times the original's own noise, seen on one CPU, is allowed; float64 is the sharp test


def limit(name: str, case) -> float:
    """Returns the least tolerance by what the quantity is: gradient, loss, or forward and latents.

    In float64 only the last place of an fp32 sigma is left, where there are sigmas: not in B to E and K to M.
    Solvers and encoders compute in fp32 in places, in the original or in ours: they have the limits of fp32.
    """
    if case.dtype == torch.float64 and case.kind in "BCDEKLM":
        return tolerance.EXACT
    if case.dtype == torch.float64 and case.kind in "GHIQ" and "sampling_steps" not in case.config["config"]:
        return torch.finfo(torch.float32).eps
    if "grad" in name and not name.startswith("kl_grad"):
        return 1e-6
    if name.startswith("loss"):
        return 3e-6
    return 2e-5


def compare(ours: dict, wanted: dict, case) -> tuple[float, float, bool]:
    """Returns (worst error, its tolerance, pass) over the recorded outputs.

    Outputs of size above 10 count relative to their rms. Every recorded output must be there.
    """
    reached = case.config.get("tolerance_reached", {})
    worst, allowed_there, passed = 0.0, limit("", case), True
    for name, target in wanted.items():
        if name not in ours:
            return float("inf"), allowed_there, False
        got, target = ours[name].detach().double(), target.double()
        if got.shape != target.shape:
            return float("inf"), allowed_there, False
        noise = max((r.get("per_output", {}).get(name, {}).get("max_abs", 0.0) for r in reached.values()), default=0.0)
        error, scale = (got - target).abs().max().item() if target.numel() else 0.0, 1.0
        if target.numel() and target.abs().max() > 10:
            scale = target.square().mean().sqrt().item()
        error, allowed = error / scale, limit(name, case)
        if allowed >= 1e-6:  # fp32
            allowed = max(allowed, NOISES * noise / scale)
        passed &= error <= allowed  # NaN fails
        if not error / allowed <= worst / allowed_there:
            worst, allowed_there = error, allowed
    return worst, allowed_there, passed


def check(folder: Path, dtype: torch.dtype | None = None) -> tuple[str, str]:
    """Returns (status, line) of one case; dtype None: float64 where there is such a recording, else fp32."""
    case = load_case(folder, dtype or recorded_dtype(folder))
    try:
        if case.kind not in KINDS:
            raise NotBuilt(f"kind {case.kind}")
        with as_recorded(case.dtype):
            kind = importlib.import_module(KINDS[case.kind])
            ours = kind.run(case)
    except NotBuilt as reason:
        return "not built", f"{case.name} - - not built ({reason})"
    except NotATarget as reason:
        return "not a target", f"{case.name} - - not a target ({reason})"
    left_out = getattr(kind, "NOT_TARGETS", ())
    wanted = {name: target for name, target in case.outputs().items() if not name.startswith(left_out)}
    error, allowed, passed = compare(ours, wanted, case)
    status = "pass" if passed else "FAIL"
    return status, f"{case.name} {error:.1e} {allowed:.1e} {status}"


def main() -> int:
    """Prints one line a case and totals; 1 only if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--kinds", default="", help="letters separated by commas; all if left out")
    parser.add_argument("--json", type=Path, help="also record the lines in this file")
    parser.add_argument("--fp32", action="store_true", help="compare with the fp32 recordings")
    flags = parser.parse_args()
    kinds = set(filter(None, flags.kinds.split(",")))
    folders = sorted(f.parent for f in flags.dir.glob("*/case.json"))
    if not folders:
        print(f"{flags.dir} holds no folder with a case.json", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    totals: dict[str, int] = {}
    lines = []
    for folder in folders:
        if kinds and folder.name.split("_")[0] not in kinds:
            continue
        status, line = check(folder, torch.float32 if flags.fp32 else None)
        totals[status] = totals.get(status, 0) + 1
        lines.append(line)
        print(line, flush=True)
    print(", ".join(f"{n} {s}" for s, n in sorted(totals.items())))
    if flags.json:
        flags.json.write_text(json.dumps({"lines": lines, "totals": totals}, indent=1) + "\n")
    return 1 if totals.get("FAIL") else 0


if __name__ == "__main__":
    raise SystemExit(main())
