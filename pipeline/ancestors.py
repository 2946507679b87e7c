"""Recognises recipes and keys of the systems that this one replaces, and says what is written here instead.

A recipe of Self-Forcing or LongLive is refused with the command that migrates it; one of their keys, on the command
line or among keys of ours, with the key of today. docs/migrate.md holds the whole tables, with what differs.
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.config.renamed import OldKeys

MIGRATE = "scripts/migrate_config.py"
SYSTEMS, SMALL = "Self-Forcing and LongLive", "minimal-self-forcing"


def _table(text: str) -> dict[str, str]:
    """Returns {their key: ours} of lines `theirs ours`."""
    return dict(line.split(maxsplit=1) for line in text.strip().splitlines())


# tests/pipeline/test_ancestors.py holds these to what the migration does with each key.
TRAINING = _table("""
generator_ckpt trainer.generator.weights
real_name trainer.teacher.weights
fake_name trainer.critic.weights
denoising_step_list generation.steps.steps
warp_denoising_step generation.steps.warp
ts_schedule trainer.loss.score.from_exit
ts_schedule_max trainer.loss.score.to_exit
timestep_shift trainer.loss.score.shift
min_score_timestep trainer.loss.score.first
guidance_scale trainer.loss.score.real_guidance
real_guidance_scale trainer.loss.score.real_guidance
fake_guidance_scale trainer.loss.score.fake_guidance
lr trainer.optim.lr
lr_critic trainer.critic_optim.lr
gen_lr trainer.optim.lr
critic_lr trainer.critic_optim.lr
beta1 trainer.optim.betas
beta2 trainer.optim.betas
beta1_critic trainer.critic_optim.betas
beta2_critic trainer.critic_optim.betas
weight_decay trainer.optim.weight_decay
max_grad_norm_generator trainer.optim.clip
max_grad_norm_critic trainer.critic_optim.clip
ema_weight trainer.ema.decay
ema_start_step trainer.ema.start_step
dfake_gen_update_ratio trainer.critic_updates_per_generator_update
gradient_accumulation_steps trainer.accumulate
gradient_checkpointing trainer.generator.checkpointing
mixed_precision trainer.generator.dtype
text_encoder_cpu_offload trainer.text.device
negative_prompt trainer.negative_prompt
data_path trainer.source.prompts
batch_size trainer.source.batch
total_batch_size trainer.source.batch
image_or_video_shape trainer.source.height
num_training_frames trainer.source.frames_max
min_num_training_frames trainer.source.frames
slice_last_frames trainer.source.loss_frames
num_frame_per_block generation.chunk
independent_first_frame generation.first_chunk
same_step_across_blocks trainer.source.exit_per_chunk
last_step_only trainer.source.last_step_only
teacher_forcing trainer.loss.mode
noise_augmentation_max_timestep trainer.loss.context_range
context_noise generation.context.sigma
log_iters checkpoint.every
max_checkpoints checkpoint.keep
max_iters steps
no_save save
lora_ckpt trainer.generator.lora.weights
i2v trainer.source.clips
model_kwargs.timestep_shift generation.steps.shift
model_kwargs.local_attn_size generation.cache.window_frames
model_kwargs.sink_size generation.cache.sink_frames
model_kwargs.use_infinite_attention generation.cache.rope
model_kwargs.model_name model
adapter.rank trainer.generator.lora.rank
adapter.alpha trainer.generator.lora.alpha
adapter.apply_to_critic trainer.critic.lora.rank
distribution_loss trainer.loss.name
sid_alpha trainer.loss.alpha
streaming_training trainer.source.name
streaming_chunk_size trainer.source.loss_frames
streaming_max_length trainer.source.max_frames
streaming_possible_max_length trainer.source.max_frames
streaming_min_new_frame trainer.source.min_new_frames
train_first_chunk trainer.source.train_first_chunk
switch_prompt_path trainer.source.switch_prompts
switch_mode trainer.source.switch_frames
switch_choices trainer.source.switch_frames
fixed_switch_index trainer.source.switch_frames
min_switch_frame_index trainer.source.switch_range
max_switch_frame_index trainer.source.switch_range
critic_timestep_shift trainer.loss.score.shift
gan_g_weight trainer.loss.generator_weight
gan_d_weight trainer.loss.discriminator_weight
relativistic_discriminator trainer.loss.relativistic
r1_weight trainer.loss.r1_weight
r2_weight trainer.loss.r2_weight
r1_sigma trainer.loss.r1_sigma
r2_sigma trainer.loss.r2_sigma
num_class trainer.loss.discriminator.num_class
concat_time_embeddings trainer.loss.discriminator.time_embedding
discriminator_lr_multiplier trainer.loss.discriminator.lr_scale
""")
GENERATION = _table("""
generator_ckpt model.checkpoint
use_ema model.use_ema
lora_ckpt model.lora
i2v data.i2v
adapter.alpha model.lora_alpha
denoising_step_list generation.steps.steps
warp_denoising_step generation.steps.warp
num_frame_per_block generation.chunk
independent_first_frame generation.first_chunk
context_noise generation.context.sigma
data_path data.path
switch_frame_indices data.switch_frames
global_sink generation.cache.keep_sink
output_folder output.folder
save_with_index output.save_with_index
guidance_scale sampler.guidance
model_kwargs.timestep_shift generation.steps.shift
model_kwargs.local_attn_size generation.cache.window_frames
model_kwargs.sink_size generation.cache.sink_frames
model_kwargs.use_infinite_attention generation.cache.rope
model_kwargs.model_name model.path
""")
SMALL_TRAINING = _table("""
training.num_steps steps
training.batch_size trainer.source.batch
training.lr trainer.optim.lr
training.weight_decay trainer.optim.weight_decay
training.gradient_clip_norm trainer.optim.clip
training.dfake_gen_update_ratio trainer.critic_updates_per_generator_update
training.pretrained_checkpoint trainer.generator.weights
training.num_frames trainer.source.frames
training.min_num_frames trainer.source.frames
training.max_num_frames trainer.source.frames_max
training.num_frames_per_block generation.chunk
training.denoising_steps generation.steps.steps
training.context_noise generation.context.sigma
training.guidance_scale trainer.loss.score.real_guidance
training.timestep_shift trainer.loss.score.shift
training.save_interval checkpoint.every
training.log_interval log_every
training.viz_interval preview.every
wandb.enabled track.wandb
wandb.project track.wandb_project
wandb.entity track.wandb_entity
wandb.name track.wandb_name
""")
SMALL_GENERATION = _table("""
generation.num_frames num_output_frames
generation.num_frames_per_block generation.chunk
generation.denoising_steps generation.steps.steps
generation.output_dir output.folder
generation.gif_fps output.fps
""")
SMALL_GROUPS = ("training", "dataset", "text_encoder", "wandb", "hydra", "paths")
OTHER_SIGNS = ("sharding_strategy", "num_train_timestep", "denoising_loss_type", "model_name", "inference_iter")
SHARED = {"seed", "model", "trainer", "logdir", "num_samples", "negative_prompt"}  # words of theirs and ours
RECIPES = {  # their file -> ours, in the folder of that name
    "self_forcing_dmd": {"train": "self_forcing_dmd", "infer": "self_forcing_dmd"},
    "self_forcing_sid": {"train": "self_forcing_sid", "infer": "self_forcing_dmd"},
    "longlive_inference": {"infer": "longlive"},
    "longlive_inference_infinity": {"infer": "longlive_infinity"},
    "longlive_interactive_inference": {"infer": "longlive_interactive"},
    "longlive_train_init": {"train": "longlive_init"},
    "longlive_train_long": {"train": "longlive_stream"},
}


def extend(old: OldKeys, kind: str) -> OldKeys:
    """Returns our own old keys with those of the ancestors. kind: "train" or "infer"."""
    theirs, small = (TRAINING, SMALL_TRAINING) if kind == "train" else (GENERATION, SMALL_GENERATION)
    other = GENERATION if kind == "train" else TRAINING
    sort = "a generation" if kind == "train" else "a training"
    removed = {key: f"it is a key of {SYSTEMS} for {sort}; see docs/migrate.md" for key in other.keys() - SHARED}
    removed |= {group: f"it is a group of {SMALL}; see docs/migrate.md" for group in SMALL_GROUPS}
    removed |= {key: f"it is a key of {SYSTEMS}; here it is {ours}" for key, ours in theirs.items()}
    removed |= {key: f"it is a key of {SMALL}; here it is {ours}" for key, ours in small.items()}
    return OldKeys(old.renamed, {**removed, **old.removed})


def read_lora_alpha(path: str | Path) -> float:
    """Returns the strength of a LoRA that Live-Avatar's training YAML tells: all that its generation needs of it.

    Errors: ValueError for a file that is no YAML, or tells no positive `lora_alpha`.
    """
    from utils.config.layer import read_yaml

    alpha = read_yaml(path).tree.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        said = "has no lora_alpha" if alpha is None else f"says lora_alpha {alpha!r}"
        raise ValueError(f"{path} {said}; give Live-Avatar's s2v_causal_sft.yaml, or write model.lora_alpha=64")
    return float(alpha)


def check_recipe(path: str | Path, kind: str, folder: Path, own: set[str]) -> None:
    """Raises ValueError for a recipe of an ancestor, or for one that is not there under a name of theirs or ours.

    kind: "train" or "infer". folder: where our recipes of that kind lie. own: the keys that a recipe of ours has at
    the top. It looks at the words before the colons alone, so that a file that is no YAML of ours is recognised too.
    """
    path = Path(path)
    if not path.is_file():
        name = RECIPES.get(path.stem, {}).get(kind, path.stem)
        if not path.exists() and (folder / f"{name}.yaml").is_file():
            raise ValueError(f"{path}: no such file; is it {folder.parent.name}/{folder.name}/{name}.yaml?")
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    keys = set(re.findall(r"^([A-Za-z_]\w*)[ \t]*:(?:\s|$)", text, re.M))
    if "base" in keys:
        return
    signs = {key.partition(".")[0] for key in (*TRAINING, *GENERATION)} | set(OTHER_SIGNS)
    found, own_group = sorted(keys & signs - own), re.search(r"^trainer[ \t]*:[ \t]*(\{|$)", text, re.M)
    dumped = len(re.findall(r"^[ ]+value[ \t]*:", text, re.M)) >= max(1, len(keys) - 2)  # by wandb
    if len(found) > 1 or (found and (dumped or not own_group) and not keys & own - SHARED):
        what = f"this is a Self-Forcing or LongLive recipe ({', '.join(found[:4])})"
        raise ValueError(f"{path}: {what}; run `python {MIGRATE} {path} NEW.yaml` and give NEW.yaml")
    small = sorted(keys & set(SMALL_GROUPS) - own)
    if len(small) > 1:
        what = f"this is a recipe of {SMALL} ({', '.join(small)})"
        ours = f"{folder.parent.name}/{folder.name}/digits_*.yaml"
        raise ValueError(f"{path}: {what}; take one of {ours}, and its keys from docs/migrate.md")
