"""Tables and curves of long videos, of rows that stand-in scripts made."""

from __future__ import annotations

import pytest

from scripts import tables
from scripts.experiments import long_results
from tests.scripts.experiments.project import STUDENT_FLAGS as FLAGS


def test_tables_show_run_and_missing_rows(project):
    assert project.long(*FLAGS, "--rows", "sink_after,switch_causal_before") == 0
    short = {line.rsplit(" | ", 4)[0]: line for line in tables.table("long").splitlines()}
    numbers = "| 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | +0.50 +-0.10 / "
    assert short["| sink | tuned"].startswith(f"| sink | tuned {numbers}")
    assert "not run: `python scripts/digits_long.py --rows no_sink_before`" in tables.table("long")
    full = tables.table("long-full")
    assert full.count("| sink | tuned | 0.500 +-0.100 | 0.500 +-0.100 |") == 3
    assert "| sink | tuned | 0.5 +-0.1 (2.0) | 0.5 +-0.1 (2.0) |" in full
    switch = "| causal | not tuned | 0.50 +-0.10 | 0.5 +-0.1 | 0.50 +-0.10 | 0.5 +-0.1 (0.5) | 0.5 +-0.1 |"
    assert switch in tables.table("long-switch") and tables.table("long-switch-full").count(switch) == 3
    assert "| sink | tuned | 32 of 450 latent frames | 40 | 0 min | 1 + 0 min | a processor |" in tables.table(
        "long-cost"
    )
    for name in ("long", "long-switch", "long-cost"):
        lines = tables.table(name).splitlines()
        assert len({line.count(" | ") for line in lines}) == 1 and "smaller" not in "".join(lines)
    with pytest.raises(ValueError, match="no table 'long-fall'"):
        tables.table("long-fall")


def test_curves_are_drawn_of_what_was_run(project):
    assert "not drawn" in tables.table("long-curves")
    assert project.long(*FLAGS, "--rows", "sink_*,switch_causal_before") == 0
    long_results.draw(project.root)
    images = project.root / "docs/images"
    assert all((images / f"digits_long_{name}.png").stat().st_size > 5000 for name in ("length", "switch"))
    assert tables.table("long-curves").count("](images/digits_long_") == 2
    records = {row: project.long_record(row) for row in ("sink_before", "sink_after", "switch_causal_before")}
    panels = long_results.length_panels({row: records[row] for row in ("sink_before", "sink_after")})
    x, y, _ = panels["frechet"]["sink, tuned"]
    assert (x[0], x[-1], y[-1]) == (1, 50, 0.5) and list(panels["digit"]) == ["sink, not tuned", "sink, tuned"]
    x, y, _ = long_results.switch_panels({"switch_causal_before": records["switch_causal_before"]})["new digit"][
        "causal, not tuned"
    ]
    assert x[y.index(3 / 12)] == 1, "the chunk behind three earlier ones is the first under the new prompt"
    before, after = (long_results.get_style(f"sink_{stage}") for stage in ("before", "after"))
    assert before[0] == after[0] and before[1] != after[1]
