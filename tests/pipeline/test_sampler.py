"""Samplers and solvers on a field whose answer is known: straight lines from noise to x0."""

from __future__ import annotations

import io

import pytest
import torch

from pipeline.config import SOLVERS, FewStepConfig, MultiStepConfig
from pipeline.rollout import guided
from pipeline.sampler import FewStep, MultiStep, RandomExit, sample
from pipeline.solver import Solver
from tests import tiny, tolerance
from utils.config.field import check
from wan.generation import StepsConfig
from wan.geometry import Span
from wan.schedule import Schedule

NOISE, X0 = tiny.latents(3, 2, 1), tiny.latents(3, 2, 2)
SIGMAS = (1.0, 0.9, 0.5)
ROUNDED = tolerance.rounding(terms=6, sums=6, magnitude=8)  # fp32: six steps of six terms, of values up to 8


def renoise(k: int) -> torch.Tensor:
    return tiny.latents(3, 2, 100 + k)


def no_noise(k: int) -> torch.Tensor:
    raise AssertionError("a multi-step walk draws no noise")


class Field:
    """The velocity towards `x0` from anywhere, and the sigmas it was told."""

    def __init__(self, x0=X0):
        self.x0, self.note = x0, []

    def __call__(self, x, sigma):
        self.note.append(sigma)
        return (x - self.x0) / sigma


def test_few_steps_reach_x0():
    field = Field()
    assert tiny.error(sample(FewStep(SIGMAS, Schedule()), NOISE, field, renoise), tiny.healthy(X0)) < ROUNDED
    assert field.note == list(SIGMAS), "every step of the list is run, the last one too"


def test_few_steps_renoise_with_the_noise_of_the_next_step():
    """Written out: x = (1 - s) x0 + s noise_k, with k counted from the chunk's start."""
    seen = []

    def predict(x, sigma):
        seen.append(x)
        return 0.5 * x

    out = sample(FewStep(SIGMAS, Schedule()), NOISE, predict, renoise)
    x = NOISE
    for k, sigma in enumerate(SIGMAS):
        assert tiny.error(seen[k], x) < ROUNDED
        x0 = x - sigma * 0.5 * x
        if k < 2:
            x = (1 - SIGMAS[k + 1]) * x0 + SIGMAS[k + 1] * renoise(k + 1)
            assert tiny.error(x, seen[k + 1].flip(1)) > 0.1
    assert tiny.error(out, x0) < ROUNDED


def test_steps_are_public():
    sampler, x = FewStep(SIGMAS, Schedule()), NOISE
    for k in range(sampler.num_steps):
        x = sampler.step(k, x, lambda x, sigma: 0.5 * x, renoise)
    assert torch.equal(x, sample(sampler, NOISE, lambda x, sigma: 0.5 * x, renoise))


def test_few_steps_snap():
    """Told sigmas stay those of the list; the mixing uses the table's."""
    field, table = Field(), Schedule(5.0, "table")
    out = sample(FewStep((0.7301,), table), NOISE, field, renoise)
    wanted = NOISE - table.rounded(torch.tensor(0.7301)) * (NOISE - X0) / 0.7301
    assert field.note == [0.7301] and tiny.error(out, wanted) < ROUNDED
    assert tiny.error(out, X0) > 1e-4


def test_few_steps_keep_the_latents_dtype():
    out = sample(FewStep(SIGMAS, Schedule()), NOISE, lambda x, sigma: (0.5 * x).bfloat16(), renoise)
    assert out.dtype == torch.float32


