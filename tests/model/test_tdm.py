"""Trajectory distribution matching: both losses and their gradients, written out row by row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.base import Interval
from model.config import TdmConfig
from tests.model.stand_in import BOUND, DIFFERENT, Affine, gradients, normal, sample, text_mean
from utils.config.field import find_problems
from utils.rng import Recording
from wan.generation import GenerationConfig, StepsConfig
from wan.schedule import vp_sigmas, vp_time

TEACHER, CRITIC = (0.7, -1.3), (-0.4, 0.9)  # slope and push
STARTS, ENDS, DRAWN = (0.75, 0.5), (0.5, 0.0), (0.25, 0.5)  # of the two rows; of their times, in [end or low, high)
LOW, HIGH = 0.1, 0.9
ELEMENTS = 4 * 2 * 2 * 3  # of a sample


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made(eta=0.8, **knobs):
    """Returns (loss, sample, networks, recording, mix noise, diffusion noise)."""
    steps = StepsConfig((750.0, 500.0), warp=False, eta=eta)
    loss = TdmConfig(low=LOW, high=HIGH, **knobs).build(GenerationConfig(steps=steps))
    batch = sample(interval=Interval(normal("x"), double(*STARTS), double(*ENDS)))
    mix, noise = normal("mix"), normal("noise")
    drawn = [mix, double(*DRAWN), noise] if eta < 1 else [double(*DRAWN), noise]
    roles = SimpleNamespace(teacher=Affine(*TEACHER), critic=Affine(*CRITIC))
    return loss, batch, roles, Recording(drawn), mix, noise


def noised(batch, mix, noise, eta=0.8):
    """Writes (x_t, t) of each row out."""
    rows = []
    for row, (s, m, u) in enumerate(zip(STARTS, ENDS, DRAWN, strict=True)):
        x0, x = batch.latents.detach()[row], batch.interval.x[row]
        kept = (x - (1 - s) * x0) / s
        x_m = (1 - m) * x0 + m * (eta * kept + (1 - eta**2) ** 0.5 * mix[row])
        t = max(m, LOW) + u * (HIGH - max(m, LOW))
        r = (1 - t) / (1 - m)
        rows.append((r * x_m + (t**2 - (r * m) ** 2) ** 0.5 * noise[row], t))
    return rows


def x0_of(knobs, x_t, t, text):
    slope, push = knobs
    return x_t - t * (slope * x_t + push * text)


def predictions(batch, mix, noise, w, eta=0.8):
    """Writes (teacher guided by w, critic, t) of each row out."""
    found = []
    for row, (x_t, t) in enumerate(noised(batch, mix, noise, eta)):
        text, null = (text_mean(e)[row] for e in (batch.condition.text, batch.condition.null_text))
        real, unconditional = (x0_of(TEACHER, x_t, t, words) for words in (text, null))
        found.append((unconditional + w * (real - unconditional), x0_of(CRITIC, x_t, t, text), t))
    return found


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.8, 1.0])
def test_generator_loss_and_gradient(eta, normalise):
    loss, batch, roles, recording, mix, noise = made(eta, guidance=3.0, huber=0.05, normalise=normalise)
    value, metrics = loss(batch, roles, recording)
    recording.finish()
    value.backward()
    h, rows, slopes = 0.05 * ELEMENTS**0.5, [], []
    for x0, (real, fake, _) in zip(batch.latents.detach(), predictions(batch, mix, noise, 3.0, eta), strict=True):
        difference = fake - real
        scale = (x0 - real).abs().mean().clamp(max=5) if normalise else 1
        rows.append(((difference**2 + h**2).sqrt() - h) / scale)
        slopes.append(difference / (difference**2 + h**2).sqrt() / scale / (2 * ELEMENTS))
    assert (value - torch.stack(rows).mean()).abs() < BOUND
    assert (batch.latents.grad - torch.stack(slopes)).abs().max() < BOUND
    assert gradients(roles.teacher, roles.critic) == [None] * 6, "the networks are not differentiated through"
    assert metrics["sigma"] == pytest.approx((0.5 + 0.25 * 0.4 + 0.1 + 0.5 * 0.8) / 2)


@pytest.mark.parametrize("weight", ["flow", "vp"])
@pytest.mark.parametrize("regulariser", [0.0, 0.5])
def test_critic_loss_and_gradient(weight, regulariser):
    loss, batch, roles, recording, mix, noise = made(critic_weight=weight, regulariser=regulariser)
    value, _ = loss.critic(batch, roles, recording)
    recording.finish()
    value.backward()
    slope = torch.tensor(CRITIC[0], dtype=torch.float64, requires_grad=True)
    rows = []
    for row, (x_t, t) in enumerate(noised(batch, mix, noise)):
        text = text_mean(batch.condition.text)[row]
        fake, real = x0_of((slope, CRITIC[1]), x_t, t, text), x0_of(TEACHER, x_t, t, text)  # no guidance
        w = 1 / t**2 if weight == "flow" else ((1 - t) ** 2 + t**2) / t**2
        rows.append(w * ((fake - batch.latents.detach()[row]) ** 2 + regulariser * (fake - real) ** 2))
    wanted = torch.stack(rows).mean()
    wanted.backward()
    assert (value - wanted).abs() < BOUND
    assert (roles.critic.slope.grad - slope.grad).abs() < BOUND and slope.grad.abs() > DIFFERENT
    assert batch.latents.grad is None and gradients(roles.teacher) == [None] * 3
    assert len(roles.teacher.calls) == bool(regulariser)


def test_the_flow_weight_is_the_loss_of_the_velocity():
    loss, batch, roles, recording, mix, noise = made()
    value, _ = loss.critic(batch, roles, recording)
    velocity = [
        (CRITIC[0] * x_t + CRITIC[1] * text_mean(batch.condition.text)[row] - (x_t - batch.latents[row]) / t)
        for row, (x_t, t) in enumerate(noised(batch, mix, noise))
    ]
    assert (value - torch.stack(velocity).square().mean()).abs() < BOUND


def test_a_student_that_is_its_teacher_has_no_gradient():
    loss, batch, roles, recording, *_ = made(guidance=1.0)
    roles.critic = Affine(*TEACHER)
    loss(batch, roles, recording)[0].backward()
    assert batch.latents.grad.abs().max() < BOUND


def test_times_of_the_vp_clock_are_those_of_its_table():
    """Integers from the step's end to the last below 980, all of them, at the table's own sigma."""
    steps = StepsConfig((1000.0, 875.0, 750.0), clock="vp", shift=1.0)
    loss, table = TdmConfig().build(GenerationConfig(steps=steps)), vp_sigmas(1.0)
    seen = set()
    for place, u in enumerate(torch.linspace(0, 1 - 1e-6, 700, dtype=torch.float64)):
        batch = sample(batch=1, interval=Interval(normal("x", batch=1), table[[999]], table[[749]]))
        (sigma,) = loss.draw_sigma(batch, Recording([u[None]]), "generator")
        seen.add(round(vp_time(sigma[None], 1.0).item(), 9))
        assert sigma in table, place
    assert seen == set(range(749, 980))


@pytest.mark.parametrize(
    ("steps", "knobs", "why"),
    [
        ((1000,), {}, "2 or more steps, and .*1000.* write e.g."),
        ((), {}, "2 or more steps"),
        ((1000, 500), {"rounding": "table"}, "write rounding: none"),
        ((1000, 990), {"shift": 1.0}, "ends at 0.990 .* high 0.98"),
        ((1000, 950), {"shift": 5.0}, "ends at 0.990"),
    ],
)
def test_grids_that_no_path_is(steps, knobs, why):
    steps = StepsConfig(tuple(map(float, steps)), **knobs)
    with pytest.raises(ValueError, match=why):
        for problem in TdmConfig().problems_with(GenerationConfig(steps=steps)):
            raise ValueError(problem)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (StepsConfig((500.0, 1000.0)), "must descend"),
        (StepsConfig((1000.0, 1000.0)), "must descend"),
        (StepsConfig((1000.0, 500.0), eta=1.5), "is 1.5; write 0 to 1"),
        (StepsConfig((1000.0, 500.0), eta=-0.1), "is -0.1; write 0 to 1"),
        (TdmConfig(low=0.5, high=0.4), "must rise"),
        (TdmConfig(high=1.0), "must rise"),
        (TdmConfig(critic_weight="v"), "flow or vp"),
    ],
)
def test_bad_knobs(config, why):
    assert any(why in text for _, text in find_problems(config)), list(find_problems(config))
