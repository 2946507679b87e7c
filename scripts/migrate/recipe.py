"""Turns Self-Forcing's and LongLive's YAML into our recipes: which key goes where. Missing keys mean their defaults."""

from __future__ import annotations

from typing import Any

from scripts.migrate.keys import Old
from scripts.migrate.source import (
    BASE,
    LEAST_FRAMES,
    batch,
    context,
    get_cache,
    get_chunks,
    get_steps,
    source,
    trained_generation,
    wrapper_shift,
)

FOLDER = "models"
SCORE_LOSSES = ("dmd", "dmd_switch", "sid", "causvid")


def train_recipe(old: Old) -> dict[str, Any]:
    """Returns the tree of a training recipe. Errors: ValueError for a trainer or loss that is not known."""
    name = old.take("trainer", "score_distillation")
    makers = {"score_distillation": distill, "gan": distill, "diffusion": regress, "ode": regress}
    if name not in makers:
        raise ValueError(f"{old.where}: trainer is {name!r}; their trainers are {sorted(makers)}")
    if old.take("denoising_loss_type", "flow") != "flow":
        raise ValueError(f"{old.where}: denoising_loss_type is {old.take('denoising_loss_type')!r}; only flow ever ran")
    old.taken.discard("denoising_loss_type")  # named among the dropped
    recipe = {"model": f"{FOLDER}/{BASE.hub_name.split('/')[1]}", "seed": old.take("seed", 0)}
    if old.take("max_iters"):
        recipe["steps"] = old.take("max_iters")
    if old.take("logdir"):
        recipe["logdir"] = old.take("logdir")
    recipe["checkpoint"] = kept({"every": old.take("log_iters"), "keep": old.take("max_checkpoints")})
    old.drop("lora_ckpt", "write trainer.generator.lora.weights")
    if old.take("i2v", False):
        old.drop(
            "i2v",
            "write source.clips (encoded clips) instead of prompts, source.given: 1 and generation.first_chunk: 1",
        )
    trainer = makers[name](old, name)
    recipe |= {"generation": trained_generation(old, trainer["source"]["name"]), "trainer": trainer}
    return {key: value for key, value in recipe.items() if value != {}}


def distill(old: Old, trainer: str) -> dict[str, Any]:
    """Returns the tree of a score distillation."""
    loss = old.take("distribution_loss", "gan" if trainer == "gan" else "dmd")
    if loss not in (*SCORE_LOSSES, "gan"):
        raise ValueError(f"{old.where}: distribution_loss is {loss!r}; known are {[*SCORE_LOSSES, 'gan']}")
    name = BASE.hub_name.split("/")[1]
    on_critic = old.take("adapter.apply_to_critic", True)
    tree = {
        "name": "distill",
        "generator": trained_role(old, old.take("generator_ckpt", f"{FOLDER}/{name}")),
        "teacher": {"weights": f"{FOLDER}/{old.take('real_name', name)}", **get_dtype(old)},
        "critic": trained_role(old, f"{FOLDER}/{old.take('fake_name', name)}", on_critic),
        "source": source(old, loss),
        "loss": gan_loss(old) if loss == "gan" else score_loss(old, loss),
        "optim": optim(old, ("gen_lr", "lr"), "", "max_grad_norm_generator"),
        "critic_optim": optim(old, ("critic_lr", "lr_critic", "lr"), "_critic", "max_grad_norm_critic"),
        "critic_updates_per_generator_update": old.take("dfake_gen_update_ratio", 5),
        "accumulate": old.take("gradient_accumulation_steps", 1),
        **ema_and_text(old),
        "negative_prompt": old.take("negative_prompt", ""),
    }
    return tree


def regress(old: Old, trainer: str) -> dict[str, Any]:
    """Returns the tree of the trainers `ode` and `diffusion`."""
    old.drop("distribution_loss", "the trainer decides it")
    old.drop("negative_prompt", "read by its previews only")
    old.drop("guidance_scale", "read by its previews only")
    shape = old.take("image_or_video_shape", [1, LEAST_FRAMES])
    old.drop("num_training_frames", "image_or_video_shape holds the length")
    frames = {"batch": batch(old), "frames": shape[1]}
    if trainer == "ode":
        source = {"name": "ode_pairs", "path": old.take("data_path", ""), **frames}
        loss = {"name": "ode"}
    else:
        source = {"name": "latents", "path": old.take("data_path", ""), **frames, "dropout": 0.0}
        mode = "teacher_forcing" if old.take("teacher_forcing", False) else "diffusion_forcing"
        loss = {"name": "flow", "mode": mode, "weight": "bell"}
        for key in ("denoising_step_list", "warp_denoising_step"):
            old.drop(key, "diffusion draws any noise level")
    rates = optim(old, ("lr",), "", "max_grad_norm_generator")
    student = trained_role(old, old.take("generator_ckpt", f"{FOLDER}/{BASE.hub_name.split('/')[1]}"))
    return {"name": "regress", "generator": student, "source": source, "loss": loss, "optim": rates} | (
        ema_and_text(old)
    )


def trained_role(old: Old, weights: str, adapted: bool = True) -> dict[str, Any]:
    """Returns a role that is trained: whole, or by adapters where the ancestor had one."""
    role = {"weights": weights, **get_dtype(old), "checkpointing": old.take("gradient_checkpointing", False)}
    rank, alpha = old.take("adapter.rank", 0), old.take("adapter.alpha", 0)
    return role | ({"lora": kept({"rank": rank, "alpha": float(alpha or 0) or None})} if rank and adapted else {})


def get_dtype(old: Old) -> dict[str, Any]:
    """Returns what a network computes in; their mixed precision keeps fp32 weights too."""
    return {"dtype": "bf16"} if old.take("mixed_precision", False) else {}


