"""A model directory is understood in the official layout, diffusers' and ours."""

from __future__ import annotations

import pytest

from wan.checkpoint import tensor_file
from wan.checkpoint.parts import find_parts


def touch(root, *names):
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def relative(parts) -> dict:
    found = {name: getattr(parts, name) for name in ("vae", "text_encoder", "tokenizer", "image_encoder")}
    found |= {f"transformer {k}".strip(): v for k, v in parts.transformers.items()}
    return {k: v and v.relative_to(parts.root).as_posix() for k, v in found.items()}


def test_official_directory(tmp_path):
    touch(tmp_path, "config.json", "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth", "google/umt5-xxl/")
    touch(tmp_path, "models_t5_umt5-xxl-enc-bf16.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    parts = find_parts(tmp_path)
    assert parts.layout == "official"
    assert relative(parts) == {
        "transformer": ".",
        "vae": "Wan2.1_VAE.pth",
        "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
        "tokenizer": "google/umt5-xxl",
        "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    }


def test_official_directory_with_experts(tmp_path):
    touch(tmp_path, "low_noise_model/", "high_noise_model/", "Wan2.1_VAE.pth", "configuration.json")
    found = relative(find_parts(tmp_path))
    assert found["transformer low_noise_model"] == "low_noise_model"
    assert found["transformer high_noise_model"] == "high_noise_model"
    assert found["text_encoder"] is None


def test_diffusers_directory(tmp_path):
    touch(tmp_path, "transformer/", "transformer_2/", "vae/", "text_encoder/", "tokenizer/", "scheduler/")
    parts = find_parts(tmp_path)
    assert parts.layout == "diffusers"
    assert relative(parts) == {
        "transformer low_noise_model": "transformer_2",  # diffusers lists the high-noise expert first
        "transformer high_noise_model": "transformer",
        "vae": "vae",
        "text_encoder": "text_encoder",
        "tokenizer": "tokenizer",
        "image_encoder": None,
    }


def test_a_missing_part_is_named_with_what_is_there(tmp_path):
    touch(tmp_path, "transformer/", "vae/")
    parts = find_parts(tmp_path)
    assert parts.need("vae") == tmp_path / "vae"
    with pytest.raises(
        ValueError, match=r"no text_encoder \(looked for models_t5_.*text_encoder/\); it has: transformer/, vae/"
    ):
        parts.need("text_encoder")
    with pytest.raises(ValueError, match="is not a directory; .* holds: transformer/, vae/"):
        find_parts(tmp_path / "vea")


def test_a_trainings_folder_names_its_export(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints" / "step_100").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has no export yet: run `python scripts/export_checkpoint.py .*mine FILE`"):
        find_parts(run)
    for name in ("text_encoder", "transformer"):
        (run / "export" / name).mkdir(parents=True)
    for read in (find_parts, tensor_file.read):
        with pytest.raises(ValueError, match="it is the folder of a training: give .*mine/export/transformer$"):
            read(run)
    (run / "export" / "lora.safetensors").touch()
    with pytest.raises(ValueError, match="of a training of adapters: give .*/export/lora.safetensors as LoRA$"):
        tensor_file.read(run)


@pytest.mark.parametrize("name", ["wav2vec2-large-xlsr-53-english", "audio_encoder"])
def test_the_audio_encoder_is_found_in_both_layouts(tmp_path, name):
    touch(tmp_path, "diffusion_pytorch_model.safetensors", f"{name}/", "wav2vec2-notes.txt")
    parts = find_parts(tmp_path)
    assert parts.need("audio_encoder") == tmp_path / name and list(parts.transformers) == [""]
    with pytest.raises(ValueError, match=r"has no audio_encoder \(looked for wav2vec2-\*/; audio_encoder/\)"):
        (tmp_path / name).rmdir()
        find_parts(tmp_path).need("audio_encoder")
