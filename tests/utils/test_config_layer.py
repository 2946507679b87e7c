"""`utils.config.layer`: the YAML dialect, `base`, sections, overrides and their errors."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from utils.config.layer import parse_overrides, read_defaults, read_recipe, read_yaml
from utils.config.text import format_value


@pytest.fixture
def write(tmp_path):
    def put(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1e-4", 1e-4),
        ("-3", -3),
        ("007", 7),
        ("1.", 1.0),
        (".inf", math.inf),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("16:9", "16:9"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ('"007"', "007"),
        ("[1, a, null]", [1, "a", None]),
        ("{a: {b: 2}}", {"a": {"b": 2}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2_in_files_and_on_the_command_line(write, text, want):
    for tree in (read_yaml(write("a.yaml", f"key: {text}\n")).tree, parse_overrides([f"key={text}"])[0].tree):
        assert tree == {"key": want} and type(tree["key"]) is type(want)


@pytest.mark.parametrize("text", ["", "a: b", "# hash", "a #b", "- x", "it's", "&a", "!!int 3", "a=b", "*"])
def test_other_text_on_the_command_line_stands_for_itself(text):
    assert [layer.tree for layer in parse_overrides([f"prompt={text}"])] == [{"prompt": text}]


def test_lines_of_keys(write):
    path = write("a.yaml", "# head\na:\n  b: 1\nc:\n- d: 2\n- 3\n")
    layer = read_yaml(path)
    lines = {("a",): 2, ("a", "b"): 3, ("c",): 4, ("c", 0): 5, ("c", 0, "d"): 5, ("c", 1): 6}
    assert layer.lines == lines
    assert layer.where(("a", "b")) == layer.where(("a", "b", "x")) == f"{path}:3"
    assert layer.where(("zzz",)) == str(path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a stands here and in line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, "a.b stands here and in line 2"),
        ("a: [1\n", 2, "no valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "no valid YAML"),
        ("a: &x 1\nb: *x\n", 1, "anchors"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "tag"),
        ("a: 1\n? [1]\n: 2\n", 2, "key must be a word"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: 1\nb: \x07\n", None, "no valid YAML"),
        ("- 1\n", None, "top level is a list"),
    ],
)
def test_broken_files_are_refused_with_the_line(write, text, line, words):
    path = write("a.yaml", text)
    with pytest.raises(ValueError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}:" if line else f"{path}: ") and words in str(caught.value)


def test_missing_empty_and_undecodable_files(write):
    path = write("recipe.yaml", "")
    assert read_yaml(path).tree == {}
    with pytest.raises(ValueError, match=r"recip\.yaml: no such file \(is it .*recipe\.yaml\?\)"):
        read_yaml(path.with_name("recip.yaml"))
    with pytest.raises(ValueError, match="no such file"):
        read_yaml(path.parent)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_yaml(path)


def test_base_is_an_earlier_layer_relative_to_the_recipe(write):
    write("base.yaml", "a: 1\n")
    write("train/middle.yaml", "base: ../base.yaml\na: 2\n")
    layers = read_recipe(write("train/top.yaml", "base: middle.yaml\nb: 3\n"))
    assert [layer.tree for layer in layers] == [{"a": 1}, {"a": 2}, {"b": 3}]
    assert layers[0].where(("a",)).endswith("base.yaml:1") and ".." not in layers[0].source


def test_wrong_bases_are_refused(write):
    write("a.yaml", "base: b.yaml\n")
    with pytest.raises(ValueError, match=r"b\.yaml:2: base: .* circle \(a\.yaml -> b\.yaml -> a\.yaml\)"):
        write("b.yaml", "x: 1\nbase: a.yaml\n")
        read_recipe(write("a.yaml", "base: b.yaml\n"))
    with pytest.raises(ValueError, match=r"c\.yaml:1: base: got \[1\]"):
        read_recipe(write("c.yaml", "base: [1]\n"))
    with pytest.raises(ValueError, match=r"gone\.yaml: no such file"):
        read_recipe(write("d.yaml", "base: gone.yaml\n"))


def test_sections_of_the_project_wide_file(write):
    path = write("default.yaml", "common:\n  seed: 1\ntrain:\n  lr: 2\ninfer:\n")
    assert [layer.tree for layer in read_defaults(path, "train")] == [{"seed": 1}, {"lr": 2}]
    common, infer = read_defaults(path, "infer")
    assert infer.tree == {} and common.where(("seed",)) == f"{path}:2"
    with pytest.raises(ValueError, match=r"default\.yaml:1: unknown section 'trian'.* did you mean train"):
        read_defaults(write("default.yaml", "trian:\n  lr: 2\n"), "infer")
    with pytest.raises(ValueError, match=r"default\.yaml:1: train: got 3"):
        read_defaults(write("default.yaml", "train: 3\n"), "infer")


def test_each_override_is_a_layer_in_the_order_given():
    layers = parse_overrides(["a.b=3", "a.c=[1,2]", "d={x: 1}", "e=1", "e=null"])
    assert [layer.tree for layer in layers] == [
        {"a": {"b": 3}},
        {"a": {"c": [1, 2]}},
        {"d": {"x": 1}},
        {"e": 1},
        {"e": None},
    ]
    assert {layer.where(("a", "b")) for layer in layers} == {"command line"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed"], "'seed' has no `=`; write key=value, for example seed=VALUE"),
        (["=3"], "empty key; write key=value"),
        (["a..b=3"], "empty key"),
        (["a. b=3"], "empty key"),
        (["--a=3"], "without dashes"),
        (["--a"], "without dashes"),
        (["a=[1"], "a:1: no valid YAML"),
    ],
)
def test_wrong_overrides_are_refused(overrides, words):
    with pytest.raises(ValueError) as caught:
        parse_overrides(overrides)
    assert words in str(caught.value) and str(caught.value).startswith("command line")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    # YAML reads keys of at most 1024 characters, escapes counted
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=80), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain)
def test_a_formatted_value_reads_back(value):
    text = format_value(value)
    tree = parse_overrides([f"key={text}"])[0].tree
    again = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)["key"]
    assert "\n" not in text and again == value and type(again) is type(value)


@given(st.text("\\\\${}ab'\" :,.", max_size=12))
def test_formatted_text_is_never_an_interpolation(text):
    tree = parse_overrides([f"key={format_value(text)}"])[0].tree
    assert OmegaConf.create(tree).key == text


def test_an_alias_bomb_is_refused_before_it_is_read(write):
    lines = [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)),
    ]
    with pytest.raises(ValueError, match=r"bomb\.yaml:1: .*anchors and aliases"):
        read_yaml(write("bomb.yaml", "\n".join(lines)))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [ls]", "!!str 3", "!!binary aGk=", "!own {a: 1}", "! 3"]
)
@pytest.mark.parametrize("text", ["a: {}", "a: [1, {}]", "{}", "a:\n  b:\n  - {}"])
def test_tags_are_refused_wherever_they_stand(write, tag, text):
    with pytest.raises(ValueError, match="tag"):
        read_yaml(write("a.yaml", text.replace("{}", tag)))


def test_read_recipe_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("base: b.yaml\nx: 1\n")
    (tmp_path / "b.yaml").write_text("y: 2\n")
    assert [layer.tree for layer in read_recipe("~/a.yaml")] == [{"y": 2}, {"x": 1}]
