"""Blocks that take turns on a device, on one that forbids use before arrival and after release; visitors."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from tests import tiny
from tests.fake_device import FakeDevice, is_poisoned
from utils import offload
from utils.offload import BlockSwap, InlineCopier, Visiting
from utils.precision import to_float8
from wan.context import Full


class Layer(nn.Module):
    """A block whose computation tells the device what it reads."""

    def __init__(self, number: int, device):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), number + 1.0), requires_grad=False)
        self.register_buffer("shift", torch.full((2,), number, dtype=torch.float64))
        self.number, self.device = number, device

    def forward(self, x):
        self.device.use(self.weight.data, self.shift.data)
        return x + self.weight.sum() + self.shift.sum()


def network(count: int, resident: int):
    device = FakeDevice()
    layers = [Layer(n, device) for n in range(count)]
    return device, layers, BlockSwap(layers, "cpu", device, resident)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("resident", [2, 3])
def test_weights_are_there_when_a_block_runs_and_not_written_over(count, resident):
    device, layers, swap = network(count, resident)
    assert len(swap.slots) == min(resident, count)
    for _ in range(3):
        for number, layer in enumerate(layers):
            assert layer(torch.zeros(())) == 3 * (number + 1) + 2 * number
    fetched = 3 * count + 1 if count > len(swap.slots) else count
    assert device.copies == fetched, "each block comes once a round, the next round's first is on its way"


def test_the_next_block_is_on_its_way_while_one_runs():
    device, layers, swap = network(5, 3)
    layers[0](torch.zeros(()))
    assert set(swap.arriving) == {0, 1} and len(device.queue) == 1 and is_poisoned(swap.slots[1])


def test_a_round_that_was_broken_off_and_any_order_of_blocks():
    device, layers, _ = network(6, 3)
    for number in (0, 1, 2, 0, 5, 4, 4, 3, 0, 1, 5, 2, 5):
        assert layers[number](torch.zeros(())) == 3 * (number + 1) + 2 * number


def without_wait(monkeypatch):
    monkeypatch.setattr(FakeDevice, "wait", lambda self, copied: None)


def without_order(monkeypatch):
    monkeypatch.setattr(FakeDevice, "mark", lambda self: None)


def one_slot(monkeypatch):
    """The next block comes over the one that runs."""
    fetch = BlockSwap._fetch

    def wrong(self, number, kept=None):
        self.turn = 0
        return fetch(self, number)

    monkeypatch.setattr(BlockSwap, "_fetch", wrong)


@pytest.mark.filterwarnings("ignore:module forward hook")  # after the failure that is wanted
@pytest.mark.parametrize("mutate", [without_wait, without_order, one_slot])
def test_mutations_are_seen(mutate, monkeypatch):
    mutate(monkeypatch)
    _, layers, _ = network(5, 3)
    with pytest.raises((AssertionError, KeyError)):
        for layer in [*layers, *layers]:
            layer(torch.zeros(()))


@pytest.mark.parametrize("narrow", [False, True])
def test_a_network_keeps_its_bits_and_its_state_dict(narrow):
    dtype = torch.bfloat16 if narrow else torch.float32
    wide = tiny.denoiser(dtype=dtype, num_layers=5)
    if narrow:
        to_float8(wide.transformer.blocks)
    swapped = copy.deepcopy(wide)
    swap = offload.place(swapped, "transformer.blocks", "cpu")
    x, condition = tiny.latents(3, dtype=dtype), tiny.condition(dtype=dtype)
    with torch.no_grad():
        for _ in range(2):
            made, wanted = (model(x, 0.7, condition, Full()) for model in (swapped, wide))
            assert torch.equal(made, wanted)
    state, before = swapped.state_dict(), wide.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[n].float(), before[n].float()) for n in before)
    assert len(swap.slots) == 3 and swap.slots[0].numel() >= sum(
        t.numel() * t.element_size() for t in wide.transformer.blocks[0].state_dict().values()
    )


def test_a_block_that_fails_leaves_its_weights_in_cpu_memory():
    device, layers, swap = network(4, 3)
    with pytest.raises(TypeError):
        layers[0](None)
    assert layers[0].weight.data_ptr() == swap.packed[0].bytes.data_ptr()
    assert layers[1](torch.zeros(())) == 8


def test_what_cannot_take_turns_is_refused():
    plain = [nn.Linear(2, 2).requires_grad_(False) for _ in range(3)]
    with pytest.raises(ValueError, match="different shapes"):
        BlockSwap([*plain, nn.Linear(2, 3).requires_grad_(False)], "cpu", InlineCopier())
    with pytest.raises(ValueError, match="trained"):
        BlockSwap([nn.Linear(2, 2)], "cpu", InlineCopier())
    with pytest.raises(ValueError, match="write 2 to 3"):
        BlockSwap(plain, "cpu", InlineCopier(), resident=4)


def test_a_visitor_leaves_and_its_weights_stay_where_they_were():
    module = nn.Linear(4, 4).requires_grad_(False)
    home, seen = module.weight.data_ptr(), []
    module.register_forward_hook(lambda m, *_: seen.append(m.weight.data_ptr()))
    visiting = Visiting(module, "cpu")
    x = torch.randn(2, 4)
    assert torch.equal(visiting(x), nn.functional.linear(x, module.weight, module.bias))
    assert module.weight.data_ptr() == home and seen and seen[0] != home, "it ran on a copy"
    assert visiting.in_features == 4
    with pytest.raises(RuntimeError):
        visiting(torch.randn(2, 5))
    assert module.weight.data_ptr() == home


def test_two_threads_do_not_take_a_visitor_for_one_that_lives_there():
    module = nn.Linear(64, 64).requires_grad_(False)
    home, visiting = module.weight.data_ptr(), Visiting(module, "cpu")
    threads = [threading.Thread(target=lambda: [visiting(torch.ones(1, 64)) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert module.weight.data_ptr() == home
