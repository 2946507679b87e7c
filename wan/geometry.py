"""Pixels <-> latents <-> tokens, and the chunks of a video. The only home of these sums."""

from __future__ import annotations

from dataclasses import dataclass

from wan.spec import ModelSpec


@dataclass(frozen=True)
class Span:
    """A run of latent frames [start, stop) of a video."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True)
class Geometry:
    """Sizes of one video: height and width in pixels, strides (frames, rows, columns) of VAE and patch.

    Errors: ValueError if height or width is not a multiple of stride x patch.
    """

    height: int
    width: int
    strides: tuple[int, int, int] = (4, 8, 8)
    patch_size: tuple[int, int, int] = (1, 2, 2)
    latent_channels: int = 16

    def __post_init__(self):
        for side, stride, patch in (("height", 1, 1), ("width", 2, 2)):
            pixels, multiple = getattr(self, side), self.strides[stride] * self.patch_size[patch]
            if pixels < multiple or pixels % multiple:
                below = max(multiple, pixels - pixels % multiple)
                raise ValueError(
                    f"{side} {pixels} is not a multiple of {multiple} pixels; use {below} or {below + multiple}"
                )

    @classmethod
    def of(cls, spec: ModelSpec, height: int | None = None, width: int | None = None) -> Geometry:
        """Returns the geometry of a model at a size in pixels (default: the model's own)."""
        return cls(
            height or spec.height,
            width or spec.width,
            spec.strides,
            spec.transformer.patch_size,
            spec.latent_channels,
        )

    @property
    def latent_size(self) -> tuple[int, int]:
        """(rows, columns) of one latent frame."""
        return self.height // self.strides[1], self.width // self.strides[2]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tokens in one latent frame."""
        rows, columns = self.latent_size
        return rows // self.patch_size[1], columns // self.patch_size[2]

    @property
    def frame_tokens(self) -> int:
        """Tokens in one latent frame."""
        return self.grid[0] * self.grid[1]

    def latent_shape(self, num_frames: int) -> tuple[int, int, int, int]:
        """Returns (F, C, h, w), the shape of one sample's latents."""
        return (num_frames, self.latent_channels, *self.latent_size)

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames in `latent_frames` from the video's start: the first holds one, the others 4 each."""
        return 1 + self.strides[0] * (latent_frames - 1) if latent_frames else 0

    def latent_frames(self, pixel_frames: int) -> int:
        """Latent frames of a video of 4n+1 pixel frames.

        Errors: ValueError for another number of frames.
        """
        extra = (pixel_frames - 1) % self.strides[0]
        if pixel_frames < 1 or extra:
            below = max(1, pixel_frames - extra)
            raise ValueError(
                f"{pixel_frames} pixel frames are not {self.strides[0]}n+1; use {below} or {below + self.strides[0]}"
            )
        return 1 + (pixel_frames - 1) // self.strides[0]

    def latent_frame_at(self, pixel_frame: int) -> int:
        """Returns the latent frame that holds a pixel frame (both count from 0)."""
        return -(-pixel_frame // self.strides[0])

    def latent_frames_for(self, seconds: float, fps: float, size: int = 1) -> int:
        """Returns the least number of latent frames, a multiple of `size`, that lasts `seconds`."""
        need = 1 + -(-(max(1, round(seconds * fps)) - 1) // self.strides[0])
        return -(-need // size) * size


def chunks(total: int, size: int, first: int | None = None, start: int = 0) -> list[Span]:
    """Cuts `total` latent frames into chunks of `size`; `first` is the length of the first one if it differs.

    `start` is the frame at which the first chunk begins (frames before it are given).
    Errors: ValueError if the frames do not fill whole chunks.
    """
    check_chunks(total, size, first)
    head = first or 0
    borders = ([start] if head else []) + list(range(start + head, start + total + 1, size))
    return [Span(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True)]


def check_chunks(total: int, size: int, first: int | None = None) -> None:
    """Raises ValueError if `total` frames do not fill whole chunks; cheap for any number."""
    head = first or 0
    if size < 1 or head < 0:
        raise ValueError(f"chunk is {size} (first chunk {head}); it must be at least 1 latent frame")
    rest = total - head
    if total < 1 or rest < 0 or rest % size:
        shape = f"{head} + {size}n" if head else f"{size}n"
        below = head + max(0, rest) // size * size
        near = f"{below} or {below + size}" if below else f"{below + size}"
        raise ValueError(f"{total} latent frames do not fill chunks of {size} ({shape}); use {near}")
