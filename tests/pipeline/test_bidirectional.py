"""All frames at once: held first frames, two experts and their guidance."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.bidirectional import Bidirectional
from pipeline.config import BidirectionalConfig, MultiStepConfig
from tests import tiny, tolerance
from wan.denoiser import ExpertDenoiser
from wan.generation import StepsConfig
from wan.geometry import Span

MODEL = tiny.denoiser()
SAMPLER = MultiStepConfig(solver="euler", num_steps=3, shift=2.0, guidance=3.0).build(StepsConfig())


def video(denoiser=MODEL, sampler=SAMPLER, total=4, given=None, condition=None):
    """Returns the one chunk of a clip."""
    pipeline = BidirectionalConfig().build(
        None, SimpleNamespace(denoiser=denoiser, device="cpu"), sampler, tiny.GEOMETRY
    )
    assert isinstance(pipeline, Bidirectional) and pipeline.spans(total) == [Span(0, total)]
    condition = condition or tiny.condition(2)
    (chunk,) = pipeline.generate(condition, tiny.noise(2), 2, total, given)
    assert chunk.span == Span(0, total)
    return chunk.latents


def test_the_clip_depends_on_every_frame_both_ways():
    noise, base = tiny.noise(2), video()
    tiny.healthy(base)

    class Shifted(nn.Module):  # the last frame of the input moved: a causal model would not tell the first
        spec = MODEL.spec

        def forward(self, x, sigma, condition, context):
            return MODEL(torch.cat((x[:, :-1], x[:, -1:] + 1), 1), sigma, condition, context)

    assert (video(Shifted())[:, 0] - base[:, 0]).abs().max() > 1e-3
    assert noise(Span(0, 4), 0).shape == base.shape


def test_given_first_frames_stay_and_are_shown_clean():
    given = tiny.latents(1, 2, seed=5)
    seen = []

    class Watched(nn.Module):
        spec = MODEL.spec

        def forward(self, x, sigma, condition, context):
            seen.append((x[:, :1].clone(), sigma.clone()))
            return MODEL(x, sigma, condition, context)

    out = video(Watched(), given=given)
    assert torch.equal(out[:, :1], given)
    assert len(seen) == 6  # 3 steps, 2 guidance branches
    for x, sigma in seen:
        assert torch.equal(x, given)
        assert bool((sigma[:, 0] == 0).all()) and bool((sigma[:, 1:] > 0).all())
    assert (out[:, 1:] - video()[:, 1:]).abs().max() > 1e-3, "the given frame changed nothing"


class Expert(nn.Module):
    """A network that notes its sigmas and answers with a constant; the null text halves it."""

    def __init__(self, value: float):
        super().__init__()
        self.value, self.spec, self.sigmas = value, MODEL.spec, []

    def forward(self, x, sigma, condition, context, clean=None):
        self.sigmas.append(float(sigma))
        null = isinstance(condition.key, tuple)
        return torch.full_like(x, self.value * (0.5 if null else 1.0))


def test_two_experts_switch_at_the_boundary_each_with_its_guidance():
    low, high = Expert(1.0), Expert(10.0)
    sampler = MultiStepConfig(solver="euler", num_steps=4, shift=1.0, guidance=2.0, guidance_high=4.0).build(
        StepsConfig()
    )
    out = video(ExpertDenoiser(low, high, 0.5), sampler)
    assert high.sigmas == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]  # from the boundary upward
    assert low.sigmas == [0.25, 0.25]
    high_velocity, low_velocity = 5 + 4 * (10 - 5), 0.5 + 2 * (1 - 0.5)
    start = tiny.noise(2)(Span(0, 4), 0)
    assert tiny.error(out, start - 0.75 * high_velocity - 0.25 * low_velocity) < tolerance.rounding(
        terms=4, sums=4, magnitude=30
    )


def test_experts_are_chosen_by_a_number():
    experts = ExpertDenoiser(Expert(1.0), Expert(2.0), 0.875)
    assert (experts.expert(0.875), experts.expert(0.874)) == (1, 0)
    with pytest.raises(ValueError, match="give a float"):
        experts(torch.zeros(1, 1, 4, 4, 6), torch.tensor([0.5]), tiny.condition(), None)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_solvers_agree_in_the_limit(solver):
    """Where the velocity is constant every solver lands on x - velocity."""
    model = Expert(1.0)
    sampler = MultiStepConfig(solver=solver, num_steps=5, shift=3.0, guidance=1.0).build(StepsConfig())
    out, start = video(model, sampler), tiny.noise(2)(Span(0, 4), 0)
    assert len(model.sigmas) == 5 and model.sigmas == sorted(model.sigmas, reverse=True)
    assert tiny.error(out, start - 1) < 2e-3
