"""`utils.config.load`: types, unions, layers and their errors on small dataclasses, and round trips on random ones."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from utils.config.field import MISSING, one_of
from utils.config.layer import Layer, parse_overrides
from utils.config.load import load


@dataclass
class EulerConfig:
    num_steps: int = 4


@dataclass
class UniPCConfig:
    num_steps: int = 50
    order: int = 2
    name: str = "unipc"


@dataclass
class FewStepConfig:
    sigmas: tuple[float, ...] = MISSING


SOLVERS = {"euler": EulerConfig, "unipc": UniPCConfig, "few": FewStepConfig, "alias": EulerConfig}


@dataclass
class WindowConfig:
    window_frames: int = 12
    sink_frames: int = 3

    def problems(self):
        if self.window_frames < self.sink_frames:
            yield f"window_frames {self.window_frames} is below sink_frames {self.sink_frames}; raise it"


@dataclass
class OptimConfig:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class RootConfig:
    model: str = MISSING
    seed: int = 0
    label: str | None = None
    rope: Literal["write", "read"] = "write"
    sizes: list[list[int]] = field(default_factory=lambda: [[64, 64]])
    weights: dict[str, float] = field(default_factory=lambda: {"flow": 1.0})
    extra: Any = None
    name: str = "run"
    window: WindowConfig = field(default_factory=lambda: WindowConfig(window_frames=21))
    shadow: WindowConfig | None = None
    optims: list[OptimConfig] = field(default_factory=lambda: [OptimConfig(lr=1)])
    roles: dict[str, OptimConfig] = field(default_factory=dict)
    solver: Any = one_of(SOLVERS, default="euler")
    critic: Any = one_of(SOLVERS, default=None)


def build(*trees, **base):
    layers = [Layer(f"layer{i}", tree) for i, tree in enumerate([{"model": "m", **base}, *trees])]
    return load(RootConfig, layers)[0]


def failure(*trees, **base) -> str:
    with pytest.raises(ValueError) as caught:
        build(*trees, **base)
    return str(caught.value)


def test_defaults_are_those_of_the_dataclass():
    assert build() == RootConfig(model="m")
    assert isinstance(build().solver, EulerConfig) and build().solver.name == "euler"
    assert build().window == WindowConfig(21, 3)


def test_later_layers_win_and_groups_merge_key_by_key():
    config = build({"window": {"window_frames": 9}}, {"window": {"sink_frames": 1}}, {"seed": 1}, seed=2)
    assert (config.window, config.seed) == (WindowConfig(9, 1), 1)
    assert build({"weights": {"dmd": 2}}).weights == {"flow": 1.0, "dmd": 2.0}


@pytest.mark.parametrize(
    ("key", "given", "want"),
    [
        ("seed", "3", 3),
        ("label", None, None),
        ("rope", "read", "read"),
        ("sizes", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("extra", {"a": [1, None]}, {"a": [1, None]}),
        ("optims", [{"lr": 1, "betas": [0, 1]}, {}], [OptimConfig(1.0, (0.0, 1.0)), OptimConfig()]),
        ("roles", {"critic": {"lr": 2}}, {"critic": OptimConfig(2.0)}),
        ("shadow", {"sink_frames": 0}, WindowConfig(12, 0)),
        ("optims", [], []),
    ],
)
def test_values_are_converted_to_their_types(key, given, want):
    got = vars(build({key: given}))[key]
    assert got == want and type(got) is type(want)


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("seed", 1.5, ["seed", "1.5", "float", "int"]),
        ("seed", True, ["seed", "bool", "int"]),
        ("seed", None, ["seed", "None"]),
        ("label", 1.10, ["label", "1.1", "quotes"]),
        ("rope", "raed", ["rope", "raed", "write", "read"]),
        ("sizes", [[1, "x"]], ["sizes", "list[list[int]]"]),
        ("extra", "${oc.env:NO_SUCH_NAME}", ["extra", "NO_SUCH_NAME"]),
        ("extra", {"a": "${sed}"}, ["extra", "sed"]),
        ("seed", "${label}", ["seed", "${label}", "None"]),
        ("seed", "${seed}", ["seed", "${seed}"]),
        ("seed", "${rope}", ["seed", "write"]),
        ("label", "${", ["label", "${"]),
        ("solver", "${window}", ["solver", "group"]),
        ("window", "${solver}", ["window", "WindowConfig"]),
        ("extra", ["???"], ["extra", "???"]),
        ("weights", {"flow": "x"}, ["weights", "dict[str, float]"]),
        ("window", 3, ["window", "3", "window.KEY="]),
        ("window", None, ["window", "None", "WindowConfig"]),
        ("optims", {"lr": 1}, ["optims", "list[tests.utils.test_config_load.OptimConfig]"]),
        ("optims", [{"lrr": 1}], ["optims", "lrr"]),
        ("roles", {"a": 1}, ["roles", "OptimConfig"]),
        ("solver", "unipc", ["solver", "solver.name=unipc"]),
        ("solver", None, ["solver.name", "missing", "euler, unipc"]),
        ("solver", {"name": "unipcc"}, ["solver.name", "unipcc", "did you mean unipc?"]),
        ("solver", {"name": [1]}, ["solver.name", "[1]"]),
        ("model", MISSING, ["model", "missing", "model=VALUE"]),
    ],
)
def test_wrong_values_are_refused_with_layer_key_and_advice(key, given, words):
    message = failure({key: given})
    assert all(word in message for word in ["layer1", *words]), message


def test_unknown_keys_name_the_nearest_spelling():
    assert failure({"sed": 1}) == "layer1: unknown key sed; did you mean seed?"
    assert "did you mean window.sink_frames?" in failure({"window": {"sink_frame": 1}})
    assert "did you mean window or window.window_frames?" in failure({"window_frames": 1})
    assert "unknown key zzz, allowed: model, seed" in failure({"zzz": 1})
    assert "unknown key solver.order, allowed: name, num_steps" in failure({"solver": {"order": 1}})


def test_all_problems_are_reported_at_once():
    message = failure({"sed": 1, "seed": "x", "window": {"sink_frames": "y"}})
    assert message.startswith("3 problems") and len(message.splitlines()) == 4


def test_missing_value_names_the_sources_and_the_way_out():
    with pytest.raises(ValueError, match=r"^a\.yaml, command line: model: mandatory .* model=VALUE"):
        load(RootConfig, [Layer("a.yaml", {}), *parse_overrides(["seed=1"])])
    assert "solver.sigmas: mandatory" in failure({"solver": {"name": "few"}})


def test_a_changed_name_drops_the_older_keys_of_the_node_only():
    old = {"solver": {"name": "unipc", "order": 3, "num_steps": 7}, "seed": 5}
    config = build(old, {"solver": {"name": "euler"}})
    assert (config.solver, config.seed) == (EulerConfig(4), 5)
    assert build(old, {"solver": {"name": "unipc"}}).solver == UniPCConfig(7, 3)
    assert build(old, {"solver": {"name": "euler"}}, {"solver": {"name": "unipc"}}).solver == UniPCConfig()
    # Without a name the older keys belong to the default arm, so the first name of another arm drops them too.
    assert build({"solver": {"num_steps": 9}}, {"solver": {"name": "unipc"}}).solver == UniPCConfig()
    assert build({"solver": {"num_steps": 9}}, {"solver": {"name": "euler"}}).solver == EulerConfig(9)


def test_a_changed_name_drops_the_values_of_a_default_object():
    @dataclass
    class Outer:
        root: RootConfig = field(default_factory=lambda: build({"solver": {"name": "unipc", "num_steps": 7}}))

    def solver(**tree):
        return load(Outer, [Layer("a", {"root": {"solver": tree}})])[0].root.solver

    assert solver(order=1) == UniPCConfig(7, 1)
    assert solver(name="euler") == EulerConfig(4)


def test_a_recipe_may_mark_a_group_as_mandatory_for_its_heirs():
    marked = {"solver": MISSING, "window": MISSING}
    assert "solver.name: mandatory" in failure(marked) and "window: mandatory" in failure(marked)
    config = build(marked, {"solver": {"name": "unipc"}, "window": {"sink_frames": 1}})
    assert (config.solver, config.window) == (UniPCConfig(), WindowConfig(21, 1))


def test_an_ordinary_field_called_name_drops_nothing():
    config = build({"name": "a", "seed": 4}, {"name": "b"})
    assert (config.name, config.seed) == ("b", 4)


def test_an_optional_union():
    steps = {"name": "few", "sigmas": [1, 0.5]}
    config = build({"critic": steps})
    assert config.critic == FewStepConfig((1.0, 0.5)) and config.critic.name == "few"
    assert build({"critic": {"name": "alias"}}).critic.name == "alias"
    assert build({"critic": steps}, {"critic": None}).critic is None
    assert build({"critic": steps}, {"critic": None}, {"critic": {"name": "euler"}}).critic == EulerConfig()
    with pytest.raises(ValueError, match="did you mean euler"):
        one_of(SOLVERS, default="eulr")


def test_text_entries_of_a_table_are_imported_when_chosen(tmp_path, monkeypatch):
    (tmp_path / "far_arm.py").write_text("from dataclasses import dataclass\n@dataclass\nclass Far:\n    x: int = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOLVERS, "far", "far_arm:Far")
    build()
    assert "far_arm" not in sys.modules
    assert build({"solver": {"name": "far", "x": 2}}).solver.x == 2
    sys.modules.pop("far_arm")


def test_an_arm_is_made_with_its_name_where_it_has_such_a_field():
    @dataclass
    class Named:
        name: str = ""

    @dataclass
    class Outer:
        arm: Any = one_of({"one": Named, "two": Named}, default="one")

    assert [load(Outer, [Layer("a", tree)])[0].arm for tree in ({}, {"arm": {"name": "two"}})] == [
        Named("one"),
        Named("two"),
    ]


def test_mandatory_union_and_groups_with_mandatory_values():
    @dataclass
    class Inner:
        path: str = MISSING

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)
        maybe: Inner | None = MISSING
        solver: Any = one_of(SOLVERS)

    Outer.__annotations__.update(inner=Inner, maybe=Inner | None)
    with pytest.raises(ValueError) as caught:
        load(Outer, [])
    keys = ["inner.path", "maybe", "solver.name"]
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()[1:]] == keys
    config, _ = load(Outer, parse_overrides(["inner.path=a", "maybe.path=c", "solver.name=euler"]))
    assert config == Outer(Inner("a"), Inner("c"), EulerConfig())


def test_interpolation_of_other_keys_defaults_and_the_environment(monkeypatch):
    monkeypatch.setenv("LONGTAKE_SEED", "7")
    tree = {"seed": "${oc.env:LONGTAKE_SEED}", "label": "run ${seed} of ${solver.num_steps}", "shadow": "${window}"}
    config = build(tree, {"window": {"sink_frames": 1}}, {"extra": ["${optims[0].lr}", {"deep": "${seed}"}]})
    assert (config.seed, config.label, config.shadow) == (7, "run 7 of 4", WindowConfig(21, 1))
    assert config.extra == [1.0, {"deep": 7}]
    assert build({"label": r"\${seed}"}).label == "${seed}"
    # What is interpolated is the value at the end, whoever wrote it.
    assert build({"label": "${seed}"}, {"seed": 3}).label == "3"


def test_texts_that_double_each_other_are_refused():
    tree = {f"k{i}": f"${{k{i - 1}}}${{k{i - 1}}}" for i in range(1, 40)}
    with pytest.raises(ValueError, match=r"78 times `\$\{`, allowed: 32"):
        build({"extra": {"k0": "x", **tree}})


def test_problems_are_told_of_nested_objects_with_key_and_origin():
    message = failure({"shadow": {"window_frames": 2}})
    assert message == "layer1: shadow: window_frames 2 is below sink_frames 3; raise it"
    assert "layer1: window:" in failure({"window": {"window_frames": 0}})


def test_origins_of_values():
    file = Layer("a.yaml", {"model": "m", "weights": {"dmd": 2.0}, "optims": [{"lr": 1.0}]})
    _, origins = load(RootConfig, [file, *parse_overrides(["solver.name=unipc", "window.sink_frames=1"])])
    want = {
        "model": "a.yaml",
        "seed": "default",
        "weights.flow": "default",
        "weights.dmd": "a.yaml",
        "optims": "a.yaml",
        "solver.name": "command line",
        "solver.order": "default",
        "window.sink_frames": "command line",
        "critic": "default",
    }
    assert {key: origins.get(key, "default") for key in want} == want
    assert "window" not in origins


def test_import_is_light():
    code = "import sys, utils.config.field, utils.config.text\n"
    code += "print([m for m in ('torch', 'omegaconf', 'diffusers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
