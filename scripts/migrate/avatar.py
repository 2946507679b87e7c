"""Turns Live-Avatar's `s2v_causal_sft.yaml` into a training recipe of ours.

What it publishes of its training goes over; what only its own unpublished trainer reads is dropped, with the reason.
"""

from __future__ import annotations

from typing import Any

from scripts.migrate.old import Old

SIGNS = ("lora_target_modules", "audio_learning_rate", "use_audio")  # no other ancestor's file has them
MODEL = "models/Wan2.2-S2V-14B"
TARGETS = "q,k,v,o,ffn.0,ffn.2"
PATTERN = r"(blocks|audio_injector\.injector)\.\d+\."  # what these names match in the network
CHUNK, PIXELS = 3, 4  # latent frames of a chunk, pixel frames of a latent frame
TRAINER = "its trainer is not published"
LOG = "a run writes metrics.jsonl into its folder; write track.wandb or track.tensorboard for more"
ENCODED = "scripts/encode_latents.py talking encodes the videos; write trainer.source.path"
MOTION = "0, empty or unused there; trainer.source.corruption mixes the motion with noise"
SHARED = "layout.shard and layout.sequence say how ranks share a training"
DROPPED = {
    """
    debug infer infer_steps reset strategy i2v use_audio model_config convert_model_dtype use_captionemb use_s2v_fsdp
    use_gradient_checkpointing_offload train_architecture
    """: TRAINER,
    "deepspeed_config sp_size": SHARED,
    "dataset dataset_path dataset_weights dataset_mix_wh dataloader_num_workers": ENCODED,
    "drop_motion_frames drop_part_motion_frames motion_noise_type beta_a beta_b add_noise_to_motion": MOTION,
    "val_list val_check_interval valid_scale_guidance": "write preview.every and preview.prompts",
    "use_swanlab swanlab_mode": LOG,
    "t5_cpu": "write trainer.text.device: cpu",
    "wav2vec_path": "scripts/encode_latents.py talking --ear",
    "init_lora_weights": "adapters begin as peft's default does",
}
REASONS = {key: reason for keys, reason in DROPPED.items() for key in keys.split()}


def is_avatar(old: Old) -> bool:
    """True for a file of Live-Avatar's training."""
    return any(key in old.tree for key in SIGNS)


def avatar_recipe(old: Old) -> dict[str, Any]:
    """Returns the tree of a training recipe. Errors: ValueError for values that have no counterpart."""
    pixels = old.whole("num_frames", 48, least=1)
    if pixels % (CHUNK * PIXELS):
        near = max(1, round(pixels / (CHUNK * PIXELS))) * CHUNK * PIXELS
        raise old.error(
            "num_frames", f"is {pixels}; chunks have {CHUNK * PIXELS} frames: write a multiple, e.g. {near}"
        )
    frames = pixels // PIXELS
    if (targets := old.text("lora_target_modules", TARGETS)) != TARGETS:
        raise old.error(
            "lora_target_modules",
            f"is {targets!r}; {TARGETS} goes over, other layers are trainer.generator.lora.targets, a pattern of names",
        )
    source = {
        "name": "talking",
        "path": "runs/talking_latents",
        "frames": frames,
        "silence": float(old.number("drop_audio", 0.15)),
    }
    old.assume("trainer.source.path", "runs/talking_latents, which scripts/encode_latents.py talking fills")
    own, rate = old.number("audio_learning_rate"), old.number("learning_rate", 5e-5)
    optim: dict[str, Any] = {"name": "adamw", "lr": float(rate)}
    if own is not None:
        optim["rates"] = [{"starts": "audio_injector.", "lr": float(own)}]
    lora: dict[str, Any] = {
        "rank": old.whole("lora_rank", 128, least=1),
        "alpha": float(old.number("lora_alpha", 64.0)),
    }
    if lora["alpha"] <= 0:
        raise old.error("lora_alpha", f"is {lora['alpha']:g}; write a positive number")
    start = old.text("pretrained_lora_path") or old.text("load_from")
    weights = {"weights": start} if start else {}
    for key, reason in REASONS.items():
        old.drop(key, reason)
    generator = {"weights": MODEL, "dtype": "bf16", "checkpointing": old.flag("use_gradient_checkpointing", True)}
    folder = old.text("ckpt_dir").strip("./")
    old.assume("the model", MODEL + (f" for {folder}" if folder and not MODEL.endswith(folder) else ""))
    return {
        "model": MODEL,
        "steps": old.whole("max_steps", 100_000, least=1),
        "generation": {
            "chunk": CHUNK,
            "steps": {"shift": 3.0},
            "cache": {"window_frames": frames, "content": "same_step"},
            "portrait": {"distance": [4, 30], "audio_context": "block"},
        },
        "trainer": {
            "name": "regress",
            "generator": {**generator, "lora": {**lora, "targets": PATTERN, **weights}},
            "source": source,
            "loss": {"name": "flow", "mode": "same_step", "distance": "drawn"},
            "optim": optim,
            "accumulate": old.whole("accumulate_grad_batches", 1, least=1),
            "ema": {"decay": 0.0},
        },
    }
