"""The plan of the long videos against the real doors and recipes: every command is accepted as written."""

from __future__ import annotations

import pytest

from scripts import evaluate
from scripts.experiments import long_results
from scripts.experiments.experiment import Experiment
from scripts.experiments.long_videos import CACHES, COUNT, ENDS, PROMPTS, ROWS, SCHEDULES, TRAINED, get_ends, make_plan
from scripts.experiments.plan import ROOT
from scripts.experiments.trainings import Folders
from tests.scripts.experiments.test_objectives import read_inference, read_train
from utils.data.prompts import read_prompts
from utils.data.schedules import read_schedules
from wan.geometry import Geometry
from wan.ledger import RECACHES
from wan.spec import SPECS


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """{job: its commands}."""
    base = tmp_path_factory.mktemp("plan")
    folders = Folders(ROOT, base / "runs", base / "videos", base / "records")
    plan = make_plan(str(base / "student/transformer"), None, 4, 50, ROOT)
    experiment = Experiment(plan, folders, {})
    for case in plan.cases:
        experiment.write_prompts(case)
    return {job.name: job.commands() for job in experiment.jobs(list(plan.cases))}


def test_every_cache_is_tuned_once_for_all_rows(commands):
    assert set(commands) == {f"train/{name}/seed0" for name in CACHES} | {f"videos/{row}" for row in ROWS}
    assert len(ROWS) == 2 * len(CACHES) + 2 * len(RECACHES)


@pytest.mark.parametrize("cache", CACHES)
def test_videos_are_sampled_as_tuned(commands, cache):
    (train,) = commands[f"train/{cache}/seed0"]
    config = read_train(list(train.words[1:]))
    kept, sink = config.generation.cache, CACHES[cache].sink
    assert (kept.window_frames, kept.sink_frames, kept.rope) == (9, sink, CACHES[cache].rope)
    assert config.trainer.generator.weights.endswith("student/transformer")
    assert config.trainer.generator.lora.rank == 0 or config.trainer.generator.lora.merged, (
        "a video needs a whole model"
    )
    for stage in ("before", "after"):
        video = read_inference(list(commands[f"videos/{cache}_{stage}"][0].words[1:]))
        assert video.generation == config.generation and video.generation.chunk == 3
        assert video.num_output_frames == 450
        assert ("student" in video.model.checkpoint) == (stage == "before")
        assert len(read_prompts(video.data.path)) == 4


@pytest.mark.parametrize("kind", RECACHES)
def test_switch_rows_differ_in_their_recache_alone(commands, kind):
    for stage in ("before", "after"):
        video = read_inference(list(commands[f"videos/switch_{kind}_{stage}"][0].words[1:]))
        assert video.generation.cache.recache == kind and video.generation.cache.sink_frames == CACHES["sink"].sink
        assert video.data.scheduled and len(read_schedules(video.data.path)) == 4


def test_every_measure_is_understood(commands, monkeypatch):
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


def test_get_ends_holds_the_lengths_of_the_table():
    assert list(get_ends(50)) == list(ENDS) and set(long_results.LENGTHS) <= set(get_ends(50))
    assert get_ends(4) == {1: 33, 2: 69, 3: 105, 4: 141}
    with pytest.raises(ValueError, match="--length 0"):
        get_ends(0)


def test_prompt_files_hold_the_counted_prompts():
    for name in (PROMPTS, SCHEDULES):
        lines = (ROOT / name).read_text().splitlines()
        assert len(lines) == len(set(lines)) == COUNT
