"""Long lists: requests are built in their turn, and where nearly all videos are there the missing ones come first."""

from __future__ import annotations

import pytest
import torch

from pipeline.batch import listing, run, survey
from pipeline.batch.listing import Batches
from pipeline.batch.request import Request, read_requests
from pipeline.bundle import ModelBundle
from pipeline.config import DataConfig, OutputConfig
from tests import tiny
from tests.pipeline.killed_videos import Codec, encode, load_config, request

LINES = 20_000


@pytest.fixture
def built(monkeypatch):
    """Counts the requests that are built."""
    count, init = [0], Request.__init__

    def counted(self, *args, **knobs):
        count[0] += 1
        init(self, *args, **knobs)

    monkeypatch.setattr(Request, "__init__", counted)
    return count


def bundle():
    return ModelBundle.of(tiny.denoiser(), Codec(), encode, torch.device("cpu"), torch.float32)


def test_a_long_list_starts_without_its_requests(tmp_path, built):
    """Reading, cutting, looking into the folder and checking build as many requests for 20,000 lines as for two."""
    path, counts = tmp_path / "prompts.txt", []
    for number in (2, LINES):
        path.write_text("".join(f"a horse number {n} jumps\n" for n in range(number)))
        config, before = load_config(tmp_path / "out", num_output_frames=6), built[0]
        requests = read_requests(DataConfig(path=str(path)), OutputConfig(), 5)
        groups = Batches.cut(requests, 1)
        assert len(groups) == len(requests) == groups.num_videos == 5 * number
        assert survey.survey(config, groups).wanted
        made = run.Run(config, bundle())
        made.bundle.text = None
        usable = made.usable(groups, groups.numbers, None)
        assert sum(count for _, count in usable.schedules()) == 5 * number
        counts.append(built[0] - before)
    assert counts[0] == counts[1] < 20


def test_only_the_first_prompts_are_cut_beforehand(tmp_path, monkeypatch, caplog):
    """The others are looked at when their turn comes: each costs its time."""
    monkeypatch.setattr(run, "LOOKED_AT", 2)
    groups, looked = Batches.of([[request(n)] for n in range(4)]), []
    made = run.Run(load_config(tmp_path, num_output_frames=6), bundle())
    made.warn_cut = lambda requests, negative="": looked.append([r.stem for r in requests])
    made._told = 1
    made.writer(groups)
    assert looked == [["video2"], ["video3"]]


@pytest.mark.parametrize("most", [0, 100], ids=["late", "at once"])
def test_missing_videos_come_first_in_a_long_list(tmp_path, monkeypatch, caplog, most):
    """What is there is checked afterwards, and made anew if it is damaged; a short list keeps its order."""
    caplog.set_level("INFO")
    monkeypatch.setattr(survey, "LOOKED_AT", most)
    config, groups = load_config(tmp_path, num_output_frames=6), Batches.of([[request(n)] for n in range(5)])
    run.Run(config, bundle()).writer(Batches.of([[request(n)] for n in (0, 1, 2, 4)]))
    (tmp_path / "video1.mp4").write_bytes(b"")
    found, order = survey.survey(config, groups), []
    made = run.Run(config, bundle())
    batch = made.batch
    made.batch = lambda group, wanted, bar: (order.append(group[0].stem), batch(group, wanted, bar))
    names = [path.stem for path in made.writer(groups, found)]
    assert found.wanted and found.late == (most == 0)
    assert order == (["video3", "video1"] if found.late else ["video1", "video3"])
    assert names == [f"video{n}" for n in range(5)] and all(
        survey.why_unfinished(request(n), tmp_path) is None for n in range(5)
    )
    assert "video1.mp4 is made anew" in caplog.text
    assert not survey.survey(config, groups).wanted


def test_changed_settings_are_told_late_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(survey, "LOOKED_AT", 0)
    run.Run(load_config(tmp_path, num_output_frames=6), bundle()).writer(Batches.of([[request(0)]]))
    config, groups = load_config(tmp_path, num_output_frames=6, seed=5), Batches.of([[request(0)], [request(1)]])
    run.Run(config, bundle()).writer(groups, survey.survey(config, groups))
    assert caplog.text.count("video0.mp4 is kept though it was made with") == 1


def test_few_of_many_changes_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(survey, "sidecar_changes", lambda *args: "another seed")
    kept = survey.Kept(load_config(tmp_path))
    for number in range(survey.MOST_KEPT + 3):
        kept.add(request(number))
    kept.tell(100)
    assert caplog.text.count("is kept though") == survey.MOST_KEPT and "3 other videos are kept" in caplog.text


def test_batches_without_lines_keep_their_numbers():
    groups = Batches.of([[request(0), request(1)], [request(2)], [request(3)]])
    assert [batch.number for batch in groups.choose([2, 0])] == [2, 0] and groups.choose([2, 0]).num_videos == 3
    assert groups.at(1) == [request(2)] and groups[-1].number == 2 and len(groups[1:]) == 2
    assert listing.Batches.of([]).num_videos == 0
