"""Records: parts of one row, seeds put together."""

from __future__ import annotations

import json

import pytest

from scripts.experiments.records import merge_part, pool_seeds, read_seeds


def test_pool_seeds_widens_the_interval():
    def around(mean, half):
        return {"mean": mean, "low": mean - half, "high": mean + half}

    assert pool_seeds([around(0.5, 0.1)]) == around(0.5, 0.1)
    apart = pool_seeds([around(0.4, 0.01), around(0.5, 0.01), around(0.6, 0.01)])
    assert apart["mean"] == pytest.approx(0.5) and apart["high"] - 0.5 == pytest.approx(4.3 * 0.1 / 3**0.5)
    equal = pool_seeds([around(0.5, 0.3)] * 3)
    assert equal["high"] - 0.5 == pytest.approx(0.3 / 3**0.5), "videos alone leave that much open"
    assert pool_seeds([around(0.5, 0.1), {"mean": None, "low": None, "high": None}])["mean"] in (None, 0.5)


def test_merge_part_keeps_only_parts_of_the_same_weights():
    parts = ("1x", "10x")
    record = merge_part(None, "10x", {"facts": {"weights": "a"}}, parts)
    record = merge_part(record, "1x", {"facts": {"weights": "a"}}, parts)
    assert list(record) == ["1x", "10x"]
    assert merge_part(record, "1x", {"facts": {"weights": "b"}}, parts) == {"1x": {"facts": {"weights": "b"}}}


def test_read_seeds_leaves_out_other_trainings(tmp_path):
    for seed, steps in enumerate((3, 3, 4)):
        record = {"seed": seed, "training": {"steps": steps}, "1x": {"videos": 2}}
        (tmp_path / f"dmd_seed{seed}.json").write_text(json.dumps(record))
    assert [record["seed"] for record in read_seeds(tmp_path, "dmd", ("1x", "10x"))] == [0, 1]
