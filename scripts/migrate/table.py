"""Writes the tables of configuration keys in docs/migrate.md, read off the migration itself.

Each key is taken out of an example of Self-Forcing's or LongLive's YAML; what then changes in the recipe is where the
key goes. So the page cannot say anything else than `scripts/migrate_config.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from scripts.measure.markdown import table_head, table_row
from scripts.migrate.keys import DROPPED, PREFIXES, SUFFIXES
from scripts.migrate.old import Old
from scripts.migrate.recipe import infer_recipe, train_recipe

# No value is a default of theirs: without the key another one counts.
TRAINING_EXAMPLE = {
    "trainer": "score_distillation",
    "generator_ckpt": "ode_init.pt",
    "real_name": "Wan2.1-T2V-14B",
    "fake_name": "Wan2.1-T2V-14B",
    "denoising_step_list": [1000, 750, 500, 250],
    "warp_denoising_step": True,
    "ts_schedule": False,
    "ts_schedule_max": True,
    "timestep_shift": 5.0,
    "min_score_timestep": 20,
    "guidance_scale": 3.0,
    "lr": 1e-5,
    "lr_critic": 4e-7,
    "beta1": 0.0,
    "beta2": 0.95,
    "beta1_critic": 0.5,
    "beta2_critic": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm_generator": 1.0,
    "max_grad_norm_critic": 2.0,
    "ema_weight": 0.99,
    "ema_start_step": 200,
    "dfake_gen_update_ratio": 10,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "mixed_precision": True,
    "text_encoder_cpu_offload": True,
    "negative_prompt": "blurry",
    "data_path": "prompts.txt",
    "batch_size": 2,
    "total_batch_size": 64,
    "image_or_video_shape": [1, 24, 16, 90, 160],
    "num_training_frames": 42,
    "min_num_training_frames": 24,
    "slice_last_frames": 24,
    "num_frame_per_block": 3,
    "same_step_across_blocks": False,
    "last_step_only": True,
    "context_noise": 100,
    "model_kwargs": {"timestep_shift": 5.0, "local_attn_size": 12, "sink_size": 3, "use_infinite_attention": True},
    "seed": 7,
    "logdir": "logs/run",
    "log_iters": 50,
    "max_checkpoints": 3,
    "max_iters": 600,
}
ADAPTER = {"adapter": {"rank": 64, "alpha": 32, "apply_to_critic": False}, "lora_ckpt": "lora.pt"}
GAN = {
    "trainer": "gan",
    "gen_lr": 1e-6,
    "critic_lr": 2e-7,
    "critic_timestep_shift": 3.0,
    "gan_g_weight": 0.02,
    "gan_d_weight": 0.03,
    "relativistic_discriminator": True,
    **{"r1_weight": 1.0, "r2_weight": 2.0, "r1_sigma": 0.1, "r2_sigma": 0.2},
    "num_class": 2,
    "concat_time_embeddings": True,
    "discriminator_lr_multiplier": 2.0,
}
STREAM = {
    "streaming_training": True,
    "streaming_chunk_size": 24,
    "streaming_max_length": 240,
    "streaming_min_new_frame": 15,
    "train_first_chunk": True,
    "global_sink": True,
}
MASKED = {"data_path": "data", "model_kwargs": {"timestep_shift": 5.0, "local_attn_size": 12, "sink_size": 3}}
SWITCH = {**STREAM, "distribution_loss": "dmd_switch", "switch_prompt_path": "switch.txt"}
TRAININGS = {
    "dmd": {"i2v": True},
    "first_frame": {"independent_first_frame": True, "num_frame_per_block": 1},
    "model": {"model_kwargs": {"model_name": "Wan2.1-T2V-14B"}, "no_save": True, "max_checkpoints": None},
    "lora": ADAPTER,
    "sid": {"distribution_loss": "sid", "sid_alpha": 0.5, "real_guidance_scale": 2.5, "fake_guidance_scale": 0.5},
    "stream": STREAM,
    "lengths": {**STREAM, "streaming_possible_max_length": [120, 240]},
    "switch_fixed": {**SWITCH, "switch_mode": "fixed", "fixed_switch_index": 39},
    "switch_random": SWITCH | {"switch_mode": "random", "min_switch_frame_index": 30, "max_switch_frame_index": 60},
    "switch_choice": {**SWITCH, "switch_mode": "random_choice", "switch_choices": [21, 39]},
    "gan": GAN,
    "ode": {**MASKED, "trainer": "ode"},
    "diffusion": {**MASKED, "trainer": "diffusion", "teacher_forcing": True, "noise_augmentation_max_timestep": 300},
    "causvid": {**MASKED, "distribution_loss": "causvid", "total_batch_size": None},
}
GENERATION_EXAMPLE = {
    "generator_ckpt": "longlive_base.pt",
    "use_ema": True,
    "denoising_step_list": [1000, 750, 500, 250],
    "warp_denoising_step": True,
    "num_frame_per_block": 3,
    "context_noise": 100,
    "model_kwargs": {"timestep_shift": 5.0, "local_attn_size": 12, "sink_size": 3, "use_infinite_attention": True},
    "data_path": "prompts.jsonl",
    "switch_frame_indices": "40, 80",
    "global_sink": True,
    "output_folder": "videos",
    "save_with_index": True,
    "num_output_frames": 120,
    "num_samples": 2,
    "seed": 7,
    "guidance_scale": 3.0,
    "negative_prompt": "blurry",
}
GENERATIONS = {
    "few_step": {"lora_ckpt": "lora.pt", "adapter": {"alpha": 32}},
    "multi_step": {"denoising_step_list": None},
    "model": {"model_kwargs": {"model_name": "Wan2.1-T2V-14B"}},
    "first_frame": {"independent_first_frame": True, "num_frame_per_block": None},
    "image": {"data_path": "images", "i2v": True, "switch_frame_indices": None},
}
RECIPES = {
    "train": (train_recipe, TRAINING_EXAMPLE, TRAININGS),
    "infer": (infer_recipe, GENERATION_EXAMPLE, GENERATIONS),
}


def keys(name: str) -> str:
    """Returns `keys-train`, `keys-infer`: where keys go; `keys-dropped`: those that go nowhere, and why."""
    if name == "keys-dropped":
        return dropped_keys()
    goals, reasons = moves(name.partition("-")[2])
    lines = table_head(["theirs", "ours", "but"])
    for (key, value), spans in goals.items():
        lines.append(
            table_row([f"`{key}: {value}`", ", ".join(spans.values()), "; ".join(sorted(reasons.get(key, ())))])
        )
    return "\n".join(lines)


def dropped_keys() -> str:
    """Returns the table of keys that have no place; those with one reason stand in one row."""
    reasons = {key: {reason} for key, reason in DROPPED.items()}
    reasons |= {f"{start}*": {reason} for start, reason in PREFIXES.items()}
    reasons |= {f"*{end}": {reason} for end, reason in SUFFIXES.items()}
    for kind, word in (("train", "training"), ("infer", "generation")):
        goals, dropped = moves(kind)
        for key in dropped.keys() - {key for key, _ in goals}:
            reasons.setdefault(key, set()).update(f"{word}: {reason}" for reason in dropped[key])
    rows: dict[str, list[str]] = {}
    for key in sorted(reasons):
        rows.setdefault("; ".join(sorted(reasons[key])), []).append(f"`{key}`")
    return "\n".join(
        [*table_head(["theirs", "why not"]), *(table_row([", ".join(names), why]) for why, names in rows.items())]
    )


def moves(kind: str) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, set[str]]]:
    """Returns ({(their key, value): {our key: as markdown}}, {their key: why it is dropped in some examples})."""
    goals: dict[tuple[str, str], dict[str, str]] = {}
    reasons: dict[str, set[str]] = {}
    for tree in examples(kind):
        recipe, dropped = migrated(kind, tree)
        for key, reason in dropped.items():
            reasons.setdefault(key, set()).add(reason)
        for key, value in leaves(tree).items():
            for other in others(tree, key, value):
                try:
                    spans = moved(recipe, migrated(kind, other)[0], value)
                except ValueError:  # this example cannot do without the key; another one shows where it goes
                    continue
                for place, span in spans.items():
                    goals.setdefault((key, text(value)), {}).setdefault(place, span)
    return goals, reasons


def others(tree: dict[str, Any], key: str, value: Any) -> Iterator[dict[str, Any]]:
    """Yields the tree without a key; a list is also made shorter and a text longer, for those that are needed."""
    group, _, name = key.rpartition(".")
    node = tree[group] if group else tree
    nodes = [{k: v for k, v in node.items() if k != name}]
    nodes += [node | {name: value[:-1]}] if isinstance(value, list) else []
    nodes += [node | {name: f"{value}_"}] if isinstance(value, str) else []
    for changed_node in nodes:
        yield tree | {group: changed_node} if group else changed_node


def moved(recipe: dict[str, Any], other: dict[str, Any], value: Any) -> dict[str, str]:
    """Returns our key -> markdown of what one recipe has and the other lacks; a value stands where it is not theirs."""
    spans = {}
    for place, goal in changed(recipe, other).items():
        same = goal == value and isinstance(goal, bool) == isinstance(value, bool)
        spans[place] = f"`{place}`" if same else f"`{place}={text(goal)}`"
    return spans or {place: f"no `{place}`" for place in changed(other, recipe)}


def examples(kind: str) -> Iterator[dict[str, Any]]:
    """Yields an ancestor's YAML as a tree, one of each sort of run."""
    _, base, changes = RECIPES[kind]
    for change in changes.values():
        yield {key: value for key, value in (base | change).items() if value is not None}


def migrated(kind: str, tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (our recipe, dropped key -> reason). Errors: ValueError for values without a counterpart."""
    old = Old(tree, "the example")
    return RECIPES[kind][0](old), old.dropped


def leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the values by key; a dot goes inside a group."""
    inner = {f"{key}.{name}": v for key, group in tree.items() if isinstance(group, dict) for name, v in group.items()}
    return {key: value for key, value in tree.items() if not isinstance(value, dict)} | inner


def changed(new: Any, old: Any, place: str = "") -> dict[str, Any]:
    """Returns the values of `new` that `old` lacks, by dotted key; of another arm of a union its name alone."""
    if not isinstance(new, dict):
        return {} if new == old else {place: new}
    old = old if isinstance(old, dict) else {}
    if old and new.get("name") != old.get("name"):
        return {f"{place}.name": new["name"]}
    found: dict[str, Any] = {}
    for key, value in new.items():
        found |= changed(value, old.get(key), f"{place}.{key}" if place else key)
    return found


def text(value: Any) -> str:
    """Returns a value as one writes it in YAML and on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
