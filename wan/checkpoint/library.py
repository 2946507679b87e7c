"""The borrowed models: diffusers' VAE, transformers' umT5 and CLIP, built from Wan's configurations and loaded.

Official files and the libraries' own folders are both read; heavy imports stay inside.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from utils.json_reader import JsonError, get, read_json, shown
from wan.checkpoint import tensor_file
from wan.checkpoint.encoder_maps import T5_TIED, image_to_transformers, text_to_transformers, vae_to_diffusers
from wan.checkpoint.identify import find_kind
from wan.checkpoint.key_maps import State, clean_names
from wan.checkpoint.scales import apply_scales, check_types
from wan.checkpoint.weights import load_strict

# ---- configurations: official fields, as the reference's Python files hold them --------------------

Numbers = tuple[float, ...]

_MEAN_21: Numbers = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN_21 += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD_21: Numbers = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD_21 += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
_MEAN_22: Numbers = (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557)
_MEAN_22 += (-0.1382, 0.0542, 0.2813, 0.0891)
_MEAN_22 += (0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502)
_MEAN_22 += (-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723)
_MEAN_22 += (-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667)
_STD_22: Numbers = (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901)
_STD_22 += (0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659)
_STD_22 += (0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944)
_STD_22 += (0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)

_VAE = {"dim_mult": (1, 2, 4, 4), "num_res_blocks": 2, "attn_scales": (), "temperal_downsample": (False, True, True)}
VAE_CONFIGS = {
    "vae 2.1": {**_VAE, "dim": 96, "z_dim": 16, "latent_mean": _MEAN_21, "latent_std": _STD_21},
    "vae 2.2": {
        **_VAE,
        "dim": 160,
        "dec_dim": 256,
        "z_dim": 48,
        "patch_size": 2,
        "latent_mean": _MEAN_22,
        "latent_std": _STD_22,
    },
}
TEXT_CONFIG = {"vocab": 256384, "dim": 4096, "dim_attn": 4096, "dim_ffn": 10240, "num_heads": 64, "num_layers": 24}
TEXT_CONFIG |= {"num_buckets": 32}
IMAGE_CONFIG = {"dim": 1280, "dim_ffn": 5120, "dim_out": 1024, "num_heads": 16, "num_layers": 32}
IMAGE_CONFIG |= {"image_size": 224, "patch_size": 14}

RGB = 3


def build_vae(config: dict, device: str | None = None) -> nn.Module:
    """Returns diffusers' `AutoencoderKLWan` for an official VAE config (keys as in `VAE_CONFIGS`).

    A `patch_size` marks Wan 2.2: residual shortcuts, pixels folded into channels.
    """
    from diffusers import AutoencoderKLWan

    from wan.codec.vae_layers import patch_vae_for_speed

    patch = config.get("patch_size")
    channels = RGB * (patch or 1) ** 2
    with torch.device(device or "cpu"):
        model = AutoencoderKLWan(
            base_dim=config["dim"],
            decoder_base_dim=config.get("dec_dim"),
            z_dim=config["z_dim"],
            dim_mult=list(config["dim_mult"]),
            num_res_blocks=config["num_res_blocks"],
            attn_scales=list(config["attn_scales"]),
            temperal_downsample=list(config["temperal_downsample"]),
            latents_mean=list(config["latent_mean"]),
            latents_std=list(config["latent_std"]),
            is_residual=patch is not None,
            in_channels=channels,
            out_channels=channels,
            patch_size=patch,
            scale_factor_temporal=2 ** sum(config["temperal_downsample"]),
            scale_factor_spatial=2 ** (len(config["dim_mult"]) - 1) * (patch or 1),
        )
    return patch_vae_for_speed(model)


def build_text_model(config: dict, device: str | None = None) -> nn.Module:
    """Returns transformers' `UMT5EncoderModel` for an official umT5 config (keys as in `TEXT_CONFIG`)."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = UMT5Config(
        vocab_size=config["vocab"],
        d_model=config["dim"],
        d_kv=config["dim_attn"] // config["num_heads"],
        d_ff=config["dim_ffn"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        relative_attention_num_buckets=config["num_buckets"],
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )
    with torch.device(device or "cpu"):
        return UMT5EncoderModel(sizes).eval()


