"""Imports go strictly down the floors, and heavy or foreign packages stay where they belong."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from tests.architecture.source import Source, dotted, imported_names, imports, python_sources

FLOOR = {"wan": 1, "utils": 1, "cogvideox": 1.5, "model": 2, "pipeline": 2, "trainer": 3}
FLOOR |= {"train": 4, "inference": 4, "demo": 4, "scripts": 4}
GROUND = {"utils.bounds", "utils.json_reader"}  # the standard library alone: all floors stand on it
TABLES_ABOVE = {"wan/__init__.py"}  # the table of families, resolved on use: one may stand on the floor above
NO_ROOM = {"setup"}  # root files that are no part of the program
MODEL_ROOMS = {"wan", "cogvideox", "model"}
MODEL_PACKAGES = {"torch", "numpy", "einops", "safetensors", "diffusers", "transformers", "ftfy"}
KERNELS = {"flash_attn", "flash_attn_interface"}  # optional, inside the one function that calls them
HEAVY = {"diffusers", "transformers", "sklearn", "av", "imageio", "peft", "accelerate"}
DISTRIBUTED_HOMES = {
    "utils/parallel/ranks.py",
    "utils/parallel/fsdp.py",
    "utils/parallel/ulysses.py",
    "utils/parallel/pipe.py",
    "trainer/checkpoint/dcp.py",
}
OF_A_FAMILY = {"open_vae", "load_text_encoder", "load_image_encoder"}  # and each class that ends in one of:
NETWORKS = ("Transformer", "Denoiser")
REGISTRY_ENTRY = re.compile(r"([a-z]\w*(?:\.\w+)*):[A-Za-z_]\w*")


def registry_targets(source: Source) -> list[tuple[int, str]]:
    """Returns (line, module) of every "module:Name" string, the form of registry entries."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = REGISTRY_ENTRY.fullmatch(node.value)
            if match and match[1].split(".")[0] in FLOOR:
                found.append((node.lineno, match[1]))
    return found


def check_floors(source: Source) -> list[str]:
    """Returns one line for each import that does not go down; tests may import all."""
    here, found = source.room, []
    targets = [] if source.path in TABLES_ABOVE else registry_targets(source)
    for line, name in imports(source) + targets:
        there = name.split(".")[0]
        if there == "tests" and here != "tests":
            found.append(f"{source.path}:{line} imports {name}; only tests import tests")
        if there not in FLOOR or there == here or here == "tests" or _on_ground(name):
            continue
        if here not in FLOOR:
            found.append(f"{source.path}:{line} imports {name}, but {here} stands on no floor")
        elif FLOOR[there] >= FLOOR[here]:
            found.append(f"{source.path}:{line} (floor {FLOOR[here]}) imports {name} (floor {FLOOR[there]})")
    return found


def _on_ground(name: str) -> bool:
    return any(f"{name}.".startswith(f"{ground}.") for ground in GROUND)


def check_model_code(source: Source) -> list[str]:
    """Returns the packages, distribution, environment and prints that model code may not use."""
    if source.room not in MODEL_ROOMS:
        return []
    allowed = MODEL_PACKAGES | MODEL_ROOMS | KERNELS | set(sys.stdlib_module_names)
    found = [
        f"{source.path}:{line} imports {name}; model code may not"
        for line, name in imports(source)
        if (name.split(".")[0] not in allowed and not _on_ground(name)) or name == "os.environ"
    ]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv"):
            found.append(f"{source.path}:{node.lineno} reads the environment; only the doors do")
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            found.append(f"{source.path}:{node.lineno} prints; model code may not")
    return found


def check_distributed(source: Source) -> list[str]:
    """Returns the uses of torch.distributed outside its homes."""
    if source.room == "tests" or source.path in DISTRIBUTED_HOMES:
        return []
    used = [(n.lineno, dotted(n)) for n in ast.walk(source.tree) if isinstance(n, ast.Attribute)]
    hits = {line for line, name in imports(source) + used if f"{name}.".startswith("torch.distributed.")}
    return [f"{source.path}:{line} touches torch.distributed" for line in sorted(hits)]


def check_families(source: Source) -> list[str]:
    """Returns what builds a network, or opens a VAE or an encoder, without a family of wan/family.py."""
    if source.room in {"wan", "cogvideox", "tests"}:
        return []
    found = []
    for node in ast.walk(source.tree):
        for name in imported_names(source, node):
            room, _, last = name.rpartition(".")
            if room.split(".")[0] in MODEL_ROOMS and (last in OF_A_FAMILY or last.endswith(NETWORKS[0])):
                found.append(f"{source.path}:{node.lineno} imports {name}; ask wan.family")
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2].endswith(NETWORKS):
            found.append(f"{source.path}:{node.lineno} calls {dotted(node.func)}; ask wan.family")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(NETWORKS[0]):
            found.append(f"{source.path}:{node.lineno} names {node.value!r}; ask wan.family")
    return found


