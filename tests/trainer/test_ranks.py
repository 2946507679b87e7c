"""Two processes train as one does: same global batch, same losses, same weights; in float64, and in fp32 once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests import digits_fixture, tiny, tolerance
from tests.architecture.source import ROOT
from tests.trainer import stream_fixture, worker
from utils.data.pairs import write_pairs
from wan.schedule import step_sigmas

STEPS = 3  # generator, critic, generator; a regression has seen its own update after two
LORA = ["trainer.generator.lora.rank=4", "trainer.generator.lora.merged=true"]
ODE = ["trainer.loss.name=ode", "generation.steps.steps=[1000, 500]"]
PAIRS = "trainer.source={{name: ode_pairs, path: {}, batch: 4, frames: 4}}"
NOISED = "trainer.source={{name: noised_data, clips: {}, batch: 4, frames: 4}}"
TDM = "trainer.loss={name: tdm, low: 0.1, regulariser: 0.5}"
TDM_STEPS = "generation={chunk: 2, steps: {steps: [1000, 500], shift: 3.0, eta: 0.6}}"
PATHS = "trainer.source={{name: trajectory, mode: {}, prompts: {}, batch: 4, frames: 4, height: 32, width: 32}}"
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
}
DISTILL = {
    "dmd": [],
    "offloaded": ["trainer.teacher.offload=true"],
    "sid": ["trainer.loss.name=sid", "trainer.generator.checkpointing=true"],
    "gan": [GAN],
    "lora critic": ["trainer.critic.lora.rank=4", *LORA],
}
NARROW = {  # in fp32
    "flow fp32": [],
    "lora fp32": LORA,
    "bf16": ["trainer.generator.dtype=bf16"],
    "bf16 lora": ["trainer.generator.dtype=bf16", *LORA],
}
TOGETHER = {"offloaded", "clean chunks, parts", "ode, parts", "stream parts", "tdm parts"}  # no run alone
TOGETHER |= NARROW.keys() - {"flow fp32"}
# A clip's loss: 1024 numbers, means over up to 4 clips of it; before them one block and its embeddings, and back.
ROUNDED = tolerance.rounding(terms=4096, sums=2 * 25)
BF16 = {"bf16": 1e-2, "bf16 lora": 0.3}  # bf16 copies; an adapter starts at 0, where AdamW steps by the sign


def ode_pairs(folder):
    """Returns a folder with five trajectories of 4 latent frames."""
    prompts = [digits_fixture.PROMPTS[i % 3] for i in range(5)]
    sigmas = (*step_sigmas((1000.0, 500.0), 3.0), 0.0)
    write_pairs(folder, 0, tiny.draw("pairs", shape=(5, 3, 4, 16, 4, 4)), prompts, sigmas)
    return folder


@pytest.fixture(scope="module")
def jobs(recipe, distill_recipe, tmp_path_factory):
    """Returns {name: [recipe, steps, overrides, in float64]}."""
    flow, distill, clips = recipe, *distill_recipe
    jobs = {name: [str(flow), 2, ["trainer.source.batch=4", *more]] for name, more in FLOW.items()}
    jobs |= {name: [str(distill), STEPS, more] for name, more in DISTILL.items()}
    pairs = [*ODE, PAIRS.format(ode_pairs(tmp_path_factory.mktemp("pairs")))]
    jobs["ode"] = [str(flow), 2, pairs]
    jobs["ode, parts"] = [str(flow), 2, [*pairs, "trainer.accumulate=2"]]
    jobs["causvid"] = [str(distill), STEPS, [NOISED.format(clips)]]
    jobs["stream"] = [str(distill), STEPS, stream_fixture.overrides(distill.parent, distill.parent / "prompts.txt")]
    jobs["stream parts"] = [
        str(distill),
        STEPS,
        [*jobs["stream"][2], "trainer.source.batch=4", "trainer.accumulate=2"],
    ]
    jobs["stream"][2].append("trainer.source.batch=4")
    for name, mode in (("tdm", "bidirectional"), ("tdm causal", "causal")):
        jobs[name] = [str(distill), STEPS, [TDM, TDM_STEPS, PATHS.format(mode, distill.parent / "prompts.txt")]]
    jobs["tdm parts"] = [*jobs["tdm"][:2], [*jobs["tdm"][2], "trainer.accumulate=2"]]
    jobs["gan"][2] += [f"trainer.source.clips={clips}", "trainer.source.prompts="]
    jobs = {name: [*job, True] for name, job in jobs.items()}
    return jobs | {n: [str(flow), STEPS, ["trainer.source.batch=4", *more], False] for n, more in NARROW.items()}


@pytest.fixture(scope="module")
def results(jobs, tmp_path_factory):
    """Returns what one process and two processes made of all jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.trainer.worker", str(folder / "jobs.json"), str(folder / "two.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        alone = {name: worker.run(*job) for name, job in jobs.items() if name not in TOGETHER}
        _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]
    return alone, torch.load(folder / "two.pt", weights_only=True)


def apart(a: dict, b: dict) -> float:
    """Returns the largest relative difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).norm() / a[n].norm().clamp(min=1e-6)) for n in a)


@pytest.mark.dist
def test_two_ranks_train_as_one(results, jobs):
    alone, together = results
    for name, one in ((name, one) for name, one in alone.items() if jobs[name][-1]):
        two = together[name]
        assert all(w.dtype == torch.float64 for w in two["weights"].values())
        assert apart(one["weights"], two["weights"]) < tolerance.EXACT, name
        for a, b in zip(one["metrics"], two["metrics"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=tolerance.EXACT), name
            assert a["loss"] != 0


@pytest.mark.dist
def test_two_ranks_take_the_same_step_in_fp32(results):
    """Loss and gradient of the first step; afterwards AdamW has stepped by the sign of numbers that are all noise."""
    one, two = (runs["flow fp32"] for runs in results)
    assert all(w.dtype == torch.float32 for w in two["weights"].values())
    for name in ("loss", "grad_norm"):
        assert one["metrics"][0][name] == pytest.approx(two["metrics"][0][name], rel=ROUNDED), name


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
        assert apart(together["flow"]["weights"], together[same]["weights"]) < tolerance.EXACT, same
    for whole in ("clean chunks", "ode"):  # parts of a batch with unequal numbers of frames that count
        assert apart(together[whole]["weights"], together[f"{whole}, parts"]["weights"]) < tolerance.EXACT, whole
        assert apart(together[whole]["weights"], together["flow"]["weights"]) > 1e-4
    assert apart(together["stream"]["weights"], together["stream parts"]["weights"]) < tolerance.EXACT
    assert apart(together["stream"]["weights"], together["dmd"]["weights"]) > 1e-4
    assert apart(together["tdm"]["weights"], together["tdm parts"]["weights"]) < tolerance.EXACT
    assert apart(together["tdm"]["weights"], together["tdm causal"]["weights"]) > 1e-4
    assert apart(together["dmd"]["weights"], together["offloaded"]["weights"]) < tolerance.EXACT


@pytest.mark.dist
def test_bf16_keeps_fp32_masters_near_the_fp32_run(results):
    _, together = results
    for name, twin in (("bf16", "flow fp32"), ("bf16 lora", "lora fp32")):
        wide = together[name]["weights"]
        trained = {n for n in wide if n.startswith("ema.")}
        assert trained and all(wide[n].dtype == torch.float32 for n in trained)
        apart_by = apart({n: together[twin]["weights"][n] for n in trained}, {n: wide[n] for n in trained})
        assert 0 < apart_by < BF16[name]
