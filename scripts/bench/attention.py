"""What `scripts/benchmark.py attention` measures: selected blocks against every key, the selection inside the time.

Each row is one self-attention of one layer on drawn q, k, v, in which the tokens of a block are alike, as neighbours in
a video are. Dense is the first usable kernel without a selection; ratios are of times measured in turn, in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from scripts.measure.markdown import table_head, table_row
from wan.attention import BACKENDS
from wan.attention.call import AttentionCall
from wan.attention.config import AsaConfig, AttentionConfig
from wan.attention.dispatch import attend, chosen
from wan.attention.sparse import ALWAYS, CHOSEN, Selection, block_rules, select

BLOCK, FRAME_BLOCKS, CHUNK, SINK = 128, 13, 3, 3  # a frame of 480 x 832: 1,560 tokens in 13 blocks
KEPT = (0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Case:
    """One attention. window: latent frames of a cache, 0 = a whole clip. cpu: a CPU does it in a few minutes."""

    title: str
    heads: int
    width: int
    queries: int  # blocks
    keys: int
    window: int = 0
    cpu: bool = False

    @property
    def classes(self) -> list[list[int]]:
        """What each block of keys is: of a cache, own chunk, sink and the newest frame are read whole."""
        if not self.window:
            return [[CHOSEN] * self.keys] * self.queries
        frames = [ALWAYS] * SINK + [CHOSEN] * (self.window - SINK - 1 - CHUNK) + [ALWAYS] * (1 + CHUNK)
        return [[kind for kind in frames for _ in range(FRAME_BLOCKS)]] * self.queries


CASES = (
    Case("4,096 tokens, 2 heads of 64", 2, 64, 32, 32, cpu=True),
    Case("Wan 1.3B, 81 frames: 32,760 tokens, 12 heads of 128", 12, 128, 256, 256),
    Case("CogVideoX 5B, 49 frames: 17,776 tokens, 48 heads of 64", 48, 64, 139, 139),
    *(
        Case(f"Wan 1.3B, a chunk of 3 frames over a window of {w}", 12, 128, 39, FRAME_BLOCKS * w, w)
        for w in (21, 60, 240)
    ),
)


def measure(device: torch.device, peak: float, tries: int) -> list[dict]:
    """Returns a row for each case, kept ratio and kernel; what would take a CPU too long is "not run"."""
    rows = []
    for case in CASES:
        if device.type == "cpu" and not case.cpu:
            rows.append({"case": case.title, "status": "not run"})
            continue
        rows += _measure_case(case, device, peak, tries)
    return rows


def _measure_case(case: Case, device: torch.device, peak: float, tries: int) -> list[dict]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs = _draw(case, device, dtype)
    dense = AttentionCall(*inputs)
    ways: dict[tuple, Callable] = {("dense", 1.0): lambda q, k, v: attend(AttentionCall(q, k, v), AttentionConfig())}
    facts: dict[tuple, dict] = {("dense", 1.0): {"kernel": f"dense: {chosen(dense)}"}}
    with torch.no_grad():
        wanted = ways["dense", 1.0](*inputs)
        for kept in KEPT:
            config = AsaConfig(block=BLOCK, threshold=1.0, min=kept, max=kept)
            rules = block_rules(case.classes, (config.min, config.max), device)
            selection = _select(*inputs[:2], rules, config)
            for name, kernel in _usable(inputs, selection):

                def way(q, k, v, rules=rules, config=config, kernel=kernel):
                    return attend(AttentionCall(q, k, v, selection=_select(q, k, rules, config)), kernel)

                ways[name, kept] = way
                error = (way(*inputs) - wanted).float().square().mean() / wanted.float().square().mean()
                share = selection.kept.float().mean().item()
                facts[name, kept] = {"kernel": name, "read": share, "error": error.sqrt().item()}
    forward = _times({key: _forward(way, inputs) for key, way in ways.items()}, device, tries)
    both = _times({key: _backward(way, inputs) for key, way in ways.items()}, device, tries)
    rows = []
    for key, fact in facts.items():
        work = 4 * case.heads * case.width * case.queries * case.keys * BLOCK**2 * fact.get("read", 1.0)
        speeds = {"forward": forward["dense", 1.0] / forward[key], "both": both["dense", 1.0] / both[key]}
        times = {"forward ms": 1e3 * forward[key], "both ms": 1e3 * both[key], "MFU": work / forward[key] / peak}
        rows.append({"case": case.title, "status": "measured", "kept": key[1], **fact, **times, **speeds})
    return rows


def _draw(case: Case, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns q, k, v; each block has a mean, as large as what its tokens differ by, and q's are some of k's."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(1, case.keys, 1, case.heads, case.width, generator=generator)

    def one(blocks: int) -> torch.Tensor:
        x = means[:, -blocks:] + torch.randn(1, blocks, BLOCK, case.heads, case.width, generator=generator)
        return x.flatten(1, 2).to(device, dtype)

    return [one(case.queries), one(case.keys), one(case.keys)]


def _select(q, k, rules, config: AsaConfig) -> Selection:
    return Selection(select(q, k, rules, config), config.block, rules.limits, rules.exact)


def _usable(inputs: Sequence[torch.Tensor], selection: Selection):
    call = AttentionCall(*(x.detach().requires_grad_(True) for x in inputs), selection=selection)
    with torch.enable_grad():
        for name in BACKENDS:
            try:
                attend(call, AttentionConfig(name))
            except ValueError:  # says why it cannot
                continue
            yield name, AttentionConfig(name)


def _forward(way: Callable, inputs) -> Callable:
    def run():
        with torch.no_grad():
            way(*inputs)

    return run


def _backward(way: Callable, inputs) -> Callable:
    leaves = [x.detach().clone().requires_grad_(True) for x in inputs]

    def run():
        way(*leaves).sum().backward()
        for leaf in leaves:
            leaf.grad = None

    return run


def _times(runs: dict, device: torch.device, tries: int) -> dict:
    """Returns the best seconds of each, taken in turn; the first round warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(tries + 1):
        for key, run in runs.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            if number:
                best[key] = min(best[key], time.perf_counter() - begin)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: list[dict], command: str) -> list[str]:
    """Returns the rows as markdown."""
    names = ("kernel", "kept", "blocks read", "error", "forward", "forward + backward", "MFU")
    lines = []
    for title in dict.fromkeys(row["case"] for row in rows):
        lines += [f"**{title}**", ""]
        own = [row for row in rows if row["case"] == title]
        if own[0]["status"] == "not run":
            lines += [f"not run: `{command}` on a GPU", ""]
            continue
        lines += table_head(names)
        for row in own:
            cells = [row["kernel"], f"{row['kept']:g}", f"{row.get('read', 1):.2f}", f"{row.get('error', 0):.2f}"]
            cells += [f"{row[f'{name} ms']:.1f} ms, {row[name]:.1f}x" for name in ("forward", "both")]
            cells.append(f"{row['MFU']:.0%}")
            lines.append(table_row(cells))
        lines.append("")
    return lines
