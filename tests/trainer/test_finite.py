"""What is saved is finite: a run stops before it would write weights that are not, and names the last good ones."""

from __future__ import annotations

import math

import pytest
import torch

from scripts import export_checkpoint
from trainer.build import build, try_step
from trainer.callbacks import NotFinite, check_weights


def spoiled(config, name: str, value: float):
    """Returns a configuration with a knob of the optimiser that its bounds refuse, as if they did not."""
    made = config("steps=4", "checkpoint.every=2")
    setattr(made.trainer.optim, name, value)
    return made


def spoil_after(loop, step: int) -> None:
    """Lets a weight of the loop's generator become infinite in that step, whose loss is still finite."""
    taken, weight = loop.method.step, next(iter(loop.method.roles.generator.parameters()))

    def run(number):
        metrics = taken(number)
        if number == step:
            weight.data.view(-1)[0] = math.inf
        return metrics

    loop.method.step = run


@pytest.mark.parametrize(("knob", "value"), [("lr", math.nan), ("lr", math.inf), ("weight_decay", math.inf)])
def test_weights_that_are_not_finite_are_not_saved(config, tmp_path, knob, value):
    loop = build(spoiled(config, knob, value), tmp_path)
    with pytest.raises(ValueError, match="there is no checkpoint yet"):
        loop.fit()
    assert loop.checkpoint.complete() == [] and not (tmp_path / "export").exists()


def test_the_last_good_checkpoint_stays(config, tmp_path):
    loop = build(config("steps=4", "checkpoint.every=2", "trainer.ema.decay=0"), tmp_path)
    spoil_after(loop, 3)
    with pytest.raises(ValueError, match="not finite after step 3; nothing is saved.*last good checkpoint is.*0000002"):
        loop.fit()
    assert [path.name for path in loop.checkpoint.complete()] == ["step_0000002"]
    assert not (tmp_path / "export").exists()


def test_a_dry_run_says_what_the_first_step_says(config, tmp_path):
    texts = []
    for number in range(2):
        loop = build(spoiled(config, "lr", math.nan), tmp_path / str(number))
        with pytest.raises(NotFinite if number else ValueError) as error:
            try_step(loop) if number else _fit_one(loop)
        texts.append(str(error.value).split(" after step")[0])
    assert texts[0] == texts[1] and "is not finite" in texts[0]


def _fit_one(loop) -> None:
    loop.total = 1
    loop.fit()


def test_every_kind_of_state_is_looked_at():
    check_weights({"a": [torch.ones(2), 3, None], "n": torch.tensor([2**40])}, 1)
    for state in ({"a": {"b": torch.tensor([1.0, math.nan])}}, ["x", (torch.tensor(math.inf),)]):
        with pytest.raises(NotFinite, match="is not finite after step 6"):
            check_weights(state, 7)


def test_an_export_of_bad_weights_is_refused(config, tmp_path, capsys, monkeypatch):
    loop = build(config("steps=2", "checkpoint.every=2", "trainer.ema.decay=0"), tmp_path / "run")
    spoil_after(loop, 1)
    monkeypatch.setattr("trainer.loop.check_weights", lambda *arguments: None)  # as an earlier version saved it
    loop.fit()
    assert export_checkpoint.main([str(tmp_path / "run"), str(tmp_path / "a.safetensors")]) == 2
    assert "is not finite; export an earlier checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
