"""`attend`: the one call of every attention layer, and how it finds its kernel."""

from __future__ import annotations

import functools
import importlib
import logging

import torch

from wan.attention import BACKENDS
from wan.attention.masks import FrameMask

logger = logging.getLogger(__name__)


def attend(q_BLNE, k_BSNE, v_BSNE, *, mask: FrameMask | None = None, backend: str = "auto") -> torch.Tensor:
    """Returns softmax(q k^T / sqrt(E)) v, shape of q; `mask` hides key frames from query frames.

    backend: a name of `BACKENDS`, or `auto` = the first usable one, logged once.
    Errors: ValueError if the name is unknown or the named backend cannot take these tensors.
    """
    needs_grad = torch.is_grad_enabled() and (q_BLNE.requires_grad or k_BSNE.requires_grad or v_BSNE.requires_grad)
    if backend != "auto":
        kernel = _kernel(backend)
        reason = kernel.usable(q_BLNE, mask, needs_grad)
        if reason:
            raise ValueError(f"attention backend {backend!r} cannot be used here: {reason}; write backend=auto")
        return kernel.run(q_BLNE, k_BSNE, v_BSNE, mask)
    kind = (q_BLNE.device.type, q_BLNE.dtype, q_BLNE.shape[-1], mask is None, needs_grad)
    return _kernel(_choose(kind, q_BLNE, mask)).run(q_BLNE, k_BSNE, v_BSNE, mask)


_chosen: dict = {}


def _choose(kind, q, mask) -> str:
    """Returns the first usable backend for this kind of call; remembers it."""
    if kind not in _chosen:
        for name in BACKENDS:
            reason = _kernel(name).usable(q, mask, kind[-1])
            if reason is None:
                _chosen[kind] = name
                logger.info("attention on %s %s, mask %s, gradient %s: %s", *kind[:2], not kind[3], kind[4], name)
                break
    return _chosen[kind]


@functools.cache
def _kernel(name: str):
    """Returns the backend object of a registered name."""
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; write auto or one of {sorted(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()
