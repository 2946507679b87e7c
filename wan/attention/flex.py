"""FlexAttention: frame masks and selections as block masks, so that hidden blocks cost nothing."""

from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch.nn import functional

from wan.attention.call import AttentionCall
from wan.attention.sparse import Selection, filled, kept_first
from wan.tokens import TokenLayout

TILE = 128  # tokens of a block that the kernels take as it is


class Flex:
    """Compiled FlexAttention; for masks and selections on a GPU. Uncompiled it would ignore a selection's lists."""

    options: dict | None = None  # of the kernel

    def __init__(self):
        self._block_masks: dict = {}

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None."""
        q = call.q
        if call.mask is None and call.selection is None:
            return "there is no mask; a dense kernel is faster"
        if call.selection is not None and call.selection.block % TILE:
            return f"its blocks are {TILE} tokens, not {call.selection.block} (sparse.block)"
        if q.device.type != "cuda":
            return "it has no backward on the CPU" if call.needs_grad else "on the CPU it needs a C++ compiler"
        if q.shape[-1] < 16:
            return f"it needs a head width of at least 16, not {q.shape[-1]}"
        return None

    def run(self, call: AttentionCall) -> torch.Tensor:
        """[B, L, N, E] in and out."""
        if call.selection is not None:
            return self._read_blocks(call, call.selection)
        block_mask = self._block_mask(call)
        q, k, v = (x.transpose(1, 2) for x in (call.q, call.k, call.v))
        return _compiled()(q, k, v, block_mask=block_mask).transpose(1, 2)

    def _read_blocks(self, call: AttentionCall, selection: Selection) -> torch.Tensor:
        """Returns the output of one call over [keys | pooled keys], each filled up to whole blocks."""
        k, v = filled(call.k, selection.block), filled(call.v, selection.block)
        first = k.shape[1]  # of the pooled keys
        score_mod = None
        if selection.pool:
            pooled = [filled(selection.pooled(x), selection.block) for x in (call.k, call.v)]
            k, v = torch.cat((k, pooled[0]), 1), torch.cat((v, pooled[1]), 1)
            weight = math.log(selection.pool)

            def score_mod(score, batch, head, query, key):
                return torch.where(key >= first, score + weight, score)

        block_mask = block_lists(selection, call.q.shape[1], call.k.shape[1], k.shape[1])
        q, k, v = (x.transpose(1, 2) for x in (call.q, k, v))
        out = _compiled()(q, k, v, score_mod=score_mod, block_mask=block_mask, kernel_options=self.options)
        return out.transpose(1, 2)

    def _block_mask(self, call: AttentionCall):
        """Builds the block mask of a frame mask once per size; keyed by content, not by object."""
        mask, device = call.mask, call.q.device
        shape = (call.queries.plain, call.keys.plain)
        key = (mask.frames.numpy().tobytes(), tuple(mask.frames.shape), *shape, str(device))
        if key not in self._block_masks:
            from torch.nn.attention.flex_attention import create_block_mask

            frames, (query_frame, key_frame) = mask.frames.to(device), (_frame_lookup(x, device) for x in shape)
            real = torch.tensor(call.keys.real, device=device) if call.keys.padded else None

            def visible(batch, head, query, key_index):
                seen = frames[query_frame(query), key_frame(key_index)]
                return seen if real is None else seen & real[key_index]

            sizes = (call.q.shape[1], call.k.shape[1])
            self._block_masks[key] = create_block_mask(visible, None, None, *sizes, device=str(device))
        return self._block_masks[key]


class Flash4(Flex):
    """FlexAttention through flash-attention 4, where its pure-Python package is installed: Hopper, blocks of 128."""

    options = {"BACKEND": "FLASH"}

    def usable(self, call: AttentionCall) -> str | None:
        """Returns why it cannot run, or None; it is tried once, since its kernels are made at their first use."""
        if call.selection is None:
            return "it is for selections of blocks (sparse.name=asa)"
        q = call.q
        if reason := super().usable(call):
            return reason
        if q.dtype not in (torch.float16, torch.bfloat16):
            return f"it needs fp16 or bf16, not {q.dtype}"
        if torch.cuda.get_device_capability(q.device)[0] != 9:
            return "its blocks of 128 queries are for Hopper (compute capability 9.x)"
        if call.selection.block != TILE:
            return f"its blocks are {TILE} tokens, not {call.selection.block} (sparse.block)"
        if not _installed("flash_attn.cute"):
            return "the package flash-attn-4 is not installed (pip install longtake[flash4])"
        return _failure(str(q.device), q.dtype, q.shape[-1], call.needs_grad)


def block_lists(selection: Selection, queries: int, keys: int, places: int):
    """Returns FlexAttention's block mask: all of a selection's blocks, then the pooled ones, which all queries read.

    queries, keys: tokens. places: keys and pooled keys, each filled up to whole blocks. Blocks with pads are partial.
    """
    from torch.nn.attention.flex_attention import BlockMask

    block, kept = selection.block, selection.kept
    present = selection.present(keys)
    whole = torch.ones(kept.shape[3], dtype=torch.bool, device=kept.device) if present is None else present.all(1)
    real = None if present is None else present.flatten()
    if selection.pool:
        means = torch.arange(places - kept.shape[3] * block, device=kept.device) < -(-keys // selection.pool)
        real = torch.cat((whole.repeat_interleave(block) if real is None else real, means))
        whole = torch.cat((whole, means.unflatten(0, (-1, block)).all(1)))
        kept = functional.pad(kept, (0, places // block - kept.shape[3]), value=True)
    lists = [x for part in (kept & ~whole, kept & whole) for x in _lists(part)]

    def mask_mod(batch, head, query, key):
        return real[key]

    sizes = {"BLOCK_SIZE": block, "seq_lengths": (queries, places)}
    return BlockMask.from_kv_blocks(*lists, mask_mod=None if real is None else mask_mod, **sizes)


def _lists(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (counts [B, N, I], blocks [B, N, I, J], the kept ones first)."""
    return kept.sum(-1, dtype=torch.int32), kept_first(kept).to(torch.int32)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the part before the dot
        return False


@functools.cache
def _failure(device: str, dtype: torch.dtype, width: int, backward: bool) -> str | None:
    """Returns why a small call fails on this machine, or None."""
    q, k, v = (torch.randn(1, 2 * TILE, 1, width, device=device, dtype=dtype, requires_grad=backward) for _ in "qkv")
    kept = torch.eye(2, dtype=torch.bool, device=device)[None, None]
    selection = Selection(kept, TILE, (1, 1), True)
    try:
        out = Flash4().run(AttentionCall(q, k, v, selection=selection))
        if backward:
            out.sum().backward()
        torch.cuda.synchronize(device)
    except (RuntimeError, NotImplementedError, ImportError, AttributeError, TypeError, ValueError) as error:
        return f"it failed when it was tried: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return None


def _frame_lookup(layout: TokenLayout, device):
    """Returns a function from the number of a token to that of its frame: a division where frames are alike."""
    if layout.is_even and not layout.mixes_frames:
        per_frame = layout.num_tokens // layout.num_frames
        return lambda token: token // per_frame
    frames = torch.tensor(layout.frame_of_token, device=device)
    return lambda token: frames[token]


@functools.cache
def _compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
