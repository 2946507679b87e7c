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
    assert "memory " in last and " GB" in last


def test_a_chunk_that_takes_longer_does_not_break_the_time_left(monkeypatch):
    """A recache or a snapshot: one chunk of 20 s among many of 1 s, in a video that an earlier run began."""
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("utils.log.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with log.VideoProgress(1, 300, force=True) as bar:
        bar.passed(100)
        for seconds in [1.0] * 99 + [20.0]:
            clock[0] += seconds
            bar.chunk(12)
        assert bar.fps == pytest.approx(1200 / 119)
    last = stream.getvalue().split("\r")[-1]
    assert "chunk 200/300" in last and "ETA 01:59" in last and "videos 0/1" in last, last


def test_without_a_terminal_a_long_video_is_told_once_a_minute(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("utils.log.time.monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "utils.log"), log.VideoProgress(1, 400, force=False) as bar:
        bar.passed(100)
        for _ in range(130):
            clock[0] += 1.0
            bar.chunk(12)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and said[0].startswith("chunk 160/400: 12.0 fps, ETA 04:00, memory ")


def test_silent_video_progress_counts_too(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with log.VideoProgress(1, 2) as bar:
        bar.skip(1)
        bar.chunk(4)
        bar.video()
    assert bar.videos == 2 and bar.frames == 4 and stream.getvalue() == ""


def test_step_progress_smooths_speed_and_leaves_the_first_step_out(monkeypatch):
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("utils.log.time.monotonic", lambda: clock[0])
    bar = log.StepProgress(1000, 2000, "a run", force=True)
    for seconds in (500.0, *[0.5] * 100):  # the first step warms up
        clock[0] += seconds
        bar.step()
    assert bar.rate == pytest.approx(2.0)
    clock[0] += 20.0  # one slow step moves a smoothed speed a little
    bar.step()
    assert 1 < bar.rate < 1.5
    bar.show(0.25)
    last = stream.getvalue().split("\r")[-1]
    left = bar.bar.format_interval((2000 - 1102) / bar.rate)
    for words in ("a run", "step 1102/2000", "loss 0.2500", f"{bar.rate:.2f} steps/s", f"ETA {left}", "memory ", " GB"):
        assert words in last, (words, last)
    bar.close()


@pytest.mark.parametrize(("rank", "lines"), [(0, 2), (1, 0)])
def test_without_a_terminal_rank_0_logs_a_line_a_minute(monkeypatch, caplog, rank, lines):
    clock = [0.0]
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("utils.log.time.monotonic", lambda: clock[0])
    bar = log.StepProgress(0, 400)
    with caplog.at_level(logging.INFO, "utils.log"):
        for _ in range(260):
            clock[0] += 0.5
            bar.step()
            bar.show(1.5)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == lines and all("loss 1.5000, 2.00 steps/s, ETA" in line for line in said)
    if lines:
        assert said[0].startswith("step 120/400: ") and said[1].startswith("step 240/400: ")


def test_memory_is_that_of_this_process():
    before = log.memory()["memory"]
    block = bytearray(b"x") * 200_000_000
    assert 150e6 < log.memory()["memory"] - before < 300e6 and len(block)
    assert 1e7 < before < 1e11


def test_memory_knows_the_peak_of_a_gpu(monkeypatch):
    cuda = type("cuda", (), {"is_available": lambda: True, "is_initialized": lambda: True})
    cuda.max_memory_allocated = lambda: 7
    monkeypatch.setitem(__import__("sys").modules, "torch", type("torch", (), {"cuda": cuda}))
    assert log.memory()["GPU peak"] == 7
