"""Runs scripts/evaluate.py in the tests' own process."""

from __future__ import annotations

import json

import pytest

from scripts import evaluate


def run(tmp_path, *argv):
    """Returns (exit status, the saved JSON, the saved markdown)."""
    output = tmp_path / "result/table.json"
    status = evaluate.main([*map(str, argv), "--output", str(output)])
    return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()


def refusal(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([*map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err
