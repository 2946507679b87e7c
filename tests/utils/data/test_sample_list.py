"""Lists of samples as batch_eval takes them: JSON and YAML alike, every mistake named."""

from __future__ import annotations

import json

import pytest
import yaml

from utils.data.sample_list import Sample, read_sample_list

TREE = {
    "anchor": {"prompt": "a woman", "image": "a.png", "audio": "a.wav", "num_clip": 10, "face": [1, 2, 30.5, 40]},
    "two": {"image": "/b.png", "audio": "l.wav+r.wav", "truth": "real/b.mp4"},
    "none": {},
}


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_both_kinds_say_the_same(tmp_path, ending):
    path = tmp_path / f"list.{ending}"
    path.write_text(json.dumps(TREE) if ending == "json" else yaml.safe_dump(TREE, sort_keys=False))
    found = read_sample_list(path)
    assert found[0] == Sample("anchor", tmp_path / "a.png", (tmp_path / "a.wav",), None, (1, 2, 30.5, 40))
    assert str(found[1].image) == "/b.png" and found[1].audio == (tmp_path / "l.wav", tmp_path / "r.wav")
    assert found[1].truth == tmp_path / "real/b.mp4" and found[2] == Sample("none")


def test_our_own_lists_are_read_too(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text('{"image": "a.png", "audio": "a.wav", "prompt": "a two", "name": "x"}\n')
    assert read_sample_list(path) == [Sample("x", tmp_path / "a.png", (tmp_path / "a.wav",))]


def test_every_mistake_is_named(tmp_path):
    path = tmp_path / "list.json"
    tree = {
        "a": {"face": [1, 2, 3]},
        "b": {"picture": "b.png"},
        "c": 3,
        "d": {"face": [1, 2, 3, True]},
        "e": {"image": 4},
    }
    path.write_text(json.dumps(tree | TREE))
    with pytest.raises(ValueError, match="5 problems") as error:
        read_sample_list(path)
    for part in ("list.json, a: face is", "b: 'picture' is unknown", "c is 3", "d: face is", "e: image is 4"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "holds no sample"),
        ("a.json", "[]", "must be an object"),
        ("a.json", "{", "a.json"),
        ("a.yaml", "a: [", "a.yaml"),
        ("a.yaml", "- a", "write `key: value` lines"),
        ("b.json", None, "b.json is not a file"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sample_list(tmp_path / name)
