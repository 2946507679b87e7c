"""Every knob is read somewhere: a field of a `*Config` dataclass that nobody reads is a lie to the user."""

from __future__ import annotations

import ast

from tests.architecture.source import Source, dataclass_fields, is_dataclass, python_sources

ROOMS = {"wan", "cogvideox", "model", "pipeline", "trainer", "utils"}


def knobs(source: Source) -> list[tuple[str, str]]:
    """Returns (Class.field, field) of every `*Config` dataclass."""
    classes = [n for n in ast.walk(source.tree) if isinstance(n, ast.ClassDef) and n.name.endswith("Config")]
    fields = [(c.name, f.target.id) for c in classes if is_dataclass(c) for f in dataclass_fields(c)]
    return [(f"{source.path}: {name}.{field}", field) for name, field in fields]


def reads(source: Source) -> set[str]:
    """Returns the attribute names that are read; a class's own `problems` does not count, it changes nothing."""
    checks = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and node.name == "problems"
        for inner in ast.walk(node)
    }
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
    return {n.attr for n in nodes if id(n) not in checks}


def find_dead_knobs(sources) -> list[str]:
    """Returns the knobs that no file reads."""
    alive = set().union(*(reads(s) for s in sources))
    return [knob for s in sources if s.room in ROOMS for knob, field in knobs(s) if field not in alive]


def test_every_knob_is_read():
    sources = python_sources(with_tests=False)
    assert sum(len(knobs(s)) for s in sources) > 5
    assert find_dead_knobs(sources) == []


DEFINITION = "@dataclass(frozen=True)\nclass SinkConfig:\n    frames: int = 3\n"


def test_dead_knobs_are_caught():
    definition = Source("wan/a.py", DEFINITION)
    assert find_dead_knobs([definition]) == ["wan/a.py: SinkConfig.frames"]
    written = Source("wan/b.py", "config.frames = 4\nframes = 3")
    assert len(find_dead_knobs([definition, written])) == 1
    checked = Source("wan/a.py", DEFINITION + "    def problems(self):\n        assert self.frames > 0\n")
    assert len(find_dead_knobs([checked])) == 1


def test_living_knobs_pass():
    definition = Source("wan/a.py", DEFINITION)
    assert find_dead_knobs([definition, Source("inference.py", "x = config.sink.frames")]) == []
    derived = Source("wan/a.py", DEFINITION + "    @property\n    def n(self):\n        return self.frames\n")
    assert find_dead_knobs([derived]) == []


def test_other_classes_are_no_knobs():
    assert knobs(Source("wan/a.py", DEFINITION.replace("SinkConfig", "Sink"))) == []
    assert knobs(Source("wan/a.py", DEFINITION.replace("@dataclass(frozen=True)\n", ""))) == []
