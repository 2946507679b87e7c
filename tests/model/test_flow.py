"""The flow objective: its formula, its sigmas, what a frame sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.base import Sample, draw_noise
from model.flow import MODES, FlowConfig
from tests import tiny
from utils.rng import Rng
from wan.ledger import CacheConfig
from wan.schedule import Schedule

MODEL = tiny.denoiser()
RNG = Rng(1)


def sample(batch=3, num_frames=4, chunk=2, step=0, first=0) -> Sample:
    spans = tiny.spans(*[chunk] * (num_frames // chunk))
    return Sample(step, tiny.latents(num_frames, batch), tiny.condition(batch), range(first, first + batch), spans)


def roles(generator=MODEL):
    return SimpleNamespace(generator=generator)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_the_mean_square_of_the_velocity_error(mode):
    loss = FlowConfig(mode=mode, shift=3.0).build()
    seen = {}

    def generator(x, sigma, condition, context, clean=None):
        seen.update(x=x, sigma=sigma, clean=clean)
        return MODEL(x, sigma, condition, context, clean)

    given = sample()
    with torch.no_grad():
        value, metrics = loss(given, roles(generator), RNG)
        x, sigma = seen["x"], seen["sigma"]
        noise = draw_noise(given, RNG)
        rows = sigma[:, :, None, None, None]
        assert tiny.error(x, (1 - rows) * given.latents + rows * noise) < 1e-6
        clean = seen["clean"]
        velocity = MODEL(x, sigma, given.condition, loss.context(given), clean)
        wanted = (tiny.healthy(velocity) - (noise - given.latents)).square().mean()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5) == metrics["loss"].item()
    if mode == "teacher_forcing":
        assert torch.equal(clean.x, given.latents) and bool((clean.sigma == 0).all())
    else:
        assert clean is None


def test_sigma_is_one_per_clip_or_one_per_chunk():
    given = sample(num_frames=6, batch=64)
    for mode in MODES:
        sigma = FlowConfig(mode=mode).build().draw_sigma(given, RNG)
        assert sigma.shape == (64, 6) and bool((sigma > 0).all()) and bool((sigma <= 1).all())
        chunks = sigma.view(64, 3, 2)
        assert torch.equal(chunks[..., 0], chunks[..., 1])
        alike = (chunks[:, 0, 0] == chunks[:, 1, 0]).float().mean()
        assert alike == (1 if mode == "bidirectional" else 0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigma_is_uniform_before_the_shift(shift):
    sigma = FlowConfig(shift=shift).build().draw_sigma(sample(batch=2000, num_frames=2), RNG)[:, 0]
    u = sigma / (shift - (shift - 1) * sigma)
    counts = torch.histc(u, 10, 0, 1)
    assert (counts - 200).abs().max() < 4.5 * (200 * 0.9) ** 0.5


def test_draws_belong_to_the_sample_not_to_its_place():
    loss = FlowConfig(mode="diffusion_forcing", clean_chunks=0.3).build()
    whole = sample(batch=4)
    part = sample(batch=2, first=2)
    assert torch.equal(loss.draw_sigma(whole, RNG)[2:], loss.draw_sigma(part, RNG))
    assert torch.equal(draw_noise(whole, RNG)[2:], draw_noise(part, RNG))
    other = sample(batch=4, step=1)
    assert not torch.equal(loss.draw_sigma(whole, RNG), loss.draw_sigma(other, RNG))
    assert not torch.equal(draw_noise(whole, RNG), draw_noise(other, RNG))


def test_clean_chunks_have_no_velocity_to_learn_and_the_last_is_never_clean():
    loss = FlowConfig(mode="diffusion_forcing", clean_chunks=0.5).build()
    given = sample(batch=400, num_frames=6)
    sigma = loss.draw_sigma(given, RNG)
    clean = (sigma == 0).float()
    assert clean[:, 4:].sum() == 0
    assert clean[:, :4].mean() == pytest.approx(0.5, abs=0.06)

    def generator(x, sigma, *rest):  # exact where there is noise, absurd where there is none
        return torch.where(sigma[:, :, None, None, None] > 0, draw_noise(given, RNG) - given.latents, 1e3)

    value, _ = loss(given, roles(generator), RNG)
    assert value == 0
    value, _ = loss(given, roles(lambda x, sigma, *rest: torch.zeros_like(x)), RNG)
    assert value.item() == pytest.approx(2.0, abs=0.1)  # |noise - x0|^2 of two unit normals, whatever the share


def reach(mode, cache=None, num_frames=6, chunk=2, through="x"):
    """Returns which input frame changes the loss target's frames: [output chunk, input frame]."""
    loss = FlowConfig(mode=mode, cache=cache or CacheConfig()).build()
    given = sample(batch=1, num_frames=num_frames, chunk=chunk)
    sigma = loss.draw_sigma(given, RNG)
    x = tiny.latents(num_frames, seed=3).requires_grad_(True)
    clean = loss._clean(given, draw_noise(given, RNG))
    if clean is not None and through == "clean":
        clean.x.requires_grad_(True)
    velocity = MODEL(x, sigma, given.condition, loss.context(given), clean)
    source = clean.x if through == "clean" else x
    rows = []
    for span in given.spans:
        (gradient,) = torch.autograd.grad(velocity[:, span.start : span.stop].square().sum(), source, retain_graph=True)
        rows.append("".join("#" if g.abs().max() > 1e-9 else "." for g in gradient[0]))
    return rows


def test_what_a_chunk_sees():
    assert reach("bidirectional") == ["######"] * 3
    assert reach("diffusion_forcing") == ["##....", "####..", "######"]
    assert reach("teacher_forcing") == ["##....", "..##..", "....##"]
    assert reach("teacher_forcing", through="clean") == ["......", "##....", "####.."]


def test_the_window_hides_what_the_cache_would_have_dropped():
    # Two blocks: what a neighbour saw is seen through it, so the window is told by the mask.
    loss = FlowConfig(mode="diffusion_forcing", cache=CacheConfig(5, 1)).build()
    assert str(loss.context(sample(batch=1, num_frames=8)).mask).splitlines()[::2] == [
        "##......",
        "####....",
        "#.####..",
        "#...####",
    ]


def test_the_bell_weights_the_middle():
    given, bell, flat = sample(batch=64), FlowConfig(weight="bell").build(), FlowConfig().build()
    error = roles(lambda x, sigma, *rest: draw_noise(given, RNG) - given.latents + 1)
    sigma = flat.draw_sigma(given, RNG)
    assert flat(given, error, RNG)[0].item() == pytest.approx(1, rel=1e-5)
    assert bell(given, error, RNG)[0].item() == pytest.approx(Schedule(5.0).weight(sigma).mean().item(), rel=1e-5)


def test_gradients_reach_every_weight():
    model = tiny.denoiser().requires_grad_(True)
    loss, _ = FlowConfig(mode="teacher_forcing").build()(sample(), roles(model), RNG)
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "causal"}, "write one of"),
        ({"weight": "x"}, "uniform or bell"),
        ({"clean_chunks": 1.0}, r"\[0, 1\)"),
        ({"context_sigma": 2.0}, "context_sigma"),
        ({"cache": CacheConfig(rope="read")}, "no single masked forward"),
    ],
)
def test_wrong_knobs(wrong, words):
    with pytest.raises(ValueError, match=words):
        FlowConfig(**wrong).check()
