"""Turns Self-Forcing's and LongLive's YAML into our recipes: which key goes where. Missing keys mean their defaults."""

from __future__ import annotations

from typing import Any

from scripts.migrate.model import FOLDER, get_base, get_batch, get_name, get_run, get_size, named_weights
from scripts.migrate.old import Old
from scripts.migrate.source import (
    bound_window,
    context,
    get_cache,
    get_chunks,
    get_frames,
    get_steps,
    needed,
    source,
    trained_generation,
    wrapper_shift,
)

SCORE_LOSSES = ("dmd", "dmd_switch", "sid", "causvid")
ADAPTER_RANK = 16  # of LongLive's adapters, where the file says nothing


def train_recipe(old: Old) -> dict[str, Any]:
    """Returns the tree of a training recipe. Errors: ValueError for a trainer or loss that is not known."""
    name = old.text("trainer", "score_distillation")
    makers = {"score_distillation": distill, "gan": distill, "diffusion": regress, "ode": regress}
    if name not in makers:
        raise old.error("trainer", f"is {name!r}; their trainers are {sorted(makers)}")
    if (loss := old.find("denoising_loss_type")) not in (None, "flow"):
        raise old.error("denoising_loss_type", f"is {loss!r}; only flow ever ran")
    recipe = {"model": f"{FOLDER}/{get_name(get_base(old))}", **get_run(old)}
    old.drop("lora_ckpt", "write trainer.generator.lora.weights")
    if old.flag("i2v"):
        clips = "trainer.source.clips (encoded clips) instead of prompts"
        old.drop("i2v", f"write {clips}, trainer.source.given: 1 and generation.first_chunk: 1")
    trainer = makers[name](old, name)
    recipe |= {"generation": trained_generation(old, trainer["source"]["name"]), "trainer": trainer}
    return {key: value for key, value in recipe.items() if value != {}}


def distill(old: Old, trainer: str) -> dict[str, Any]:
    """Returns the tree of a score distillation."""
    loss = old.text("distribution_loss", "gan" if trainer == "gan" else "dmd")
    if loss not in (*SCORE_LOSSES, "gan"):
        raise old.error("distribution_loss", f"is {loss!r}; known are {[*SCORE_LOSSES, 'gan']}")
    on_critic = old.flag("adapter.apply_to_critic", True) if old.find("adapter") else True
    tree = {
        "name": "distill",
        "generator": trained_role(old, start(old)),
        "teacher": {"weights": named_weights(old, "real_name"), **get_dtype(old)},
        "critic": trained_role(old, named_weights(old, "fake_name"), on_critic),
        "source": source(old, loss),
        "loss": gan_loss(old) if loss == "gan" else score_loss(old, loss),
        "optim": optim(old, ("gen_lr", "lr"), "", "max_grad_norm_generator"),
        "critic_optim": optim(old, ("critic_lr", "lr_critic", "lr"), "_critic", "max_grad_norm_critic"),
        "critic_updates_per_generator_update": old.whole("dfake_gen_update_ratio", 5, least=1),
        "accumulate": old.whole("gradient_accumulation_steps", 1, least=1),
        "ema": get_average(old),
        **get_text(old),
        "negative_prompt": old.text("negative_prompt"),
    }
    return tree


def start(old: Old) -> str:
    """Returns the weights that the generator starts from: a file, or their network as it was published."""
    return old.text("generator_ckpt", f"{FOLDER}/{get_name(get_base(old))}")


def regress(old: Old, trainer: str) -> dict[str, Any]:
    """Returns the tree of the trainers `ode` and `diffusion`."""
    old.drop("distribution_loss", "the trainer decides it")
    old.drop("negative_prompt", "read by its previews only")
    old.drop("guidance_scale", "read by its previews only")
    old.drop("num_training_frames", "image_or_video_shape holds the length")
    for key in ("ema_weight", "ema_start_step"):
        old.drop(key, f"their trainer {trainer} never updates its average")
    get_size(old)  # clips have their own; rows that cannot be are refused
    frames = {"batch": get_batch(old), "frames": get_frames(old)}
    if trainer == "ode":
        source = {"name": "ode_pairs", "path": needed(old, "data_path", "the folder or LMDB of the data"), **frames}
        loss = {"name": "ode"}
    else:
        source = {
            "name": "latents",
            "path": needed(old, "data_path", "the folder or LMDB of the data"),
            **frames,
            "dropout": 0.0,
        }
        mode = "teacher_forcing" if old.flag("teacher_forcing") else "diffusion_forcing"
        loss = {"name": "flow", "mode": mode, "weight": "bell", **get_augmentation(old, mode)}
        for key in ("denoising_step_list", "warp_denoising_step"):
            old.drop(key, "diffusion draws any noise level")
    rates = optim(old, ("lr",), "", "max_grad_norm_generator")
    return {
        "name": "regress",
        "generator": trained_role(old, start(old)),
        "source": source,
        "loss": loss,
        "optim": rates,
        "accumulate": old.whole("gradient_accumulation_steps", 1, least=1),
        "ema": {"decay": 0.0},
        **get_text(old),
    }


