"""scripts/digits_long.py with stand-in scripts: tunings, rows, smaller budgets, adopted runs, tables and curves."""

from __future__ import annotations

import json

import pytest

from scripts import tables
from scripts.experiments import long_curves as digits_long_curves
from scripts.experiments import long_plan as digits_long_plan
from scripts.experiments import training as digits_training
from scripts.experiments import videos as digits_videos
from tests.scripts.digits_table_fixture import Project

STUDENT = "runs/mine/export/transformer"
FLAGS = ("--weights", STUDENT)


@pytest.fixture
def project(tmp_path, monkeypatch):
    facts = {"name": "a processor", "cores": 2, "torch": "2", "load average": 0.0}
    for module in (digits_videos, digits_training):
        monkeypatch.setattr(module, "hardware", lambda: facts)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    project = Project(tmp_path)
    project.write(
        digits_long_plan.TUNING, "steps: 200\ntrainer: {name: distill, critic_updates_per_generator_update: 5}\n"
    )
    project.write(f"{STUDENT}/diffusion_pytorch_model.safetensors", "a student")
    return project


def of(calls, script) -> list[list[str]]:
    return [words for words in calls if words[0].endswith(script)]


def test_a_layout_is_videoed_before_and_after_its_tuning(project):
    assert project.long(*FLAGS, "--rows", "relative_*") == 0
    calls = project.calls()
    (train,) = of(calls, "train.py")
    cache = [f"trainer.source.cache.{knob}" for knob in ("window_frames=9", "sink_frames=3", "rope=read")]
    assert {f"trainer.generator.weights={STUDENT}", "steps=200", "seed=0", *cache} <= set(train)
    assert train[train.index("--logdir") + 1] == "runs/long/relative/seed0"
    videos = {words[words.index("--checkpoint_path") + 1]: words for words in of(calls, "inference.py")}
    assert set(videos) == {STUDENT, "runs/long/relative/seed0/export/transformer"}
    for words in videos.values():
        assert {"pipeline.cache.window_frames=9", "pipeline.cache.sink_frames=3", "pipeline.cache.rope=read"} <= {
            *words
        }
        assert "num_output_frames=450" in words and "pipeline.chunk=3" in words
    measured = of(calls, "evaluate.py")[0]
    ends = measured[measured.index("--ends") + 1 : measured.index("--videos")]
    assert measured[1] == "lengths" and (ends[0], ends[1], ends[-1]) == ("33", "69", "1797")
    before, after = project.long_record("relative_before"), project.long_record("relative_after")
    assert list(after["ends"]) == ["1", "2", "3", "5", "7", "10", "15", "20", "30", "40", "50"]
    assert before["training"] == {"weights": STUDENT} and "start" not in before["facts"]
    assert after["training"]["updates"] == 40 and after["facts"]["steps"] == 200
    assert after["facts"]["start"] == before["facts"]["weights"] != after["facts"]["weights"]
    assert after["seconds"] == {"films": 60.0, "evaluate": 30.0} and after["hardware"]["name"] == "a processor"
    assert len(after["commands"]) == 2 and after["sampler"]["steps"] == 4
    assert project.long(*FLAGS, "--rows", "relative_*") == 0 and project.calls() == []


def test_switch_rows_differ_in_their_recache_and_share_the_tuning_of_the_sink(project):
    assert project.long(*FLAGS, "--rows", "switch_causal_*,switch_reset_after") == 0
    calls = project.calls()
    assert len(of(calls, "train.py")) == 1 and "trainer.source.cache.rope=write" in of(calls, "train.py")[0]
    videos = of(calls, "inference.py")
    kinds = sorted(next(word for word in words if "recache" in word) for words in videos)
    assert kinds == ["pipeline.cache.recache=causal"] * 2 + ["pipeline.cache.recache=reset"]
    assert all(words[words.index("--data_path") + 1].endswith("_32.jsonl") for words in videos)
    assert all("num_output" not in word for words in videos for word in words), "scripts tell their own length"
    record = project.long_record("switch_causal_after")
    assert (record["recache"], record["stage"], record["facts"]["frames"]) == ("causal", "after", 120)
    assert list(record["switches"]) == ["all", "colour", "direction", "digit"] and record["chunk"] == 3
    folders = {words[words.index("--output_folder") + 1] for words in videos}
    assert len(folders) == 3


