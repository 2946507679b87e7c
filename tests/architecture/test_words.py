"""Words that no file may hold: the literals of Geometry, absolute paths, unsafe loading, silent fallbacks."""

from __future__ import annotations

import ast
import re

import pytest

from tests.architecture.source import Source, dotted, get_docstring, imports, python_sources, text_files

GEOMETRY_HOMES = {"wan/geometry.py", "wan/spec.py", "wan/codec/vae.py", "cogvideox/spec.py"}
GEOMETRY_INTEGERS = {1560, 32760, 480, 832}
GEOMETRY_WORDS = ("1560", "32760", "30x52", "60x104")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLE_ERRORS = {"UnpicklingError", "PickleError"}  # what the safe reader raises; an exception executes nothing
FOLDERS = "home|root|work|workspace|mnt|media|data|datasets|tmp|usr|opt|etc|var|srv|nfs|scratch|share|path|Users"
ABSOLUTE = re.compile(rf"(?<![\w./~$}})\]*-])/(?:{FOLDERS})/[\w.$<{{*-]|\bC:\\{{1,2}}\w")


def _is_stride(node: ast.AST) -> bool:
    """True for the 4 of 4n+1, be it the number or a name that says stride."""
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value == 4
    node = node.value if isinstance(node, ast.Subscript) else node
    return "stride" in dotted(node).rpartition(".")[2].lower()


def _is_int(node: ast.AST, *values: int) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value in values


def is_frame_arithmetic(node: ast.AST) -> bool:
    """True for (x - 1) // 4, (x - 1) % 4, (x + 3) // 4, x % 4 == 1, 4 * x + 1, 1 + 4 * x, 4 * x - 3."""
    if isinstance(node, ast.Compare) and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mod):
        return _is_stride(node.left.right) and _is_int(node.comparators[0], 1)
    if not isinstance(node, ast.BinOp):
        return False
    if isinstance(node.op, (ast.FloorDiv, ast.Mod)) and _is_stride(node.right) and isinstance(node.left, ast.BinOp):
        minus = isinstance(node.left.op, ast.Sub) and _is_int(node.left.right, 1)
        plus = isinstance(node.left.op, ast.Add) and _is_int(node.left.right, 3)
        return minus or plus
    for product, offset in ((node.left, node.right), (node.right, node.left)):
        multiplied = isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult)
        if multiplied and (_is_stride(product.left) or _is_stride(product.right)):
            if isinstance(node.op, ast.Add) and _is_int(offset, 1):
                return True
            if isinstance(node.op, ast.Sub) and product is node.left and _is_int(offset, 3):
                return True
    return False


def check_geometry(source: Source) -> list[str]:
    """Returns the literals and the arithmetic that belong to wan/geometry.py; docstrings are free."""
    if source.room == "tests" or source.path in GEOMETRY_HOMES:
        return []
    docstrings = {id(d.value) for node in ast.walk(source.tree) if (d := get_docstring(node))}
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            word = isinstance(node.value, str) and any(w in node.value for w in GEOMETRY_WORDS)
            if word or _is_int(node, *GEOMETRY_INTEGERS):
                found.append(f"{source.path}:{node.lineno} holds {node.value!r}; ask wan.geometry or wan.spec")
        if is_frame_arithmetic(node):
            found.append(f"{source.path}:{node.lineno} computes {ast.unparse(node)!r}; ask wan.geometry")
    return found