def exits(with_grad=True):
    few = FewStep(SIGMAS, Schedule())
    return RandomExit(few, lambda span: span.start % 3, lambda span: with_grad)


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_a_chunk_stops_at_its_exit_step(exit_step):
    scale, grads = torch.tensor(0.5, requires_grad=True), []

    def predict(x, sigma):
        grads.append((sigma, torch.is_grad_enabled()))
        return scale * x

    out = sample(exits().at(Span(exit_step, exit_step + 3)), NOISE, predict, renoise)
    assert grads == [(sigma, k == exit_step) for k, sigma in enumerate(SIGMAS[: exit_step + 1])]
    x = NOISE
    for k in range(exit_step):
        x = (1 - SIGMAS[k + 1]) * (1 - 0.5 * SIGMAS[k]) * x + SIGMAS[k + 1] * renoise(k + 1)
    assert tiny.error(out, (1 - 0.5 * SIGMAS[exit_step]) * x) < ROUNDED
    out.sum().backward()
    assert scale.grad.item() == pytest.approx(-SIGMAS[exit_step] * x.sum().item(), rel=1e-4)


def test_a_chunk_may_carry_no_gradient():
    scale = torch.tensor(0.5, requires_grad=True)
    assert not sample(exits(with_grad=False).at(Span(1, 4)), NOISE, lambda x, _: scale * x, renoise).requires_grad
    assert torch.is_grad_enabled()


def test_an_exit_does_not_undo_no_grad():
    """Who runs a rollout without grad (a critic's turn, an evaluation) keeps no graph."""
    scale = torch.tensor(0.5, requires_grad=True)
    with torch.no_grad():
        assert not sample(exits().at(Span(1, 4)), NOISE, lambda x, _: scale * x, renoise).requires_grad


DRAWING = "dpm_sde"  # takes fresh noise in each step
WALKS = [name for name in SOLVERS if name != DRAWING]


def test_a_stochastic_solver_draws_in_each_step_but_the_last():
    """With the right x0 told at every step it ends there, whatever it draws; and it draws anew for each step."""
    asked = []

    def noise(number: int) -> torch.Tensor:
        asked.append(number)
        return tiny.draw("fresh", number, shape=NOISE.shape)

    sampler = MultiStep(Solver(DRAWING, 5, 1.0, "trailing"))
    out = sample(sampler, NOISE, lambda x, sigma: (x - X0) / sigma, noise)
    assert tiny.error(out, tiny.healthy(X0)) < ROUNDED and asked == [1, 2, 3, 4]


@pytest.mark.parametrize("name", WALKS)
def test_solvers_are_exact_on_straight_lines(name):
    """A constant velocity leaves the walk on its line, whatever the order of the method."""
    velocity, sampler = NOISE - X0, MultiStep(Solver(name, 6, 3.0))
    walk = sampler.start()
    out = sample(sampler, NOISE, lambda x, sigma: velocity, no_noise)
    assert tiny.error(out, tiny.healthy(NOISE - float(walk.sigmas[0]) * velocity)) < ROUNDED
    assert len(walk) == sampler.num_steps == 6 and walk.sigmas[-1] == 0


@pytest.mark.parametrize("name", WALKS)
def test_solvers_converge(name):
    """dx/dsigma = x - a has the solution a + (x1 - a) e^(sigma - 1): more steps, smaller error."""

    def solver_error(num_steps: int) -> float:
        out = sample(MultiStep(Solver(name, num_steps, 1.0)), NOISE, lambda x, sigma: x - X0, no_noise)
        return tiny.error(out, X0 + (NOISE - X0) * torch.tensor(-1.0).exp())

    few, many = solver_error(5), solver_error(40)
    assert many < 0.3 * few < 0.3
    assert many < 0.05


