"""Lists of prompts that are more, or something else, than plain text."""

from __future__ import annotations

import json
import os

import pytest

from utils.data.prompts import read_prompts, warn_cut
from utils.data.schedules import is_schedule

ROWS = [{"id": 7, "Caption": "a fox, running"}, {"id": 8, "Caption": "two owls"}]
GOOD = {
    "a.json": json.dumps(["a fox, running", "two owls"]),
    "b.json": json.dumps({"version": 2, "items": ROWS}, indent=1),
    "c.jsonl": "\n".join(map(json.dumps, ROWS)),
    "d.CSV": '\ufeffid,Text\r\n7,"a fox, running"\r\n8,two owls\r\n',
    "e.csv": 'id;prompt\n7;"a fox, running"\n8;two owls\n',
    "f.tsv": "prompt\tsource\na fox, running\tx\ntwo owls\ty\n",
    "g.yaml": "# owls\nprompts:\n  - a fox, running\n  - two owls\n",
    "h.yml": "- {caption: 'a fox, running'}\n- caption: two owls\n",
}


@pytest.mark.parametrize(("name", "text"), GOOD.items(), ids=GOOD)
def test_table_rows_become_prompts(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    lines = read_prompts(tmp_path / name)
    assert [(line.line, line.text) for line in lines] == [(1, "a fox, running"), (2, "two owls")]


BAD = {
    "a.json": ('{"a": {"b": 1}}', "0 lists"),
    "b.json": ('[{"text": "a", "caption": "b"}]', "row 1 has the columns text and caption"),
    "c.json": ('["a", 3]', "row 2 is 3"),
    "d.json": ('["a"', "not JSON"),
    "e.csv": ("path,label\n1,2\n", "no column"),
    "f.csv": ("path,text\n1,a fox, running\n", "line 2 has 3 cells"),
    "g.yaml": ("a: [", "not YAML"),
    "h.jsonl": ('{"prompts": ["a"]}', "prompt schedule"),
    "i.json": ('[{"text": "a", "end_frame": 3}]', "prompt schedule"),
    "j.txt": ('a fox\n{"prompt": "two owls"}\n', "line 2: this is JSON"),
    "k.txt": ('[\n  "a fox"\n]\n', "line 1: this is JSON"),
    "l.txt": ("video\tcaption\n1.mp4\ta fox\n", "line 1: this is the head of a table"),
    "m.txt": ("<!DOCTYPE html>\n<html>\n", "web page"),
}


@pytest.mark.parametrize(("name", "text", "why"), [(n, *rest) for n, rest in BAD.items()], ids=BAD)
def test_other_files_are_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{why}"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("code", ["utf-16", "utf-32", "utf-8-sig"])
def test_marked_text_is_decoded(tmp_path, code):
    (tmp_path / "p.txt").write_bytes("ein Fuchs \u2603\r\n\r\nzwei".encode(code))
    assert [(x.line, x.text) for x in read_prompts(tmp_path / "p.txt")] == [(1, "ein Fuchs \u2603"), (3, "zwei")]


def test_plain_lines_with_brackets_stay(tmp_path):
    (tmp_path / "p.txt").write_text("[close-up] a fox, text on it\n{a fox|an owl} runs\n")
    assert len(read_prompts(tmp_path / "p.txt")) == 2


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            read_prompts(path)


def test_schedules_are_told_from_captions(tmp_path):
    path = tmp_path / "x.jsonl"
    for text, schedule in (('\n{"prompts": ["a"]}', True), ('{"caption": "a", "height": 3}', False), ("{", True)):
        path.write_text(text)
        assert is_schedule(path) is schedule
    assert not is_schedule("x.txt")


def test_cut_prompts_are_named_up_to_a_limit(caplog):
    places = [(f"list.txt, line {n}", f"word {n}") for n in range(15)]
    warn_cut(places, lambda prompt: None if prompt == "word 0" else (9, f"{prompt} is lost"), 8)
    assert len(caplog.messages) == 11 and "4 other prompts" in caplog.messages[-1]
    assert "line 1: the prompt has 9 tokens and the text encoder reads 8" in caplog.messages[0]
    assert caplog.messages[0].endswith("'word 1 is lost'")
