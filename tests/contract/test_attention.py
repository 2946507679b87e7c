"""Every attention backend that can run here equals torch's own, gradients too; the others say why they cannot."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from tests import tiny, tolerance
from wan.attention import BACKENDS, dispatch
from wan.attention.call import AttentionCall
from wan.attention.config import AttentionConfig
from wan.attention.masks import FrameMask, causal, teacher_forcing
from wan.context import Full
from wan.tokens import TokenLayout


def inputs(num_queries=30, num_keys=30, width=16, dtype=None, device="cpu", grad=True):
    shapes = {"q": num_queries, "k": num_keys, "v": num_keys}
    made = [tiny.draw(name, shape=(2, length, 3, width), dtype=dtype) for name, length in shapes.items()]
    return [x.to(device).requires_grad_(grad) for x in made]


def call(q, k, v, mask: FrameMask | None = None) -> AttentionCall:
    """Returns a call whose frames are as many as those of the mask."""
    frames = (1, 1) if mask is None else mask.frames.shape
    layouts = [tiny.layout(count, x.shape[1] // count) for count, x in zip(frames, (q, k), strict=True)]
    return AttentionCall(q, k, v, 0, *layouts, mask)


def attend(q, k, v, mask: FrameMask | None = None, backend: str = "auto") -> torch.Tensor:
    return dispatch.attend(call(q, k, v, mask), AttentionConfig(backend))


def reference(q, k, v, mask: FrameMask | None, scale=None) -> torch.Tensor:
    """softmax(q k^T / sqrt(E)) v in float64, head by head."""
    q, k, v = (x.double() for x in (q, k, v))
    scores = torch.einsum("blne,bsne->bnls", q, k) * (scale or q.shape[-1] ** -0.5)
    if mask is not None:
        sizes = zip((q.shape[1], k.shape[1]), mask.frames.shape, strict=True)
        rows, columns = (torch.arange(tokens) // (tokens // frames) for tokens, frames in sizes)
        scores = scores.masked_fill(~mask.frames[rows][:, columns].to(q.device), float("-inf"))
    return torch.einsum("bnls,bsne->blne", scores.softmax(-1), v)


def with_gradients(function, tensors) -> list[torch.Tensor]:
    """Returns the output and the gradients of a fixed weighted sum of it."""
    out = function(*tensors)
    weights = tiny.draw("weights", shape=out.shape, dtype=out.dtype).to(out.device)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


MASKS = {
    "none": None,
    "causal": causal(tiny.spans(1, 2, 3), 4, 1),
    "forcing": teacher_forcing(tiny.spans(1, 2)),
    "rectangle": FrameMask(torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1]])),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_cpu_backends_equal_the_formula(backend, mask, bound):
    tensors = inputs(10 if mask is not None and len(mask.frames) == 2 else 30)
    given = with_gradients(lambda *x: attend(*x, mask=mask, backend=backend), tensors)
    wanted = with_gradients(lambda *x: reference(*x, mask), tensors)
    tiny.healthy(given[0])
    assert all(tiny.error(a, b) < bound() for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize(
    ("mask", "scale"),
    [(None, None), (FrameMask(MASKS["causal"].frames.T), None), (causal(tiny.spans(1, 2, 3)), None)]
    + [(MASKS["causal"], 0.2)],
    ids=["no mask", "transposed", "no window", "scale"],
)
def test_other_formulas_break_it(mask, scale, float64):
    tensors = inputs()
    given = with_gradients(lambda *x: attend(*x, mask=MASKS["causal"]), tensors)
    wanted = with_gradients(lambda *x: reference(*x, mask, scale), tensors)
    assert all(tiny.error(a, b) > tolerance.DIFFERENT for a, b in zip(given, wanted, strict=True))


REASONS = [
    ("flash2", None, "needs a CUDA device"),
    ("flash3", None, "needs a CUDA device"),
    ("flash3", MASKS["causal"], "needs a CUDA device"),
    ("flex", None, "there is no mask"),
    ("flex", MASKS["causal"], "no backward on the CPU"),
]


@pytest.mark.parametrize(("backend", "mask", "reason"), REASONS)
def test_an_unusable_backend_says_why(backend, mask, reason):
    q, k, v = inputs()
    assert reason in dispatch._kernel(backend).usable(call(q, k, v, mask))
    with pytest.raises(ValueError, match=f"'{backend}' cannot be used here: .*{reason}.*; write backend=auto"):
        attend(q, k, v, mask=mask, backend=backend)


def test_flex_without_gradient_names_the_compiler():
    q, k, v = inputs(grad=False)
    with pytest.raises(ValueError, match="C\\+\\+ compiler"):
        attend(q, k, v, mask=MASKS["causal"], backend="flex")


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="'flash9' is unknown; write auto or one of .*'sdpa'"):
        attend(*inputs(), backend="flash9")


def test_auto_takes_the_first_usable_and_logs_it_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_chosen", {})
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        for _ in range(3):
            attend(*inputs(), mask=MASKS["causal"])
        assert [r.getMessage() for r in caplog.records if "sdpa" in r.getMessage()] == [
            "attention on cpu torch.float32, hidden frames, gradient True: sdpa"
        ]
        attend(*inputs(grad=False))
    assert len(caplog.records) == 2
    assert list(BACKENDS)[-1] == "sdpa", "what takes everything stands last"


def test_a_mask_is_expanded_once_per_size():
    mask = causal(tiny.spans(1, 2))
    small, large = tiny.layout(3, 2), tiny.layout(3, 4)
    moved = TokenLayout((replace(small.runs[0], times=range(7, 10)),))
    assert mask.dense(small, small, "cpu") is mask.dense(moved, small, "cpu"), "positions do not matter"
    assert mask.dense(small, large, "cpu").shape == (6, 12)
    with pytest.raises(ValueError, match=r"a mask of \(3, 3\) frames was given for \(3, 4\) frames"):
        mask.dense(small, tiny.layout(4), "cpu")


def test_a_configuration_is_put_on_every_block():
    model = tiny.transformer()
    dispatch.apply(model, AttentionConfig("flex"))
    for attention in ("self_attn", "cross_attn"):
        assert [getattr(block, attention).config.backend for block in model.blocks] == ["flex"] * 2
    with pytest.raises(ValueError, match="'flex' cannot be used here"):
        tiny.Denoiser(model)(tiny.latents(2), 0.5, tiny.condition(), Full())
    with pytest.raises(ValueError, match="attention.backend is 'flash9'; write auto or one of flash3"):
        dispatch.apply(model, AttentionConfig("flash9"))


@pytest.mark.gpu
@pytest.mark.parametrize("mask", [None, MASKS["causal"]], ids=["none", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "sdpa"])
def test_gpu_backends_equal_sdpa(backend, dtype, mask):
    tensors = inputs(384, 384, 64, dtype, "cuda")
    reason = dispatch._kernel(backend).usable(call(*tensors, mask))
    if reason:
        pytest.skip(reason)
    given = with_gradients(lambda *x: attend(*x, mask=mask, backend=backend), tensors)
    wanted = with_gradients(lambda *x: attend(*x, mask=mask, backend="sdpa"), tensors)
    tolerance = 2e-3 if dtype == torch.float32 else 3e-2  # TF32 in compiled kernels; bf16 outputs
    assert all(tiny.error(a, b) < tolerance for a, b in zip(given, wanted, strict=True))
