"""Distillations: what a broken network, another batch, a missing teacher and many prompts do to them."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.test_ranks import GAN
from trainer.build import build
from trainer.config import load_recipe
from trainer.sources.config import RolloutConfig
from utils.rng import Rng
from wan.generation import GenerationConfig


@pytest.fixture
def made(distill_recipe, tmp_path):
    """made(*overrides) -> the loop of a distillation in `tmp_path`."""
    return lambda *overrides: build(load_recipe(distill_recipe[0], overrides)[0], tmp_path / "run")


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_a_broken_teacher_stops_the_run(made, name):
    loop = made(f"trainer.loss.name={name}", "trainer.source.batch=1", "log_every=100")
    with torch.no_grad():
        next(loop.method.roles.teacher.parameters()).fill_(float("nan"))
    step, seen = loop.method.step, []
    loop.method.step = lambda at: (step(at), seen.append(dict(loop.method.last_prompts)))[0]
    with pytest.raises(ValueError, match="the generator_loss is nan at step 0") as error:
        loop.fit()
    message = seen[0]["generator_"]
    assert message and str(list(message)) in str(error.value) and message != seen[0][""], (
        "the generator's, not the critic's"
    )
    assert not loop.checkpoint.complete()


def test_a_gan_needs_no_teacher_and_loads_none(distill_recipe, made):
    clips = [f"trainer.source.clips={distill_recipe[1]}", "trainer.source.prompts="]
    left_out = made(GAN, *clips, "trainer.teacher=null").method
    given = made(GAN, *clips).method
    assert left_out.roles.teacher is None and given.roles.teacher is None
    assert torch.isfinite(left_out.step(0)["generator_loss"])


def test_another_batch_goes_on_where_the_first_one_stopped(made):
    first = made("trainer.source.batch=4", "steps=2", "checkpoint.every=2")
    first.fit()
    assert list(first.method.source.index(3)) == [12, 13, 14, 15], "two draws a step: generator, critic"
    for batch, expected in ((4, range(16, 20)), (2, range(16, 18))):
        again = made(f"trainer.source.batch={batch}", "steps=3")
        assert again.resume() == 2
        assert again.method.source.index(4) == expected
        assert again.method.source.cursor() == {"step": 4, "sample": 16}


def test_one_training_a_folder(made):
    first, second = made("steps=2", "checkpoint.every=2"), made("steps=2", "checkpoint.every=2")
    step = first.method.step

    def watched(at):
        with pytest.raises(ValueError, match="another training runs in .*; let it end, or give another --logdir"):
            second.fit()
        return step(at)

    first.method.step = watched
    first.fit()
    second.fit()  # when the first has ended


def test_a_range_of_lengths_is_drawn_in_whole_chunks(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red three moves right\n")
    knobs = {"prompts": str(prompts), "loss_frames": 4}
    source = RolloutConfig(frames={"min": 4, "max": 8}, **knobs).build(GenerationConfig(2))
    assert {source.length(step, Rng(0)) for step in range(40)} == {4, 6, 8}
    assert source.config == RolloutConfig(frames=4, frames_max=8, **knobs)
