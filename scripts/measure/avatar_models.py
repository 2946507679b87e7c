"""The networks that `evaluate.py avatar` measures with: the user's SyncNet, and a CLIP or DINO of the user's.

Nothing is downloaded. The word `random` instead of a path takes drawn weights, whose numbers test the code alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from utils.json_reader import JsonError, get, read_json
from utils.metrics.syncnet import SyncNet
from utils.rng import Rng
from wan.checkpoint import tensor_file
from wan.checkpoint.library import load_image_model, of_library
from wan.checkpoint.weights import load_strict
from wan.encoders.image import MEAN, STD

RANDOM = "random"
CLASSES = {  # model_type of a config.json -> transformers' class of what sees
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",  # the first DINO
}
LEFT_OUT = ("text_model.", "text_projection.", "logit_scale", "classifier.", "pooler.", "position_ids")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16  # pictures at a time


@dataclass(frozen=True)
class Models:
    """What measures; None where the user gave nothing."""

    sync: SyncNet | None
    likeness: Likeness | None


class Likeness:
    """A CLIP or DINO: pictures -> unit vectors, whose products say how alike two pictures are (1: equal).

    Pictures of any size are brought to the encoder's square, the aspect not kept, so that nothing of them is cut.
    size: of its side in pixels, by default that of the model's configuration.
    """

    def __init__(self, model, mean, std, device: torch.device | str = "cpu", size: int = 0):
        self.model, self.size = model.to(device).eval().requires_grad_(False), size or model.config.image_size
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    @torch.no_grad()
    def __call__(self, frames_NHWC: np.ndarray) -> torch.Tensor:
        """Returns [N, D] (fp32, CPU) of uint8 pictures [N, H, W, 3]."""
        size, dtype = (self.size, self.size), next(self.model.parameters()).dtype
        found = []
        for start in range(0, len(frames_NHWC), BATCH):
            pixels = torch.from_numpy(frames_NHWC[start : start + BATCH]).to(self.mean.device).permute(0, 3, 1, 2)
            pixels = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
            out = self.model(pixel_values=((pixels.clamp(0, 255) / 255 - self.mean) / self.std).to(dtype))
            vectors = out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]
            found.append(functional.normalize(vectors.float(), dim=-1).cpu())
        return torch.cat(found)


def check_models(syncnet: str, identity: str) -> None:
    """Raises ValueError, before any weight is read, for a path at which no such model can be."""
    if syncnet not in ("", RANDOM) and not Path(syncnet).is_file():
        raise ValueError(
            f"--syncnet is {syncnet}, which is not a file; give SyncNet's syncnet_v2.model (github.com/joonson/"
            f"syncnet_python tells where it is), or `{RANDOM}` to test the code"
        )
    if identity in ("", RANDOM):
        return
    path = Path(identity)
    if not path.exists():
        raise ValueError(
            f"--identity is {identity}, which is not there; give the folder of a CLIP or DINO in transformers' layout "
            f"(config.json and weights), Wan's models_clip_*.pth, or `{RANDOM}` to test the code"
        )
    if path.is_dir():
        _class_name(path)
        tensor_file.files(path)


def load_models(syncnet: str, identity: str, device: torch.device | str = "cpu") -> Models:
    """Returns the networks of two paths (empty: none, `random`: drawn weights). Errors: ValueError naming the file."""
    sync = load_syncnet(syncnet).to(device) if syncnet else None
    return Models(sync, load_likeness(identity, device) if identity else None)


def load_syncnet(path: str) -> SyncNet:
    """Returns SyncNet with the published weights (`syncnet_v2.model`), or drawn ones."""
    net = SyncNet().eval().requires_grad_(False)
    if path == RANDOM:
        _draw(net)
        return net
    state = tensor_file.read(path)
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):  # of its training; older releases of torch did not write it
            state.setdefault(name, buffer)
    load_strict(net, state, f"SyncNet's weights {path}")
    return net


def load_likeness(path: str, device: torch.device | str = "cpu") -> Likeness:
    """Returns the CLIP or DINO of a folder, Wan's own CLIP of a file, or drawn weights."""
    if path == RANDOM:
        return Likeness(_drawn_dino(), IMAGENET_MEAN, IMAGENET_STD, device)
    if not Path(path).is_dir():
        return Likeness(load_image_model(path), MEAN, STD, device)
    import transformers

    folder, name = Path(path), _class_name(Path(path))
    tensor_file.read(folder, shapes_only=True)  # tells damage by its own words
    network, extra = getattr(transformers, name), {"add_pooling_layer": False} if name == "ViTModel" else {}
    if "projection_dim" in (config := tensor_file.read_config(folder) or {}):
        extra = {"projection_dim": config["projection_dim"]}  # a whole CLIP keeps it outside its two towers
    told = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is left out is looked at below
    try:
        with of_library(folder):
            model, report = network.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, **extra
            )
    finally:
        transformers.logging.set_verbosity(told)
    strange = [key for key in report["unexpected_keys"] if not key.endswith(LEFT_OUT) and not key.startswith(LEFT_OUT)]
    if bad := [*report["missing_keys"], *strange]:
        raise ValueError(f"{folder} does not fit {name}: {', '.join(sorted(bad)[:5])} missing or unexpected")
    return Likeness(model, *_pictures(folder, name), device, _side(folder, name))


def _class_name(folder: Path) -> str:
    config = tensor_file.read_config(folder)
    kind = None if config is None else config.get("model_type")
    if kind not in CLASSES:
        raise ValueError(
            f"{folder} is not the folder of a CLIP or DINO: its config.json "
            + ("is missing" if config is None else f"says model_type {kind!r}, and read are {', '.join(CLASSES)}")
        )
    return CLASSES[kind]


def _pictures(folder: Path, name: str) -> tuple[list[float], list[float]]:
    """Returns mean and deviation of the pictures that a folder's model was trained on."""
    usual = (MEAN, STD) if name.startswith("CLIP") else (IMAGENET_MEAN, IMAGENET_STD)
    config, where = _preprocessor(folder)
    found = [get(config, key, list, where, list(v)) for key, v in zip(("image_mean", "image_std"), usual, strict=True)]
    for values in found:
        if len(values) != 3 or not all(isinstance(v, (int, float)) and 0 < v < 10 for v in values):
            raise JsonError(f"{where}: image_mean or image_std is {values!r:.60}; write three numbers above 0")
    return found[0], found[1]


def _side(folder: Path, name: str) -> int:
    """Returns the side of the pictures that it sees: DINOs take any, and are told which; 0 as its sizes say."""
    config, where = _preprocessor(folder)
    crop = get(config, "crop_size", (dict, int), where, 0) if name.startswith(("Dinov2", "DINOv3")) else 0
    return get(crop, "height", int, where) if isinstance(crop, dict) else crop


def _preprocessor(folder: Path) -> tuple[dict, str]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}, str(path)


def _drawn_dino():
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=70, patch_size=14))
    _draw(model)
    return model


@torch.no_grad()
def _draw(model: torch.nn.Module) -> None:
    """Fills the matrices with numbers that depend on their names alone, so that variances stay."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.copy_(Rng(0).normal(weight.shape, "weights", name) * weight[0].numel() ** -0.5)