def check_heavy(source: Source) -> list[str]:
    """Returns the imports of heavy packages and kernels that run when the module is imported."""
    if source.room == "tests":
        return []
    inside = {
        id(child)
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(source.tree):
        for name in imported_names(source, node):
            if id(node) not in inside and name.split(".")[0] in HEAVY | KERNELS:
                found.append(f"{source.path}:{node.lineno} imports {name} on import; move it into the function")
    return found


def find_circle(sources) -> list[str]:
    """Returns the modules of one import circle in order, first repeated at the end, or []."""
    modules = {s.module: s for s in sources}
    edges = {}
    for module, source in modules.items():
        names = [name for _, name in imports(source)]
        edges[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & set(modules) - {module}
    done: set[str] = set()

    def visit(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges[module]):
            if circle := visit(target, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((c for m in sorted(modules) if (c := visit(m, []))), [])


@pytest.mark.parametrize("check", [check_floors, check_model_code, check_distributed, check_families, check_heavy])
def test_project_obeys(check):
    assert [line for source in python_sources(with_tests=True) for line in check(source)] == []


def test_project_has_no_circle():
    assert find_circle(python_sources(with_tests=False)) == []


def test_the_ground_imports_the_standard_library_alone():
    grounds = [s for s in python_sources(with_tests=False) if s.module in GROUND]
    assert len(grounds) == len(GROUND)
    assert {name.split(".")[0] for s in grounds for _, name in imports(s)} <= set(sys.stdlib_module_names)


def test_every_folder_stands_on_a_floor():
    rooms = {s.room for s in python_sources(with_tests=False)}
    assert rooms - set(FLOOR) - NO_ROOM == set(), "a new top-level folder needs a floor"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("wan/a.py", "import utils.rng"),
        ("utils/a.py", "from wan import spec"),
        ("model/a.py", "from pipeline.rollout import Rollout"),
        ("pipeline/a.py", "def f():\n    from model import flow"),
        ("pipeline/a.py", "import trainer.roles"),
        ("trainer/a.py", "import scripts.benchmark"),
        ("scripts/a.py", "import inference"),
        ("wan/sub/a.py", "from ...utils import rng"),
        ("wan/a.py", "rng = import_module('utils.rng')"),
        ("pipeline/__init__.py", "TABLE = {'x': 'trainer.loop:Loop'}"),
        ("wan/a.py", "import tests.tiny"),
        ("stray/a.py", "import wan.spec"),
    ],
)
def test_upward_imports_are_caught(path, text):
    assert len(check_floors(Source(path, text))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("wan/a.py", "from . import spec\nimport torch"),
        ("wan/attention/a.py", "from ..spec import SPECS"),
        ("trainer/a.py", "import model.flow, pipeline.rollout, wan.spec, utils.rng"),
        ("wan/a.py", "from utils.json_reader import get"),
        ("wan/a.py", "from utils.bounds import bounded"),
        ("inference.py", "import trainer.config"),
        ("tests/a.py", "import inference, tests.tiny"),
        ("model/__init__.py", "LOSSES = {'flow': 'model.flow:FlowLoss'}"),
    ],
)
def test_downward_imports_pass(path, text):
    assert check_floors(Source(path, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import omegaconf",
        "def f():\n    import peft",
        "from os import environ",
        "import os\nx = os.environ['A']",
        "import os\nx = os.getenv('A')",
        "print(1)",
    ],
)
def test_foreign_code_in_model_rooms_is_caught(text):
    assert len(check_model_code(Source("wan/a.py", text))) == 1
    assert check_model_code(Source("trainer/a.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed.fsdp import fully_shard",
        "import torch\nx = torch.distributed.get_rank()",
    ],
)
def test_distribution_outside_its_homes_is_caught(text):
    assert len(check_distributed(Source("wan/a.py", text))) == 1
    assert len(check_distributed(Source("trainer/loop.py", text))) == 1
    assert check_distributed(Source("utils/parallel/ranks.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from wan.transformer import WanTransformer",
        "def f():\n    from wan.codec.vae import open_vae",
        "import wan.denoiser\nx = wan.denoiser.ExpertDenoiser(1, 2, 0.9)",
        "config = {'_class_name': 'WanTransformer'}",
    ],
)
def test_networks_that_no_family_built_are_caught(text):
    assert len(check_families(Source("trainer/a.py", text))) == 1
    assert check_families(Source("wan/a.py", text)) == []


def test_networks_of_a_family_pass():
    text = "from wan.denoiser import Denoiser\nx: Denoiser = get_family(spec).denoiser(network)\nfamily.open_vae(path)"
    assert check_families(Source("trainer/a.py", text)) == []


def test_heavy_imports_are_caught():
    assert len(check_heavy(Source("wan/codec/vae.py", "from diffusers import AutoencoderKLWan"))) == 1
    assert len(check_heavy(Source("utils/a.py", "class A:\n    import av"))) == 1
    assert len(check_heavy(Source("wan/a.py", "try:\n    import flash_attn\nexcept ImportError:\n    pass"))) == 1
    assert check_heavy(Source("wan/codec/vae.py", "def f():\n    import diffusers")) == []


def test_circles_are_caught():
    a, b = Source("wan/a.py", "from wan import b"), Source("wan/b.py", "def f():\n    from wan.c import x")
    c = Source("wan/c.py", "from .a import y")
    assert find_circle([a, b, c]) == ["wan.a", "wan.b", "wan.c", "wan.a"]
    late = Source("wan/b.py", "def f():\n    return importlib.import_module('wan.c').x()")
    assert find_circle([a, late, c]) == ["wan.a", "wan.b", "wan.c", "wan.a"]
    assert find_circle([a, b]) == []
