"""Regression of the flow objective: it learns, it resumes to the bit, it stops at what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from tests import tolerance
from tests.architecture.source import ROOT
from trainer.build import build
from trainer.ema import Ema
from wan.checkpoint.weights import load_transformer

MODES = ("bidirectional", "diffusion_forcing", "teacher_forcing")


def rows(run) -> list[dict]:
    """Returns the metrics without the wall time."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def state_hash(method) -> str:
    """Returns a hash of all that the method would save."""
    digest = hashlib.sha256()

    def visit(value):
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                visit(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        else:
            digest.update(repr(value).encode())

    visit(method.state_dict())
    return digest.hexdigest()


def fit(config, run, **options):
    """Trains and returns the method."""
    loop = build(config, run)
    loop.fit(**options)
    return loop.method


@pytest.mark.parametrize(("mode", "optim"), zip(MODES, ("muon", "adamw", "muon"), strict=True))
def test_the_loss_falls_on_a_few_clips(config, tmp_path, mode, optim):
    overrides = [
        f"trainer.loss.mode={mode}",
        f"trainer.optim.name={optim}",
        "steps=60",
        "trainer.source.batch=4",
    ]
    fit(config(*overrides, "trainer.source.dropout=0", "checkpoint.every=100"), tmp_path)
    losses = [row["loss"] for row in rows(tmp_path)]
    begin, end = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    assert len(losses) == 60 and end < 0.6 * begin, (begin, end)


@pytest.mark.parametrize("overrides", [[], ["trainer.loss.mode=teacher_forcing", "trainer.optim.name=muon"]])
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, overrides):
    whole = fit(config("steps=6", *overrides), tmp_path / "whole")
    stopped = build(config("steps=6", *overrides), tmp_path / "parts")
    stopped.total = 4  # the schedule still knows of 6
    stopped.fit()
    resumed = fit(config("steps=6", *overrides), tmp_path / "parts")
    assert resumed is not stopped.method
    assert state_hash(resumed) == state_hash(whole) != state_hash(stopped.method)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    exports = [(tmp_path / n / "export/transformer/diffusion_pytorch_model.safetensors") for n in ("whole", "parts")]
    assert exports[0].read_bytes() == exports[1].read_bytes()


def test_another_seed_is_another_run(config, tmp_path):
    a, b = (fit(config("steps=2", f"seed={n}"), tmp_path / str(n)) for n in (0, 1))
    assert state_hash(a) != state_hash(b)


def test_checkpointed_activations_change_no_bit(config, tmp_path):
    a = fit(config("steps=2"), tmp_path / "a")
    b = fit(config("steps=2", "trainer.generator.checkpointing=true"), tmp_path / "b")
    for (name, x), y in zip(a.roles.generator.named_parameters(), b.roles.generator.parameters(), strict=True):
        assert torch.equal(x, y), name


def test_the_door_survives_a_kill(recipe, config, tmp_path, capsys):
    run = tmp_path / "killed"
    arguments = ["--config_path", str(recipe), "--logdir", str(run), "steps=4000", "checkpoint.every=3"]
    command = [sys.executable, "train.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not list(run.glob("checkpoints/step_???????/manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
            if process.poll() is not None:
                pytest.fail(process.communicate()[1])
        process.send_signal(signal.SIGKILL)
    last = max(int(p.name[5:12]) for p in run.glob("checkpoints/step_???????"))
    steps = last + 4
    loop = build(config(f"steps={steps}", "checkpoint.every=3"), run)
    assert loop.resume() == last
    assert train.main([*arguments, f"steps={steps}"]) == 0, capsys.readouterr().err
    whole = fit(config(f"steps={steps}", "checkpoint.every=3"), tmp_path / "whole")
    assert rows(run) == rows(tmp_path / "whole")
    loop.resume()
    assert state_hash(loop.method) == state_hash(whole)


def test_starting_anew_keeps_the_old_run_aside(recipe, tmp_path):
    arguments = ["--config_path", str(recipe), "--logdir", str(tmp_path)]
    assert train.main([*arguments, "steps=4"]) == 0
    old = rows(tmp_path)
    assert train.main([*arguments, "steps=2", "--no-auto-resume", "seed=5"]) == 0
    assert [row["step"] for row in rows(tmp_path)] == [0, 1] and rows(tmp_path) != old[:2]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0000002"]
    assert (tmp_path / "checkpoints.before1/step_0000004/manifest.json").exists()
    assert len((tmp_path / "metrics.jsonl.before1").read_text().splitlines()) == 4


def test_the_export_is_the_average_and_can_be_generated_from(config, tmp_path):
    method = fit(config("steps=3"), tmp_path)
    spec, state = load_transformer(tmp_path / "export/transformer")
    transformer = method.roles.generator.transformer
    assert spec == transformer.spec and state.keys() == transformer.state_dict().keys()
    average = method.ema.weights()
    for name, weight in state.items():
        assert torch.equal(weight, average[name].bfloat16()), name
    assert any(not torch.equal(state[n], w.bfloat16()) for n, w in transformer.state_dict().items())


def test_a_nan_stops_with_its_step_and_prompts_and_is_not_saved(config, tmp_path):
    loop = build(config("steps=9", "log_every=100", "checkpoint.every=4"), tmp_path)
    step, seen = loop.method.step, []

    def broken(number):
        metrics = step(number)
        seen.append(loop.method.last_prompts[""])
        if number >= 5:
            metrics["loss"] = metrics["loss"] * float("nan")
        return metrics

    loop.method.step = broken
    with pytest.raises(ValueError, match=r"the loss is nan at step 5; prompts: ") as error:
        loop.fit()
    assert str(list(seen[5])) in str(error.value)
    assert [p.name for p in loop.checkpoint.complete()] == ["step_0000004"]


@pytest.mark.parametrize("start", [0, 3])
def test_the_average_against_a_plain_one(config, tmp_path, start):
    loop = build(config("steps=8", f"trainer.ema.start_step={start}"), tmp_path)
    step, shadow = loop.method.step, {}
    assert isinstance(loop.method.ema, Ema)

    def watched(number):
        metrics = step(number)
        for name, weight in loop.method.roles.generator.transformer.named_parameters():
            if number == start:
                shadow[name] = weight.detach().double().clone()
            elif number > start:
                shadow[name] = 0.9 * shadow[name] + 0.1 * weight.detach().double()
        return metrics

    loop.method.step = watched
    loop.fit()
    for name, weight in loop.method.ema.weights().items():
        assert (weight.double() - shadow[name]).abs().max() < tolerance.rounding(terms=6, sums=2, magnitude=2), name


def test_no_average(config, tmp_path):
    method = fit(config("steps=2", "trainer.ema.decay=0"), tmp_path)
    assert method.ema.state_dict() == {}
    for name, weight in method.ema.weights().items():
        assert torch.equal(weight, method.roles.generator.transformer.state_dict()[name])
