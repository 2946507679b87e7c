"""Ulysses: a group of ranks shares one sample; each works on a part of every frame's tokens.

Every rank of the group calls the same network with the same latents, sigma and condition, gets the whole
velocity back and computes the same loss. Inside, linears and cross-attention see the rank's own tokens. Around
self-attention one all-to-all turns "my tokens, all heads" of the new q, k, v into "all tokens, my heads", so
caches hold the rank's heads only and masks and positions stay as they are; a second one turns the result back.

Gradients: the loss is the mean of what the ranks computed (the same number on each).
* Outside of the network every rank has the gradient of that loss, of the latents too.
* A parameter's gradient must be AVERAGED over the group, as data parallel does over all ranks anyway. So joining
  tokens sums its gradient over the ranks (each rank asks the same, and the average divides again), and splitting
  them divides it, so that what leaves towards the latents is whole.
* What enters next to the latents (text, image tokens) gets gradients as parameters do: to be averaged.

Source: DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from einops import rearrange
from torch import nn
from torch.autograd import Function

_gather = vars(dist).get("all_gather_single") or dist.all_gather_into_tensor  # renamed in torch 2.13
_sum = vars(dist).get("reduce_scatter_single") or dist.reduce_scatter_tensor


def apply(transformer: nn.Module, group) -> nn.Module:
    """Lets the ranks of `group` share the tokens of each sample; returns the transformer, changed in place.

    Before the first forward and before caches are made; compiling and sharding come later. A group of one
    changes nothing.
    Errors: ValueError if the group's size does not divide the heads, or if tokens are shared already.
    """
    size, heads = dist.get_world_size(group), transformer.spec.num_heads
    if heads % size:
        raise ValueError(
            f"{size} ranks cannot share {heads} heads; the ranks of one sample must be one of {divisors(heads)}"
        )
    if transformer.sequence.size > 1:
        raise ValueError(f"the tokens are shared by {transformer.sequence.size} ranks already")
    if size > 1:
        transformer.sequence = SharedSequence(group, dist.get_rank(group), size, transformer.sequence)
    return transformer


def divisors(number: int) -> list[int]:
    """Returns all divisors, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


class SharedSequence:
    """This rank's part of every frame's tokens; takes the place of `transformer.sequence`, which it keeps inside.

    A unit is a whole frame, or where runs differ in size, the greatest stretch that fits all frames.
    """

    def __init__(self, group, rank: int, size: int, inner):
        self.group, self.rank, self.size, self._inner = group, rank, size, inner

    @property
    def order(self):
        """How the tokens of a run are ordered, or None."""
        return self._inner.order

    @property
    def statistics(self):
        """What sparse attention counted on this rank's heads, or None."""
        return self._inner.statistics

    def arrange(self, layout):
        """Returns the layout of all tokens in the order in which they are processed."""
        return self._inner.arrange(layout)

    def local(self, layout):
        """Returns the layout of this rank's tokens.

        Errors: ValueError if a frame's tokens do not divide; on every rank alike, before any of them waits.
        """
        if layout.unit % self.size:
            raise ValueError(
                f"a frame of {layout.unit} tokens cannot be shared by {self.size} ranks; change the height or width, "
                f"or share a sample among one of {divisors(layout.unit)}"
            )
        return replace(self._inner.local(layout), share=(self.rank, self.size))

    def split(self, x_BLD: torch.Tensor, layout) -> torch.Tensor:
        """Returns this rank's tokens [B, L / size, D] of all tokens, an equal part of each unit, so of each frame."""
        tokens = self._inner.split(x_BLD, layout)
        parts = rearrange(tokens, "b (u r t) d -> r b u t d", u=layout.num_units, r=self.size)
        return _Take.apply(parts, self.rank, self.group).flatten(1, 2)

    def join(self, x_BLD: torch.Tensor, layout) -> torch.Tensor:
        """Returns all tokens [B, L, D], on every rank, of what the ranks' `split` returned."""
        parts = _Gather.apply(rearrange(x_BLD, "b (u t) d -> b u t d", u=layout.num_units), self.group)
        return self._inner.join(rearrange(parts, "r b u t d -> b (u r t) d"), layout)

    def view(self, view, layout, level: float | None = None) -> SharedView:
        """Returns the view through which the blocks of one forward attend. level: its sigma, if the host knows it."""
        return SharedView(self._inner.view(view, layout, level), self, layout.num_units)


class SharedView:
    """All tokens and this rank's heads on the inside, this rank's tokens and all heads on the outside.

    It keeps the units of its own forward, so a recompute in backward exchanges exactly as the forward did.
    """

    def __init__(self, inner, sequence: SharedSequence, num_units: int):
        self._inner, self._sequence, self._num_units = inner, sequence, num_units
        self.text = inner.text

    def attend(self, layer: int, q, k, v, config) -> torch.Tensor:
        """[B, L / size, N, E] in and out; the layer's keys and values are cached for N / size heads."""
        size, group, units = self._sequence.size, self._sequence.group, self._num_units
        heads = [rearrange(x, "b l (r n) e -> r b l n e", r=size) for x in (q, k, v)]
        parts = _Exchange.apply(torch.stack(heads, 1), group)
        q, k, v = rearrange(parts, "r qkv b (u t) n e -> qkv b (u r t) n e", u=units).unbind(0)
        attended = self._inner.attend(layer, q, k, v, config)
        parts = _Exchange.apply(rearrange(attended, "b (u r t) n e -> r b u t n e", u=units, r=size), group)
        return rearrange(parts, "r b u t n e -> b (u t) (r n) e")


class _Exchange(Function):
    """All-to-all of [size, ...]: part i goes to rank i, and what rank i sent lies at i. Its own backward."""

    @staticmethod
    def forward(ctx, parts, group):
        ctx.group, parts = group, parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx, grad):
        return _Exchange.apply(grad, ctx.group), None


class _Gather(Function):
    """[...] of each rank -> [size, ...] on all; backward sums what the ranks ask of each part."""

    @staticmethod
    def forward(ctx, part, group):
        ctx.group = group
        parts = part.new_empty((dist.get_world_size(group), *part.shape))
        _gather(parts.flatten(0, 1), part.contiguous(), group=group)
        return parts

    @staticmethod
    def backward(ctx, grad):
        return _Sum.apply(grad, ctx.group), None


class _Sum(Function):
    """[size, ...] on each rank -> the sum over the ranks of the part that is mine, [...]."""

    @staticmethod
    def forward(ctx, parts, group):
        ctx.group = group
        part = parts.new_empty(parts.shape[1:])
        _sum(part, parts.contiguous().flatten(0, 1), group=group)
        return part

    @staticmethod
    def backward(ctx, grad):
        return _Gather.apply(grad, ctx.group), None


class _Take(Function):
    """[size, ...], equal on all ranks -> the part that is mine; backward returns to each rank the mean over the
    group of what the parts' owners ask: their gradients are `size` times too large, as parameters' are."""

    @staticmethod
    def forward(ctx, parts, rank, group):
        ctx.group = group
        return parts[rank].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad):
        gathered = _Gather.apply(grad, ctx.group)
        return gathered / len(gathered), None, None