def test_a_smaller_budget_is_recorded_and_shown_and_a_larger_one_serves_it(project):
    small = (*FLAGS, "--rows", "sink_before", "--videos", "8", "--length", "20")
    assert project.long(*small) == 0
    (words,) = of(project.calls(), "inference.py")
    prompts = (project.root / words[words.index("--data_path") + 1]).read_text().splitlines()
    assert prompts == (project.root / "prompts/digits_32.txt").read_text().splitlines()[:8]
    record = project.long_record("sink_before")
    assert (record["facts"]["videos"], record["facts"]["frames"], list(record["ends"])[-1]) == (8, 180, "20")
    line = next(text for text in tables.table("long").splitlines() if text.startswith("| sink | not tuned"))
    assert line.endswith("| 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | - | - |")
    assert "`sink_before`: 8 videos of 180 latent frames" in tables.table("long")
    assert project.long(*FLAGS, "--rows", "sink_before") == 0
    assert len(of(project.calls(), "inference.py")) == 1, "the small videos are not the large ones"
    assert project.long(*small) == 0 and project.calls() == []
    assert "smaller budget" not in tables.table("long")


def test_another_student_another_tuning(project, capsys):
    rows = (*FLAGS, "--rows", "no_sink_*")
    assert project.long(*rows) == 0
    project.calls()
    project.write(f"{STUDENT}/diffusion_pytorch_model.safetensors", "another student")
    assert project.long(*rows) == 1
    assert "begun with other start" in capsys.readouterr().out
    assert len(of(project.calls(), "inference.py")) == 1, "the row before the tuning is generated anew"


def test_a_tuning_of_other_length_is_another_one(project, capsys):
    assert project.long(*FLAGS, "--rows", "sink_after") == 0
    project.calls()
    assert project.long(*FLAGS, "--rows", "sink_after", "--updates", "10", "--runs", "runs/short") == 0
    (train,) = of(project.calls(), "train.py")
    assert "steps=50" in train and project.long_record("sink_after")["training"]["updates"] == 10


def test_a_tuning_that_is_there_is_adopted_and_only_read(project):
    assert project.long(*FLAGS, "--rows", "sink_after") == 0
    (project.root / "runs/long/sink/seed0").rename(project.root / "runs/tuned")
    (project.root / "docs/results/long/sink_after.json").unlink()
    project.calls()
    before = sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/tuned").rglob("*"))
    assert project.long(*FLAGS, "--rows", "sink_after", "--tuned", "sink=runs/tuned") == 0
    assert of(project.calls(), "train.py") == []
    assert sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/tuned").rglob("*")) == before
    assert project.long_record("sink_after")["training"]["run"] == "runs/tuned"


def test_a_fresh_clone_counts_the_records_it_came_with(project):
    rows = (*FLAGS, "--rows", "sink_*,switch_none_before")
    assert project.long(*rows) == 0
    (project.root / "runs").rename(project.root / "elsewhere")
    project.calls()
    assert project.long(*rows) == 0 and project.calls() == []


def test_without_a_student_nothing_is_begun(project, capsys):
    assert project.long("--rows", "sink_after") == 2
    said = capsys.readouterr().err
    assert "runs/table/sid/seed0/export/transformer" in said and "digits_table.py --rows sid" in said
    assert project.calls() == [] and not (project.root / "runs/long").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rows", "sink_befor"), "did you mean sink_before?"),
        (("--rows", "swich_*"), "row 'swich_*' is unknown"),
        (("--videos", "33"), "write 2 to 32"),
        (("--length", "0"), "--length 0"),
        (("--updates", "0"), "--updates 0"),
        (("--tuned", "sunk=configs"), "did you mean sink?"),
        (("--tuned", "sink=nowhere"), "nowhere is no folder"),
        (("--jobs", "0"), "--jobs is 0"),
    ],
)
def test_bad_flags_are_refused(project, capsys, flags, words):
    assert project.long(*FLAGS, *flags) == 2
    assert words in capsys.readouterr().err and project.calls() == []


