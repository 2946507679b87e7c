"""What a configuration is made of: dataclasses, mandatory values, tagged unions, and the problems of their values.

    SOLVERS = {"euler": "pipeline.config:EulerConfig", "unipc": "pipeline.config:UniPCConfig"}

    @dataclass
    class SamplerConfig:
        num_steps: int = 50
        solver: Any = one_of(SOLVERS, default="euler")

        def problems(self):
            if self.num_steps < 1:
                yield f"num_steps is {self.num_steps}; write 1 or more"

In YAML the node of a union holds `name` next to the fields of that arm, and its object carries the attribute `name`.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MISSING = "???"  # OmegaConf's mark of a mandatory value; not imported, since `--help` needs no OmegaConf


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


def values(config: Any) -> dict[str, Any]:
    """Returns the fields of a config dataclass and their values, in order; nested ones stay objects."""
    return {field.name: vars(config)[field.name] for field in dataclasses.fields(config) if field.init}


def find_problems(config: Any, path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Yields (path, text) of what the methods `problems()` of a configuration yield or raise, inner ones first."""
    inner: dict = {}
    if dataclasses.is_dataclass(config):
        inner = values(config)
    elif isinstance(config, dict | list | tuple):
        inner = config if isinstance(config, dict) else dict(enumerate(config))
    for key, value in inner.items():
        yield from find_problems(value, (*path, key))
    if dataclasses.is_dataclass(config) and hasattr(config, "problems"):
        try:
            yield from ((path, text) for text in config.problems())
        except ValueError as error:
            yield path, str(error)


def check(config: Any) -> None:
    """Raises ValueError with all problems of a configuration, e.g. of one that was made in Python."""
    raise_all("configuration", [f"{dotted(path)}: {text}" if path else text for path, text in find_problems(config)])


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
