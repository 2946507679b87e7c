"""scripts/digits_long.py with stand-in scripts: tunings, rows, smaller budgets, adopted runs, tables and curves."""

from __future__ import annotations

import json

import pytest

from scripts import tables
from tests.scripts.experiments.project import STUDENT
from tests.scripts.experiments.project import STUDENT_FLAGS as FLAGS


def select_calls(calls, script) -> list[list[str]]:
    return [words for words in calls if words[0].endswith(script)]


def test_cache_is_measured_before_and_after_its_tuning(project):
    assert project.long(*FLAGS, "--rows", "relative_*") == 0
    calls = project.calls()
    (train,) = select_calls(calls, "train.py")
    cache = [f"generation.cache.{knob}" for knob in ("window_frames=9", "sink_frames=3", "rope=read")]
    assert {f"trainer.generator.weights={STUDENT}", "steps=200", "seed=0", *cache} <= set(train)
    assert train[train.index("--logdir") + 1] == "runs/long/relative/seed0"
    videos = {words[words.index("--checkpoint_path") + 1]: words for words in select_calls(calls, "inference.py")}
    assert set(videos) == {STUDENT, "runs/long/relative/seed0/export/transformer"}
    for words in videos.values():
        assert {"generation.cache.window_frames=9", "generation.cache.sink_frames=3", "generation.cache.rope=read"} <= {
            *words
        }
        assert "num_output_frames=450" in words and "generation.chunk=3" in words
    measured = select_calls(calls, "evaluate.py")[0]
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


def test_switch_rows_differ_in_their_recache_alone(project):
    assert project.long(*FLAGS, "--rows", "switch_causal_*,switch_reset_after") == 0
    calls = project.calls()
    (training,) = select_calls(calls, "train.py")
    assert "generation.cache.rope=write" in training
    videos = select_calls(calls, "inference.py")
    kinds = sorted(next(word for word in words if "recache" in word) for words in videos)
    assert kinds == ["generation.cache.recache=causal"] * 2 + ["generation.cache.recache=reset"]
    assert all(words[words.index("--data_path") + 1].endswith("_32.jsonl") for words in videos)
    assert all("num_output" not in word for words in videos for word in words), "schedules say their own length"
    record = project.long_record("switch_causal_after")
    assert (record["recache"], record["stage"], record["facts"]["frames"]) == ("causal", "after", 120)
    assert list(record["switches"]) == ["all", "colour", "direction", "digit"] and record["chunk"] == 3
    folders = {words[words.index("--output_folder") + 1] for words in videos}
    assert len(folders) == 3


def test_smaller_budget_is_recorded_and_shown(project):
    small = (*FLAGS, "--rows", "sink_before", "--videos", "8", "--length", "20")
    assert project.long(*small) == 0
    (words,) = select_calls(project.calls(), "inference.py")
    prompts = (project.root / words[words.index("--data_path") + 1]).read_text().splitlines()
    assert prompts == (project.root / "prompts/digits_32.txt").read_text().splitlines()[:8]
    record = project.long_record("sink_before")
    assert (record["facts"]["videos"], record["facts"]["frames"], list(record["ends"])[-1]) == (8, 180, "20")
    line = next(text for text in tables.table("long").splitlines() if text.startswith("| sink | not tuned"))
    assert line.endswith("| 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | - | - |")
    assert "`sink_before`: 8 videos of 180 latent frames" in tables.table("long")
    assert project.long(*FLAGS, "--rows", "sink_before") == 0
    assert len(select_calls(project.calls(), "inference.py")) == 1, "the small videos are not the large ones"
    assert project.long(*small) == 0 and project.calls() == []
    assert "smaller budget" not in tables.table("long")


def test_other_student_needs_another_tuning(project, capsys):
    rows = (*FLAGS, "--rows", "no_sink_*")
    assert project.long(*rows) == 0
    project.calls()
    project.write(f"{STUDENT}/diffusion_pytorch_model.safetensors", "another student")
    assert project.long(*rows) == 1
    assert "begun with other start" in capsys.readouterr().out
    assert len(select_calls(project.calls(), "inference.py")) == 1, "the row before the tuning is generated anew"


def test_tuning_of_other_length_is_another_one(project, capsys):
    assert project.long(*FLAGS, "--rows", "sink_after") == 0
    project.calls()
    assert project.long(*FLAGS, "--rows", "sink_after", "--updates", "10", "--runs", "runs/short") == 0
    (train,) = select_calls(project.calls(), "train.py")
    assert "steps=50" in train and project.long_record("sink_after")["training"]["updates"] == 10


def test_adopted_tuning_is_only_read(project):
    assert project.long(*FLAGS, "--rows", "sink_after") == 0
    (project.root / "runs/long/sink/seed0").rename(project.root / "runs/tuned")
    (project.root / "docs/results/long/sink_after.json").unlink()
    project.calls()
    before = sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/tuned").rglob("*"))
    assert project.long(*FLAGS, "--rows", "sink_after", "--tuned", "sink=runs/tuned") == 0
    assert select_calls(project.calls(), "train.py") == []
    assert sorted((p, p.stat().st_mtime_ns) for p in (project.root / "runs/tuned").rglob("*")) == before
    assert project.long_record("sink_after")["training"]["run"] == "runs/tuned"


def test_records_count_without_run_folders(project):
    rows = (*FLAGS, "--rows", "sink_*,switch_none_before")
    assert project.long(*rows) == 0
    (project.root / "runs").rename(project.root / "elsewhere")
    project.calls()
    assert project.long(*rows) == 0 and project.calls() == []


def test_missing_student_is_refused_before_any_job(project, capsys):
    assert project.long("--rows", "sink_after") == 2
    shown = capsys.readouterr().err
    assert "runs/table/sid/seed0/export/transformer" in shown and "digits_table.py --rows sid" in shown
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
        (("--tuned", "sink=nowhere"), "nowhere is not a folder"),
        (("--jobs", "0"), "--jobs is 0"),
    ],
)
def test_bad_flags_are_refused(project, capsys, flags, words):
    assert project.long(*FLAGS, *flags) == 2
    assert words in capsys.readouterr().err and project.calls() == []


def test_dry_run_changes_nothing(project, capsys):
    before = sorted(project.root.rglob("*"))
    assert project.long(*FLAGS, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "videos/sink_after  (after train/sink/seed0)\n  python inference.py" in shown
    assert shown.count("python train.py") == 3 and shown.count("python inference.py") == 14
    assert sorted(project.root.rglob("*")) == before


def test_record_names_the_recache(project):
    assert project.long(*FLAGS, "--rows", "switch_none_after") == 0
    text = (project.root / "docs/results/long/switch_none_after.json").read_text()
    assert json.loads(text)["facts"]["cache"][-1] == "generation.cache.recache=none"
