"""The plan of the long videos against the real doors and recipes: every command is accepted as written."""

from __future__ import annotations

import pytest

from scripts import evaluate
from scripts.experiments import long_plan as digits_long_plan
from scripts.experiments import plan as digits_plan
from scripts.experiments.long_plan import LAYOUTS, ROWS, TRAINED, budget, ends_until, trainings
from scripts.experiments.long_videos import LongTable
from scripts.experiments.training import Folders, Trainings
from tests.scripts.test_digits_plan import read_inference, read_train
from utils.data.prompts import read_prompts
from utils.data.schedules import read_schedules
from wan.geometry import Geometry
from wan.ledger import RECACHES
from wan.spec import SPECS


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """{job: what each of its commands was understood as}."""
    base = tmp_path_factory.mktemp("plan")
    folders = Folders(digits_plan.ROOT, base / "runs", base / "films", base / "records")
    plan = trainings(str(base / "student/transformer"))
    table = LongTable(Trainings(folders, budget(4), {}, plan), 50)
    jobs = {job.name: job for job in table.jobs(list(ROWS))}
    for case in table.cases(list(ROWS)):
        table.write_prompts(case)
    return {name: job.commands() for name, job in jobs.items()}


def test_every_layout_is_tuned_once_and_every_row_is_videoed(commands):
    assert set(commands) == {f"train/{name}/seed0" for name in LAYOUTS} | {f"videos/{row}" for row in ROWS}
    assert len(ROWS) == 2 * len(LAYOUTS) + 2 * len(RECACHES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_videoed_in_the_cache_and_with_the_steps_it_is_tuned_with(commands, layout):
    (train,) = commands[f"train/{layout}/seed0"]
    config = read_train(list(train.words[1:]))
    source, sink = config.trainer.source, LAYOUTS[layout].sink
    assert (source.cache.window_frames, source.cache.sink_frames, source.cache.rope) == (9, sink, LAYOUTS[layout].rope)
    assert config.trainer.generator.weights.endswith("student/transformer")
    assert config.trainer.generator.lora.rank == 0 or config.trainer.generator.lora.merged, (
        "a video needs a whole model"
    )
    for stage in ("before", "after"):
        video = read_inference(list(commands[f"videos/{layout}_{stage}"][0].words[1:]))
        kept = {"window_frames", "sink_frames", "rope"}
        assert {k: vars(video.pipeline.cache)[k] for k in kept} == {k: vars(source.cache)[k] for k in kept}
        assert tuple(video.sampler.steps) == tuple(source.sampler.steps) and video.sampler.shift == source.sampler.shift
        assert video.pipeline.chunk == source.chunk == 3 and video.pipeline.context == source.context
        assert video.num_output_frames == 450
        assert ("student" in video.model.checkpoint) == (stage == "before")
        assert len(read_prompts(video.data.path)) == 4


@pytest.mark.parametrize("kind", RECACHES)
def test_scripts_differ_in_their_recache_alone(commands, kind):
    for stage in ("before", "after"):
        video = read_inference(list(commands[f"videos/switch_{kind}_{stage}"][0].words[1:]))
        assert video.pipeline.cache.recache == kind and video.pipeline.cache.sink_frames == LAYOUTS["sink"].sink
        assert video.data.scheduled and len(read_schedules(video.data.path)) == 4


def test_measurements_are_understood(commands, monkeypatch):
    seen = []
    for name in ("lengths", "switches"):
        add_arguments, _ = evaluate.COMMANDS[name]

        def run(args):
            """Measures."""
            seen.append(args)
            return 0

        monkeypatch.setitem(evaluate.COMMANDS, name, (add_arguments, run))
    for row in ROWS:
        assert evaluate.main(list(commands[f"videos/{row}"][1].words[1:])) == 0
    assert len(seen) == len(ROWS) and {args.chunk for args in seen if "chunk" in args} == {3}
    geometry = Geometry.of(SPECS["digits"])
    assert all(args.window == geometry.pixel_frames(TRAINED) for args in seen if "window" in args)


def test_lengths_are_read_off_one_video():
    assert list(ends_until(50)) == list(digits_long_plan.ENDS) and set(digits_long_plan.SHOWN) <= set(ends_until(50))
    assert ends_until(4) == {1: 33, 2: 69, 3: 105, 4: 141}
    with pytest.raises(ValueError, match="--length 0"):
        ends_until(0)


def test_prompt_files_hold_as_many_prompts_as_videos_are_counted():
    for videos in (digits_long_plan.PROMPTS, digits_long_plan.SCRIPTS):
        lines = (digits_plan.ROOT / videos.prompts).read_text().splitlines()
        assert len(lines) == len(set(lines)) == videos.count
