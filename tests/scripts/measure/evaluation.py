"""Runs scripts/evaluate.py in the tests' own process."""

from __future__ import annotations

import json

from scripts import evaluate


def run(tmp_path, *argv):
    """Returns (exit status, the saved JSON, the saved markdown)."""
    output = tmp_path / "result/table.json"
    status = evaluate.main([*map(str, argv), "--output", str(output)])
    return status, json.loads(output.read_text()), output.with_suffix(".md").read_text()


def refusal(capsys, *argv):
    assert evaluate.main([*map(str, argv)]) == 2
    return capsys.readouterr().err
