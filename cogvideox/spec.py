"""What a CogVideoX model is: the sizes of its transformer and the published models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wan.spec import ModelSpec, TransformerSpec


@dataclass(frozen=True)
class CogVideoXSpec(TransformerSpec):
    """Sizes of one CogVideoX transformer, version 1.

    time_dim: width of the time embedding. rotary: rotated queries and keys (5B), else an added sin-cos table (2B).
    sample_rows, sample_columns: latent cells of the size that the positions of other sizes are fitted to.
    sample_frames: pixel frames of the clips. snr_shift: of its noise schedule.
    """

    family: ClassVar[str] = "cogvideox"
    causal_ok: ClassVar[bool] = False
    unmeasured: ClassVar[tuple[str, ...]] = (
        *TransformerSpec.unmeasured,
        "rotary",
        "sample_rows",
        "sample_columns",
        "sample_frames",
        "snr_shift",
    )

    model_type: str = "cogvideox"
    dim: int = 3072
    ffn_dim: int = 12288
    freq_dim: int = 3072
    num_heads: int = 48
    num_layers: int = 42
    text_len: int = 226
    eps: float = 1e-5
    time_dim: int = 512
    rotary: bool = True
    sample_rows: int = 60
    sample_columns: int = 90
    sample_frames: int = 49
    snr_shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.rotary and self.head_dim % 16:
            raise ValueError(f"head width {self.head_dim} is no multiple of 16, as the rotation of three axes needs")


_HABITS = {"fps": 8, "height": 480, "width": 720, "pixel_frames": 49, "causal_ok": False, "vae_file": "vae"}
SPECS = {
    s.name: s
    for s in (
        ModelSpec(
            "cogvideox-5B",
            CogVideoXSpec(),
            shift=1.0,
            guidance=(6.0,),
            hub_name="zai-org/CogVideoX-5b",
            **_HABITS,
        ),
        ModelSpec(
            "cogvideox-2B",
            CogVideoXSpec(
                dim=1920, ffn_dim=7680, freq_dim=1920, num_heads=30, num_layers=30, rotary=False, snr_shift=3.0
            ),
            shift=3.0,
            guidance=(6.0,),
            hub_name="zai-org/CogVideoX-2b",
            **_HABITS,
        ),
    )
}
