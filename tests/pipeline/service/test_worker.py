"""One process: the page's video is the command line's; a job that is stopped or fails, and the ones after it."""

from __future__ import annotations

import json

import pytest

from pipeline.batch.run import run
from pipeline.config import load_recipe
from pipeline.service.jobs import DONE, FAILED, STOPPED, Jobs
from pipeline.service.worker import Worker
from tests.pipeline.service.talks import LONG, RECIPE, TALK, job, write_talk
from utils.config.text import format_value
from utils.media.mp4 import find_damage


class Ended(BaseException):
    """Ends `serve`, as an interrupt does."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    worker = Worker.build(str(RECIPE), [f"output.folder={tmp_path_factory.mktemp('out')}"])
    worker.load()
    return worker


def serve(worker, *asked) -> Jobs:
    """Lets a worker make the jobs, and ends it behind the last one."""
    jobs = Jobs()
    for number, made in enumerate(asked):
        made.owner = f"page {number}"
        jobs.submit(made)

    def take(timeout=None, take=jobs.take):
        if (made := take(0)) is None:
            raise Ended
        return made

    jobs.take = take
    with pytest.raises(Ended):
        worker.serve(jobs)
    return jobs


def test_the_video_is_that_of_the_command_line(worker, tmp_path):
    face, voice = write_talk(tmp_path)
    made = job(worker, worker.controls(), "a", face, voice)
    serve(worker, made)
    assert (made.state, made.chunks, made.num_chunks, made.frames) == (DONE, 3, 3, 33)
    given = [f"data.image={format_value(str(face))}", f"data.audio={format_value(str(voice))}"]
    given += [f"data.prompt={format_value(TALK.prompt)}", f"output.folder={tmp_path / 'alone'}", "output.sheet=false"]
    (alone,) = run(load_recipe(RECIPE, given)[0])
    assert made.path.read_bytes() == alone.read_bytes()


def test_a_stopped_video_ends_where_it_is(worker, tmp_path):
    made = job(worker, worker.controls(), "a", *write_talk(tmp_path, LONG), prompt=LONG.prompt)
    after = job(worker, worker.controls(), "b", *write_talk(tmp_path, name="after"))
    jobs = Jobs()
    jobs.submit(made)
    jobs.take(0)
    worker.make(made, lambda: made.chunks >= 2)
    jobs.finish(made)
    assert made.state == STOPPED and made.num_chunks == 67 and made.chunks in (2, 3)  # one may be on its way
    facts = json.loads(made.path.with_suffix(".json").read_text())
    assert facts["frames"] == made.frames == 12 * made.chunks - 3 and find_damage(made.path, made.frames) is None
    serve(worker, after)
    assert after.state == DONE


def test_the_service_outlives_jobs_that_fail(worker, tmp_path):
    controls, files = worker.controls(), write_talk(tmp_path)
    bundle = worker.bundle
    lora = job(worker, controls, "a", *files, lora=(str(tmp_path / "none.safetensors"),))
    gone = job(worker, controls, "b", *write_talk(tmp_path, name="gone"))
    (tmp_path / "gone.wav").unlink()
    fault = job(worker, controls, "c", *files)
    good = job(worker, controls, "d", *files)
    plain = worker.groups
    worker.groups = lambda config: 1 // 0 if config.output.folder in fault.overrides[-1] else plain(config)
    serve(worker, lora, gone, fault, good)
    worker.groups = plain
    assert [made.state for made in (lora, gone, fault, good)] == [FAILED, FAILED, FAILED, DONE]
    assert "none.safetensors is not there" in lora.error and "gone.wav" in gone.error
    assert "fault of the program" in fault.error and worker.bundle is bundle
    assert not list(gone.path.parent.glob("*")) and find_damage(good.path, 33) is None


def test_another_model_is_loaded_once(worker, tmp_path):
    face, first, seen, load = write_talk(tmp_path), worker.bundle, [], worker._load
    made = [job(worker, worker.controls(), "a", *face) for _ in range(4)]
    for one, dtype in zip(made, ("bf16", "bf16", "fp32", "fp32"), strict=True):
        one.overrides, one.loads_only = [*one.overrides, f"model.dtype={dtype}"], one is not made[-1]
    worker._load = lambda config: seen.append(config.model.dtype) or load(config)
    serve(worker, *made)
    worker._load = load
    assert seen == ["bf16", "fp32"] and worker.bundle is not first
    assert [one.state for one in made] == [DONE] * 4 and made[-1].path.is_file() and not made[0].path.exists()


def test_a_recipe_must_make_talking_videos(tmp_path):
    with pytest.raises(ValueError, match="makes no talking videos"):
        Worker.build(str(RECIPE.with_name("digits.yaml")), [])


def test_bad_files_are_refused_before_they_wait(worker, tmp_path):
    face, voice = write_talk(tmp_path)
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        job(worker, worker.controls(), "a", face, empty)
    with pytest.raises(ValueError, match="talk.wav"):
        job(worker, worker.controls(), "a", voice, voice)