def get_augmentation(old: Old, mode: str) -> dict[str, Any]:
    """Returns the noise of teacher forcing's clean half: so many of the noisiest entries of their table of 1000."""
    key = "noise_augmentation_max_timestep"
    if mode != "teacher_forcing":
        old.drop(key, "teacher_forcing is not true: there is no clean half")
        return {}
    if not (entries := old.whole(key, 0, least=0)):
        return {}
    if entries > 1000:
        raise old.error(key, f"is {entries}; their table has 1000 entries: write 0 to 1000")
    from wan.schedule import shift_sigma  # loads torch

    return {"context_range": [round(shift_sigma(1 - entries / 1000, wrapper_shift(old)), 6), 1.0]}


def trained_role(old: Old, weights: str, adapted: bool = True) -> dict[str, Any]:
    """Returns a role that is trained: whole, or by adapters where the ancestor had one."""
    role = {"weights": weights, **get_dtype(old), "checkpointing": old.flag("gradient_checkpointing")}
    if not old.find("adapter") or not adapted:
        return role
    rank = old.whole("adapter.rank", ADAPTER_RANK, least=1)
    return role | {"lora": kept({"rank": rank, "alpha": float(old.number("adapter.alpha") or 0)})}


def get_dtype(old: Old) -> dict[str, Any]:
    """Returns what a network computes in; their mixed precision keeps fp32 weights too."""
    return {"dtype": "bf16" if old.flag("mixed_precision") else "fp32"}


def score_loss(old: Old, loss: str) -> dict[str, Any]:
    """Returns DMD's or SiD's loss. Their score guidance is cond + s (cond - uncond): ours is one more."""
    if (real := old.number("real_guidance_scale")) is not None:
        old.drop("guidance_scale", "real_guidance_scale and fake_guidance_scale overrule it")
        fake = old.number("fake_guidance_scale", 0.0)
    else:
        real, fake = old.number("guidance_scale", 0.0), 0.0
    score = {"real_guidance": real + 1, "fake_guidance": fake + 1, "shift": old.number("timestep_shift", 1.0)}
    score["first"] = old.whole("min_score_timestep", 0)
    if loss != "causvid":
        score |= {"from_exit": old.flag("ts_schedule", True), "to_exit": old.flag("ts_schedule_max")}
    else:
        old.drop("ts_schedule", "noised data has no exit step")
        old.drop("ts_schedule_max", "noised data has no exit step")
    if loss == "sid":
        return {"name": "sid", "alpha": old.number("sid_alpha", 1.0), "score": score}
    old.drop("sid_alpha", "the loss is dmd, not sid")
    return {"name": "dmd", "score": score}


def gan_loss(old: Old) -> dict[str, Any]:
    """Returns the GAN's loss."""
    for key in ("guidance_scale", "real_guidance_scale", "fake_guidance_scale"):
        old.drop(key, "the GAN has no score")
    shift = old.number("critic_timestep_shift")
    shift = old.number("timestep_shift", 1.0) if shift is None else shift
    tree = {
        "name": "gan",
        "generator_weight": old.number("gan_g_weight", 1e-2),
        "discriminator_weight": old.number("gan_d_weight", 1e-2),
        "relativistic": old.flag("relativistic_discriminator"),
        **{name: old.number(name, 0.0) / 2 for name in ("r1_weight", "r2_weight")},  # their trainer halves both
        **{name: old.number(name, 0.01) for name in ("r1_sigma", "r2_sigma")},
        "score": {"shift": shift, "first": old.whole("min_score_timestep", 0)},
    }
    own = {"num_class": old.whole("num_class"), "lr_scale": old.number("discriminator_lr_multiplier")}
    own["time_embedding"] = old.flag("concat_time_embeddings") or None
    if known := kept(own):
        tree["discriminator"] = known
    tree["score"] |= {"from_exit": old.flag("ts_schedule", True), "to_exit": old.flag("ts_schedule_max")}
    return tree


