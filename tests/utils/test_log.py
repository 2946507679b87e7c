"""Who speaks, where, and what the bar shows."""

from __future__ import annotations

import io
import logging

import pytest

from utils import log


@pytest.fixture
def clean():
    """Takes away what `setup` installed and gives the levels back."""
    root = logging.getLogger()
    before = root.level, {room: logging.getLogger(room).level for room in log.ROOMS}
    yield
    while log._installed:
        root.removeHandler(log._installed[-1])
        log._installed.pop().close()
    root.setLevel(before[0])
    for room, level in before[1].items():
        logging.getLogger(room).setLevel(level)


def _speak():
    for name in ("wan.attention.dispatch", "utils.hub", "some.library"):
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)


def test_rank_0_reports_our_rooms_and_the_warnings_of_libraries(clean, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    log.setup("info", tmp_path / "run/log.txt")
    log.setup("info", tmp_path / "run/log.txt")  # the second call must not double the lines
    _speak()
    error = capsys.readouterr().err
    written = (tmp_path / "run/log.txt").read_text()
    for text in (error, written):
        said = [line.split(" ", 1)[1] for line in text.splitlines()]
        assert said == [
            "I wan.attention.dispatch: info of wan.attention.dispatch",
            "W wan.attention.dispatch: warning of wan.attention.dispatch",
            "I utils.hub: info of utils.hub",
            "W utils.hub: warning of utils.hub",
            "W some.library: warning of some.library",
        ]


def test_other_ranks_only_warn_and_give_their_number(clean, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    log.setup("debug", tmp_path / "log.txt")
    _speak()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("[rank 1] W" in line for line in lines)
    assert not (tmp_path / "log.txt").exists()


def test_level_is_checked():
    with pytest.raises(ValueError, match="log level is 'loud'"):
        log.setup("loud")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "rank", "force", "shown"),
    [
        (True, 0, None, True),
        (False, 0, None, False),
        (False, 0, True, True),
        (True, 0, False, False),
        (True, 1, None, False),
        (True, 1, True, False),
    ],
)
def test_bar_is_shown_on_rank_0_in_a_terminal(monkeypatch, terminal, rank, force, shown):
    stream = _Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", str(rank))
    assert list(log.progress(range(3), label="clips", force=force)) == [0, 1, 2]
    assert ("clips" in stream.getvalue()) == shown


def test_video_progress_counts(monkeypatch):
    stream, clock = io.StringIO(), iter([0.0, 10.0, *[12.0] * 50])
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("utils.log.time.monotonic", lambda: next(clock))
    with log.VideoProgress(3, 9, force=True) as bar:
        bar.skip(3)
        bar.chunk(9)
        bar.chunk(12)
        assert bar.fps == pytest.approx(10.5)
        assert (bar.bar.n, bar.bar.initial) == (5, 3)  # the time left is reckoned from n - initial
        bar.video()
    last = stream.getvalue().split("\r")[-1]
    assert "videos 2/3" in last and "chunk 5/9" in last and "10.5 fps" in last and "ETA" in last


def test_silent_video_progress_counts_too(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with log.VideoProgress(1, 2) as bar:
        bar.skip(1)
        bar.chunk(4)
        bar.video()
    assert bar.videos == 2 and bar.frames == 4 and stream.getvalue() == ""
