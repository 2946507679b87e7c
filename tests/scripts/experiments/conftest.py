"""A project of stand-in scripts for the tests of this folder."""

from __future__ import annotations

import pytest

from scripts import tables
from scripts.experiments import records
from tests.scripts.experiments.project import Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    facts = {"name": "a processor", "cores": 2, "torch": "2", "load average": 0.0}
    monkeypatch.setattr(records, "hardware", lambda: facts)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return Project(tmp_path)
