"""What a model is: widths, heads, layers, strides. The names users write as `model.spec`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from utils.json_reader import JsonError, get, shown

LARGEST_SIZE = 10**7  # of any size of a network; more is a mistake
LOWEST = {"image_dim": 0, "eps": 0, "rope_theta": 1}
COUNTS = {"dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "text_dim", "text_len"}
COUNTS |= {"audio_dim", "audio_layers", "num_audio_token"}
CLIP_WIDTH = 1280  # ViT-H/14 of Wan 2.1 i2v
CLIP_TOKENS = 257


@dataclass(frozen=True)
class TransformerSpec:
    """Sizes of one Wan transformer; field names are those of the official `config.json`.

    `image_dim` > 0: Wan 2.1 i2v, CLIP tokens with their own keys and values in cross-attention.
    `family`: who builds and loads a network of these sizes, a name of `wan.FAMILIES`.
    """

    family: ClassVar[str] = "wan"
    causal_ok: ClassVar[bool] = True  # False: it sees whole clips, without a cache
    unmeasured: ClassVar[tuple[str, ...]] = ("model_type", "num_heads", "text_len", "eps", "rope_theta")

    model_type: str = "t2v"  # t2v | i2v | ti2v
    dim: int = 2048
    ffn_dim: int = 8192
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    num_heads: int = 16
    num_layers: int = 32
    text_dim: int = 4096
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6
    image_dim: int = 0
    rope_theta: float = 10000.0

    def __post_init__(self):
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head width {self.head_dim} is odd; rotary pairs need an even one")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    def same_shapes(self, other: TransformerSpec) -> bool:
        """Returns whether weights of these sizes have the shapes of the other's: equal but for `unmeasured`."""
        names = [f.name for f in fields(self) if f.name not in self.unmeasured]
        return type(self) is type(other) and all(vars(self)[name] == vars(other)[name] for name in names)

    @classmethod
    def select_fields(cls, config: dict, where: str = "config.json") -> dict:
        """Returns the sizes that a config.json (official or ours) tells; its other keys are left out.

        where: names it in errors. Errors: ValueError naming a key with a wrong value.
        """
        return {f.name: _size(config, f.name, type(f.default), where) for f in fields(cls) if f.name in config}

    @classmethod
    def from_config(cls, config: dict) -> TransformerSpec:
        """Returns the sizes of an official `config.json` (or ours); what it does not tell has the usual value.

        An official Wan 2.1 i2v config does not tell the CLIP width: add `image_dim`, which the shapes tell.
        """
        return cls(**cls.select_fields(config))


@dataclass(frozen=True)
class S2VSpec(TransformerSpec):
    """Sizes of Wan 2.2 S2V: a transformer that hears. Field names are those of its official `config.json`.

    audio_dim: width of the audio encoder. audio_layers: its hidden states, embedding included. num_audio_token: tokens
    per latent frame that it is turned into (one learned token more is attended to). audio_inject_layers: the blocks
    after which these are read; not told by the weights' shapes.
    """

    family: ClassVar[str] = "s2v"
    unmeasured: ClassVar[tuple[str, ...]] = (*TransformerSpec.unmeasured, "audio_inject_layers")

    model_type: str = "s2v"
    audio_dim: int = 1024
    audio_layers: int = 25
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)

    def __post_init__(self):
        super().__post_init__()
        layers = self.audio_inject_layers
        if list(layers) != sorted(set(layers)) or not all(0 <= layer < self.num_layers for layer in layers):
            raise ValueError(
                f"audio_inject_layers {list(layers)} must ascend and lie among the {self.num_layers} blocks (0 to "
                f"{self.num_layers - 1})"
            )
        if self.dim % 4:
            raise ValueError(f"dim {self.dim} is not a multiple of 4, as the audio encoder's widths need")


def _size(config: dict, name: str, kind: type, where: str):
    """Returns one size of a configuration after checking its type and that a network can have it."""
    if kind is tuple:
        value, three = config[name], name == "patch_size"  # the others are lists of layers
        right = isinstance(value, (list, tuple)) and all(type(v) is int and v >= three for v in value)
        if not right or not value or (three and len(value) != 3) or max(value) > LARGEST_SIZE:
            wanted = "three whole numbers from 1" if three else "a list of whole numbers from 0"
            raise JsonError(f"{where}: {name} is {shown(value)}; it must be {wanted}")
        return tuple(value)
    value = get(config, name, kind, where)
    lowest = LOWEST.get(name, 1 if name in COUNTS else -LARGEST_SIZE)  # what a family adds may be of any sign
    if kind in (int, float) and not lowest <= value <= LARGEST_SIZE:
        raise JsonError(f"{where}: {name} is {shown(value)}; it must be from {lowest} to {LARGEST_SIZE:,}")
    return value