@pytest.mark.parametrize("name", WALKS)
def test_every_chunk_has_its_own_walk(name):
    sampler = MultiStep(Solver(name, 5, 3.0))
    first, again = (sample(sampler, NOISE, lambda x, sigma: x.tanh(), no_noise) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", SOLVERS)
def test_told_sigmas(name):
    walk = Solver(name, 8, 5.0).start()
    note = torch.tensor(walk.model_sigmas)
    assert (note.diff() < 0).all() and 0.999 <= note[0] <= 1 and note[-1] > 0
    assert (note - walk.sigmas[:-1].cpu()).abs().max() <= 1e-3, "truncated to whole timesteps at most"


def test_guidance():
    calls = []

    def denoiser(x, sigma, condition, context):
        calls.append((condition.key, context))
        return condition.text.mean() * x

    text = tiny.condition()
    c, u = text.text.mean(), text.null_text.mean()
    given = guided(denoiser, text, ["first", "second"], 3.0)(NOISE, 0.5)
    assert tiny.error(given, (u + 3 * (c - u)) * NOISE) < ROUNDED
    assert tiny.error(given, (c + 3 * (c - u)) * NOISE) > 0.01, "the other convention"
    assert calls == [(text.key, "first"), ((text.key, "null"), "second")]
    assert torch.equal(guided(denoiser, text, ["only"], 1.0)(NOISE, 0.5), c * NOISE)
    assert len(calls) == 3


def test_configs_build():
    steps = StepsConfig((1000, 500), shift=5.0)
    few = FewStepConfig(guidance=2.0).build(steps)
    assert few.sigmas == pytest.approx((1.0, 0.8333333)) and few.guidance == 2.0
    many = MultiStepConfig("euler", 7, 3.0, 4.0).build(steps)
    assert (many.num_steps, many.guidance, many.solver) == (7, 4.0, Solver("euler", 7, 3.0))
    assert MultiStepConfig("euler", 7).build(steps).solver == Solver("euler", 7, 5.0), "the shift of the training"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MultiStepConfig(solver="heun"), "solver 'heun' is unknown; write one of"),
        (MultiStepConfig(num_steps=0), "num_steps is 0; write 1"),
        (MultiStepConfig(shift=-1), "shift is -1; write 0, or"),
    ],
)
def test_wrong_knobs(config, message):
    with pytest.raises(ValueError, match=message):
        check(config)


def shipped(message: dict) -> dict:
    """Returns what arrives in another process: tensors and numbers, no code."""
    file = io.BytesIO()
    torch.save(message, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def interrupted(sampler, at: int, predict, with_state=True) -> torch.Tensor:
    """Returns the result of a chunk that is handed on to another process after `at` steps."""
    x, steps = NOISE, sampler.start()
    for k in range(sampler.num_steps):
        if k == at:
            message = shipped({"x": x, "steps": steps.state_dict()})
            x, steps = message["x"], sampler.start()
            if with_state:
                steps.load_state_dict(message["steps"])
        x = sampler.step(k, x, predict, renoise, steps)
    return x


CURVED = {"few_step": FewStep(SIGMAS, Schedule()), **{n: MultiStep(Solver(n, 6, 3.0)) for n in SOLVERS}}


@pytest.mark.parametrize("name", CURVED)
def test_sampler_state_goes_on_after_any_step(name):
    sampler, predict = CURVED[name], lambda x, sigma: x.tanh() * sigma
    wanted = sample(sampler, NOISE, predict, renoise)
    for at in range(sampler.num_steps):
        assert torch.equal(interrupted(sampler, at, predict), wanted), at


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_sampler_state_left_behind_shows(name):
    """The twin: a multi-step method that forgets its earlier steps is another one."""
    sampler, predict = CURVED[name], lambda x, sigma: x.tanh() * sigma
    wanted = sample(sampler, NOISE, predict, renoise)
    assert tiny.error(interrupted(sampler, 3, predict, with_state=False), wanted) > 1e-4


@pytest.mark.parametrize("name", CURVED)
def test_sampler_diffuse_is_the_line_to_noise(name):
    """A chunk whose result is x0 already is at x of step k on the way there, if nothing is predicted but x0."""
    sampler, steps = CURVED[name], CURVED[name].start()
    x, same = NOISE, lambda k: NOISE
    for k in range(sampler.num_steps):
        sigma = sampler.sigmas[k] if name == "few_step" else float(steps.sigmas[k])
        start = sampler.diffuse(k, X0, same)
        assert tiny.error(start, (1 - sigma) * X0 + sigma * NOISE) < 1e-6
        x = sampler.step(k, start, lambda x, sigma: NOISE - X0, same, steps)
    assert tiny.error(x, X0) < 1e-4 and len(sampler.model_sigmas) == sampler.num_steps
