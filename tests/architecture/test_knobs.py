"""Every knob is read where its class can be: a field of a `*Config` that nobody reads is a lie to the user."""

from __future__ import annotations

import ast
import re

from tests.architecture.source import Source, dataclass_fields, is_dataclass, python_sources

ROOMS = {"wan", "cogvideox", "model", "pipeline", "trainer", "utils"}
Read = tuple[str, str]  # (field, the last name before it: `score` of `config.score.shift`)


def config_classes(sources) -> dict[str, tuple[Source, ast.ClassDef]]:
    """Returns the `*Config` dataclasses by name."""
    found = [(s, n) for s in sources for n in ast.walk(s.tree) if isinstance(n, ast.ClassDef)]
    return {n.name: (s, n) for s, n in found if n.name.endswith("Config") and is_dataclass(n)}


def held_in(classes, sources) -> dict[str, set[str]]:
    """Returns, for each class, the fields of other ones that hold it: by their type, or as an arm of a table."""
    assigns = [
        n for s in sources for n in ast.walk(s.tree) if isinstance(n, ast.Assign) and isinstance(n.value, ast.Dict)
    ]
    arms = {n.targets[0].id: ast.unparse(n.value) for n in assigns if isinstance(n.targets[0], ast.Name)}
    sections: dict[str, set[str]] = {name: set() for name in classes}
    for _, holder in classes.values():
        for field in dataclass_fields(holder):
            text = ast.unparse(field)
            text += " ".join(table for name, table in arms.items() if f"one_of({name}" in text)
            for name in set(re.findall(r"\w+Config", text)) & classes.keys():
                sections[name].add(field.target.id)
    return sections


def reads(source: Source) -> set[Read]:
    """Returns the attributes that are read; a class's own `problems` does not count, it changes nothing."""
    checks = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and node.name == "problems"
        for inner in ast.walk(node)
    }
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)]
    return {(n.attr, _last_name(n.value)) for n in nodes if id(n) not in checks}


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def find_dead_knobs(sources) -> list[str]:
    """Returns the fields that are read nowhere where their class can be.

    That is: where its name, the module that defines it or the field that holds it occurs, in its consumer's module,
    and after the name of the field that holds it.
    """
    classes = config_classes(sources)
    sections, all_reads = held_in(classes, sources), {s.path: reads(s) for s in sources}
    dead = []
    for name, (home, node) in classes.items():
        consumer = re.search(r"consumer = '([\w.]+):", ast.unparse(node))
        words = re.compile(rf"\b{name}\b|\b{re.escape(home.module)}\b")
        near = [s for s in sources if words.search(s.text) or (consumer and s.module == consumer[1])]
        near += [s for s in sources if any(field in sections[name] for field, _ in all_reads[s.path])]
        alive = {field for s in near for field, _ in all_reads[s.path]}
        alive |= {field for found in all_reads.values() for field, last in found if last in sections[name]}
        fields = [field.target.id for field in dataclass_fields(node)] if home.room in ROOMS else []
        dead += [f"{home.path}: {name}.{field}" for field in fields if field not in alive]
    return dead


def test_every_knob_is_read():
    sources = python_sources(with_tests=False)
    assert len(config_classes(sources)) > 20
    assert find_dead_knobs(sources) == []


DEFINITION = "@dataclass(frozen=True)\nclass SinkConfig:\n    frames: int = 3\n"


def test_dead_knobs_are_caught():
    definition = Source("wan/a.py", DEFINITION)
    assert find_dead_knobs([definition]) == ["wan/a.py: SinkConfig.frames"]
    written = Source("wan/b.py", "config.frames = 4\nframes = 3")
    assert len(find_dead_knobs([definition, written])) == 1
    checked = Source("wan/a.py", DEFINITION + "    def problems(self):\n        assert self.frames > 0\n")
    assert len(find_dead_knobs([checked])) == 1


def test_a_read_of_another_class_is_no_read():
    definition = Source("wan/a.py", DEFINITION)
    other = Source("wan/b.py", "def pick(clip):\n    return clip.frames\n")
    assert len(find_dead_knobs([definition, other])) == 1
    named = Source("wan/b.py", "def pick(clip: SinkConfig):\n    return clip.frames\n")
    assert find_dead_knobs([definition, named]) == []


def test_living_knobs_pass():
    definition = Source("wan/a.py", DEFINITION)
    holder = Source("wan/c.py", "@dataclass\nclass CacheConfig:\n    sink: SinkConfig = 0\n")
    reader = Source("inference.py", "from wan.c import load\nx = load().sink.frames")
    assert find_dead_knobs([definition, holder, reader]) == []
    consumed = Source("wan/a.py", DEFINITION + "    consumer = 'wan.b:make'\n")
    assert find_dead_knobs([consumed, Source("wan/b.py", "def make(c):\n    return c.frames\n")]) == []
    derived = Source("wan/a.py", DEFINITION + "    @property\n    def n(self):\n        return self.frames\n")
    assert find_dead_knobs([derived]) == []


def test_other_classes_are_no_knobs():
    assert config_classes([Source("wan/a.py", DEFINITION.replace("SinkConfig", "Sink"))]) == {}
    assert config_classes([Source("wan/a.py", DEFINITION.replace("@dataclass(frozen=True)\n", ""))]) == {}
