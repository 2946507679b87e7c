"""Work that goes on while the next chunk is made: order, overlap, how far ahead, what becomes of errors."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pipeline.decoder import WAITING, Ahead

CPU = torch.device("cpu")
KINDS = [None, CPU]


def numbers(count):
    return [torch.tensor(n) for n in range(count)]


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_calls_are_made_in_order_and_all_are_made_at_the_end(device):
    seen = []
    with Ahead(device) as ahead:
        for x in numbers(9):
            ahead(lambda y: (time.sleep(0.002 * (3 - int(y) % 3)), seen.append(int(y))), x)
    assert seen == list(range(9))


def test_without_a_device_a_call_is_made_at_once_and_by_the_caller():
    with Ahead(None) as ahead:
        seen = []
        ahead(lambda y: seen.append(threading.current_thread()), torch.zeros(1))
        assert seen == [threading.current_thread()]


def test_a_call_runs_while_the_caller_goes_on():
    """Each waits for the other, which only two threads can do."""
    inside, go_on = threading.Event(), threading.Event()

    def call(x):
        inside.set()
        assert go_on.wait(30)

    with Ahead(CPU) as ahead:
        ahead(call, torch.zeros(1))
        assert inside.wait(30)
        go_on.set()


def test_no_more_than_a_few_calls_wait():
    free, left = threading.Event(), threading.Event()

    def fill():
        with Ahead(CPU) as ahead:
            for x in numbers(WAITING + 1):
                ahead(lambda y: free.wait(30), x)
            left.set()

    filling = threading.Thread(target=fill)
    filling.start()
    assert not left.wait(0.2), "the caller ran ahead without bound"
    free.set()
    filling.join(30)
    assert left.is_set()


def test_drain_waits_for_all():
    seen = []
    with Ahead(CPU) as ahead:
        ahead(lambda y: (time.sleep(0.05), seen.append(int(y))), torch.tensor(1))
        ahead.drain()
        assert seen == [1]


@pytest.mark.parametrize("device", KINDS, ids=str)
def test_what_a_call_raises_comes_out(device):
    def call(x):
        if int(x) == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"), Ahead(device) as ahead:
        for x in numbers(3):
            ahead(call, x)


def test_nothing_follows_a_call_that_failed():
    seen, last = [], threading.Event()

    def call(x):
        last.wait(30)
        seen.append(int(x))
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"), Ahead(CPU) as ahead:
        for x in numbers(2):
            ahead(call, x)
        last.set()
    assert seen == [0]


def test_an_error_of_the_caller_ends_the_thread_and_drops_what_waits():
    seen, inside, before = [], threading.Event(), threading.active_count()
    with pytest.raises(KeyboardInterrupt), Ahead(CPU) as ahead:
        for x in numbers(2):
            ahead(lambda y: (inside.set(), time.sleep(0.1), seen.append(int(y))), x)
        assert inside.wait(30)
        raise KeyboardInterrupt
    assert seen == [0] and threading.active_count() == before


@pytest.mark.gpu
def test_a_gpu_of_its_own_sees_finished_latents():
    """The other device may be the same GPU: the latents are read on another stream than the one that makes them."""
    device, seen = torch.device("cuda", torch.cuda.device_count() - 1), []
    x = torch.randn(2048, 2048, device="cuda:0")
    with Ahead(device) as ahead:
        for n in range(6):
            y = x
            for _ in range(20):
                y = torch.tanh(y @ x / 45)
            ahead(lambda z, n=n: seen.append((n, z.device, z.double().sum().item())), y + n)
            del y
    wanted = seen[0][2]
    for n, where, total in seen:
        assert where == device and total == pytest.approx(wanted + n * x.numel(), rel=1e-9)


@pytest.mark.gpu
def test_the_cpu_sees_finished_latents_of_a_gpu():
    seen, x = [], torch.randn(2048, 2048, device="cuda:0")
    with Ahead(CPU) as ahead:
        for n in range(6):
            ahead(lambda z: seen.append((z.device.type, z)), torch.tanh(x @ x / 45) + n)
    wanted = torch.tanh(x @ x / 45).cpu()
    assert all(kind == "cpu" and torch.allclose(z, wanted + n, atol=1e-3) for n, (kind, z) in enumerate(seen))