def score_loss(old: Old, loss: str) -> dict[str, Any]:
    """Returns DMD's or SiD's loss. Their score guidance is cond + s (cond - uncond): ours is one more."""
    real, fake = old.take("guidance_scale", 0.0), 0.0
    if old.take("real_guidance_scale") is not None:
        old.drop("guidance_scale", "real_guidance_scale and fake_guidance_scale overrule it")
        real, fake = old.take("real_guidance_scale"), old.take("fake_guidance_scale", 0.0)
    score = {"real_guidance": real + 1, "fake_guidance": fake + 1, "shift": old.take("timestep_shift", 1.0)}
    score["first"] = old.take("min_score_timestep", 0)
    if loss != "causvid":
        score |= {"from_exit": old.take("ts_schedule", True), "to_exit": old.take("ts_schedule_max", False)}
    else:
        old.drop("ts_schedule", "noised data has no exit step")
        old.drop("ts_schedule_max", "noised data has no exit step")
    if loss == "sid":
        return {"name": "sid", "alpha": old.take("sid_alpha", 1.0), "score": score}
    old.drop("sid_alpha", "the loss is dmd, not sid")
    return {"name": "dmd", "score": score}


def gan_loss(old: Old) -> dict[str, Any]:
    """Returns the GAN's loss."""
    for key in ("guidance_scale", "real_guidance_scale", "fake_guidance_scale"):
        old.drop(key, "the GAN has no score")
    shift = old.take("critic_timestep_shift", old.take("timestep_shift", 1.0))
    tree = {
        "name": "gan",
        "generator_weight": old.take("gan_g_weight", 1e-2),
        "discriminator_weight": old.take("gan_d_weight", 1e-2),
        "relativistic": old.take("relativistic_discriminator", False),
        **{name: old.take(name, 0.0) / 2 for name in ("r1_weight", "r2_weight")},  # their trainer halves both
        **{name: old.take(name, 0.01) for name in ("r1_sigma", "r2_sigma")},
        "score": {"shift": shift, "first": old.take("min_score_timestep", 0)},
    }
    own = {"num_class": old.take("num_class"), "lr_scale": old.take("discriminator_lr_multiplier")}
    if known := {name: value for name, value in own.items() if value}:
        tree["discriminator"] = known
    tree["score"] |= {"from_exit": old.take("ts_schedule", True), "to_exit": old.take("ts_schedule_max", False)}
    return tree


def infer_recipe(old: Old) -> dict[str, Any]:
    """Returns the tree of a generation recipe: few steps with a step list, else guided multi-step."""
    folder = f"{FOLDER}/{BASE.hub_name.split('/')[1]}"
    model = {"path": folder, "spec": BASE.name, **kept({"checkpoint": old.take("generator_ckpt")})}
    model |= {"use_ema": old.take("use_ema", False), **kept({"lora": old.take("lora_ckpt")})}
    if "lora" in model:
        model |= kept({"lora_alpha": old.take("adapter.alpha")})
    else:
        old.drop("adapter", "there is no lora_ckpt to merge")
    if old.take("i2v", False):
        old.drop("i2v", "write data.i2v: true and a folder as data.path")
    generation = {**get_chunks(old), "cache": get_cache(old), **context(old.take("context_noise", 0))}
    if old.take("denoising_step_list"):
        sampler, generation["steps"] = {"name": "few_step"}, get_steps(old)
        old.drop("guidance_scale", "few-step models run without guidance")
        old.drop("negative_prompt", "few-step models run without guidance")
    else:
        old.drop("warp_denoising_step", "there is no step list")
        sampler = {"name": "multi_step", "solver": "unipc", "guidance": old.take("guidance_scale", 1.0)}
        generation["steps"] = {"shift": wrapper_shift(old)}
    prompts, switch = str(old.take("data_path", "")), old.take("switch_frame_indices")
    data = {"path": prompts} if prompts else {}
    if switch is not None:
        data["switch_frames"] = switch
    if switch is not None or old.take("global_sink") is not None:
        generation["cache"] |= {"recache": "bidirectional", "keep_sink": old.take("global_sink", False)}
    output = kept({"folder": old.take("output_folder"), "save_with_index": old.take("save_with_index")})
    counts = {name: old.take(name) for name in ("num_output_frames", "num_samples", "seed", "negative_prompt")}
    parts = {"model": model, "pipeline": {"name": "causal"}, "generation": generation, "sampler": sampler}
    parts |= {"data": data, "output": output}
    if "negative_prompt" in old.dropped:
        counts.pop("negative_prompt")
    return {key: value for key, value in parts.items() if value} | kept(counts)


def optim(old: Old, rates: tuple[str, ...], suffix: str, clip: str) -> dict[str, Any]:
    """Returns an AdamW; the first rate that is given counts."""
    given = [old.take(name) for name in rates]
    betas = [old.take(f"beta{n}{suffix}", old.take(f"beta{n}", default)) for n, default in ((1, 0.9), (2, 0.999))]
    return {
        "name": "adamw",
        "lr": next((float(rate) for rate in given if rate is not None), 2e-6),
        "betas": [float(beta) for beta in betas],
        "weight_decay": float(old.take("weight_decay", 0.01)),
        "clip": float(old.take(clip, 10.0)),
    }


def ema_and_text(old: Old) -> dict[str, Any]:
    """Returns the average and where the text encoder stays."""
    tree = {"ema": {"decay": old.take("ema_weight", 0.0), "start_step": old.take("ema_start_step", 0)}}
    return tree | ({"text": {"device": "cpu"}} if old.take("text_encoder_cpu_offload", False) else {})


def kept(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree without what is not given."""
    return {key: value for key, value in tree.items() if value not in (None, 0, "")}
