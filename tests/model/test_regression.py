"""ODE regression: the mean square over the frames that are not clean, loss and gradient in closed form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import OdeConfig
from tests import tiny
from tests.model.stand_in import BOUND, DIFFERENT, Affine, gradients, normal, rows, sample, text_mean
from utils.rng import Recording, Rng
from wan.generation import GenerationConfig, StepsConfig
from wan.ledger import CacheConfig
from wan.schedule import sigma_table

SLOPE, PUSH = -0.4, 0.9
STATES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of steps that are not warped
STEPS = StepsConfig((1000.0, 750.0, 500.0, 250.0), warp=False)


def trajectory(batch=2):
    """Returns states [B, 5, F, C, h, w]."""
    return torch.stack([normal("state", k, batch=batch) for k in range(5)], 1)


def build(steps=STEPS, cache=None):
    """Returns the loss of a model that generates by these steps, in this cache."""
    return OdeConfig().build(GenerationConfig(steps=steps, cache=cache or CacheConfig()))


def run(states, steps=STEPS):
    """Returns (loss, gradient of slope and push, sample, generator, metrics); states: [B, chunks]."""
    states = torch.tensor(states)
    batch = sample(batch=len(states), trajectory=trajectory(len(states)))
    roles, recording = SimpleNamespace(generator=Affine(SLOPE, PUSH)), Recording([states])
    loss, metrics = build(steps)(replace(batch, latents=None), roles, recording)
    recording.finish()
    loss.backward()
    return loss.detach(), torch.stack(gradients(roles.generator)[:2]), batch, roles.generator, metrics


def written_out(states, batch, sigmas=STATES, all_frames=False):
    """Returns (loss, gradient), summed frame by frame."""
    loss, slope, push, count = 0.0, 0.0, 0.0, 0
    for row, chunks in enumerate(states):
        text = text_mean(batch.condition.text)[row]
        for frame, state in enumerate(k for k in chunks for _ in range(2)):
            s, x = torch.tensor(sigmas[state]), batch.trajectory[row, state, frame]
            miss = x - s * (SLOPE * x + PUSH * text[0]) - batch.trajectory[row, -1, frame]
            if s == 0 and not all_frames:
                continue
            loss, count = loss + miss.square().mean(), count + 1
            slope, push = slope - 2 * s * (miss * x).mean(), push - 2 * s * (miss * text[0]).mean()
    count = max(count, 1)
    return torch.as_tensor(loss / count), torch.stack([torch.as_tensor(g / count) for g in (slope, push)]).double()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3))
def test_ode_loss_and_gradient_written_out(states):
    loss, gradient, batch, _, _ = run(states)
    wanted, slopes = written_out(states, batch)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slopes) < BOUND


def test_ode_clean_frames_do_not_count():
    states = [(4, 1), (2, 4)]
    loss, gradient, batch, _, metrics = run(states)
    assert abs(metrics["all_frames"] - written_out(states, batch, all_frames=True)[0]) < BOUND
    assert abs(loss - 2 * metrics["all_frames"]) < BOUND  # clean frames miss nothing, half of them
    assert tiny.error(gradient, written_out(states, batch, all_frames=True)[1]) > DIFFERENT


def test_ode_clean_frames_do_not_count_under_a_table():
    # The table has no 0, so that x0 of a clean frame misses a little.
    loss, gradient, batch, *_ = run([(4, 1)], replace(STEPS, rounding="table"))
    table = [min(sigma_table(5.0).tolist(), key=lambda entry, s=s: abs(entry - s)) for s in STATES]
    wanted, slopes = written_out([(1,)], without_first_chunk(batch), table)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slopes) < BOUND
    everything, slopes = written_out([(4, 1)], batch, table)
    assert abs(loss - everything) > DIFFERENT and tiny.error(gradient, slopes) > DIFFERENT


def without_first_chunk(batch):
    """Returns the batch without its first chunk."""
    return replace(batch, trajectory=batch.trajectory[:, :, 2:])


def test_ode_sample_without_noise_has_no_loss():
    loss, gradient, *_ = run([(4, 4)])
    assert loss == 0 and not gradient.any()


def test_ode_warped_steps_under_the_shift():
    states = [(0, 1), (2, 3)]
    loss, gradient, batch, generator, _ = run(states, replace(STEPS, shift=3.0, warp=True))
    warped = [3 * s / (1 + 2 * s) for s in STATES]
    wanted, slopes = written_out(states, batch, warped)
    assert abs(loss - wanted) < 1e-6 and tiny.error(gradient, slopes) < 1e-6  # the shifted table is fp32
    assert abs(loss - written_out(states, batch)[0]) > DIFFERENT
    (x, sigma, _, context, clean) = generator.calls[0]
    assert tiny.error(sigma, torch.tensor(warped)[torch.tensor(states)].repeat_interleave(2, 1)) < 1e-6
    assert torch.equal(x[1, 2:], batch.trajectory[1, 3, 2:]) and torch.equal(x[0, :2], batch.trajectory[0, 0, :2])
    assert clean is None and str(context.mask).splitlines() == ["##..", "##..", "####", "####"]


def test_ode_parts_add_up_to_the_batch():
    whole, rng = sample(batch=4, trajectory=trajectory(4)), Rng(5)
    loss = build()
    states = loss.draw_states(whole, rng, whole.index)
    assert (states[:2] < 4).sum() != (states[2:] < 4).sum()  # else a mean of means would pass

    def part_gradient(*parts):
        roles, values = SimpleNamespace(generator=Affine(SLOPE, PUSH)), []
        for own in parts:
            condition = replace(whole.condition, text=whole.condition.text[own], null_text=None)
            part = replace(whole, index=range(4)[own], whole=range(4), condition=condition)
            value, _ = loss(replace(part, trajectory=whole.trajectory[own]), roles, rng)
            (value / len(parts)).backward()
            values.append(value.item())
        return sum(values) / len(values), torch.stack(gradients(roles.generator)[:2])

    (at_once, whole_gradient), (in_parts, gradient) = part_gradient(slice(4)), part_gradient(slice(2), slice(2, 4))
    assert abs(at_once - in_parts) < BOUND and tiny.error(whole_gradient, gradient) < BOUND


def test_ode_window_hides_what_the_cache_would_drop():
    loss = build(cache=CacheConfig(4, 1))
    batch, generator = sample(frames=8, trajectory=torch.zeros(2, 5, 8, 2, 2, 3).double()), Affine(SLOPE, PUSH)
    loss.predict(normal("x", frames=8), rows(torch.ones(2, 8)), batch, SimpleNamespace(generator=generator))
    assert str(generator.calls[0][3].mask).splitlines()[::2] == ["##......", "####....", "#..###..", "#....###"]


@pytest.mark.parametrize(
    ("count", "sigmas", "words"),
    [(4, None, "has 4 states"), (5, (1.0, 0.9, 0.5, 0.25, 0.0), "hold states at sigma")],
)
def test_ode_pairs_of_other_steps_are_refused(count, sigmas, words):
    build().check_trajectory(5, STATES)
    with pytest.raises(ValueError, match=words):
        build().check_trajectory(count, sigmas)


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (GenerationConfig(), "ODE regression needs generation.steps.steps"),
        (GenerationConfig(steps=STEPS, cache=CacheConfig(rope="read")), "not a single masked forward"),
    ],
)
def test_ode_generation_that_cannot_be_trained(generation, words):
    assert not list(OdeConfig().problems_with(GenerationConfig(steps=STEPS)))
    assert words in "".join(OdeConfig().problems_with(generation))
