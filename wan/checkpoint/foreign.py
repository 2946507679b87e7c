"""Names what is not read here: file formats by their first bytes, models of other families by their keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

# First bytes -> what such a file is. Those that we read are not here.
FORMATS = {
    b"GGUF": "a GGUF file (weights quantised for llama.cpp and its kin)",
    b"ggml": "a GGML file (weights quantised for llama.cpp)",
    b"\x89HDF": "an HDF5 file (Keras or TensorFlow)",
    b"\x93NUMPY": "a numpy array",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"ftrt": "a TensorRT engine",
    b"ptrt": "a TensorRT engine",
    b"\x08\x03\x12": "an ONNX model",
    b"\x08\x04\x12": "an ONNX model",
    b"\x08\x05\x12": "an ONNX model",
    b"\x08\x06\x12": "an ONNX model",
    b"\x08\x07\x12": "an ONNX model",
    b"\x08\x08\x12": "an ONNX model",
    b"\x08\x09\x12": "an ONNX model",
    b"\x08\x0a\x12": "an ONNX model",
}
PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
TAR = (257, b"ustar")

# Models of other families: name -> patterns that must each be found in the names, prefixes removed.
FAMILIES = {
    "HunyuanVideo": (r"^double_blocks\.\d+\.img_mod", r"^txt_in\.individual_token_refiner"),
    "HunyuanVideo, diffusers": (r"^context_embedder\.token_refiner", r"^single_transformer_blocks\.0\."),
    "Flux": (r"^double_blocks\.0\.img_attn", r"^single_blocks\.0\.linear1"),
    "Flux, diffusers": (r"^single_transformer_blocks\.0\.proj_mlp", r"^x_embedder\."),
    "LTX-Video": (r"^patchify_proj\.|^proj_in\.", r"^transformer_blocks\.0\.scale_shift_table"),
    "CogVideoX": (r"^patch_embed\.proj\.", r"^transformer_blocks\.0\.norm1\.linear\."),
    "CogVideoX (SAT)": (r"^mixins\.patch_embed\.",),
    "Mochi": (r"^blocks\.0\.mod_x\.", r"^t5_y_embedder\."),
    "Open-Sora": (r"^spatial_blocks\.|^temporal_blocks\.",),
    "Qwen-Image": (r"^transformer_blocks\.0\.img_mod\.", r"^txt_norm\."),
    "Cosmos": (r"^net\.blocks\.0\.|^blocks\.block0\.",),
    "Stable Diffusion (a UNet)": (
        r"^input_blocks\.0\.|^down_blocks\.0\.attentions\.",
        r"^out(put_blocks\.0)?\.|^up_blocks\.",
    ),
    "a VAE of pictures (Stable Diffusion)": (r"^(first_stage_)?(encoder\.down\.0\.block|model\.encoder\.down\.0)",),
    "a ControlNet": (r"^controlnet_|^zero_convs\.",),
    "T5 (not umT5)": (r"^encoder\.block\.0\.layer\.0\.SelfAttention", r"^decoder\.block\.0\."),
    "a CLIP text encoder": (r"^text_model\.encoder\.layers\.0\.",),
    "wav2vec 2.0 in fairseq's names (transformers' are read)": (r"(^|\.)feature_extractor\.conv_layers\.0\.0\.",),
    "Whisper": (r"^encoder\.layers\.0\.self_attn\.", r"^encoder\.conv1\."),
    "a language model": (r"^(language_model\.)?(layers\.0\.(self_attn\.q_proj|self_attn\.qkv_proj)|h\.0\.attn\.)",),
}

# What is added to a Wan transformer by models that we do not run: name -> pattern of an added layer.
ADDED = {
    "VACE (a control branch)": r"^vace_(blocks|patch_embedding)\.",
    "a talking avatar (audio)": r"^audio_(proj|encoder|cond)",
    "InfiniteTalk or MultiTalk (audio)": r"^blocks\.\d+\.(audio_cross_attn|norm_x)\b",
    "Wan-Animate": r"^(face_adapter|face_encoder|motion_encoder|pose_patch_embedding)\.",
    "Fun Control (camera or reference)": r"^(control_adapter|control_layers?|ref_conv|cam_encoder|camera_)",
    "Phantom or ReCamMaster (projectors)": r"^blocks\.\d+\.(cam_encoder|projector)\.",
    "an IP adapter": r"(^|\.)(ip_adapter|ip_proj|image_proj_model|to_k_ip|k_ip)\b",
    "a video-to-audio or motion module": r"^(motion_modules|temporal_|mmaudio)",
    "block-sparse attention with its own layers": r"\.(block_mask_predictor|sla|radial|proj_l)\.",
}

# Quantisations that keep more than one tensor in place of a weight, and are not read.
QUANTISED = {
    "bitsandbytes": r"\.(absmax|quant_map|nested_absmax|quant_state\b.*|SCB)$",
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "Nunchaku (SVDQuant)": r"\.(wscales|smooth_factor|proj_down|wtscale)$",
    "optimum-quanto": r"\.weight\._(data|scale|shift)$",
    "blocks of 8-bit weights": r"\.weight_scale_inv$",
    "NVFP4 or MXFP": r"\.(weight_scale_2|weight_block_scale)$",
}


def name_format(head: bytes) -> str:
    """Returns what a file is that begins with these bytes (at least 262 of a longer file), "" if nobody knows."""
    for magic, name in FORMATS.items():
        if head.startswith(magic):
            return name
    if PAGE.match(head):
        return "a web page, not the file; download it again (a login or a licence may be asked for)"
    if head[TAR[0] :].startswith(TAR[1]):
        return "a tar archive; unpack it"
    return "text (JSON); give the weights next to it" if head.lstrip()[:1] in (b"{", b"[") else ""


def name_family(names: Iterable[str]) -> str:
    """Returns the family of a model that is not read here, by its (cleaned) names; "" if nobody knows."""
    names = list(names)
    for family, patterns in FAMILIES.items():
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return family
    return ""


def name_added(names: Iterable[str]) -> str:
    """Returns what such (cleaned) names add to a Wan transformer, "" if nobody knows."""
    names = list(names)
    return next((what for what, pattern in ADDED.items() if any(re.search(pattern, name) for name in names)), "")


def name_quantisation(names: Iterable[str]) -> str:
    """Returns the quantisation that keeps such names, "" if none."""
    names = list(names)
    return next((what for what, pattern in QUANTISED.items() if any(re.search(pattern, n) for n in names)), "")
