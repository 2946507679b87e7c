"""Several runs of one list in one folder: each video is made by one of them, whole, whoever comes first."""

from __future__ import annotations

import pytest
import torch

from pipeline.batch.listing import Batches
from pipeline.batch.run import Run
from pipeline.batch.survey import remove_leftovers
from pipeline.bundle import ModelBundle
from tests import tiny
from tests.digits_fixture import files
from tests.pipeline.killed_videos import Codec, content, encode, killed, load_config, request
from utils.claims import claimed, lock_path

GROUPS = [[request(0), request(1)], [request(2)], [request(3)]]
NAMES = [f"video{n}" for n in range(4)]


class Meeting(Codec):
    """A decoder at whose `turn`-th call another run comes along."""

    def __init__(self, turn, come):
        self.turns, self.come = turn, come

    def decode_stream(self, latents, state=None):
        self.turns -= 1
        if not self.turns:
            self.come()
        return super().decode_stream(latents, state)


def share(folder, groups=GROUPS, codec=None, **changes):
    """Makes what nobody else makes; returns the names of the videos that are there afterwards."""
    bundle = ModelBundle.of(tiny.denoiser(), codec or Codec(), encode, torch.device("cpu"), torch.float32)
    paths = Run(load_config(folder, num_output_frames=6, **changes), bundle).writer(Batches.of(groups))
    return [path.stem for path in paths]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The content of the folder of a run that was alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert share(folder) == NAMES
    return content(folder)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("turn", [1, 4, 6], ids=["first", "second", "third"])
def test_runs_share_a_list(tmp_path, whole, caplog, turn, overwrite):
    """The other run meets this one at any of its videos, under another name of the folder."""
    folder, met = tmp_path / "out", []
    (tmp_path / "link").symlink_to(folder)

    def come():
        before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json")} if not overwrite else {}
        met.append(share(tmp_path / "link", overwrite=overwrite))
        assert before.items() <= {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json")}.items()

    made = share(folder, codec=Meeting(turn, come), overwrite=overwrite)
    assert made == NAMES and len(met[0]) in (2, 3), "all but the batch that this run was at"
    assert "left to another run that is making them: video" in caplog.text
    assert content(folder) == whole


def test_other_batches_of_one_list_do_not_meet(tmp_path, whole):
    single, met = [[request(n)] for n in range(4)], []
    share(tmp_path, codec=Meeting(2, lambda: met.append(share(tmp_path, single))))
    assert met == [["video2", "video3"]] and content(tmp_path) == whole


def test_what_became_free_is_taken_at_the_end(tmp_path, whole):
    taken = claimed([tmp_path / "video0.mp4"])
    taken.__enter__()
    assert share(tmp_path, codec=Meeting(3, lambda: taken.__exit__(None, None, None))) == NAMES
    assert content(tmp_path) == whole


def test_kill_leaves_no_claim(tmp_path, whole):
    killed(tmp_path, GROUPS[0], 5, num_output_frames=24)
    for request_ in GROUPS[0]:
        lock_path(tmp_path / f"{request_.stem}.mp4").touch()
    assert share(tmp_path) == NAMES and content(tmp_path) == whole
    lock_path(tmp_path / "video3.mp4").touch()
    remove_leftovers(GROUPS, tmp_path)
    assert set(files(tmp_path)) == set(whole)


def test_leftovers_of_a_video_in_the_making_stay(tmp_path):
    killed(tmp_path, GROUPS[1], 5)
    left = files(tmp_path)
    for name in ("video2.mp4", "video2.json"):
        (tmp_path / name).write_text("{}")
    with claimed([tmp_path / "video2.mp4"]):
        remove_leftovers(GROUPS, tmp_path)
    assert left.items() <= files(tmp_path).items()


def test_sheet_shows_what_is_finished(tmp_path, caplog):
    share(tmp_path / "alone", GROUPS[1:], sheet=True)
    with claimed([tmp_path / "out/video0.mp4"]):
        share(tmp_path / "out", sheet=True)
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in ("alone", "out")]
    assert sheets[0] == sheets[1]
    assert "2 of 4 videos are left to another run that is making them: video0, video1" in caplog.text