def _caught_names(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return ["everything"]
    types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [dotted(t).rpartition(".")[2] for t in types]


def check_habits(source: Source) -> list[str]:
    """Returns `import *`, broad excepts, getattr on a config and `.cuda()`."""
    found = []
    for node in ast.walk(source.tree):
        where = f"{source.path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
            found.append(f"{where} imports *")
        if isinstance(node, ast.ExceptHandler):
            names = _caught_names(node)
            last = node.body[-1]
            again = isinstance(last, ast.Raise) and last.exc is None
            named = isinstance(last, ast.Raise) and last.cause is not None  # raised as another kind, its cause kept
            broad = "everything" in names or ("Exception" in names and not named)
            if broad or ("BaseException" in names and not again):
                found.append(f"{where} catches {', '.join(names)}; name what may go wrong")
        if isinstance(node, ast.Call):
            broad = {dotted(a).rpartition(".")[2] for a in node.args} & {"Exception", "BaseException"}
            if dotted(node.func).endswith("suppress") and broad:
                found.append(f"{where} suppresses everything; name what may go wrong")
            if dotted(node.func) == "getattr" and node.args and dotted(node.args[0]).lower().endswith("config"):
                found.append(f"{where} reads a config by getattr; give the dataclass a field")
            if dotted(node.func) == "vars" and node.args and not source.path.startswith(("utils/config/", "tests/")):
                name = dotted(node.args[0]).rpartition(".")[2].lower()
                if name.endswith("config") or name in ("knobs", "trainer", "pipeline", "loss", "cache"):
                    found.append(f"{where} reads a config by vars; call values of utils.config.field")
            if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{where} calls .cuda(); use .to(device)")
    return found


def check_pickle(source: Source) -> list[str]:
    """Returns what could execute a pickle. Tests are free: they build hostile files."""
    if source.room == "tests":
        return []
    found = []
    for line, name in imports(source):
        package, _, member = name.partition(".")
        if (package in PICKLES and member not in PICKLE_ERRORS) or name == "torch.load":
            found.append(f"{source.path}:{line} imports {name}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and dotted(node.value).rpartition(".")[2] in PICKLES:
            if node.attr not in PICKLE_ERRORS:  # also by way of another module, such as torch.serialization
                found.append(f"{source.path}:{node.lineno} uses {dotted(node)}")
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if dotted(node.func) == "torch.load" and keywords.get("weights_only") is not True:
            found.append(f"{source.path}:{node.lineno} calls torch.load without weights_only=True")
        if any(k.arg == "allow_pickle" and keywords.get("allow_pickle") is not False for k in node.keywords):
            found.append(f"{source.path}:{node.lineno} allows a pickle")
    return found


OLD_WORDS = "films?|reels?|bookmarks?|kits?|Sight|TORN|graded|judges|snap|beside|lacking"
OLD_WORDS = re.compile(rf"(?<![\"'.\w])({OLD_WORDS})(?![\"'\w])", re.IGNORECASE)
OLD_KEYS_OF = ("pipeline/config.py", "trainer/config.py")  # tables of renamed keys name the old ones
RENAMED_TO = re.compile(r'^\s*"[\w.]+": "[\w.]+",?$|PREVIEW\)')


def find_old_words(path: str, text: str) -> list[str]:
    """Returns the lines with words that the glossary has replaced; names of stored fields stand in quotes."""
    if path.startswith("tests/"):
        return []
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        known = path in OLD_KEYS_OF and RENAMED_TO.search(line)
        if (match := OLD_WORDS.search(line)) and not known:
            found.append(f"{path}:{number} says {match[1]!r}; see the glossary of docs/architecture.md")
    return found


def find_absolute_paths(path: str, text: str) -> list[str]:
    """Returns the lines that name a place on somebody's machine; the first line's interpreter is free."""
    lines = enumerate(text.splitlines(), 1)
    return [
        f"{path}:{n} holds an absolute path: {line.strip()[:80]}"
        for n, line in lines
        if ABSOLUTE.search(line) and not (n == 1 and line.startswith("#!"))
    ]


@pytest.mark.parametrize("check", [check_geometry, check_habits, check_pickle])
def test_project_obeys(check):
    assert [line for source in python_sources(with_tests=True) for line in check(source)] == []


def test_project_holds_no_absolute_path():
    files = text_files() + [(s.path, s.text) for s in python_sources(with_tests=False)]
    assert len(files) > 10
    assert [line for path, text in files for line in find_absolute_paths(path, text)] == []


def test_old_words_stay_out():
    files = text_files() + [(s.path, s.text) for s in python_sources(with_tests=False)]
    assert [line for path, text in files for line in find_old_words(path, text)] == []


def test_old_words_are_caught():
    for text in ("the next film", "class Reel:", "# beside it", "snap: table"):
        assert len(find_old_words("pipeline/a.py", text)) == 1
    assert find_old_words("pipeline/a.py", 'book["films"], a filmstrip, snapshot, ratio') == []
    assert find_old_words("trainer/config.py", '        "trainer.loss.snap": "generation.steps.rounding",') == []


@pytest.mark.parametrize(
    "text",
    [
        "tokens = 1560",
        "f(seq_len=32760)",
        "size = [480, 64]",
        "width = 832",
        "name = '30x52'",
        "name = 'block 60x104'",
        "name = f'grid of {x} by 1560'",
        "n = (frames - 1) // 4",
        "n = (frames - 1) % 4",
        "n = (frames + 3) // 4",
        "n = (frames - 1) // spec.strides[0]",
        "n = (frames - 1) // TEMPORAL_STRIDE",
        "n = 4 * frames - 3",
        "n = frames * 4 + 1",
        "n = 1 + stride * frames",
        "ok = frames % 4 == 1",
        "ok = frames % 4 != 1",
    ],
)
def test_geometry_elsewhere_is_caught(text):
    assert len(check_geometry(Source("pipeline/a.py", text))) == 1
    for home in (*GEOMETRY_HOMES, "tests/a.py"):
        assert check_geometry(Source(home, text)) == []


@pytest.mark.parametrize(
    "text",
    [
        '"""Attends 1560 tokens, 60x104 cells."""',
        "x = 4 * n",
        "x = n // 4",
        "x = (n - 1) // 2",
        "x = 4 * n - 1",
        "x = 480.5",
        "x = n % 4 == 0",
        "x = True",
    ],
)
def test_other_numbers_pass(text):
    assert check_geometry(Source("pipeline/a.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from torch import *",
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception:\n    raise",
        "try:\n    f()\nexcept (ValueError, Exception) as e:\n    pass",
        "try:\n    f()\nexcept builtins.Exception:\n    pass",
        "try:\n    f()\nexcept BaseException:\n    pass",
        "with contextlib.suppress(Exception):\n    f()",
        "x = getattr(config, 'a', 1)",
        "x = getattr(self.config, 'a')",
        "x = getattr(model_config, 'a')",
        "x = vars(config)['a']",
        "x = {**vars(config.generation.cache)}",
        "x = model.cuda()",
        "x = tensor.to(1).cuda(0)",
    ],
)
def test_bad_habits_are_caught(text):
    assert len(check_habits(Source("wan/a.py", text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    f()\nexcept BaseException:\n    clean()\n    raise",
        "try:\n    f()\nexcept (OSError, ValueError):\n    pass",
        "with contextlib.suppress(FileNotFoundError):\n    f()",
        "x = getattr(module, 'a')",
        "torch.cuda.synchronize()",
        "from torch import nn",
    ],
)
def test_good_habits_pass(text):
    assert check_habits(Source("wan/a.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import dump",
        "from torch import load",
        "x = torch.serialization.pickle.load(f)",
        "x = torch.load(p)",
        "x = torch.load(p, weights_only=False)",
        "x = torch.load(p, weights_only=flag)",
        "x = np.load(p, allow_pickle=True)",
        "x = np.load(p, allow_pickle=flag)",
    ],
)
def test_pickles_are_caught(text):
    assert len(check_pickle(Source("wan/a.py", text))) == 1


def test_safe_loading_passes():
    assert check_pickle(Source("wan/a.py", "x = torch.load(p, weights_only=True)\ny = np.load(p)")) == []
    assert check_pickle(Source("wan/a.py", "from pickle import UnpicklingError")) == []
    assert check_pickle(Source("wan/a.py", "x = torch.serialization.pickle.UnpicklingError")) == []
    assert check_pickle(Source("tests/a.py", "import pickle")) == []


ROOTED = ("home/me/x", "data/videos", "tmp/out", "mnt/disk/$RUN", "path/to/model")


@pytest.mark.parametrize("tail", ROOTED)
@pytest.mark.parametrize("frame", ["{}", "folder: {}", "x = '{}'", "see `{}`.", "({})", "--out={}", "a:{}"])
def test_absolute_paths_are_caught(tail, frame):
    assert len(find_absolute_paths("docs/a.md", frame.format(f"/{tail}"))) == 1


def test_windows_paths_are_caught():
    assert len(find_absolute_paths("docs/a.md", "put it in C:\\models")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "#!/usr/bin/env bash",
        "see https://example.org/home/x and runs/data/x",
        "~/data/x and $HOME/data/x and ../tmp/x",
        "read/write and 1/2",
        "${ROOT}/data/x",
        "P:\\n and D: width",
    ],
)
def test_relative_paths_pass(text):
    assert find_absolute_paths("docs/a.md", text) == []
