"""The loop around checkpoints: what it refuses, when it saves, how it ends."""

from __future__ import annotations

import logging
import os
import resource
import signal

import pytest
import torch

from trainer.build import Unsaved
from trainer.checkpoint.folder import Checkpoint, CheckpointConfig
from trainer.config import OptimConfig
from trainer.loop import Loop
from trainer.optim import Optim


def saver(run, **recipe) -> Checkpoint:
    """Returns the checkpoints of a run, one for each step, the last two kept."""
    return Checkpoint(run, CheckpointConfig(every=1, keep=2), recipe)


class Method:
    """A method of one weight and its optimiser."""

    def __init__(self, size=3, name="adamw"):
        self.model = torch.nn.Linear(size, 1)
        self.optim = Optim(self.model, OptimConfig(name, lr=0.1), 10)

    def step(self, step):
        loss = self.model(torch.ones(1, self.model.in_features)).square().mean()
        loss.backward()
        return {"loss": loss.detach(), "grad_norm": self.optim.step(step)}

    def state_dict(self):
        return {"model": self.optim.weights(), "optim": self.optim.state_dict()}

    def load_state_dict(self, state):
        self.optim.load_weights(state["model"])
        self.optim.load_state_dict(state["optim"])


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    Loop(Method(), 2, saver(tmp_path, trainer={"size": 3, "betas": (0.9, 0.99)})).fit()
    other = saver(tmp_path, trainer={"size": 4, "betas": (0.9, 0.99)})
    words = (
        r"step 2 does not match this configuration \(.*/weight.* is \[1, 3\] torch.float32 in it, \[1, 4\] .*"
        r"\(saved -> now\): trainer.size: 3 -> 4; .* --no-auto-resume"
    )
    with pytest.raises(ValueError, match=words):
        Loop(Method(4), 3, other).fit()
    Loop(Method(4), 3, other).fit(resume=False)
    assert Loop(Method(4), 3, other).resume() == 3


def test_a_changed_value_that_fits_is_told(tmp_path, caplog):
    Loop(Method(), 2, saver(tmp_path, steps=2, betas=(0.9, 0.99))).fit()
    with caplog.at_level(logging.WARNING):
        Loop(Method(), 3, saver(tmp_path, steps=2, betas=(0.9, 0.99))).resume()
        assert "trainer" not in {record.name.partition(".")[0] for record in caplog.records}
        Loop(Method(), 3, saver(tmp_path, steps=3, betas=(0.9, 0.99))).resume()
    assert "other values (saved -> now): steps: 2 -> 3\n" in caplog.text


def test_another_optimiser_is_refused(tmp_path):
    Loop(Method(), 1, saver(tmp_path)).fit()
    fresh = Method()
    fresh.state_dict = lambda: {"model": fresh.optim.weights()}
    with pytest.raises(ValueError, match=r"this configuration \(method/optim/\S+ is in it, but nothing here"):
        Loop(fresh, 2, saver(tmp_path)).resume()


def test_steps_between_saves(tmp_path):
    loop = Loop(Method(), 7, Checkpoint(tmp_path, CheckpointConfig(every=3, keep=5)))
    loop.fit()
    assert [p.name for p in loop.checkpoint.complete()] == ["step_0000003", "step_0000006", "step_0000007"]
    assert Loop(Method(), 7, loop.checkpoint).resume() == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_at_a_step_and_asks_for_more(tmp_path, number):
    method, before = Method(), signal.getsignal(number)
    step = method.step

    def struck(at):
        if at == 3:
            os.kill(os.getpid(), number)
        return step(at)

    method.step = struck
    loop = Loop(method, 100, Checkpoint(tmp_path, CheckpointConfig(every=50)))
    loop.fit()
    assert [p.name for p in loop.checkpoint.complete()] == ["step_0000005"]  # a step after the signal's
    assert (tmp_path / "REQUEUE").exists() and signal.getsignal(number) is before
    Loop(Method(), 8, loop.checkpoint).fit()
    assert not (tmp_path / "REQUEUE").exists()


def test_a_run_that_saves_nothing_does_not_ask_for_more(tmp_path, caplog):
    method = Method()
    step = method.step
    method.step = lambda at: (os.kill(os.getpid(), signal.SIGTERM) if at == 3 else None, step(at))[1]
    Loop(method, 100, Unsaved(tmp_path, CheckpointConfig())).fit()
    assert not (tmp_path / "REQUEUE").exists(), "a scheduler would start it at 0, again and again"
    assert "stopped by a signal after 5 of 100 steps; nothing was saved" in caplog.text


def test_the_mark_of_an_earlier_job_is_removed_before_the_first_step(tmp_path):
    (tmp_path / "REQUEUE").touch()
    method = Method()
    method.step = lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Loop(method, 5, saver(tmp_path)).fit()
    assert not (tmp_path / "REQUEUE").exists(), "a run that fails would be started again and again"


def test_the_loop_raises_the_error_of_its_last_save(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot be made .* earlier checkpoints are kept"):
        Loop(Method(), 1, saver(tmp_path)).fit()
    (tmp_path / "checkpoints").unlink()
    loop = Loop(Method(30_000), 1, saver(tmp_path))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(OSError, match="cannot be written"):
            loop.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