def infer_recipe(old: Old) -> dict[str, Any]:
    """Returns the tree of a generation recipe: few steps with a step list, else guided multi-step."""
    base = get_base(old)
    model = {"path": f"{FOLDER}/{get_name(base)}", "spec": base.name}
    model |= kept({"checkpoint": old.text("generator_ckpt")})
    model |= {"use_ema": old.flag("use_ema"), **kept({"lora": old.text("lora_ckpt")})}
    if "lora" in model:
        model |= kept({"lora_alpha": old.number("adapter.alpha")})
    else:
        old.drop("adapter", "there is no lora_ckpt to merge")
    if old.flag("i2v"):
        old.drop("i2v", "write data.i2v: true and a folder as data.path")
    generation = {**get_chunks(old), "cache": get_cache(old), **context(old.number("context_noise", 0))}
    frames = old.whole("num_output_frames", least=1)
    if generation["cache"]["window_frames"] == -1:
        bound_window(old, generation["cache"], frames or 0)
    if old.numbers("denoising_step_list"):
        sampler: dict[str, Any] = {"name": "few_step"}
        generation["steps"] = get_steps(old)
        old.drop("guidance_scale", "few-step models run without guidance")
        old.drop("negative_prompt", "few-step models run without guidance")
    else:
        old.drop("warp_denoising_step", "there is no step list")
        sampler = {"name": "multi_step", "solver": "unipc", "guidance": old.number("guidance_scale", 1.0)}
        generation["steps"] = {"shift": wrapper_shift(old)}
    prompts, switch = old.text("data_path"), old.take("switch_frame_indices")
    data = {"path": prompts} if prompts else {}
    if switch is not None:
        data["switch_frames"] = switch
    if switch is not None or old.find("global_sink") is not None:
        generation["cache"] |= {"recache": "bidirectional", "keep_sink": old.flag("global_sink")}
    output = kept({"folder": old.text("output_folder"), "save_with_index": old.flag("save_with_index")})
    counts = {"num_output_frames": frames, "num_samples": old.whole("num_samples", least=1)}
    counts |= {"seed": old.whole("seed", least=0), "negative_prompt": old.text("negative_prompt")}
    parts = {**get_size(old), "model": model, "pipeline": {"name": "causal"}}
    parts |= {"generation": generation, "sampler": sampler, "data": data, "output": output}
    if "negative_prompt" in old.dropped:
        counts.pop("negative_prompt")
    return {key: value for key, value in parts.items() if value} | kept(counts)


def optim(old: Old, rates: tuple[str, ...], suffix: str, clip: str) -> dict[str, Any]:
    """Returns an AdamW; the first rate that is given counts."""
    given = [old.number(name) for name in rates]
    rate = next((rate for rate in given if rate is not None), None)
    betas = []
    for n, default in ((1, 0.9), (2, 0.999)):
        own = old.number(f"beta{n}{suffix}")
        betas.append(float(old.number(f"beta{n}", default) if own is None else own))
    if rate is None:
        old.silent[rates[-1]] = 2e-6
    return {
        "name": "adamw",
        "lr": float(2e-6 if rate is None else rate),
        "betas": betas,
        "weight_decay": float(old.number("weight_decay", 0.01)),
        "clip": float(old.number(clip, 10.0)),
    }


def get_average(old: Old) -> dict[str, Any]:
    """Returns the average of the generator's weights; theirs keeps none of adapters."""
    if old.find("adapter"):
        for key in ("ema_weight", "ema_start_step"):
            old.drop(key, "their trainer keeps no average of adapters")
        return {"decay": 0.0}
    return {"decay": old.number("ema_weight", 0.0), "start_step": old.whole("ema_start_step", 0)}


def get_text(old: Old) -> dict[str, Any]:
    """Returns where the text encoder stays."""
    return {"text": {"device": "cpu"}} if old.flag("text_encoder_cpu_offload") else {}


def kept(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree without what is not given."""
    return {key: value for key, value in tree.items() if value not in (None, 0, "")}
