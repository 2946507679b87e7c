"""What a configuration is made of: dataclasses, bounds, paths, tagged unions, and the problems of their values.

    SOLVERS = {"euler": "pipeline.config:EulerConfig", "unipc": "pipeline.config:UniPCConfig"}

    @dataclass
    class SamplerConfig:
        num_steps: int = bounded(50, 1, 1000)
        solver: Any = one_of(SOLVERS, default="euler")
        folder: str = file_path("outputs")

        def problems(self):
            if self.num_steps % 2:
                yield f"num_steps is {self.num_steps}; write an even number"

In YAML the node of a union holds `name` next to the fields of that arm, and its object carries the attribute `name`.
"""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value; not imported, since `--help` needs no OmegaConf
MOST_SHOWN = 200  # characters of a value in an error


@dataclasses.dataclass(frozen=True)
class Union:
    """A table of arms and the default name (None: no arm, MISSING: the name is mandatory)."""

    table: dict[str, Any]
    default: str | None

    def resolve(self, name: str) -> type:
        """Returns the config dataclass of an arm; imports its module if the table gives text."""
        entry = self.table[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
        return entry

    def get_name(self, value: Any) -> str:
        """Returns the name of an arm's object or class; ValueError if it has none and its class not just one."""
        given, cls = getattr(value, "name", None), value if isinstance(value, type) else type(value)
        if given in self.table:
            return given
        names = [name for name in self.table if self.resolve(name) is cls]
        if len(names) != 1:
            found = f"{len(names)} of the names {', '.join(self.table)}"
            raise ValueError(f"{cls.__name__} stands for {found}; set its attribute `name` to one of them")
        return names[0]


def one_of(table: dict[str, Any], default: str | None = MISSING) -> Any:
    """Returns a field, annotated `Any`, whose value is the config dataclass that `table` gives for its `name`.

    table: name -> config dataclass, or "module:Class" (imported only when chosen). Such dataclasses are
    neither frozen nor use `slots`. default: a name; None, which lets the field be None; nothing: mandatory.
    """
    union = Union(table, default)
    if default in (None, MISSING):
        return dataclasses.field(default=default, metadata={"one_of": union})
    if default not in table:
        raise ValueError(f"one_of: got the default {default!r}, {allowed(default, table)}")

    def make_arm() -> Any:
        arm = union.resolve(default)()
        arm.name = default
        return arm

    return dataclasses.field(default_factory=make_arm, metadata={"one_of": union})


def file_path(default: str = "") -> Any:
    """Returns a field that holds a path: `~` at its start is the home folder, whoever wrote it."""
    return dataclasses.field(default=default, metadata={"path": True})


def expand_paths(config: Any) -> None:
    """Puts the home folder for `~` into every path of a configuration."""
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        if field.metadata.get("path"):
            vars(config)[field.name] = _expanded(vars(config)[field.name])
    for value in _inner(config).values():
        expand_paths(value)


def _expanded(written: Any) -> Any:
    if isinstance(written, list):
        return [_expanded(item) for item in written]
    if isinstance(written, dict):  # one of several: {path, strength}
        return {key: _expanded(item) if key == "path" else item for key, item in written.items()}
    return os.path.expanduser(written) if isinstance(written, str) else written


def values(config: Any) -> dict[str, Any]:
    """Returns the fields of a config dataclass and their values, in order; nested ones stay objects."""
    return {field.name: vars(config)[field.name] for field in dataclasses.fields(config) if field.init}


def find_problems(config: Any) -> Iterator[tuple[tuple, str]]:
    """Yields (path, text) of numbers out of bounds, then of what the methods `problems()` yield or raise.

    Inner ones come first. Those methods may reckon with numbers within bounds: where one is not, the groups around it
    are not called.
    """
    wrong = list(_find_bad_numbers(config, ()))
    yield from wrong
    yield from _find_told(config, (), {path[:end] for path, _ in wrong for end in range(len(path))})


def _find_bad_numbers(value: Any, path: tuple, bounds: tuple | None = None) -> Iterator[tuple[tuple, str]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most, or_zero = bounds or (-sys.float_info.max, sys.float_info.max, False)
        if not (least <= value <= most or (or_zero and value == 0)):
            advice = f"{'0, or ' * or_zero}{least} to {most}" if bounds else "a finite number"
            yield path, f"is {shorten(value)}; write {advice}"
    own = (
        {f.name: f.metadata.get("bounds") for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else {}
    )
    for key, inner in _inner(value).items():
        yield from _find_bad_numbers(inner, (*path, key), own.get(key) if own else bounds)


def _find_told(config: Any, path: tuple, silent: set[tuple]) -> Iterator[tuple[tuple, str]]:
    for key, value in _inner(config).items():
        yield from _find_told(value, (*path, key), silent)
    if hasattr(config, "problems") and path not in silent:
        try:
            yield from ((path, text) for text in config.problems())
        except ValueError as error:
            yield path, str(error)


def _inner(value: Any) -> dict:
    if dataclasses.is_dataclass(value):
        return values(value)
    return value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list | tuple) else {}


def shorten(value: Any) -> str:
    """Returns a value as it is shown in an error."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text)} characters)"


def check(config: Any) -> None:
    """Raises ValueError with all problems of a configuration, e.g. of one that was made in Python."""
    raise_all("configuration", [sentence(dotted(path), text) for path, text in find_problems(config)])


def sentence(key: str, text: str) -> str:
    """Returns a problem with the key that has it."""
    return f"{key} {text}" if text.startswith("is ") else f"{key}: {text}" if key else text


def collect_error(call: Callable, *args) -> Iterator[str]:
    """Yields the text of the ValueError that a call raises, if it raises one."""
    try:
        call(*args)
    except ValueError as error:
        yield str(error)


def raise_all(what: str, problems: list[str]) -> None:
    """Raises one ValueError with a line for each problem, if there is any."""
    if problems:
        head = f"{len(problems)} problems in the {what}\n" if len(problems) > 1 else ""
        raise ValueError(head + "\n".join(problems))


def allowed(given: Any, names: Iterable[str]) -> str:
    """Returns "allowed: ..." with all names and the nearest to what was given."""
    names = [str(name) for name in names]
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f"allowed: {', '.join(names)}; " + (f"did you mean {near[0]}?" if near else "write one of them")


def dotted(path: tuple) -> str:
    """Returns a path of keys as it is written on the command line."""
    return ".".join(map(str, path))
