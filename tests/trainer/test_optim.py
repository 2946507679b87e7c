"""Optimisers: Muon against torch's, who gets which weights, clipping, the learning-rate schedule."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests import tiny, tolerance
from trainer.config import OptimConfig, RateConfig
from trainer.optim import Muon, Optim, learning_rate_factor, orthogonalise
from utils.config.field import check


def network() -> nn.Module:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 9), nn.LayerNorm(9)]), "head": nn.Linear(9, 4)})
    return model.requires_grad_(True)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (1, 12)])
def test_orthogonalise(shape, wide):
    matrices = tiny.draw("m", shape=(3, *shape))
    got = orthogonalise(matrices)
    for matrix, made in zip(matrices, got, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(made)
        assert 0.4 < values.min() and values.max() < 1.4  # nearly 1: the quintic trades precision for speed
        cosine = (made * (u @ v)).sum() / made.norm() / (u @ v).norm()
        assert cosine > 0.97
        assert tiny.error(made, orthogonalise(matrix[None])[0]) < tolerance.EXACT


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
def test_muon_against_torch(shape):
    ours = [nn.Parameter(tiny.draw("w", i, shape=shape)) for i in range(3)]  # of one shape: stepped together
    theirs = copy.deepcopy(ours)
    knobs = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    a = Muon(ours, **knobs)
    b = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **knobs)
    begin = [w.detach().clone() for w in ours]
    for step in range(4):
        for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            x.grad = tiny.draw("g", step, i, shape=shape)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, start in zip(ours, theirs, begin, strict=True):
        moved = (y - start).norm()
        assert moved > 0.1
        assert (x - y).norm() / moved < 0.03  # torch iterates in bf16


def test_muon_takes_kernels_as_matrices():
    kernel = nn.Parameter(tiny.draw("k", shape=(8, 4, 3, 3)))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    for weight in (kernel, flat):
        weight.grad = tiny.draw("g", shape=(8, 36)).view_as(weight)
        Muon([weight], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), flat)


def test_who_gets_what():
    model = network()
    muon = Optim(model, OptimConfig("muon", lr=0.1, lr_rest=0.2), 10)
    adamw, matrices = muon.parts
    taken = {id(p) for g in matrices.param_groups for p in g["params"]}
    assert taken == {id(model["blocks"][0].weight)}
    rest = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert rest == {id(p) for p in model.parameters()} - taken
    assert (adamw.param_groups[0]["lr"], matrices.param_groups[0]["lr"]) == (0.2, 0.1)
    assert len(Optim(model, OptimConfig("adamw", lr=0.1), 10).parts) == 1
    everything = Optim(model, OptimConfig("muon", matrices=""), 10)
    assert len(everything.parts[1].param_groups[0]["params"]) == 2
    model["head"].requires_grad_(False)
    assert len(Optim(model, OptimConfig("adamw"), 10).parameters) == 4


def test_a_part_may_have_a_rate_of_its_own():
    model = network()
    optim = Optim(model, OptimConfig("adamw", lr=0.1, decay=1.0), 10, {"head.": 0.5})
    rates = {id(p): group["lr"] for group in optim.parts[0].param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {
        name: 0.05 if name.startswith("head.") else 0.1 for name, _ in model.named_parameters()
    }
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optim.step(5)  # half of the schedule is over
    assert [group["lr"] for group in optim.parts[0].param_groups] == [0.05, 0.025]


def test_rates_by_name_for_both_optimisers():
    model = network()
    own = [RateConfig("head.", 0.01), RateConfig("blocks.0.w", 0.03)]
    optim = Optim(model, OptimConfig("muon", lr=0.1, lr_rest=0.2, rates=own), 10)
    adamw, muon = optim.parts
    rates = {id(p): group["lr"] for part in (adamw, muon) for group in part.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {
        **dict.fromkeys(("head.weight", "head.bias"), 0.01),
        **dict.fromkeys(("blocks.0.bias", "blocks.1.weight", "blocks.1.bias"), 0.2),
        "blocks.0.weight": 0.03,
    }
    assert [p is model["blocks"][0].weight for group in muon.param_groups for p in group["params"]] == [True]
    with pytest.raises(ValueError, match="begins with 'audio'; trained are those of blocks., head."):
        Optim(model, OptimConfig("adamw", rates=[RateConfig("audio", 0.1)]), 10)
    with pytest.raises(ValueError, match="starts is empty"):
        check(OptimConfig(rates=[RateConfig()]))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_clips_moves_clears_and_tells_the_norm(name):
    model = network()
    optim = Optim(model, OptimConfig(name, lr=0.1, lr_rest=0.1, clip=0.5), 10)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    wanted = 3.0 * sum(p.numel() for p in model.parameters()) ** 0.5
    before = [p.detach().clone() for p in model.parameters()]
    assert optim.step(0).item() == pytest.approx(wanted, rel=1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_the_clipped_gradient_is_what_counts():
    results = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        model = network()
        optim = Optim(model, OptimConfig("adamw", lr=0.1, clip=1e-3), 10)
        for turn in range(2):
            for p in model.parameters():
                p.grad = scale * (1 + turn) * tiny.draw("g", turn, shape=p.shape)
            optim.step(turn)
        results.append([p.detach() for p in model.parameters()])
    assert all(tiny.error(a, b) < 1e-5 for a, b in zip(*results, strict=True))


def test_the_schedule():
    falls = OptimConfig(warmup=4, decay=0.4)
    rates = [learning_rate_factor(step, 10, falls) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert learning_rate_factor(0, 10, OptimConfig()) == 1 == learning_rate_factor(9, 10, OptimConfig())
    cosine = [learning_rate_factor(step, 10, replace(falls, decay_form="cosine")) for step in range(6, 10)]
    assert cosine == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    model = network()
    optim = Optim(model, OptimConfig("muon", lr=1.0, lr_rest=0.1, warmup=4, decay=0.4), 10)
    for step, rate in enumerate(rates):
        optim.step(step)
        assert [p.param_groups[0]["lr"] for p in optim.parts] == pytest.approx([0.1 * rate, rate])


def test_state_comes_back():
    first, second = network(), network()
    a, b = (Optim(m, OptimConfig("muon"), 10) for m in (first, second))

    def move(model, optim, step):
        for p in model.parameters():
            p.grad = tiny.draw("g", step, shape=p.shape)
        optim.step(step)

    move(first, a, 0)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for model, optim in ((first, a), (second, b)):
        move(model, optim, 1)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "sgd"}, "write adamw or muon"),
        ({"lr": 0}, "lr is 0; write"),
        ({"clip": 0}, "clip is 0; write"),
        ({"decay_form": "sine"}, "decay_form is 'sine'; write linear or cosine"),
        ({"decay": 2}, "decay is 2; write 0 to 1"),
    ],
)
def test_wrong_knobs(wrong, words):
    with pytest.raises(ValueError, match=words):
        check(OptimConfig(**wrong))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_by_name_not_by_place(name):
    """Whatever else is frozen or stands before a weight, it gets its own state back."""
    first, second = network(), nn.ModuleDict({"more": nn.Linear(2, 2).requires_grad_(False), **network()})
    a, b = (Optim(m, OptimConfig(name, lr=0.1, weight_decay=w), 10) for m, w in ((first, 0.5), (second, 0.25)))
    for turn in range(2):
        for n, p in first.named_parameters():
            if n != "head.bias":  # never had a gradient
                p.grad = tiny.draw(n, turn, shape=p.shape)
        a.step(turn)
    assert all("head.bias" not in state for state in (a.state_dict(), transfer(b, a)))
    assert a.weights().keys() == b.weights().keys() == dict(first.named_parameters()).keys()
    b.load_weights({n: w.clone() for n, w in a.weights().items()})
    for n, p in first.named_parameters():
        assert torch.equal(p, second.get_parameter(n))
    assert {g["weight_decay"] for part in b.parts for g in part.param_groups} == {0.25}, "the recipe decides"
    with pytest.raises(ValueError, match="head.bias is trained here and not there"):
        b.load_weights({n: w for n, w in a.weights().items() if n != "head.bias"})


def transfer(optim: Optim, other: Optim) -> dict:
    """Loads another's state and returns what is held then, after checking that it is the same."""
    saved = copy.deepcopy(other.state_dict())
    optim.load_state_dict(saved)
    held = optim.state_dict()
    assert held.keys() == saved.keys()
    for name, state in saved.items():
        assert state.keys() == held[name].keys() and all(torch.equal(v, held[name][k]) for k, v in state.items())
    return held
