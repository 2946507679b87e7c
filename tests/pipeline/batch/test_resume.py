"""Videos that go on after a kill: at any moment of their run, bit by bit what was never killed."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch

from pipeline.batch import resume as snapshot
from pipeline.batch import writer as decode
from pipeline.batch.provenance import resume_facts
from pipeline.batch.request import Request
from pipeline.config import OutputConfig
from pipeline.rollout import Chunk
from tests.digits_fixture import files
from tests.pipeline import killed_videos
from tests.pipeline.killed_videos import (
    FPS,
    ONE,
    PIXELS,
    SWITCHED,
    TWO,
    Codec,
    content,
    killed,
    load_config,
    make,
    size,
)
from utils import atomic
from utils.media.mp4 import VideoWriter
from utils.media.video import read_video
from wan.geometry import Geometry, Span
from wan.spec import SPECS


@pytest.fixture
def moments(monkeypatch, tmp_path):
    """moments(folder, call, choose) -> copies of the folder before some steps of `call` on the disk: what kills leave.

    call(folder) runs twice: steps are counted in a twin of the folder, then `choose` gets, for each, whether a JSON was
    there, and returns the numbers of those that are copied.
    """

    def run(call, folder, step):
        def noted(function):
            return lambda *arguments, **options: (step(), function(*arguments, **options))[1]

        with monkeypatch.context() as patch:
            patch.setattr(atomic.GrowingFile, "write", noted(atomic.GrowingFile.write))
            patch.setattr(atomic.os, "replace", noted(atomic.os.replace))  # every module's: it is one `os`
            patch.setattr(snapshot.Path, "unlink", noted(snapshot.Path.unlink))
            call(folder)

    def record(folder, call, choose):
        twin, flags, copies, numbers = tmp_path / "twin", [], {}, itertools.count()
        shutil.copytree(folder, twin) if folder.is_dir() else twin.mkdir()
        run(call, twin, lambda: flags.append(any(twin.glob("*.json"))))
        shutil.rmtree(twin)
        chosen = set(choose(flags))

        def copy():
            if (number := next(numbers)) in chosen:
                copies[number] = tmp_path / f"moment{number}"
                shutil.copytree(folder, copies[number]) if folder.is_dir() else copies[number].mkdir()

        run(call, folder, copy)
        assert next(numbers) == len(flags) and copies.keys() == chosen
        return copies

    return record


@pytest.mark.parametrize("group", [ONE, TWO, SWITCHED], ids=["one", "two", "switched"])
def test_a_video_killed_at_any_moment_goes_on_and_is_the_same(moments, tmp_path, group, caplog):
    """Byte by byte: MP4, GIF, latents, JSON. Of hundreds of moments some are drawn, and all of the end."""
    caplog.set_level(logging.INFO)
    make(tmp_path / "whole", group)
    wanted = content(tmp_path / "whole")
    assert len(wanted) == 4 * len(group) and not any("partial" in name for name in wanted)

    def choose(flags):
        last = flags.index(True)
        assert last > 100
        return [*random.Random(0).sample(range(last), 5), *range(last - 4 * len(group), len(flags))]

    copies = moments(tmp_path / "killed", lambda folder: make(folder, group), choose)
    assert content(tmp_path / "killed") == wanted
    anew = 0
    for number, folder in copies.items():
        for half in folder.glob("*.partial.mp4"):
            if half.stat().st_size > 3000:
                assert len(read_video(half)[0]) > 0, "what a kill leaves plays"
        caplog.clear()
        make(folder, group, resume=True)
        assert content(folder) == wanted, number
        anew += "anew" in caplog.text
    assert anew < 8, "most of them went on"


def test_a_video_that_is_killed_again_and_again_comes_to_its_end(moments, tmp_path):
    make(tmp_path / "whole", SWITCHED)
    wanted, folder, draws = content(tmp_path / "whole"), tmp_path / "killed", random.Random(1)

    def choose(flags):
        return [draws.randrange(len(flags) // 3, 2 * len(flags) // 3)]

    for turn in range(3):
        (chosen,) = moments(folder, lambda at, turn=turn: make(at, SWITCHED, resume=turn > 0), choose).values()
        assert content(folder) == wanted, turn
        shutil.rmtree(folder)
        chosen.rename(folder)
    make(folder, SWITCHED, resume=True)
    assert content(folder) == wanted


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_keeps_what_a_snapshot_holds_and_says_so(tmp_path, caplog, error):
    make(tmp_path / "whole", TWO)
    killed(tmp_path / "out", TWO, 6, error)
    left = set(files(tmp_path / "out"))
    kinds = ("partial.mp4", "latents.partial", "partial.gif")
    assert left == {"video0.partial.safetensors", *(f"video{n}.{kind}" for n in (0, 1) for kind in kinds)}
    assert "video0.partial.mp4 is kept: run again with --resume" in caplog.text
    killed(tmp_path / "out", TWO, 2, error, resume=True)  # before the next snapshot
    assert set(files(tmp_path / "out")) == left
    bar = make(tmp_path / "out", TWO, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert bar.chunks == 8 and bar.frames < 2 * PIXELS  # the bar counts all chunks, the speed those of this run


def test_a_decoder_of_its_own_is_waited_for(tmp_path, monkeypatch):
    """On its thread it is behind the chunks; a snapshot is of one moment."""
    make(tmp_path / "whole", SWITCHED)
    monkeypatch.setattr(killed_videos.Codec, "own_device", torch.device("cpu"))
    make(tmp_path / "apart", SWITCHED)
    killed(tmp_path / "killed", SWITCHED, 6)
    make(tmp_path / "killed", SWITCHED, resume=True)
    assert content(tmp_path / "apart") == content(tmp_path / "killed") == content(tmp_path / "whole")


def test_before_the_first_snapshot_an_interrupt_leaves_nothing(tmp_path, caplog):
    killed(tmp_path / "out", ONE, 1)
    killed(tmp_path / "out", ONE, 7, save_every_seconds=0.0)
    assert files(tmp_path / "out") == {} and "--resume" not in caplog.text


def test_short_videos_pay_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "write_safetensors", None)
    monkeypatch.setattr(VideoWriter, "mark", None)
    assert OutputConfig().save_every_seconds == 30
    make(tmp_path, ONE, save_every_seconds=PIXELS / FPS)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.5, 7.0])
def test_snapshots_come_by_the_clock_of_the_video(tmp_path, monkeypatch, seconds):
    taken, write = [], snapshot.ResumeState.write
    monkeypatch.setattr(snapshot.ResumeState, "write", lambda *a: (taken.append(a[2].num_frames / FPS), write(*a))[1])
    make(tmp_path, ONE, save_every_seconds=seconds)
    ends = [(12 * n + 9) / FPS for n in range(7)]  # of the chunks but the last
    wanted = [e for before, e in zip([0, *ends], ends, strict=False) if before // seconds < e // seconds]
    assert taken == wanted and taken


def test_what_a_snapshot_speaks_of_is_on_the_disk_before(tmp_path, monkeypatch):
    """And the file is as long as it says, with nothing of earlier frames still in the encoder."""
    synced, write, fsync = [], snapshot.write_safetensors, os.fsync

    def noted(path, tensors, notes):
        book = json.loads(notes["book"])["films"]
        for row, marks in book["files"].items():
            names = {"video": f"video{row}.partial.mp4", "gif": f"video{row}.partial.gif"} | {
                "latents": f"video{row}.latents.partial"
            }
            for kind, name in names.items():
                assert name in synced and (tmp_path / name).stat().st_size == marks[kind]["bytes"]
            assert len(read_video(tmp_path / names["video"])[0]) == book["frames"]
        synced.clear()
        write(path, tensors, notes)

    monkeypatch.setattr(snapshot, "write_safetensors", noted)
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.path.basename(opened(handle))), fsync(handle)))
    make(tmp_path, TWO)


def opened(handle: int) -> str:
    """Returns the path behind an open file."""
    return os.readlink(f"/proc/self/fd/{handle}")


def test_without_resume_the_video_begins_anew(tmp_path):
    make(tmp_path / "whole", ONE)
    killed(tmp_path / "out", ONE, 6)
    killed(tmp_path / "out", ONE, 1)
    assert not list((tmp_path / "out").glob("*.partial.safetensors")), "the new video has no snapshot yet"
    killed(tmp_path / "out", ONE, 6)
    assert make(tmp_path / "out", ONE).frames == PIXELS
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def damage_half(folder):
    path = folder / "video0.partial.mp4"
    raw = bytearray(path.read_bytes())
    book = json.loads(snapshot.metadata(folder / "video0.partial.safetensors")["book"])
    raw[book["films"]["files"]["0"]["video"]["bytes"] - 40] ^= 1
    path.write_bytes(raw)


OTHER_FILES = {
    "no partial video": (lambda folder: (folder / "video0.partial.mp4").unlink(), "is gone"),
    "another video": (damage_half, "is not the file that its snapshot knows"),
    "short latents": (lambda folder: (folder / "video0.latents.partial").write_bytes(b"x"), "is not the file"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_that_are_not_the_snapshots_are_refused_and_kept(tmp_path, name):
    killed(tmp_path / "out", ONE, 6)
    change, words = OTHER_FILES[name]
    change(tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=rf"{words}.*Leave out --resume to begin anew"):
        make(tmp_path / "out", ONE, resume=True)
    assert content(tmp_path / "out") == before


def test_no_snapshot_is_taken_before_all_given_frames_are_there(tmp_path):
    geometry = Geometry.of(SPECS["digits"])
    videos = decode.VideoBatchWriter(Codec(), [], [], OutputConfig(save_every_seconds=1), FPS, geometry, 24)
    due = [videos._due(Chunk(Span(3, 6), torch.zeros(0), given=given)) for given in (True, False)]
    assert due == [False, True]


def test_files_of_the_same_name_with_another_content_make_another_video(tmp_path):
    start, noise, message = tmp_path / "start.png", tmp_path / "noise.safetensors", []
    config = load_config(tmp_path)
    config = replace(config, data=replace(config.data, noise=str(noise)))
    for contents in (("a", "b"), ("a", "b"), ("c", "b"), ("a", "c")):
        start.write_text(contents[0])
        noise.write_text(contents[1])
        message.append(resume_facts(config, "", [replace(ONE[0], image=start)], (), 24))
    assert message[0] == message[1] and message[2]["files"] != message[0]["files"] != message[3]["files"]
    assert {name for name in message[0] if message[0][name] != message[2][name]} == {"files"}


OTHERS = [
    (ONE, {"seed": 3}, "config.seed was 0 and is 3"),
    (ONE, {"num_output_frames": 27}, "config.num_output_frames was 24 and is 27"),
    (ONE, {"guidance": 2.0}, "config.sampler.guidance was 1.0 and is 2.0"),
    ([Request("another", 0, 0, "video0")], {}, "films.0.prompts.0 was prompt 0 and is another"),
    (TWO, {}, "films was"),
]


@pytest.mark.parametrize(("group", "changes", "words"), OTHERS, ids=[w for *_, w in OTHERS])
def test_the_snapshot_of_another_video_is_refused_and_kept(tmp_path, group, changes, words):
    killed(tmp_path / "out", ONE, 6)
    left = files(tmp_path / "out")
    with pytest.raises(ValueError, match=r"video0\.partial\.safetensors belongs to another video: .*--resume"):
        make(tmp_path / "out", group, resume=True, **changes)
    with pytest.raises(ValueError, match=words):
        make(tmp_path / "out", group, resume=True, **changes)
    assert files(tmp_path / "out") == left


def test_the_order_of_flags_and_folders_makes_no_other_video(tmp_path):
    make(tmp_path / "whole", ONE)
    killed(tmp_path / "out", ONE, 6, overwrite=True)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert make(tmp_path / "moved", ONE, resume=True).frames < PIXELS
    assert content(tmp_path / "moved").keys() == content(tmp_path / "whole").keys()


def test_a_finished_half_of_a_batch_stays(tmp_path, moments):
    """A kill between the two JSON files: one video is finished, the other goes on from the snapshot of both."""
    make(tmp_path / "whole", TWO)
    wanted = content(tmp_path / "whole")
    end = moments(tmp_path / "out", lambda at: make(at, TWO), lambda flags: range(flags.index(True), len(flags)))
    copies = list(end.values())
    folder = next(c for c in copies if len(list(c.glob("video*.json"))) == 1)
    time = (folder / "video0.mp4").stat().st_mtime_ns
    bar = make(folder, TWO, resume=True)
    assert content(folder) == wanted and (folder / "video0.mp4").stat().st_mtime_ns == time
    assert 0 < bar.frames < PIXELS
    last = [c for c in copies if len(list(c.glob("video*.json"))) == 2][-1]
    assert list(last.glob("*.partial.safetensors"))
    snapshot.remove_stale(TWO, last)
    assert content(last) == wanted


def test_videos_that_are_made_anew_are_gone_on_with(tmp_path):
    """The old videos stay until the new ones are there; --resume knows the new ones by their snapshot."""
    make(tmp_path / "out", TWO, crf=40)
    old = content(tmp_path / "out")
    make(tmp_path / "whole", TWO)
    killed(tmp_path / "out", TWO, 6, overwrite=True)
    assert {name: content(tmp_path / "out")[name] for name in old} == old
    bar = make(tmp_path / "out", TWO, resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole") and 0 < bar.frames < 2 * PIXELS


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    """What is kept between chunks, in bytes: by the videos' writer, and at the end in tensors altogether."""
    kept, tensors = {}, {}
    for chunks in (10, 30):
        held = []

        def weigh(videos, chunk, held=held, last=3 * chunks):
            held.append(size(videos))
            if chunk.span.stop == last:
                gc.collect()
                found = [t for t in gc.get_objects() if type(t) is torch.Tensor]
                tensors[last] = sum(t.untyped_storage().nbytes() for t in found)

        monkeypatch.setattr(decode.VideoBatchWriter, "_due", weigh)
        make(tmp_path / str(chunks), ONE, num_output_frames=3 * chunks)
        kept[chunks] = held
    assert len(kept[30]) == 30 and kept[10][-1] == kept[30][-1]
    assert max(kept[30]) <= max(kept[10]) and tensors[90] <= tensors[30]