@dataclass(frozen=True)
class ModelSpec:
    """A published model: its transformer, its VAE's strides (frames, rows, columns) and its habits."""

    name: str
    transformer: TransformerSpec
    strides: tuple[int, int, int] = (4, 8, 8)
    vae_file: str = "Wan2.1_VAE.pth"
    fps: int = 16
    height: int = 480
    width: int = 832
    pixel_frames: int = 81
    shift: float = 5.0
    num_steps: int = 50
    guidance: tuple[float, ...] = (5.0,)  # one per expert, low noise first
    boundary: float | None = None  # sigma from which the high-noise expert takes over
    causal_ok: bool = True  # False: two experts, bidirectional only
    hub_name: str = ""
    latent_channels: int = field(init=False, default=16)

    def __post_init__(self):
        object.__setattr__(self, "latent_channels", self.transformer.out_dim)

    @property
    def experts(self) -> tuple[str, ...]:
        """Folder names of the transformers inside an official directory ('' = the directory itself)."""
        return ("low_noise_model", "high_noise_model") if self.boundary is not None else ("",)


_SMALL = TransformerSpec(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_LARGE = TransformerSpec(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_DIGITS = TransformerSpec("t2v", 128, 512, 64, 16, 16, 2, 4, text_dim=64, text_len=12, rope_theta=100.0)

SPECS = {
    s.name: s
    for s in (
        ModelSpec("t2v-1.3B", _SMALL, hub_name="Wan-AI/Wan2.1-T2V-1.3B"),
        ModelSpec("t2v-14B", _LARGE, hub_name="Wan-AI/Wan2.1-T2V-14B"),
        ModelSpec(
            "i2v-14B",
            replace(_LARGE, model_type="i2v", in_dim=36, image_dim=CLIP_WIDTH),
            num_steps=40,
            hub_name="Wan-AI/Wan2.1-I2V-14B-480P",
        ),
        ModelSpec(
            "ti2v-5B",
            TransformerSpec("ti2v", 3072, 14336, 256, 48, 48, 24, 30),
            strides=(4, 16, 16),
            vae_file="Wan2.2_VAE.pth",
            fps=24,
            height=704,
            width=1280,
            pixel_frames=121,
            hub_name="Wan-AI/Wan2.2-TI2V-5B",
        ),
        ModelSpec(
            "t2v-A14B",
            _LARGE,
            shift=12.0,
            guidance=(3.0, 4.0),
            boundary=0.875,
            hub_name="Wan-AI/Wan2.2-T2V-A14B",
            num_steps=40,
            causal_ok=False,
        ),
        ModelSpec(
            "i2v-A14B",
            replace(_LARGE, model_type="i2v", in_dim=36),
            guidance=(3.5, 3.5),
            boundary=0.9,
            hub_name="Wan-AI/Wan2.2-I2V-A14B",
            num_steps=40,
            causal_ok=False,
        ),
        ModelSpec(
            "digits",
            _DIGITS,
            fps=8,
            height=64,
            width=64,
            pixel_frames=33,
            shift=3.0,
            num_steps=30,
            guidance=(3.0,),
        ),
    )
}

_HEARING_DIGITS = {**vars(_DIGITS), "model_type": "s2v", "audio_dim": 64, "audio_layers": 4}
S2V_SPECS = {
    s.name: s
    for s in (
        ModelSpec(
            "s2v-14B",
            S2VSpec(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
            fps=25,  # Wan 2.2 itself streams at 16; Live-Avatar's weights run at 25
            height=704,
            width=384,
            pixel_frames=81,
            shift=3.0,
            num_steps=40,
            guidance=(4.5,),
            hub_name="Wan-AI/Wan2.2-S2V-14B",
        ),
        replace(SPECS["digits"], name="digits-s2v", transformer=S2VSpec(**_HEARING_DIGITS, audio_inject_layers=(0, 2))),
    )
}
