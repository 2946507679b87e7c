"""Finds the parts of a model directory: the official layout, diffusers', and ours (which is diffusers')."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wan.checkpoint import tensor_file

CONFIGURATIONS = ("config.json", "adapter_config.json")  # next to a file of weights
EXPERT_FOLDERS = ("low_noise_model", "high_noise_model")  # official names; also the keys of `transformers`


@dataclass(frozen=True)
class Parts:
    """Paths of a model's parts; None for one that is not there.

    transformers: '' -> the only transformer, or both names of EXPERT_FOLDERS -> theirs.
    layout: `official` or `diffusers`.
    """

    root: Path
    layout: str
    transformers: dict[str, Path] = field(default_factory=dict)
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    image_encoder: Path | None = None
    audio_encoder: Path | None = None

    def need(self, part: str) -> Path:
        """Returns the path of a part. Errors: ValueError that says what was looked for and what is there."""
        path = vars(self)[part]
        if path is None:
            wanted = "; ".join(_LOOKED_FOR[part])
            raise ValueError(
                f"{self.root} has no {part} (looked for {wanted}); it has: {tensor_file.listing(self.root)}"
            )
        return path


_LOOKED_FOR = {
    "vae": ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth", "vae/"),
    "text_encoder": ("models_t5_*.pth", "text_encoder/"),
    "tokenizer": ("google/umt5-xxl/", "tokenizer/"),
    "image_encoder": ("models_clip_*.pth", "image_encoder/"),
    "audio_encoder": ("wav2vec2-*/", "audio_encoder/"),
}


def find_parts(model_dir: str | Path) -> Parts:
    """Returns where the parts of a model lie, by what the directory holds.

    A folder with nothing but a transformer counts as an official directory without the rest.
    Errors: ValueError if there is not such a directory, or it holds parts of no model.
    """
    root = Path(model_dir)
    if not root.is_dir():
        raise ValueError(f"{root} is not a directory; {root.parent} holds: {tensor_file.listing(root.parent)}")
    diffusers = any((root / name).is_dir() for name in ("transformer", "vae", "text_encoder"))
    transformers = _diffusers_transformers(root) if diffusers else _official_transformers(root)
    found = {part: _first(root, patterns) for part, patterns in _LOOKED_FOR.items()}
    if not transformers and not any(found.values()):
        raise ValueError(f"{root} holds no part of a Wan model; {tensor_file.describe(root)}")
    return Parts(root, "diffusers" if diffusers else "official", transformers, **found)


def weight_files(path: Path) -> dict[str, Path]:
    """Returns name -> path of what is read of weights: of a file it and its configuration, of a folder or an index the
    shards and JSON files.

    Other parts of a model may lie next to them. Errors: ValueError listing what the folder holds.
    """
    if path.is_dir():
        if (path / "transformer").is_dir():  # a model's folder, in which its transformer is meant
            path = path / "transformer"
        return {file.name: file for file in (*tensor_file.files(path), *path.glob("*.json"))}
    shards = tensor_file.files(path) if tensor_file.find_index(path) else []
    told = [file for name in CONFIGURATIONS if (file := path.with_name(name)).is_file()]
    return {"": path} | {file.name: file for file in (*shards, *told)}


def _diffusers_transformers(root: Path) -> dict[str, Path]:
    second = root / "transformer_2"
    if second.is_dir():  # diffusers calls the high-noise expert `transformer`
        return dict(zip(EXPERT_FOLDERS, (second, root / "transformer"), strict=True))
    return {"": root / "transformer"} if (root / "transformer").is_dir() else {}


def _official_transformers(root: Path) -> dict[str, Path]:
    experts = {name: root / name for name in EXPERT_FOLDERS if (root / name).is_dir()}
    if len(experts) == 1:
        lost = next(name for name in EXPERT_FOLDERS if name not in experts)
        raise ValueError(f"{root} holds one expert of two; {lost}/ is missing: download it")
    weights = any(root.glob("*.safetensors")) or tensor_file.find_index(root) is not None
    return experts or ({"": root} if weights else {})


def _first(root: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        folder = pattern.endswith("/")
        for path in sorted(root.glob(pattern.rstrip("/"))):
            if path.is_dir() == folder:
                return path
    return None
