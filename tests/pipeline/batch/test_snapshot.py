"""Snapshots as files: what was changed in one, or in the model, is found, named, and never gone on with."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from pipeline.batch import resume as snapshot
from pipeline.bundle import ModelBundle
from pipeline.state import checksums
from tests.digits_fixture import files
from tests.pipeline.killed_videos import FPS, ONE, PIXELS, SWITCHED, content, killed, make


def rewrite(path, tensors, book):
    """Writes a snapshot as `ResumeState` does."""
    text = json.dumps(book)
    snapshot.write_safetensors(path, tensors, {"book": text, "checksum": hashlib.sha256(text.encode()).hexdigest()})


def flip(name, byte):
    """Returns a function that changes one bit of a tensor of the snapshot in a folder."""

    def change(folder):
        path = folder / "video0.partial.safetensors"
        raw = bytearray(path.read_bytes())
        begin = 8 + int.from_bytes(raw[:8], "little")
        first, end = json.loads(raw[8:begin])[name]["data_offsets"]
        raw[begin + first + (byte if byte >= 0 else end - first + byte)] ^= 0x10
        path.write_bytes(raw)

    return change


def change_book(**changes):
    """Returns a function that changes the record of the snapshot in a folder, and not its checksum."""

    def change(folder):
        path = folder / "video0.partial.safetensors"
        notes = snapshot.metadata(path)
        notes["book"] = json.dumps(json.loads(notes["book"]) | changes)
        snapshot.write_safetensors(path, load_file(path), notes)

    return change


DAMAGES = {
    "a bit of the values": (flip("0.values", 4002), "tensor 0.values has changed since it was written"),
    "the first bit": (flip("latest", 0), "tensor latest has changed"),
    "the last bit": (flip("vae.0", -1), "tensor vae.0 has changed"),
    "another record": (change_book(next_frame=9), "its record has changed since it was written"),
    "no snapshot": (lambda folder: (folder / "video0.partial.safetensors").unlink(), "no snapshot to go on from"),
    "a damaged one": (lambda folder: (folder / "video0.partial.safetensors").write_bytes(b"{" * 99), "cannot be used"),
}
WRONG = {
    "no list": {"films": []},
    "no extra": {"extra": None},
    "a text": {"next_frame": "9"},
    "no frames": {"next_frame": -3},
    "ledgers": {"rollout": {"sizes": {}, "ledgers": [], "latest": []}},
    "kinds": {"vae": ["tensor"] * 9},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_record_is_one_error(tmp_path, name):
    killed(tmp_path, ONE, 6)
    path = tmp_path / "video0.partial.safetensors"
    rewrite(path, load_file(path), json.loads(snapshot.metadata(path)["book"]) | WRONG[name])
    with pytest.raises(ValueError, match=r"video0\.partial\.safetensors cannot be gone on with: .*Leave out --resume"):
        make(tmp_path, ONE, resume=True)


@pytest.mark.parametrize("notes", [{"book": "{}"}, {"book": '{"version": 2}'}, {"book": '{"version": "x"}'}])
def test_snapshot_of_another_format_is_refused(tmp_path, notes):
    killed(tmp_path, ONE, 6)
    path = tmp_path / "video0.partial.safetensors"
    snapshot.write_safetensors(path, load_file(path), notes)
    with pytest.raises(ValueError, match=r"snapshot has format .* and this version reads 3"):
        make(tmp_path, ONE, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 10**5, "null"], ids=["none", "open", "list", "deep", "null"])
def test_record_that_is_none_begins_anew(tmp_path, caplog, text):
    killed(tmp_path, ONE, 6)
    path = tmp_path / "video0.partial.safetensors"
    snapshot.write_safetensors(path, load_file(path), {"book": text} if text else {})
    assert make(tmp_path, ONE, resume=True).frames == PIXELS and "cannot be used (its record" in caplog.text


def model_files(folder):
    """Returns part -> its files, as `ModelBundle.files` has them; makes them where they are missing."""
    names = {"transformer": "a.safetensors", "vae": "vae.pth", "tokenizer": "words/tokens.json", "lora 0": "l.pt"}
    for name in names.values():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode() + bytes(2_000_000))
    return {part: {"": folder / name.partition("/")[0]} for part, name in names.items()}


@pytest.mark.parametrize("name", ["a.safetensors", "vae.pth", "words/tokens.json", "l.pt"])
def test_part_that_was_replaced_is_another_video(tmp_path, monkeypatch, name):
    """A byte behind the first kilobytes, size and time as they were."""
    of, folder = ModelBundle.of, tmp_path / "model"
    monkeypatch.setattr(ModelBundle, "of", lambda *parts: replace(of(*parts), files=model_files(folder)))
    killed(tmp_path / "out", ONE, 6)
    killed(tmp_path / "out", ONE, 2, resume=True)
    raw, times = bytearray((folder / name).read_bytes()), (folder / name).stat()
    raw[1_234_567] ^= 1
    (folder / name).write_bytes(raw)
    os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    left = files(tmp_path / "out")
    part = next(part for part, paths in model_files(folder).items() if name.startswith(paths[""].name))
    with pytest.raises(ValueError, match=rf"belongs to another video: model\.{part} was \w+ and is \w+"):
        make(tmp_path / "out", ONE, resume=True)
    assert files(tmp_path / "out") == left


def test_short_videos_read_no_weights_again(tmp_path, monkeypatch):
    of = ModelBundle.of
    monkeypatch.setattr(ModelBundle, "of", lambda *parts: replace(of(*parts), files={"vae": {"": tmp_path / "none"}}))
    make(tmp_path / "out", ONE, save_every_seconds=PIXELS / FPS)
    with pytest.raises(FileNotFoundError):
        make(tmp_path / "other", ONE)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_used_is_said_and_the_video_begins_anew(tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    make(tmp_path / "whole", ONE)
    killed(tmp_path / "out", ONE, 6)
    caplog.clear()
    change, words = DAMAGES[name]
    change(tmp_path / "out")
    assert make(tmp_path / "out", ONE, resume=True).frames == PIXELS
    assert words in caplog.text and "the video starts anew" in caplog.text
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("part", ["0.keys", "0.values", "vae.0", "latest"])
def test_every_part_of_a_snapshot_matters(tmp_path, part):
    group = SWITCHED[:1]
    make(tmp_path / "whole", group)
    killed(tmp_path / "out", group, 5)  # a switch lies behind the last snapshot
    path = tmp_path / "out/video0.partial.safetensors"
    tensors, book = load_file(path), json.loads(snapshot.metadata(path)["book"])
    tensors[part] = tensors[part] * 0.5
    rewrite(path, tensors, book | {"tensors": checksums(tensors)})
    make(tmp_path / "out", group, resume=True)
    assert content(tmp_path / "out") != content(tmp_path / "whole")
