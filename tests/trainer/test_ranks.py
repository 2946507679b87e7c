"""Two processes train as one does: same global batch, same losses, same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests import digits_fixture, tiny
from tests.architecture.source import ROOT
from tests.trainer import stream_fixture, worker
from utils.data.pairs import write_pairs
from wan.schedule import step_sigmas

STEPS = 3
LORA = ["trainer.generator.lora.rank=4", "trainer.generator.lora.merged=true"]
ODE = ["trainer.loss={name: ode, steps: [1000, 500], shift: 3.0}"]
PAIRS = "trainer.source={{name: ode_pairs, path: {}, batch: 4, frames: 4, chunk: 2}}"
NOISED = (
    "trainer.source={{name: noised_data, clips: {}, batch: 4, frames: 4, chunk: 2, steps: [1000, 500], shift: 3.0}}"
)
GAN = "trainer.loss={name: gan, discriminator: {layers: [0], ffn_dim: 32}, r1_weight: 1.0, r2_weight: 1.0}"
FLOW = {
    "flow": [],
    "accumulated": ["trainer.accumulate=2"],
    "clean chunks": ["trainer.loss.clean_chunks=0.7"],
    "clean chunks, parts": ["trainer.loss.clean_chunks=0.7", "trainer.accumulate=2"],
    "teacher forcing": ["trainer.loss.mode=teacher_forcing"],
    "muon": ["trainer.optim.name=muon"],
    "lora": LORA,
    "copies": ["layout.shard=1"],
    "text in parts": ["layout.shard_text=true", "trainer.generator.checkpointing=true", "layout.keep_gathered=true"],
    "bf16": ["trainer.generator.dtype=bf16"],
    "bf16 lora": ["trainer.generator.dtype=bf16", *LORA],
}
DISTILL = {
    "dmd": [],
    "offloaded": ["trainer.teacher.offload=true"],
    "sid": ["trainer.loss.name=sid", "trainer.generator.checkpointing=true"],
    "gan": [GAN],
    "lora critic": ["trainer.critic.lora.rank=4", *LORA],
}
TOGETHER = {"offloaded", "bf16", "bf16 lora", "clean chunks, parts", "ode, parts", "stream parts"}  # no run alone
EXACT = 5e-6  # fp32: sums in another order
ROUNDED = {"bf16": 1e-2, "bf16 lora": 0.3}  # bf16 copies; an adapter starts at 0, where AdamW steps by the sign


def ode_pairs(folder):
    """Returns a folder with five trajectories of 4 latent frames."""
    prompts = [digits_fixture.PROMPTS[i % 3] for i in range(5)]
    sigmas = (*step_sigmas((1000.0, 500.0), 3.0), 0.0)
    write_pairs(folder, 0, tiny.draw("pairs", shape=(5, 3, 4, 16, 4, 4)), prompts, sigmas)
    return folder


@pytest.fixture(scope="module")
def jobs(recipe, distill_recipe, tmp_path_factory):
    """Returns {name: [recipe, steps, overrides]}."""
    flow, distill, clips = recipe, *distill_recipe
    jobs = {name: [str(flow), STEPS, ["trainer.source.batch=4", *more]] for name, more in FLOW.items()}
    jobs |= {name: [str(distill), STEPS, more] for name, more in DISTILL.items()}
    pairs = [*ODE, PAIRS.format(ode_pairs(tmp_path_factory.mktemp("pairs")))]
    jobs["ode"] = [str(flow), STEPS, pairs]
    jobs["ode, parts"] = [str(flow), STEPS, [*pairs, "trainer.accumulate=2"]]
    jobs["causvid"] = [str(distill), STEPS, [NOISED.format(clips)]]
    jobs["stream"] = [str(distill), STEPS, stream_fixture.overrides(distill.parent, distill.parent / "prompts.txt")]
    jobs["stream parts"] = [
        str(distill),
        STEPS,
        [*jobs["stream"][2], "trainer.source.batch=4", "trainer.accumulate=2"],
    ]
    jobs["stream"][2].append("trainer.source.batch=4")
    jobs["gan"][2] += [f"trainer.source.clips={clips}", "trainer.source.prompts="]
    return jobs


@pytest.fixture(scope="module")
def results(jobs, tmp_path_factory):
    """Returns what one process and two processes made of all jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.trainer.worker", str(folder / "jobs.json"), str(folder / "two.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        _, message = process.communicate(timeout=400)
    assert process.returncode == 0, message[-4000:]
    alone = {name: worker.run(*job) for name, job in jobs.items() if name not in TOGETHER}
    return alone, torch.load(folder / "two.pt", weights_only=True)


def apart(a: dict, b: dict) -> float:
    """Returns the largest relative difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / a[n].norm().clamp(min=1e-6)) for n in a)


@pytest.mark.dist
def test_two_ranks_train_as_one(results, jobs):
    alone, together = results
    for name, one in alone.items():
        two = together[name]
        assert apart(one["weights"], two["weights"]) < EXACT, name
        for a, b in zip(one["metrics"], two["metrics"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=EXACT), name
            assert a["loss"] != 0


@pytest.mark.dist
def test_every_training_moved_its_weights(results):
    alone, together = results
    flow = together["flow"]["weights"]
    assert apart(flow, together["muon"]["weights"]) > 1e-3
    first = [job["metrics"][0]["loss"] for job in together.values()]
    assert all(torch.isfinite(torch.tensor(first)))
    adapters = {n: w for n, w in together["lora"]["weights"].items() if ".lora_B." in n}
    assert adapters and all(w.abs().sum() > 0 for w in adapters.values())


@pytest.mark.dist
def test_what_must_not_change_the_numbers(results):
    _, together = results
    for same in ("accumulated", "copies", "text in parts"):
        assert apart(together["flow"]["weights"], together[same]["weights"]) < EXACT, same
    for whole in ("clean chunks", "ode"):  # parts of a batch with unequal numbers of frames that count
        assert apart(together[whole]["weights"], together[f"{whole}, parts"]["weights"]) < EXACT, whole
        assert apart(together[whole]["weights"], together["flow"]["weights"]) > 1e-4
    assert apart(together["stream"]["weights"], together["stream parts"]["weights"]) < EXACT
    assert apart(together["stream"]["weights"], together["dmd"]["weights"]) > 1e-4
    assert apart(together["dmd"]["weights"], together["offloaded"]["weights"]) < EXACT


@pytest.mark.dist
def test_bf16_keeps_fp32_masters_near_the_fp32_run(results):
    _, together = results
    for name, twin in (("bf16", "flow"), ("bf16 lora", "lora")):
        wide = together[name]["weights"]
        trained = {n for n in wide if n.startswith("ema.")}
        assert trained and all(wide[n].dtype == torch.float32 for n in trained)
        apart_by = apart({n: together[twin]["weights"][n] for n in trained}, {n: wide[n] for n in trained})
        assert 0 < apart_by < ROUNDED[name]
