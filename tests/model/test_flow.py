"""The flow objective: its formula, its sigmas, what a frame sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.base import Sample, draw_noise
from model.config import MODES, FlowConfig
from model.flow import FlowLoss
from tests import tiny, tolerance
from tests.model import stand_in
from tests.model.stand_in import BOUND, DIFFERENT, Affine, normal, rows, text_mean
from utils.config.field import check
from utils.rng import Recording, Rng
from wan.generation import GenerationConfig, StepsConfig
from wan.ledger import CacheConfig
from wan.schedule import Schedule, shift_sigma, sigma_table

MEAN = tolerance.rounding(terms=4096, sums=2)  # relative: a mean of a few thousand squares

MODEL = tiny.denoiser()
RNG = Rng(1)
LAST = 1 - 2.0**-24  # the greatest uniform draw


def sample(batch=3, num_frames=4, chunk=2, step=0, first=0) -> Sample:
    spans = tiny.spans(*[chunk] * (num_frames // chunk))
    return Sample(step, tiny.latents(num_frames, batch), tiny.condition(batch), range(first, first + batch), spans)


def build(config: FlowConfig, shift: float = 5.0, rounding: str = "none", cache: CacheConfig | None = None) -> FlowLoss:
    """Returns the loss of a model that generates with this shift, rounding and cache."""
    return config.build(GenerationConfig(steps=StepsConfig((), shift, True, rounding), cache=cache or CacheConfig()))


def roles(generator=MODEL):
    return SimpleNamespace(generator=generator)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_the_mean_square_of_the_velocity_error(mode):
    loss = build(FlowConfig(mode=mode), shift=3.0)
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
        assert tiny.error(x, (1 - rows) * given.latents + rows * noise) < tolerance.rounding(
            terms=2, sums=2, magnitude=4
        )
        clean = seen["clean"]
        velocity = MODEL(x, sigma, given.condition, loss.context(given), clean)
        wanted = (tiny.healthy(velocity) - (noise - given.latents)).square().mean()
    assert value.item() == pytest.approx(wanted.item(), rel=MEAN) == metrics["loss"].item()
    if mode == "teacher_forcing":
        assert torch.equal(clean.x, given.latents) and bool((clean.sigma == 0).all())
    else:
        assert clean is None


SLOPE, PUSH, PULL = -0.4, 0.9, 0.25
UNIFORM = torch.tensor([[0.375, 0.7], [0.5, 0.1]])  # of two rows, a chunk each; a bidirectional row takes the first
COIN = torch.tensor([[0.2, 0.2], [0.9, 0.2]])  # below the share of clean chunks in the first row alone


def analytic(config: FlowConfig, **knobs):
    """Returns (loss, gradients of slope, push, pull, batch, noise, generator) of an affine generator."""
    batch, noise, generator = stand_in.sample(), normal("noise"), Affine(SLOPE, PUSH, PULL)
    uniform = UNIFORM[:, :1] if config.mode == "bidirectional" else UNIFORM
    recording = Recording([noise, uniform, *[COIN] * bool(config.clean_chunks)])
    loss, _ = build(config, **{"shift": 1.0, **knobs})(batch, roles(generator), recording)
    recording.finish()
    loss.backward()
    found = [torch.zeros(()).double() if g is None else g for g in stand_in.gradients(generator)]
    return loss.detach(), torch.stack(found), batch, noise, generator


def written_out(config, batch, noise, sigma, target=lambda noise, x0: noise - x0, divide_by=None):
    """Returns (loss, gradients), summed over rows and frames; sigma [2, 4]."""
    x0, text, sums, count = batch.latents.detach(), text_mean(batch.condition.text)[:, 0], torch.zeros(4).double(), 0
    for row in range(2):
        for frame in range(4):
            s, clean, drawn = sigma[row, frame], x0[row, frame], noise[row, frame]
            if s == 0:
                continue
            count += 1
            x, c = (1 - s) * clean + s * drawn, torch.tensor(config.context_sigma)
            shown = (1 - c) * clean + c * drawn if config.mode == "teacher_forcing" else torch.zeros_like(x)
            miss = SLOPE * x + PUSH * text[row] + PULL * shown - target(drawn, clean)
            weight = Schedule(1.0).weight(s).double() if config.weight == "bell" else 1.0
            parts = (miss.square(), *(2 * miss * of for of in (x, text[row], shown)))
            sums = sums + weight * torch.stack([part.mean() for part in parts])
    sums = sums / (divide_by or count)
    return sums[0], sums[1:]


def drawn_sigma(config) -> torch.Tensor:
    """Returns the sigma [2, 4] that `analytic` draws under a shift of 1, some chunks clean."""
    sigma = 1 - UNIFORM
    if config.mode == "bidirectional":
        return sigma[:, :1].expand(2, 4)
    if config.clean_chunks:
        sigma = torch.tensor([[0.0, sigma[0, 1]], [sigma[1, 0], sigma[1, 1]]])
    return sigma.repeat_interleave(2, 1)


ANALYTIC = [
    FlowConfig("bidirectional"),
    FlowConfig("diffusion_forcing"),
    FlowConfig("diffusion_forcing", clean_chunks=0.5),
    FlowConfig("teacher_forcing"),
    FlowConfig("teacher_forcing", context_sigma=0.1),
    FlowConfig("diffusion_forcing", weight="bell", clean_chunks=0.5),
]


@pytest.mark.parametrize("config", ANALYTIC, ids=lambda c: f"{c.mode}-{c.weight}-{c.clean_chunks}-{c.context_sigma}")
def test_flow_loss_and_gradient_written_out(config):
    loss, gradient, batch, noise, _ = analytic(config)
    sigma = drawn_sigma(config)
    wanted, slopes = written_out(config, batch, noise, sigma)
    assert abs(loss - wanted) < BOUND and tiny.error(gradient, slopes) < BOUND
    wrong = [{"target": lambda n, x0: x0 - n}, {"divide_by": 9}, *[{"divide_by": 8}] * bool(config.clean_chunks)]
    for changed in wrong:
        other, slopes = written_out(config, batch, noise, sigma, **changed)
        assert abs(loss - other) > DIFFERENT and tiny.error(gradient, slopes) > DIFFERENT


def test_flow_clean_chunk_is_shown_clean_by_the_table():
    config = FlowConfig("diffusion_forcing", clean_chunks=0.5)
    _, _, batch, noise, generator = analytic(config, shift=5.0, rounding="table")
    x, sigma, *_ = generator.calls[0]
    assert not sigma[0, :2].any() and bool((sigma[0, 2:] > 0).all())
    assert torch.equal(x[0, :2], batch.latents[0, :2])
    s = rows(sigma)
    assert tiny.error(x[:, 2:], ((1 - s) * batch.latents + s * noise)[:, 2:]) < BOUND


def test_flow_clean_half_has_the_noise_of_the_noisy_half():
    config = FlowConfig("teacher_forcing", context_sigma=0.1)
    _, _, batch, noise, generator = analytic(config)
    clean = generator.calls[0][4]
    s = rows([0.1, 0.1])
    assert tiny.error(clean.x, (1 - s) * batch.latents + s * noise) < BOUND
    assert torch.equal(clean.sigma, torch.full((2, 4), 0.1))


def test_sigma_is_one_per_clip_or_one_per_chunk():
    given = sample(num_frames=6, batch=64)
    for mode in MODES:
        sigma = build(FlowConfig(mode=mode)).draw_sigma(given, RNG)
        assert sigma.shape == (64, 6) and bool((sigma > 0).all()) and bool((sigma <= 1).all())
        chunks = sigma.view(64, 3, 2)
        assert torch.equal(chunks[..., 0], chunks[..., 1])
        alike = (chunks[:, 0, 0] == chunks[:, 1, 0]).float().mean()
        assert alike == (1 if mode in ("bidirectional", "same_step") else 0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sigma_is_uniform_before_the_shift(shift):
    sigma = build(FlowConfig(), shift).draw_sigma(sample(batch=2000, num_frames=2), RNG)[:, 0]
    u = sigma / (shift - (shift - 1) * sigma)
    counts = torch.histc(u, 10, 0, 1)
    assert (counts - 200).abs().max() < 4.5 * (200 * 0.9) ** 0.5


def test_draws_belong_to_the_sample_not_to_its_place():
    loss = build(FlowConfig(mode="diffusion_forcing", clean_chunks=0.3))
    whole = sample(batch=4)
    part = sample(batch=2, first=2)
    assert torch.equal(loss.draw_sigma(whole, RNG)[2:], loss.draw_sigma(part, RNG))
    assert torch.equal(draw_noise(whole, RNG)[2:], draw_noise(part, RNG))
    other = sample(batch=4, step=1)
    assert not torch.equal(loss.draw_sigma(whole, RNG), loss.draw_sigma(other, RNG))
    assert not torch.equal(draw_noise(whole, RNG), draw_noise(other, RNG))


def test_clean_chunks_have_no_velocity_to_learn_and_the_last_is_never_clean():
    loss = build(FlowConfig(mode="diffusion_forcing", clean_chunks=0.5))
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
    loss = build(FlowConfig(mode=mode), cache=cache)
    given = sample(batch=1, num_frames=num_frames, chunk=chunk)
    sigma = loss.draw_sigma(given, RNG)
    x = tiny.latents(num_frames, seed=3).requires_grad_(True)
    clean = loss.clean_half(given, RNG, draw_noise(given, RNG))
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
    assert reach("diffusion_forcing") == reach("same_step") == ["##....", "####..", "######"]
    assert reach("teacher_forcing") == ["##....", "..##..", "....##"]
    assert reach("teacher_forcing", through="clean") == ["......", "##....", "####.."]


def test_the_window_hides_what_the_cache_would_have_dropped():
    # Two blocks: what a neighbour saw is seen through it, so the window is told by the mask.
    loss = build(FlowConfig(mode="diffusion_forcing"), cache=CacheConfig(5, 1))
    assert str(loss.context(sample(batch=1, num_frames=8)).mask).splitlines()[::2] == [
        "##......",
        "####....",
        "#.####..",
        "#...####",
    ]


def test_the_bell_weights_the_middle():
    given, bell, flat = sample(batch=64), build(FlowConfig(weight="bell")), build(FlowConfig())
    error = roles(lambda x, sigma, *rest: draw_noise(given, RNG) - given.latents + 1)
    sigma = flat.draw_sigma(given, RNG)
    assert flat(given, error, RNG)[0].item() == pytest.approx(1, rel=MEAN)
    assert bell(given, error, RNG)[0].item() == pytest.approx(Schedule(5.0).weight(sigma).mean().item(), rel=MEAN)


def test_gradients_reach_every_weight():
    model = tiny.denoiser().requires_grad_(True)
    loss, _ = build(FlowConfig(mode="teacher_forcing"))(sample(), roles(model), RNG)
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "causal"}, "write one of"),
        ({"weight": "x"}, "uniform or bell"),
        ({"clean_chunks": 1.0}, "write less"),
        ({"context_sigma": 2.0}, "context_sigma"),
    ],
)
def test_wrong_knobs(wrong, words):
    with pytest.raises(ValueError, match=words):
        check(FlowConfig(**wrong))


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_that_no_mask_stands_for_is_refused_where_there_is_a_mask(mode):
    generation = GenerationConfig(cache=CacheConfig(rope="read"))
    problems = list(FlowConfig(mode=mode).problems_with(generation))
    assert ("not a single masked forward" in "".join(problems)) == (mode in ("diffusion_forcing", "teacher_forcing"))


def shown(config: FlowConfig, uniform: torch.Tensor, shift: float, rounding: str = "none"):
    """Returns (the clean half that the generator is given, the batch, its noise) under a recorded draw per chunk."""
    batch = sample(batch=2, num_frames=2 * uniform.shape[1])
    noise = draw_noise(batch, RNG)
    recording = Recording([uniform.to(noise)])
    half = build(config, shift, rounding).clean_half(batch, recording, noise)
    recording.finish()
    return half, batch, noise


def test_clean_half_is_drawn_within_its_range():
    """At the ends of the draw lie the ends of the range, in between what the shift makes of the middle."""
    config, uniform = FlowConfig("teacher_forcing", context_range=(0.2, 0.6)), torch.tensor([[0.0, LAST], [0.5, 0.25]])
    half, batch, noise = shown(config, uniform, shift=3.0)
    times = [0.2 / 2.6, 0.6 / 1.8]  # sigma / (s - (s - 1) sigma)
    middle = times[1] + (times[0] - times[1]) * uniform
    wanted = 3 * middle / (1 + 2 * middle)
    assert wanted[0].tolist() == pytest.approx([0.6, 0.2])
    assert tiny.error(half.sigma, wanted.repeat_interleave(2, 1)) < tolerance.rounding(terms=4, sums=4)
    rows = half.sigma[:, :, None, None, None]
    assert tiny.error(half.x, (1 - rows) * batch.latents + rows * noise) < tolerance.rounding(3, 2, 4)
    assert half.kind == "clean" and len({round(s, 5) for s in half.sigma.flatten().tolist()}) == 4, "one draw per chunk"


@pytest.mark.parametrize("entries", [1, 7, 300])
def test_range_of_the_noisiest_entries_is_theirs(entries):
    """N entries from the top of the table, each index once: noise_augmentation_max_timestep."""
    low = shift_sigma(1 - entries / 1000, 5.0)
    index = torch.arange(2 * entries).reshape(2, entries) % entries
    config = FlowConfig("teacher_forcing", context_range=(low, 1.0))
    half, _, _ = shown(config, index.double() / entries, 5.0, "table")
    assert torch.equal(half.sigma[:, ::2].float(), sigma_table(5.0)[index])


def test_clean_half_at_zero_stays_clean():
    config = FlowConfig("teacher_forcing", context_range=(0.0, 0.5))
    half, batch, _ = shown(config, torch.tensor([[LAST, 0.0], [0.5, 0.5]]), 3.0)
    assert tiny.error(half.x[0, :2], batch.latents[0, :2]) < tolerance.rounding(3, 2, 4)
    assert not torch.equal(half.x[0, 2:], batch.latents[0, 2:])


def test_clean_half_does_not_depend_on_the_batch():
    config = FlowConfig("teacher_forcing", context_range=(0.0, 0.5))
    loss, whole, part = build(config), sample(batch=3), sample(batch=1, first=2)
    halves = [loss.clean_half(batch, RNG, torch.zeros_like(batch.latents)) for batch in (whole, part)]
    assert torch.equal(halves[0].sigma[2:], halves[1].sigma) and halves[0].sigma.std() > 0.01


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"context_range": (0.3,)}, "two noise levels"),
        ({"context_range": (0.4, 0.3)}, "two noise levels"),
        ({"context_range": (-0.1, 0.3)}, "context_range"),
        ({"context_range": (0.1, 1.5)}, "context_range"),
        ({"context_range": (0.1, 0.2, 0.3)}, "two noise levels"),
        ({"context_range": (0.1, 0.3), "context_sigma": 0.2}, "context_sigma=0"),
        ({"context_range": (0.1, 0.3), "mode": "diffusion_forcing"}, "mode=teacher_forcing"),
    ],
)
def test_wrong_context_ranges_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        check(FlowConfig(**{"mode": "teacher_forcing", **knobs}))
