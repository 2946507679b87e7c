"""`attend`: how every attention finds its kernel; `apply`: how a network gets its configuration."""

from __future__ import annotations

import functools
import importlib
import logging

import torch
from torch import nn

from wan.attention import BACKENDS
from wan.attention.call import AttentionCall
from wan.attention.config import AttentionConfig
from wan.config import raise_first

logger = logging.getLogger(__name__)


def apply(network: nn.Module, config: AttentionConfig) -> nn.Module:
    """Lets all attentions of a network's blocks run as `config` says; returns the network, changed in place.

    Errors: ValueError if the backend is unknown.
    """
    raise_first(config.problems())
    network.use_attention(config)
    return network


def attend(call: AttentionCall, config: AttentionConfig) -> torch.Tensor:
    """Returns softmax(q k^T / sqrt(E)) v, shape of q.

    Errors: ValueError if the backend is unknown or cannot take these tensors.
    """
    if config.backend != "auto":
        kernel = _kernel(config.backend)
        reason = kernel.usable(call)
        if reason:
            raise ValueError(f"attention backend {config.backend!r} cannot be used here: {reason}; write backend=auto")
        return kernel.run(call)
    return _kernel(_choose(call)).run(call)


def chosen(call: AttentionCall) -> str:
    """Returns the first usable backend for a call."""
    return next(name for name in BACKENDS if _kernel(name).usable(call) is None)


_chosen: dict = {}


def _choose(call: AttentionCall) -> str:
    """Returns the first usable backend for this kind of call; remembers it."""
    q = call.q
    hidden = "blocks" if call.selection is not None else "frames" if call.mask is not None else "nothing"
    block = 0 if call.selection is None else call.selection.block
    kind = (q.device.type, q.dtype, q.shape[-1], hidden, call.needs_grad, block)
    if kind not in _chosen:
        _chosen[kind] = chosen(call)
        logger.info("attention on %s %s, hidden %s, gradient %s: %s", *kind[:2], *kind[3:5], _chosen[kind])
    return _chosen[kind]


@functools.cache
def _kernel(name: str):
    """Returns the backend object of a registered name."""
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; write auto or one of {sorted(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
