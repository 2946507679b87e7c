"""Trackers get what metrics.jsonl gets: values that were read once, on rank 0."""

from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest
import torch

from trainer.build import build
from trainer.callbacks import Metrics, NotFinite
from trainer.trackers import TrackConfig
from utils.config.layer import Layer
from utils.config.load import load

PREVIEW = (
    "preview={every: 2, count: 1, num_frames: 2, height: 32, width: 32, sampler: {name: multi_step, num_steps: 1}}"
)


def installed(package: str):
    """Skips the test where an optional package is not there."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (pip install -e .[track])")


class Tracker:
    """Notes what it is told."""

    def __init__(self):
        self.message = []

    def start(self, step):
        self.message.append(("start", step))

    def log(self, row):
        self.message.append(("log", row))

    def videos(self, step, folder):
        self.message.append(("films", step, sorted(p.name for p in folder.iterdir())))

    def finish(self):
        self.message.append("finish")


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def tracked(config, tmp_path, monkeypatch):
    """tracked(*overrides) -> (the finished run's folder, what a tracker was told)."""

    def fit(*overrides):
        tracker = Tracker()
        monkeypatch.setattr("trainer.trackers.TrackConfig.build", lambda *arguments: [tracker])
        build(config(*overrides), tmp_path).fit()
        return tmp_path, tracker.message

    return fit


def test_a_tracker_is_told_the_rows_of_the_file(tracked):
    run, message = tracked("steps=5", "log_every=2")
    assert message[0] == ("start", 0) and message[-1] == "finish"
    assert [row for _, row in message[1:-1]] == rows(run)
    assert [row["step"] for row in rows(run)] == [0, 2, 4]


def test_a_tracker_is_told_of_previews(tracked):
    _, message = tracked("steps=2", PREVIEW)
    videos = [entry for entry in message if entry[0] == "films"]
    assert len(videos) == 1 and videos[0][1] == 1  # the row of the step that made these weights
    assert "contact_sheet.png" in videos[0][2] and any(name.endswith(".mp4") for name in videos[0][2])


class Counted(torch.Tensor):
    """Counts the times that a number is asked of a device."""

    reads = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.__bool__):
            Counted.reads += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_nan_names_the_prompts_that_its_loss_was_measured_on(tmp_path):
    method = type("Method", (), {"last_prompts": {"generator_": ("one", "two"), "": ("three",)}})()
    for name, message in (("generator_loss", "['one', 'two']"), ("critic_grad_norm", "['three']")):
        metrics = Metrics(tmp_path, 4, method)
        metrics.start(0, 9)
        metrics.after_step(1, {"loss": torch.tensor(1.0), name: torch.tensor(float("nan"))}, 0.0)
        with pytest.raises(NotFinite, match=re.escape(f"at step 1; prompts: {message}")):
            metrics.before_save()


def test_the_device_is_asked_once_for_all_values_of_all_steps(tmp_path, monkeypatch):
    method = type("Method", (), {"last_prompts": {"": ()}})()
    tracker = Tracker()
    metrics = Metrics(tmp_path, 4, method, [tracker])
    metrics.start(0, 9)
    monkeypatch.setattr(Counted, "reads", 0)
    for step in range(9):
        values = {"loss": step / 3, "grad_norm": 2.0 * step, "sigma": 0.25}
        tensors = {k: torch.tensor(v, dtype=torch.float64).as_subclass(Counted) for k, v in values.items()}
        metrics.after_step(step, tensors, float(step))
    metrics.finish(method, 9.0)
    assert Counted.reads == 3
    logged = [entry[1] for entry in tracker.message[1:-1]]
    assert logged == rows(tmp_path)
    assert logged[1] == {"step": 4, "seconds": 4.0, "loss": 4 / 3, "grad_norm": 8.0, "sigma": 0.25}


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert TrackConfig(tensorboard=True).build(tmp_path, {}) == []
    metrics = Metrics(tmp_path / "run", 1, object())
    metrics.start(0, 1)
    metrics.after_step(0, {"loss": torch.tensor(1.0)}, 1.0)
    metrics.finish(None, 1.0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert TrackConfig().missing() == {}
    with pytest.raises(ValueError, match=rf"track.{package}: the package {package} .*pip install -e \.\[track\]"):
        TrackConfig(**{package: True}).build(tmp_path, {})


def test_the_mode_is_checked():
    with pytest.raises(ValueError, match="wandb_mode is 'disabled'; write one of"):
        load(TrackConfig, [Layer("here", {"wandb_mode": "disabled"})])


@installed("tensorboard")
def test_tensorboard_holds_the_rows_and_a_resumed_run_goes_on(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["track.tensorboard=true", "checkpoint.every=2", PREVIEW]
    build(config("steps=4", *overrides), tmp_path).fit()
    for path in (tmp_path / "checkpoints").glob("step_0000004"):
        path.rename(tmp_path / "gone")  # as if a kill had come before the second save
    build(config("steps=4", *overrides), tmp_path).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "grad_norm"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[name])) for row in rows(tmp_path)], name
    assert [image.step for image in events.Images("previews/sheet")] == [1, 3]


@installed("wandb")
def test_wandb_runs_without_a_network_in_the_folder_it_is_given(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, run = tmp_path / "elsewhere", tmp_path / "a_run"
    overrides = ["track.wandb=true", f"track.wandb_dir={folder}", "track.wandb_project=takes", PREVIEW]
    build(config("steps=3", *overrides), run).fit()
    kept = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 1 and not (run / "wandb").exists()
    identity = (run / "wandb_id.txt").read_text().strip()
    assert kept[0].name == f"run-{identity}.wandb"
    content = kept[0].read_bytes()
    for words in (b"takes", b"a_run", b"grad_norm", json.dumps(rows(run)[2]["loss"]).encode(), b"previews/sheet"):
        assert words in content, words
    assert list((folder / "wandb").glob("offline-run-*/files/media/videos/previews/*.mp4"))
    build(config("steps=4", *overrides), run).fit()
    assert len(list((folder / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))) == 2, "the resumed part joins"
