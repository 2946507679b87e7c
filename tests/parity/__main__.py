"""`python -m tests.parity DIR [--kinds B,C,...]`: every recorded case of a folder against our code."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from tests.parity.case import NotATarget, NotBuilt, load_case

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
    "Q": "tests.parity.kind_q",
}


def limit(name: str, kind: str) -> float:
    """The tolerance in float32 by what the quantity is: gradient, loss, or forward and latents."""
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
    worst, tolerance, passed = 0.0, limit("", case.kind), True
    for name, target in wanted.items():
        if name not in ours:
            return float("inf"), tolerance, False
        got, target = ours[name].detach().double(), target.double()
        if got.shape != target.shape:
            return float("inf"), tolerance, False
        noise = [r.get("per_output", {}).get(name, {}).get("max_abs", 0.0) for r in reached.values()]
        allowed = max(limit(name, case.kind), 3 * max(noise, default=0.0))
        error = (got - target).abs().max().item() if target.numel() else 0.0
        if target.numel() and target.abs().max() > 10:
            scale = target.square().mean().sqrt().item()
            error, allowed = error / scale, max(limit(name, case.kind), 3 * max(noise, default=0.0) / scale)
        passed &= error <= allowed  # NaN fails
        if not error / allowed <= worst / tolerance:
            worst, tolerance = error, allowed
    return worst, tolerance, passed


def check(folder: Path) -> tuple[str, str]:
    """Returns (status, line) of one case."""
    case = load_case(folder)
    try:
        if case.kind not in KINDS:
            raise NotBuilt(f"kind {case.kind}")
        ours = importlib.import_module(KINDS[case.kind]).run(case)
    except NotBuilt as reason:
        return "not built", f"{case.name} - - not built ({reason})"
    except NotATarget as reason:
        return "not a target", f"{case.name} - - not a target ({reason})"
    error, tolerance, passed = compare(ours, case.outputs(), case)
    status = "pass" if passed else "FAIL"
    return status, f"{case.name} {error:.1e} {tolerance:.1e} {status}"


def main() -> int:
    """Prints one line a case and totals; 1 only if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--kinds", default="", help="letters separated by commas; all if left out")
    parser.add_argument("--json", type=Path, help="also record the lines in this file")
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
        status, line = check(folder)
        totals[status] = totals.get(status, 0) + 1
        lines.append(line)
        print(line, flush=True)
    print(", ".join(f"{n} {s}" for s, n in sorted(totals.items())))
    if flags.json:
        flags.json.write_text(json.dumps({"lines": lines, "totals": totals}, indent=1) + "\n")
    return 1 if totals.get("FAIL") else 0


if __name__ == "__main__":
    raise SystemExit(main())