def build_image_model(config: dict, device: str | None = None) -> nn.Module:
    """Returns transformers' `CLIPVisionModelWithProjection` (keys as in `IMAGE_CONFIG`)."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = CLIPVisionConfig(
        hidden_size=config["dim"],
        intermediate_size=config["dim_ffn"],
        projection_dim=config["dim_out"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_heads"],
        image_size=config["image_size"],
        patch_size=config["patch_size"],
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    with torch.device(device or "cpu"):
        return CLIPVisionModelWithProjection(sizes).eval()


# ---- configurations of other programs --------------------------------------------------------------

# What their programs write next to the sizes; it changes nothing here.
DIFFUSERS_NOTES = ("_class_name", "_diffusers_version", "_name_or_path", "_commit_hash", "clip_output")
TRANSFORMERS_NOTES: tuple[str, ...] = ("torch_dtype", "dtype", "transformers_version", "tokenizer_class", "output_past")
TRANSFORMERS_NOTES += ("scalable_attention", "gradient_checkpointing", "bos_token_id", "n_positions", "dropout")
TRANSFORMERS_NOTES += ("_attn_implementation_autoset", "task_specific_params", "model_max_length", "pruned_heads")
TRANSFORMERS_NOTES += ("tie_encoder_decoder", "torchscript", "use_bfloat16", "add_cross_attention", "max_length")
OPEN = (type(None), bool, int, float, str, list, dict)


@contextmanager
def of_library(what: str | Path) -> Iterator[None]:
    """Turns whatever a library raises on a foreign file into one ValueError that names the file."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # each library has kinds of its own, some of which are bare exceptions
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"{what}: the library cannot use it ({first[0][:200]}); take the one of these weights"
        ) from error


def check_config(config: dict, usual: dict, notes: Iterable[str], where: str) -> dict:
    """Returns the keys of a foreign configuration that its model reads, after a check of each.

    usual: key -> default of its class, whose type a value must have. notes: further keys that may be there.
    Errors: JsonError naming a key that nobody knows, which might start something, or a wrong value.
    """
    if lost := [key for key in config if key not in usual and key not in notes]:
        raise JsonError(f"{where} has the keys {', '.join(lost[:5])}, which are not known here; remove them")
    known = {key: value for key, value in config.items() if key in usual}
    for key, value in known.items():
        default = usual[key]
        kind = (
            OPEN
            if default is None
            else (type(default), list, tuple)
            if isinstance(default, (list, tuple))
            else type(default)
        )
        nothing = value is None and not isinstance(default, (int, float, list, tuple))
        if not nothing:
            get(known, key, kind, where)
        if any(isinstance(v, (int, float)) and not _usable(v) for v in (value if isinstance(value, list) else [value])):
            raise JsonError(f"{where}: {key} is {shown(value)}; it must be finite and not huge")
    return known


def check_sizes(config: dict, network: type, notes: Iterable[str], where: str) -> dict:
    """Returns `check_config` of a configuration whose keys are the arguments of its network's class."""
    parameters = inspect.signature(network).parameters.values()
    return check_config(config, {p.name: p.default for p in parameters}, notes, where)


def _usable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < 1e9


def _check_vae(config: dict, where: str) -> None:
    """Checks what diffusers does not: each latent channel has a mean and a deviation."""
    channels = config.get("z_dim", 16)
    for key in ("latents_mean", "latents_std"):
        values = config.get(key, [1.0] * channels)
        right = len(values) == channels and all(isinstance(v, (int, float)) for v in values)
        if not right or (key == "latents_std" and 0 in values):
            raise JsonError(f"{where}: {key} is {shown(values)}; it must be {channels} numbers, as z_dim says")
    if not 0 <= config.get("dropout", 0.0) <= 1:
        raise JsonError(f"{where}: dropout is {shown(config['dropout'])}; it must be from 0 to 1")


LIBRARY_CONFIGS = {"UMT5EncoderModel": "UMT5Config", "T5EncoderModel": "T5Config"}
LIBRARY_CONFIGS |= {"CLIPVisionModelWithProjection": "CLIPVisionConfig"}


def _from_config(kind: str, config: dict, where: str, device: str) -> nn.Module:
    """Returns transformers' model of a foreign config.json; kind: a name of `LIBRARY_CONFIGS`."""
    import transformers

    build_config = getattr(transformers, LIBRARY_CONFIGS[kind])
    sizes = check_config(config, build_config().to_dict(), TRANSFORMERS_NOTES, where)
    with of_library(where), torch.device(device):
        made = build_config.from_dict(sizes)
        network = getattr(transformers, kind)
        made._attn_implementation = "sdpa" if network._supports_sdpa else "eager"  # as the library itself chooses
        return network(made).eval()


# ---- loading --------------------------------------------------------------------------------------