def test_a_dry_run_shows_commands_and_changes_nothing(project, capsys):
    before = sorted(project.root.rglob("*"))
    assert project.long(*FLAGS, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "videos/sink_after  (after train/sink/seed0)\n  python inference.py" in said
    assert said.count("python train.py") == 3 and said.count("python inference.py") == 14
    assert sorted(project.root.rglob("*")) == before


def test_the_tables_tell_what_was_run_and_what_was_not(project):
    assert project.long(*FLAGS, "--rows", "sink_after,switch_causal_before") == 0
    short = {line.rsplit(" | ", 4)[0]: line for line in tables.table("long").splitlines()}
    numbers = "| 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | +0.50 +-0.10 / "
    assert short["| sink | tuned"].startswith(f"| sink | tuned {numbers}")
    assert "not run: `python scripts/digits_long.py --rows no_sink_before`" in tables.table("long")
    full = tables.table("long-full")
    assert full.count("| sink | tuned | 0.500 +-0.100 | 0.500 +-0.100 |") == 3
    assert "| sink | tuned | 0.5 +-0.1 (2.0) | 0.5 +-0.1 (2.0) |" in full
    switch = "| causal | not tuned | 0.50 +-0.10 | 0.5 +-0.1 | 0.50 +-0.10 | 0.5 +-0.1 (0.5) | 0.5 +-0.1 |"
    assert switch in tables.table("long-switch") and tables.table("long-switch-full").count(switch) == 3
    assert "| sink | tuned | 32 of 450 latent frames | 40 | 0 min | 1 + 0 min | a processor |" in tables.table(
        "long-cost"
    )
    for name in ("long", "long-switch", "long-cost"):
        lines = tables.table(name).splitlines()
        assert len({line.count(" | ") for line in lines}) == 1 and "smaller" not in "".join(lines)
    with pytest.raises(ValueError, match="no table 'long-fall'"):
        tables.table("long-fall")


def test_pictures_are_drawn_of_what_was_run(project):
    assert "not drawn" in tables.table("long-curves")
    assert project.long(*FLAGS, "--rows", "sink_*,switch_causal_before") == 0
    assert digits_long_curves.main(["--root", str(project.root)]) == 0
    images = project.root / "docs/images"
    assert all((images / f"digits_long_{name}.png").stat().st_size > 5000 for name in ("length", "switch"))
    assert tables.table("long-curves").count("](images/digits_long_") == 2
    records = {row: project.long_record(row) for row in ("sink_before", "sink_after", "switch_causal_before")}
    panels = digits_long_curves.length_panels({row: records[row] for row in ("sink_before", "sink_after")})
    x, y, _ = panels["frechet"]["sink, tuned"]
    assert (x[0], x[-1], y[-1]) == (1, 50, 0.5) and list(panels["digit"]) == ["sink, not tuned", "sink, tuned"]
    x, y, _ = digits_long_curves.switch_panels({"switch_causal_before": records["switch_causal_before"]})["new digit"][
        "causal, not tuned"
    ]
    assert x[y.index(3 / 12)] == 1, "the chunk behind three earlier ones is the first under the new prompt"
    before, after = (digits_long_curves.look(f"sink_{stage}") for stage in ("before", "after"))
    assert before[0] == after[0] and before[1] != after[1]


def test_records_are_whole_json(project):
    assert project.long(*FLAGS, "--rows", "switch_none_after") == 0
    text = (project.root / "docs/results/long/switch_none_after.json").read_text()
    assert json.loads(text)["facts"]["cache"][-1] == "pipeline.cache.recache=none"
