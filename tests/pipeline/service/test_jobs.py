"""The queue: places, one job a page, stop, pages that have gone, and many threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.service import jobs as room
from pipeline.service.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Jobs


def ask(jobs: Jobs, *owners: str) -> list[Job]:
    return [jobs.submit(Job(owner, [])) for owner in owners]


def test_jobs_run_in_order_and_know_their_place():
    jobs = Jobs()
    a, b, c = ask(jobs, "a", "b", "c")
    assert [jobs.place(job) for job in (a, b, c)] == [(1, 3), (2, 3), (3, 3)]
    assert jobs.take(0) is a and a.state == RUNNING and jobs.place(a)[0] == 0
    assert jobs.describe(a) == "beginning" and jobs.describe(c) == "waiting: place 2 of 2 in the queue"
    a.num_chunks, a.chunks, a.frames = 4, 1, 9
    assert jobs.describe(a).startswith("chunk 1 of 4: 9 frames, ")
    a.chunks = 4
    jobs.finish(a)
    assert a.state == DONE and jobs.take(0) is b and jobs.take(0) is c and jobs.take(0) is None


def test_a_page_has_one_job_at_a_time():
    jobs = Jobs()
    (first,) = ask(jobs, "a")
    with pytest.raises(ValueError, match="stop it first"):
        ask(jobs, "a")
    jobs.take(0)
    with pytest.raises(ValueError, match="stop it first"):
        ask(jobs, "a")
    jobs.finish(first, "no disk")
    assert first.state == FAILED and jobs.describe(first) == "failed: no disk"
    assert jobs.of("a") is first and ask(jobs, "a")[0] is jobs.of("a") is not first


def test_stop_ends_a_waiting_job_at_once_and_a_running_one_behind_its_chunk():
    jobs = Jobs()
    a, b, c = ask(jobs, "a", "b", "c")
    jobs.take(0)
    jobs.stop(b)
    assert b.state == STOPPED and jobs.place(c) == (1, 1) and jobs.describe(b) == "stopped before it began"
    a.num_chunks = 5
    assert not jobs.should_stop(a)
    jobs.stop(a)
    assert a.state == RUNNING and jobs.should_stop(a) and jobs.describe(a).startswith("ends behind")
    a.chunks = 2
    jobs.finish(a)
    assert a.state == STOPPED and jobs.take(0) is c
    jobs.stop(a)
    assert a.state == STOPPED


def test_a_job_whose_page_has_gone_is_not_made(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    jobs = Jobs(lease=60)
    a, b = ask(jobs, "a", "b")
    now[0] += 59
    assert jobs.of("b") is b  # asks
    now[0] += 2
    assert jobs.is_gone(a) and jobs.take(0) is b and a.state == STOPPED
    assert not jobs.should_stop(b)
    now[0] += 61
    assert jobs.should_stop(b)


def test_a_full_queue_refuses_and_old_jobs_are_forgotten(monkeypatch):
    monkeypatch.setattr(room, "MOST_WAITING", 2)
    monkeypatch.setattr(room, "MOST_KEPT", 3)
    jobs = Jobs()
    first, _ = ask(jobs, "a", "b")
    with pytest.raises(ValueError, match="2 videos are waiting"):
        ask(jobs, "c")
    for number in range(5):
        jobs.finish(jobs.take(0))
        ask(jobs, f"d{number}")
    assert jobs.find(first.id) is None and jobs.of("a") is None and jobs.of("d4").state == WAITING
    assert len(jobs._known) <= 3 + 2


def test_a_taker_that_waits_is_woken_by_a_job_of_another_thread():
    jobs = Jobs()
    taken = []
    taker = threading.Thread(target=lambda: taken.append(jobs.take(timeout=30)))
    taker.start()
    (job,) = ask(jobs, "a")
    taker.join(30)
    assert taken == [job]


def test_files_are_the_unfinished_and_the_finished_name():
    assert Job("a", []).files == []
    assert Job("a", [], path=Path("x/v.mp4")).files == [Path("x/v.partial.mp4"), Path("x/v.mp4")]