def load_vae(path: str | Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """Returns an `AutoencoderKLWan` in eval mode from Wan2.x_VAE.pth, a safetensors file, or a diffusers folder.

    dtype None keeps the file's. Errors: ValueError if it is not a Wan VAE or does not fit.
    """
    from diffusers import AutoencoderKLWan

    from wan.codec.vae_layers import patch_vae_for_speed

    path = Path(path)
    state = clean_names(tensor_file.read(path))
    kind = find_kind(state)
    family = kind.removesuffix(", diffusers")
    if family not in VAE_CONFIGS:
        raise ValueError(f"{path} holds {kind} weights, no Wan VAE: {', '.join(list(state)[:5])}")
    check_types(state, str(path))
    folder = path if path.is_dir() else path.parent
    config, where = tensor_file.read_config(folder), f"{folder}/config.json"
    if kind.endswith("diffusers") and config and "base_dim" in config:
        sizes = check_sizes(config, AutoencoderKLWan, DIFFUSERS_NOTES, where)
        _check_vae(sizes, where)
        with of_library(where), torch.device("meta"):
            model = patch_vae_for_speed(AutoencoderKLWan.from_config(sizes))
    else:
        model = build_vae(VAE_CONFIGS[family], "meta")
    if not kind.endswith("diffusers"):
        state = vae_to_diffusers(state)
    load_strict(model, _cast(state, dtype), f"the VAE {path}", assign=True)
    return _finished(model, path)


def load_text_model(path: str | Path, dtype: torch.dtype | None = None, network="UMT5EncoderModel") -> nn.Module:
    """Returns a `UMT5EncoderModel` in eval mode from models_t5_*.pth or a transformers folder, or a T5 from a folder.

    dtype None keeps the file's. Errors: ValueError if it is not such an encoder or does not fit.
    """
    path = Path(path)
    state = clean_names(tensor_file.read(path))
    kind = find_kind(state)
    folder = path if path.is_dir() else path.parent
    config = tensor_file.read_config(folder)
    if not kind.startswith("umt5"):
        raise ValueError(f"{path} holds {kind} weights, no umT5 encoder: {', '.join(list(state)[:5])}")
    state = apply_scales(state, str(path))
    if kind == "umt5, transformers" and config and "d_model" in config:
        model = _from_config(network, config, f"{folder}/config.json", "meta")
    elif network != "UMT5EncoderModel":
        raise ValueError(f"{folder} holds no config.json, which tells the encoder's sizes; take the whole folder")
    else:
        model = build_text_model(TEXT_CONFIG, "meta")
    state = _cast(text_to_transformers(state) if kind == "umt5" else state, dtype)
    load_strict(model, state, f"the text encoder {path}", assign=True)
    # Assigning gave the two names of the embedding a tensor each (or one of them none).
    embedding = state.get("shared.weight", state.get(T5_TIED))
    model.set_input_embeddings(nn.Embedding.from_pretrained(embedding, freeze=True))
    return _finished(model, path)


def load_image_model(path: str | Path, dtype: torch.dtype | None = None) -> nn.Module:
    """Returns a CLIP vision model in eval mode from models_clip_*.pth or a transformers folder.

    dtype None keeps the file's. Errors: ValueError if it is not a CLIP or does not fit.
    """
    path = Path(path)
    config = tensor_file.read_config(path) if path.is_dir() else None
    if config is not None:
        return _image_from_folder(path, config, dtype)
    state = clean_names(tensor_file.read(path))
    kind = find_kind(state)
    if not kind.startswith("clip"):
        raise ValueError(f"{path} holds {kind} weights, no CLIP: {', '.join(list(state)[:5])}")
    model = build_image_model(IMAGE_CONFIG)  # not on meta: its position numbers are a buffer in no file
    state = image_to_transformers(state) if kind == "clip" else state
    check_types(state, str(path))
    load_strict(model, _cast(state, dtype), f"the image encoder {path}", assign=True)
    return _finished(model, path)


def _image_from_folder(path: Path, config: dict, dtype: torch.dtype | None) -> nn.Module:
    """Reads a transformers CLIP folder, saved with its projection or without."""
    state = {k: v for k, v in tensor_file.read(path).items() if not k.endswith("position_ids")}
    check_types(state, str(path))
    model = _from_config("CLIPVisionModelWithProjection", config, f"{path}/config.json", "cpu")
    if "visual_projection.weight" not in state:  # saved without it; the tokens come from before it
        state["visual_projection.weight"] = model.visual_projection.weight.detach()
    load_strict(model, _cast(state, dtype), f"the image encoder {path}", assign=True)
    return _finished(model, path)


def load_tokenizer(folder: str | Path):
    """Returns the tokenizer of a local folder; no code of the folder runs. Errors: ValueError naming what is wrong."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    files = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder} is not a tokenizer folder: none of {', '.join(files)} is there")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        if "auto_map" in content:
            raise ValueError(f"{folder / name} names code of its own (auto_map), which is not run; remove that key")
    with of_library(folder):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _cast(state: State, dtype: torch.dtype | None) -> State:
    """Casts floating tensors before they are assigned, so that no second copy of a whole model lives."""
    return {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in state.items()}


def _finished(model: nn.Module, path: Path) -> nn.Module:
    unset = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if unset:
        raise ValueError(f"{path} leaves {len(unset)} tensors of the model unset: {', '.join(unset[:10])}")
    return model.eval().requires_grad_(False)
