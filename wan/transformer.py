"""The Wan diffusion transformer: one class, one forward, for training, inference and serving.

Official state-dict names. Causal and bidirectional models share weights' names and code; what a
token sees is told by the context. Compute dtype is the weights' dtype, as the published few-step
weights were trained; `precision="upstream"` runs time embedding, modulation, residual stream and
head in fp32, as the bidirectional Wan weights expect.
Source: Wan2.1 / 2.2, wan/modules/model.py; Self-Forcing, wan/modules/causal_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wan.blocks import Block, Head, ImageEmbedding
from wan.condition import Condition
from wan.layers import sinusoid
from wan.rope import RotaryTable
from wan.schedule import NUM_TRAIN_TIMESTEPS
from wan.sequence import WholeSequence
from wan.spec import TransformerSpec


@dataclass(frozen=True)
class Segment:
    """A stretch of the token sequence with its own sigma per frame: x [B, F, C, H, W], sigma [B, F]."""

    x: torch.Tensor
    sigma: torch.Tensor


class _LazyText:
    """Embeds the text the first time a layer asks; layers that kept their keys and values never do."""

    def __init__(self, model: WanTransformer, condition: Condition):
        self.key = (condition.key, model.weights_version)
        self._model, self._condition, self._tokens = model, condition, None

    def __call__(self):
        if self._tokens is None:
            self._tokens = self._model.embed_text(self._condition)
        return self._tokens


class WanTransformer(nn.Module):
    """Predicts the velocity of the last segment.

    `weights_version` belongs to the identity of kept text keys: whoever changes weights in place
    raises it by one. `sequence` says which tokens are worked on here (all; see wan/sequence.py).
    """

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.spec, self.precision = spec, "weights"
        self.checkpointing = False
        self.weights_version = 0
        self.sequence = WholeSequence()
        dim, patch = spec.dim, spec.patch_size
        self.patch_embedding = nn.Conv3d(spec.in_dim, dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(spec.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.head = Head(spec)
        if spec.image_dim:
            self.img_emb = ImageEmbedding(spec)
        self.rotary = RotaryTable(spec.head_dim, spec.rope_theta)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier for linears and patches, normal 0.02 for the embeddings, zero for the last projection."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for sequence in (self.text_embedding, self.time_embedding):
            for module in sequence:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        for module in (*self.blocks, self.head):
            nn.init.normal_(module.modulation, std=self.spec.dim**-0.5)
        nn.init.zeros_(self.head.head.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.patch_embedding.weight.dtype

    def forward(self, segments: Sequence[Segment], condition: Condition, context) -> torch.Tensor:
        """Returns the velocity [B, F, C_out, H, W] of the last segment, in the compute dtype.

        All segments share their size. Positions, masks and kept keys come from the context.
        """
        for segment in segments:
            _check_sigma(segment)
        parts = [self.embed_patches(s.x, condition) for s in segments]
        grid = self._grid(segments[-1].x)
        num_frames = segments[-1].x.shape[1] // self.spec.patch_size[0]
        total = num_frames * len(segments)
        x = self.sequence.split(parts[0] if len(parts) == 1 else torch.cat(parts, 1), total)
        time, rows = self.embed_time(_joined_sigma(segments))
        x = x.to(time.dtype)
        angle_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        view = context.open(num_frames, len(segments), self.rotary, grid, x.device, angle_dtype)
        sight = self.sequence.sight(view, total)
        text = _LazyText(self, condition)
        if torch.is_grad_enabled():
            text()  # outside the first checkpointed block, whose recompute would not see it
        for layer, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rows, text, sight, layer, use_reentrant=False)
            else:
                x = block(x, rows, text, sight, layer)
        length = x.shape[1] // len(segments)
        time = time[:, -segments[-1].sigma.shape[1] :] if len(segments) == 1 else time[:, -num_frames:]
        x = self.sequence.join(self.head(x[:, -length:], time), num_frames)
        return self._unpatchify(x, num_frames, grid)

    def embed_patches(self, x_BFCHW: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Returns tokens [B, L, D]; joins the condition's channels (i2v) behind the latents."""
        if condition.channels is not None:
            x_BFCHW = torch.cat((x_BFCHW, condition.channels.to(x_BFCHW)), 2)
        given, wanted = x_BFCHW.shape[2], self.spec.in_dim
        if given != wanted:
            raise ValueError(f"the transformer takes {wanted} channels and got {given} (image conditions add theirs)")
        if any(n % p for n, p in zip(x_BFCHW.shape[3:], self.spec.patch_size[1:], strict=True)):
            raise ValueError(
                f"latents of {tuple(x_BFCHW.shape[3:])} cells do not fill patches of {self.spec.patch_size[1:]}"
            )
        return self.patch_embedding(x_BFCHW.transpose(1, 2).to(self.dtype)).flatten(2).transpose(1, 2)

    def embed_time(self, sigma_BF: torch.Tensor):
        """Returns (time [B, F, D], rows [B, F, 6, D]); F may be 1 for one sigma per sample."""
        wide = self.precision == "upstream"
        dtype = torch.float32 if wide and self.dtype != torch.float64 else self.dtype
        wave = sinusoid(sigma_BF * NUM_TRAIN_TIMESTEPS, self.spec.freq_dim).to(dtype)
        time = _run_in(self.time_embedding, wave)
        return time, _run_in(self.time_projection, time).unflatten(-1, (6, -1))

    def embed_text(self, condition: Condition):
        """Returns (text tokens [B, text_len, D], image tokens [B, 257, D] or None)."""
        text, room = condition.text, self.spec.text_len
        if text.shape[1] > room:
            raise ValueError(f"{text.shape[1]} text tokens given; the model takes {room}")
        padded = functional.pad(text, (0, 0, 0, room - text.shape[1]))
        image = None
        if self.spec.image_dim:
            if condition.image is None:
                raise ValueError("this model is conditioned on an image: give Condition(image=CLIP tokens)")
            image = self.img_emb(condition.image.to(self.dtype))
        return self.text_embedding(padded.to(self.dtype)), image

    def _grid(self, x_BFCHW: torch.Tensor) -> tuple[int, int]:
        return x_BFCHW.shape[3] // self.spec.patch_size[1], x_BFCHW.shape[4] // self.spec.patch_size[2]

    def _unpatchify(self, x_BLD: torch.Tensor, num_frames: int, grid) -> torch.Tensor:
        """[B, L, patch * C] -> [B, F, C, H, W]; a token holds (patch time, row, column, channel)."""
        t, h, w = self.spec.patch_size
        x = x_BLD.unflatten(1, (num_frames, *grid)).unflatten(-1, (t, h, w, self.spec.out_dim))
        x = x.permute(0, 1, 4, 7, 2, 5, 3, 6)  # B F t C rows h columns w
        # In one step, so that the copy is no view: sharded modules (FSDP2) warn of outputs that are views.
        return x.reshape(len(x), num_frames * t, self.spec.out_dim, grid[0] * h, grid[1] * w)


def _check_sigma(segment: Segment) -> None:
    """Raises ValueError unless sigma is [B, 1] or [B, F]."""
    given, (batch, frames) = tuple(segment.sigma.shape), segment.x.shape[:2]
    if given not in ((batch, 1), (batch, frames)):
        raise ValueError(f"sigma is {list(given)} for {batch} x {frames} frames; give one per sample or per frame")


def _joined_sigma(segments: Sequence[Segment]) -> torch.Tensor:
    """Returns sigma [B, F of all segments], or [B, 1] if one segment has one sigma."""
    if len(segments) == 1:
        return segments[0].sigma
    return torch.cat([s.sigma.expand(-1, s.x.shape[1]) for s in segments], 1)


def _run_in(sequence: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Runs linears and activations in the dtype of x, whatever the weights' dtype."""
    for module in sequence:
        if isinstance(module, nn.Linear) and module.weight.dtype != x.dtype:
            x = functional.linear(x, module.weight.to(x.dtype), module.bias.to(x.dtype))
        else:
            x = module(x)
    return x
