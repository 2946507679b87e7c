"""Signals that end a process raise, once, in the main thread."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from utils.signals import SIGNALS, Stopped, as_interrupts, received_by


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of before are there again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_raises_once(number):
    reached = []
    with pytest.raises(Stopped, match=number.name) as caught, as_interrupts():
        try:
            os.kill(os.getpid(), number)
        finally:
            for later in SIGNALS:
                os.kill(os.getpid(), later)
            reached.append("put in order")
    assert reached and caught.value.number == number and isinstance(caught.value, KeyboardInterrupt)


def test_nohup_stays():
    """What the signals do without a handler cannot be tried here; that SIGHUP has none of ours can."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ignored_usr1_is_taken_up():
    """A launcher that ignores it hands that on to what it starts."""
    before, received = signal.signal(signal.SIGUSR1, signal.SIG_IGN), []
    try:
        with received_by(received.append):
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


def test_other_threads_install_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with as_interrupts():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
