"""Lists the keys of Self-Forcing's and LongLive's YAML that have no place in our recipes, each with the reason."""

from __future__ import annotations

from typing import Any

TRAINING, GENERATION = "read by training only", "read by generation only"
UNUSED = "the ancestors never read it"
PREVIEWS = "write preview.every and preview.prompts"
TRACKERS = "a run writes metrics.jsonl into its folder; write track.wandb or track.tensorboard for more"
STREAMING = "streaming_training is not true: each step rolls out from the start"
SWITCHES = "read with streaming_training and a switch_mode only"
SHARDING = "all ranks share the weights; write layout.shard for a copy per group of ranks"

DROPPED = {
    **dict.fromkeys(("ckpt_step", "prompt_name", "prompt_path", "eval_first_n", "causal", "model_name"), UNUSED),
    **dict.fromkeys(("height", "width", "num_frames"), UNUSED),
    "num_train_timestep": "always 1000",
    "denoising_loss_type": "flow matching is the critic's only loss here",
    "sharding_strategy": SHARDING,
    "gc_interval": "nothing is collected by hand",
    "load_raw_video": "videos are encoded before (scripts/encode_latents.py)",
    "backward_simulation": "the source decides: rollout or noised_data",
    "max_pair": "write fewer pairs into the folder",
    "noise_augmentation_max_timestep": "its small indices are the noisiest levels (a fault); see loss.context_sigma",
    "train_first_chunk": STREAMING,
    "fixed_switch_index": SWITCHES,
    "min_switch_frame_index": SWITCHES,
    "max_switch_frame_index": SWITCHES,
    "switch_frame_indices": "generation reads it (data.switch_frames)",
    "inference_iter": "cut the prompt file instead",
    "extended_prompt_path": "write data.extended_path",
    "discriminator_warmup_steps": "critic and discriminator start together",
    "concat_time_embeddings": "the discriminator classifies its register tokens alone",
    "loss_scale": "bf16 needs none",
    "adapter.type": "LoRA is the only one",
    "adapter.dropout": "adapters have none here",
    "adapter.dtype": "adapters are fp32; <role>.dtype is what they compute in",
    "adapter.verbose": "adapters are counted in the log",
}
GROUPS = ("model_kwargs", "adapter")
PREFIXES = {
    "wandb_": TRACKERS,
    "one_logger": TRACKERS,
    "vis_": PREVIEWS,
    "val_": PREVIEWS,
    "streaming_": STREAMING,
    "switch_": SWITCHES,
}
SUFFIXES = {"_fsdp_wrap_strategy": SHARDING}
TRAINING_KEYS = """
trainer distribution_loss generator_ckpt real_name fake_name ts_schedule ts_schedule_max timestep_shift lr lr_critic
gen_lr critic_lr beta1 beta2 beta1_critic beta2_critic weight_decay max_grad_norm_generator max_grad_norm_critic
batch_size total_batch_size ema_weight ema_start_step log_iters max_checkpoints max_iters dfake_gen_update_ratio
image_or_video_shape num_training_frames min_num_training_frames slice_last_frames gradient_checkpointing
real_guidance_scale fake_guidance_scale min_score_timestep sid_alpha teacher_forcing same_step_across_blocks
last_step_only text_encoder_cpu_offload critic_timestep_shift gan_g_weight gan_d_weight r1_weight r2_weight r1_sigma
r2_sigma relativistic_discriminator num_class discriminator_lr_multiplier logdir mixed_precision
gradient_accumulation_steps adapter.apply_to_critic adapter.rank adapter.alpha
""".split()
SHARED_KEYS = """
denoising_step_list warp_denoising_step num_frame_per_block independent_first_frame data_path seed guidance_scale
negative_prompt context_noise i2v adapter model_kwargs.timestep_shift model_kwargs.local_attn_size
model_kwargs.sink_size model_kwargs.use_infinite_attention global_sink
""".split()
GENERATION_KEYS = (
    "switch_frame_indices output_folder num_output_frames use_ema num_samples save_with_index lora_ckpt".split()
)


class Old:
    """Holds an ancestor's tree. `take` reads a key; what nobody takes must be a known drop, or it is an error."""

    def __init__(self, tree: dict[str, Any], where: str):
        self.tree, self.where = tree, where
        self.taken: set[str] = set()
        self.dropped: dict[str, str] = {}

    def take(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key (a dot goes inside), or what the ancestors do without it."""
        self.taken.add(key)
        node: Any = self.tree
        for part in key.split("."):
            if not isinstance(node, dict) or node.get(part) is None:
                return default
            node = node[part]
        return node

    def drop(self, key: str, reason: str) -> None:
        """Names a key, if it is there, that has no place."""
        self.taken.add(key)
        if self.take(key) is not None:
            self.dropped[key] = reason

    def finish(self, other_kind: dict[str, str]) -> None:
        """Drops the rest. other_kind: keys of the other kind of run. Errors: ValueError naming unknown keys."""
        unknown = []
        for key in self._leaves():
            if key in self.taken:
                continue
            reason = DROPPED.get(key) or other_kind.get(key) or _affix(key)
            if reason is None and key in (*TRAINING_KEYS, *GENERATION_KEYS, *SHARED_KEYS):
                reason = "this kind of run does not read it"
            if reason is None:
                unknown.append(key)
            else:
                self.dropped[key] = reason
        if unknown:
            raise ValueError(
                f"{self.where} holds keys that neither ancestor reads: {', '.join(unknown)}; correct or remove them"
            )

    def _leaves(self) -> list[str]:
        """Returns the keys; those inside groups one by one, but of a group that is dropped as a whole."""
        groups = [group for group in GROUPS if group not in self.dropped]
        if wrong := [group for group in groups if not isinstance(self.tree.get(group) or {}, dict)]:
            raise ValueError(f"{self.where}: {wrong[0]} is {self.tree[wrong[0]]!r}; write a group of keys")
        inner = [f"{group}.{key}" for group in groups for key in self.tree.get(group) or {}]
        return [key for key in self.tree if key not in groups] + inner


def _affix(key: str) -> str | None:
    """Returns the reason of a family of keys, or None."""
    found = [reason for start, reason in PREFIXES.items() if key.startswith(start)]
    found += [reason for end, reason in SUFFIXES.items() if key.endswith(end)]
    return found[0] if found else None
