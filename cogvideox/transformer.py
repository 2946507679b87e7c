"""The CogVideoX transformer: diffusers' modules under their own names, run through our sequence and attention.

Tokens are laid out [video | text], so that the order of blocks, their selection and the sharing among processes are
those of every other network. Source: CogVideoX (arXiv 2408.06072); diffusers, cogvideox_transformer_3d.py.
"""

from __future__ import annotations

import functools

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from cogvideox.attention import JointAttention
from cogvideox.spec import CogVideoXSpec
from wan.attention.config import AttentionConfig
from wan.cache import TextKVCache
from wan.context import View
from wan.sequence import WholeSequence, index
from wan.tokens import Run, TokenLayout

INTERPOLATION = (1.875, 1.0)  # by which the positions of 2B are divided: in space, in time


class CogVideoXTransformer(nn.Module):
    """Predicts v of the variance-preserving latents. The face is that of `WanTransformer`; it has no cache."""

    def __init__(self, spec: CogVideoXSpec):
        super().__init__()
        for name, module in _library_modules(spec).items():
            self.add_module(name, module)
        self.spec, self.precision, self.checkpointing = spec, "weights", False
        self.weights_version, self.adapters = 0, ()
        self.sequence = WholeSequence()
        for block in self.blocks:
            block.attn1.set_processor(JointAttention())
        self.patch_embed.use_positional_embeddings = False  # its table is not in the weights, and added here

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.proj_out.weight.dtype

    @property
    def blocks(self):
        """The transformer's blocks."""
        return self.transformer_blocks

    def use_attention(self, config: AttentionConfig) -> None:
        """Lets the blocks' attention run as `config` says."""
        for block in self.blocks:
            block.attn1.processor.config = config

    def forward(self, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor, level: float | None = None):
        """Returns v [B, F, C, h, w] of latents x, shape alike, at times [B] in [0, 999], with text [B, T, width].

        level: sigma, where the host knows it. Errors: ValueError for latents or text of another size.
        """
        layout = self.sequence.arrange(self.lay_out(x, text))
        local = self.sequence.local(layout)
        tokens = self.patch_embed(text.to(self.dtype), x.to(self.dtype))  # [B, T + L, D], text first
        video = tokens[:, text.shape[1] :]
        if not self.spec.rotary:
            table = position_table(self.spec.dim, x.shape[1], layout.runs[0].grid)
            video = video + table.to(video.device, video.dtype)
        tokens = torch.cat((video, tokens[:, : text.shape[1]]), 1)
        tokens = self.sequence.split(tokens, layout)
        time = self.time_embedding(self.time_proj(times).to(self.dtype))
        view = self.sequence.view(View(layout, self._angles(layout, x), TextKVCache()), layout, level)
        parts = [tokens[:, local.tokens(number)] for number in (0, 1)]
        for layer, block in enumerate(self.blocks):
            arguments = (block, layer, *parts, time, view)
            if self.checkpointing and torch.is_grad_enabled():
                parts = checkpoint(_run_block, *arguments, use_reentrant=False)
            else:
                parts = _run_block(*arguments)
        video = self.proj_out(self.norm_out(self.norm_final(parts[0]), temb=time))
        video = self.sequence.join(video, layout.only(0))
        return self._unpatchify(video, layout.runs[0])

    def lay_out(self, x: torch.Tensor, text: torch.Tensor) -> TokenLayout:
        """Returns the layout [video | text]."""
        spec, (frames, channels, *cells) = self.spec, x.shape[1:]
        patch = spec.patch_size[1]
        if channels != spec.in_dim or any(n % patch for n in cells):
            raise ValueError(
                f"latents of {channels} channels and {tuple(cells)} cells given; {spec.in_dim} channels are taken, and "
                f"patches of {patch} x {patch} must tile them: change height or width by {8 * patch} pixels"
            )
        if text.shape[1:] != (spec.text_len, spec.text_dim):
            raise ValueError(
                f"text of {tuple(text.shape[1:])} (tokens, width) given; this model attends to all of its "
                f"{spec.text_len} x {spec.text_dim}, padding too: encode the prompts with its own encoder"
            )
        rows, columns = (n // patch for n in cells)
        video = Run("video", range(frames), range(rows), range(columns), (0,) * frames)
        return TokenLayout((video, Run("text", range(1), range(1), range(spec.text_len), (0,))))

    def _angles(self, layout: TokenLayout, x: torch.Tensor):
        """Returns (cos, sin) [L, E/2] of all tokens in their order, or None for a model without rotation."""
        if not self.spec.rotary:
            return None
        sample = (self.spec.sample_rows, self.spec.sample_columns)
        size = (x.shape[1], layout.runs[0].grid, self.spec.head_dim, self.spec.patch_size[1], *sample)
        cos, sin = rotary_table(*size)
        text = cos.new_zeros(layout.runs[1].num_tokens, cos.shape[1] // 2)
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = [torch.cat((a[:, ::2], rest)).to(x.device, wide) for a, rest in ((cos, text + 1), (sin, text))]
        if layout.order is not None:
            places = index(layout, "permutation", x.device)
            angles = [a[places] for a in angles]
        return angles[0], angles[1]

    def _unpatchify(self, x_BLD: torch.Tensor, run: Run) -> torch.Tensor:
        """Returns [B, F, C, h, w] of tokens that each hold (channel, row of a patch, column of a patch)."""
        (rows, columns), (_, p, q) = run.grid, self.spec.patch_size
        sizes = {"f": run.num_frames, "h": rows, "w": columns, "p": p, "q": q}
        return rearrange(x_BLD, "b (f h w) (c p q) -> b f c (h p) (w q)", **sizes)


def _library_modules(spec: CogVideoXSpec) -> dict[str, nn.Module]:
    """Returns diffusers' modules of these sizes, by their names."""
    from diffusers import CogVideoXTransformer3DModel

    whole = CogVideoXTransformer3DModel(
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.head_dim,
        in_channels=spec.in_dim,
        out_channels=spec.out_dim,
        time_embed_dim=spec.time_dim,
        text_embed_dim=spec.text_dim,
        num_layers=spec.num_layers,
        sample_width=spec.sample_columns,
        sample_height=spec.sample_rows,
        sample_frames=spec.sample_frames,
        patch_size=spec.patch_size[1],
        max_text_seq_length=spec.text_len,
        norm_eps=spec.eps,
        use_rotary_positional_embeddings=spec.rotary,
    )
    return dict(whole.named_children())


def _run_block(block, layer: int, video: torch.Tensor, text: torch.Tensor, time: torch.Tensor, view):
    """Returns (video, text) after one block; what a recompute in backward repeats."""
    return block(video, text, time, attention_kwargs={"view": view, "layer": layer})


@functools.lru_cache(maxsize=16)
def rotary_table(frames: int, grid: tuple[int, int], head_dim: int, patch: int, rows: int, columns: int):
    """Returns (cos, sin) [tokens, head_dim] in fp32, neighbouring channels alike, as published.

    Rows and columns of another size or shape are spread over what `fit` leaves of the sample's own grid.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    corners = fit(grid, (rows // patch, columns // patch))
    return get_3d_rotary_pos_embed(head_dim, corners, grid, frames)


@functools.lru_cache(maxsize=16)
def position_table(dim: int, frames: int, grid: tuple[int, int]) -> torch.Tensor:
    """Returns [1, tokens, dim] in fp32: what a model without rotation adds to the tokens of the video (2B)."""
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    with torch.device("cpu"):
        table = get_3d_sincos_pos_embed(dim, (grid[1], grid[0]), frames, *INTERPOLATION, output_type="pt")
    return table.flatten(0, 1)[None]


def fit(grid: tuple[int, int], sample: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (first, last) corner of the largest box of the grid's shape in the middle of the sample's grid."""
    (rows, columns), (most_rows, most_columns) = grid, sample
    if rows / columns > most_rows / most_columns:
        height, width = most_rows, round(most_rows / rows * columns)
    else:
        height, width = round(most_columns / columns * rows), most_columns
    top, left = round((most_rows - height) / 2), round((most_columns - width) / 2)
    return (top, left), (top + height, left + width)
