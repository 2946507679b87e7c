"""The S2V transformer: Wan with a portrait (reference and motion tokens), a pose, and audio read after some blocks.

Official state-dict names. Bidirectional and causal models share weights' names and code, as Wan's do.
Source: Wan2.2, wan/modules/s2v/model_s2v.py; Live-Avatar, models/wan/causal_model_s2v.py.
"""

from __future__ import annotations

import torch
from torch import nn

from wan.audio.encoder import AudioEncoder
from wan.audio.injector import AudioInjector, Sound
from wan.audio.motion import REFERENCE_TIME, FramePacker, buckets, last_motion, motion_runs, patches
from wan.condition import Condition
from wan.spec import S2VSpec
from wan.tokens import Run, TokenLayout
from wan.transformer import RunInput, WanTransformer

KINDS = {"video": 0, "reference": 1, "motion": 2}  # row of `trainable_cond_mask`


class S2VTransformer(WanTransformer):
    """Predicts the velocity of the video from text, portrait, sound and pose.

    Reference and motion tokens have noise level 0. The video's tokens alone hear, each frame its own sound.
    """

    spec: S2VSpec

    def __init__(self, spec: S2VSpec):
        super().__init__(spec)
        dim, patch = spec.dim, spec.patch_size
        self.cond_encoder = nn.Conv3d(spec.out_dim, dim, kernel_size=patch, stride=patch)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.casual_audio_encoder = AudioEncoder(spec)
        self.audio_injector = AudioInjector(spec)
        self.frame_packer = FramePacker(spec)
        self.init_audio_weights()

    def init_audio_weights(self) -> None:
        """Zero where a part joins what a text model knows: it begins as that model."""
        for module in (*self.audio_injector.modules(), self.casual_audio_encoder.encoder.final_linear):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        silent = [attention.o for attention in self.audio_injector.injector]
        silent += [norm.linear for norm in self.audio_injector.injector_adain_layers]
        for module in (*silent, self.cond_encoder, self.trainable_cond_mask):
            for weight in module.parameters():
                nn.init.zeros_(weight)

    def embed_run(self, run: RunInput, condition: Condition) -> torch.Tensor:
        """Returns the tokens [B, L, D] of one run, marked by its kind; the video's carry the pose."""
        if run.kind not in KINDS:
            raise ValueError(f"teacher forcing (a run of {run.kind} frames) is not built for S2V; train with same_step")
        if run.kind == "motion":
            x = self.embed_by(self.frame_packer.embedding(run.patch), run.x)
        else:
            x = super().embed_run(run, condition)
        if run.kind == "video":
            x = x + self._embed_pose(condition.pose, run.x)
        return x + self.trainable_cond_mask.weight[KINDS[run.kind]]

    def _embed_pose(self, pose: torch.Tensor | None, x_BFCHW: torch.Tensor) -> torch.Tensor:
        """Returns what the pose adds to the video's tokens: without one a bias, as an empty pose has it."""
        if pose is None:
            return self.cond_encoder.bias
        if pose.shape != x_BFCHW.shape:
            raise ValueError(f"the pose has latents {list(pose.shape)} and the video {list(x_BFCHW.shape)}")
        return self.embed_by(self.cond_encoder, pose)

    def portrait(self, condition: Condition) -> tuple[RunInput, ...]:
        """Returns the runs [reference, motion: newest, older, oldest] of the condition, all at noise level 0.

        Motion may be left out (None): the network then sees no motion tokens.
        Errors: ValueError without a reference.
        """
        if condition.reference is None:
            raise ValueError("this model needs a portrait: give Condition(reference=its latent, motion=...)")
        sigma = condition.reference.new_zeros(len(condition.reference), 1)
        latents = [condition.reference]
        if condition.motion is not None:
            latents += buckets(last_motion(condition.motion))
        grid = tuple(n // p for n, p in zip(condition.reference.shape[3:], self.spec.patch_size[1:], strict=True))
        runs = self.pinned_runs(grid)[: len(latents)]
        sizes = [self.spec.patch_size, *patches(self.spec)]
        return tuple(
            RunInput(x, sigma, run.kind, (run.times, run.rows, run.columns), patch)
            for x, run, patch in zip(latents, runs, sizes[: len(latents)], strict=True)
        )

    def pinned_runs(self, grid: tuple[int, int]) -> tuple[Run, ...]:
        """Returns how reference and motion lie for frames of (rows, columns) tokens, where they are pinned."""
        return (Run("reference", (REFERENCE_TIME,), range(grid[0]), range(grid[1])), *motion_runs(grid))

    def embed_sound(self, condition: Condition, layout: TokenLayout) -> Sound | None:
        """Returns what the frames of the video hear; None in a pass without video.

        Errors: ValueError without sound (silence is features of zeros), or for another number of frames or speakers.
        """
        if layout.output is None:
            return None
        run, heard = layout.runs[layout.output], condition.heard
        if heard is None:
            if condition.audio is None:
                raise ValueError("this model needs sound: give Condition(audio=features), zeros for silence")
            heard = condition.hear(range(run.num_frames))
        if heard.shape[2] != run.num_frames:
            raise ValueError(f"sound of {heard.shape[2]} latent frames given for {run.num_frames}")
        if condition.speakers is None and heard.shape[1] > 1:
            raise ValueError(f"{heard.shape[1]} sounds and no masks given; give Condition(speakers=one mask each)")
        tokens, whole = self.casual_audio_encoder(heard)
        return Sound(tokens, whole, self._split_masks(condition.speakers, heard, layout))

    def _split_masks(self, speakers: torch.Tensor | None, heard: torch.Tensor, layout: TokenLayout):
        """Returns the speakers' masks [B, A, F or 1, L, 1] of this process's tokens of a frame."""
        if speakers is None:
            return None
        run = layout.runs[layout.output]
        given, (batch, count) = tuple(speakers.shape), heard.shape[:2]
        if given[:2] != (batch, count) or given[2] not in (1, run.num_frames) or given[3:] != run.grid:
            raise ValueError(
                f"speakers' masks are {list(given)}; they must be [{batch}, {count} sounds, 1 or {run.num_frames} "
                f"frames, {run.grid[0]} x {run.grid[1]} tokens]"
            )
        masks = speakers.expand(-1, -1, run.num_frames, -1, -1).flatten(2).transpose(1, 2)  # [B, L, A]
        masks = self.sequence.split(masks.to(self.dtype), layout.only(layout.output))
        return masks.transpose(1, 2).unflatten(2, (run.num_frames, -1)).unsqueeze(-1)

    def inject_sound(self, layer: int, x_BLD: torch.Tensor, tokens: TokenLayout, sound: Sound) -> torch.Tensor:
        """Returns the tokens after the frames of the video have read their sound behind a block."""
        if layer not in self.audio_injector.number:
            return x_BLD
        place = tokens.tokens(tokens.output)
        video = x_BLD[:, place]
        frames = video.unflatten(1, (tokens.runs[tokens.output].num_frames, -1))
        video = video + self.audio_injector.read(layer, frames, sound).flatten(1, 2).to(x_BLD.dtype)
        parts = (x_BLD[:, : place.start], video, x_BLD[:, place.stop :])
        return torch.cat([part for part in parts if part.shape[1]], 1) if x_BLD.shape[1] > video.shape[1] else video
