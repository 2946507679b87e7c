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
from einops import rearrange
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wan.attention.config import AttentionConfig
from wan.blocks import Block, Head, ImageEmbedding
from wan.condition import Condition
from wan.layers import sinusoid
from wan.rope import RotaryTable
from wan.schedule import NUM_TRAIN_TIMESTEPS
from wan.sequence import WholeSequence, index
from wan.spec import TransformerSpec
from wan.tokens import Run, TokenLayout


@dataclass(frozen=True)
class RunInput:
    """What enters one run of tokens: latents x [B, F, C, H, W], and sigma [B, F] or [B, 1] for all its frames.

    kind: see `wan.tokens.Run`. positions: rotary positions (times, rows, columns) of the patches; by default the
    context's times, and rows and columns 0, 1, 2 ... patch: their size, by default the model's. level: sigma, where
    all frames have one that the host knows.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    kind: str = "video"
    positions: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None
    patch: tuple[int, int, int] | None = None
    level: float | None = None


class _LazyText:
    """Embeds the text lazily: not at all if every layer has cached text keys and values."""

    def __init__(self, model: WanTransformer, condition: Condition):
        self.key = (condition.key, model.weights_version)
        self._model, self._condition, self._tokens = model, condition, None

    def __call__(self):
        if self._tokens is None:
            self._tokens = self._model.embed_text(self._condition)
        return self._tokens


class WanTransformer(nn.Module):
    """Predicts the velocity of the video.

    `weights_version` belongs to the identity of cached text keys: whoever changes weights in place raises it by
    one. `sequence` orders the tokens and splits them between processes (wan/sequence.py). `adapters` read or change
    the tokens after each block (wan/adapters.py).
    """

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.spec, self.precision = spec, "weights"
        self.checkpointing = False
        self.weights_version = 0
        self.sequence = WholeSequence()
        self.adapters: tuple = ()
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

    def use_attention(self, config: AttentionConfig) -> None:
        """Lets the blocks' attention run as `config` says."""
        for block in self.blocks:
            block.self_attn.config = block.cross_attn.config = config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.patch_embedding.weight.dtype

    def forward(self, runs: Sequence[RunInput], condition: Condition, context) -> torch.Tensor | None:
        """Returns the velocity [B, F, C_out, H, W] of the video run, in the compute dtype; None without such a run.

        What each token may attend to, its frame's position and cached keys come from the context.
        R: sigma rows, one for all tokens, per frame, or per stretch of equal length.
        """
        layout = self.sequence.arrange(self.lay_out(runs, context))
        local = self.sequence.local(layout)
        x = self.sequence.split(self.embed_runs(runs, condition), layout)  # [B, L / size, D]
        time, rows = self.embed_time(_joined_sigma(runs, layout))  # [B, R, D], [B, R, 6, D]
        x, rows = x.to(time.dtype), _rows_of_tokens(rows, local)
        angle_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        view = context.open(layout, self.rotary, x.device, angle_dtype)
        view = self.sequence.view(view, layout, next((run.level for run in runs if run.level is not None), None))
        text, sound = _LazyText(self, condition), self.embed_sound(condition, layout)
        if torch.is_grad_enabled():
            text()  # outside the first checkpointed block, whose recompute would not see it
        for layer in range(len(self.blocks)):
            arguments = (layer, x, rows, text, view, self.adapters, local, condition, sound)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._run_block, *arguments, use_reentrant=False)
            else:
                x = self._run_block(*arguments)  # [B, L / size, D]
        if layout.output is None:
            return None
        x = self.head(x[:, local.tokens(layout.output)], _rows_of_output(time, local))  # [B, L / size, patch * C]
        x = self.sequence.join(x, layout.only(layout.output))  # [B, L, patch * C]
        return self.unpatchify(x, layout.runs[layout.output])  # [B, F, C, H, W]

    def _run_block(self, layer, x, rows, text, view, adapters, tokens, condition, sound=None) -> torch.Tensor:
        """Returns the tokens after one block and the adapters; what a recompute in backward repeats."""
        x = self.blocks[layer](x, rows, text, view, layer)
        if sound is not None:
            x = self.inject_sound(layer, x, tokens, sound)
        for adapter in adapters:
            x = adapter.after_block(layer, x, tokens, condition)
        return x

    def embed_sound(self, condition: Condition, layout: TokenLayout):
        """Returns what the blocks hear, made once per forward: nothing, in a model without sound."""
        if condition.audio is not None or condition.heard is not None:
            raise ValueError("the condition holds sound and this model hears none; take an S2V model, or leave it out")

    def inject_sound(self, layer: int, x_BLD: torch.Tensor, tokens: TokenLayout, sound) -> torch.Tensor:
        """Returns the tokens after they have read the sound behind a block; for models that hear."""
        raise NotImplementedError

    def portrait(self, condition: Condition) -> tuple[RunInput, ...]:
        """Returns the runs that every frame of the video attends to (a portrait): none, in a model without one."""
        return ()

    def pinned_runs(self, grid: tuple[int, int]) -> tuple[Run, ...]:
        """Returns how the runs of `portrait` lie for frames of (rows, columns) tokens, where they are pinned."""
        return ()

    def lay_out(self, runs: Sequence[RunInput], context) -> TokenLayout:
        """Returns the layout of the sequence. Errors: ValueError for sigmas or positions that do not fit."""
        made, rows = [], 0
        for run in runs:
            _check_sigma(run)
            count, *sides = (n // p for n, p in zip(_cells(run.x), run.patch or self.spec.patch_size, strict=True))
            grid = (sides[0], sides[1])
            one_row = len(runs) == 1 and run.sigma.shape[1] == 1
            sigma, rows = (0,) * count if one_row else range(rows, rows + count), rows + count
            times, down, across = run.positions or (context.times(count), range(grid[0]), range(grid[1]))
            made.append(Run(run.kind, times, down, across, sigma, context.cached))
            if (made[-1].num_frames, made[-1].grid) != (count, grid):
                raise ValueError(
                    f"positions for {made[-1].num_frames} x {made[-1].grid} tokens given for a {run.kind} run of "
                    f"{count} x {grid}"
                )
        if [run.kind for run in made].count("video") > 1:
            raise ValueError(
                "two runs of kind video given; only one is predicted: call the other clean, reference or motion"
            )
        return TokenLayout(tuple(made))

    def embed_runs(self, runs: Sequence[RunInput], condition: Condition) -> torch.Tensor:
        """Returns the tokens [B, L, D] of all runs, frame slowest."""
        parts = [self.embed_run(run, condition) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def embed_run(self, run: RunInput, condition: Condition) -> torch.Tensor:
        """Returns the tokens [B, L, D] of one run."""
        return self.embed_patches(run.x, condition, run.kind in ("video", "clean"))

    def embed_patches(self, x_BFCHW: torch.Tensor, condition: Condition, joined: bool = True) -> torch.Tensor:
        """Returns tokens [B, L, D]; joined: with the condition's channels (i2v) behind the latents'."""
        if joined and condition.channels is not None:
            x_BFCHW = torch.cat((x_BFCHW, condition.channels.to(x_BFCHW)), 2)
        given, wanted = x_BFCHW.shape[2], self.spec.in_dim
        if given != wanted:
            raise ValueError(f"the transformer takes {wanted} channels and got {given} (image conditions add theirs)")
        return self.embed_by(self.patch_embedding, x_BFCHW)

    def embed_by(self, embedding: nn.Conv3d, x_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns tokens [B, L, D] by an embedding of patches. Errors: ValueError for latents that do not fill them."""
        patch = embedding.kernel_size
        if any(n % p for n, p in zip(_cells(x_BFCHW), patch, strict=True)):
            raise ValueError(f"latents of {tuple(x_BFCHW.shape[3:])} cells do not fill patches of {patch[1:]}")
        x = embedding(rearrange(x_BFCHW, "b f c h w -> b c f h w").to(self.dtype))
        return rearrange(x, "b d f h w -> b (f h w) d")

    def embed_time(self, sigma_BR: torch.Tensor):
        """Returns (time [B, R, D], rows [B, R, 6, D]) of R sigmas per sample."""
        wide = self.precision == "upstream"
        dtype = torch.float32 if wide and self.dtype != torch.float64 else self.dtype
        wave = sinusoid(sigma_BR * NUM_TRAIN_TIMESTEPS, self.spec.freq_dim).to(dtype)
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

    def unpatchify(self, x_BLD: torch.Tensor, run: Run) -> torch.Tensor:
        """Returns [B, F, C, H, W] of tokens that each hold (frames, rows, columns of a patch, channel)."""
        (t, h, w), (rows, columns) = self.spec.patch_size, run.grid
        sizes = {"f": run.num_frames, "h": rows, "w": columns, "t": t, "p": h, "q": w}
        # In one step, so that the copy is not a view: sharded modules (FSDP2) warn of outputs that are views.
        return rearrange(x_BLD, "b (f h w) (t p q c) -> b (f t) c (h p) (w q)", **sizes)


def _check_sigma(run: RunInput) -> None:
    """Raises ValueError unless sigma is [B, 1] or [B, F]."""
    given, (batch, frames) = tuple(run.sigma.shape), run.x.shape[:2]
    if given not in ((batch, 1), (batch, frames)):
        raise ValueError(f"sigma is {list(given)} for {batch} x {frames} frames; give one per sample or per frame")


def _cells(x_BFCHW: torch.Tensor) -> tuple[int, int, int]:
    """Returns latent frames, rows and columns."""
    return x_BFCHW.shape[1], x_BFCHW.shape[3], x_BFCHW.shape[4]


def _joined_sigma(runs: Sequence[RunInput], layout: TokenLayout) -> torch.Tensor:
    """Returns sigma [B, F of all runs], or [B, 1] if a single run has one sigma."""
    if len(runs) == 1:
        return runs[0].sigma
    return torch.cat([run.sigma.expand(-1, laid.num_frames) for run, laid in zip(runs, layout.runs, strict=True)], 1)


def _rows_of_tokens(rows_BR6D: torch.Tensor, local: TokenLayout) -> torch.Tensor:
    """Returns one row per equal stretch of tokens: as they are, unless frames differ in size or are mixed."""
    if local.modulation_rows is None:
        return rows_BR6D
    return rows_BR6D.index_select(1, index(local, "modulation_rows", rows_BR6D.device))


def _rows_of_output(time_BRD: torch.Tensor, local: TokenLayout) -> torch.Tensor:
    """Returns the rows of `time` for the run that is predicted, whose frames are alike."""
    output = local.only(local.output)
    if output.mixes_frames and output.modulation_rows is not None:
        return time_BRD.index_select(1, index(output, "modulation_rows", time_BRD.device))
    sigma = output.runs[0].sigma
    return time_BRD[:, sigma[0] : sigma[-1] + 1]


def _run_in(sequence: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Runs linears and activations in the dtype of x, whatever the weights' dtype."""
    for module in sequence:
        if isinstance(module, nn.Linear) and module.weight.dtype != x.dtype:
            x = functional.linear(x, module.weight.to(x.dtype), module.bias.to(x.dtype))
        else:
            x = module(x)
    return x
