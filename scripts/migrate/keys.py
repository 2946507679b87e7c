"""Lists the keys of Self-Forcing's and LongLive's YAML that have no place in our recipes, each with the reason."""

from __future__ import annotations

TRAINING, GENERATION = "read by training only", "read by generation only"
UNUSED = "the ancestors never read it"
DOOR = "a flag of train.py; give it again (--no_visualize, --disable-wandb, --no-auto-resume)"
PREVIEWS = "write preview.every and preview.prompts"
TRACKERS = "a run writes metrics.jsonl into its folder; write track.wandb or track.tensorboard for more"
STREAMING = "streaming_training is not true: each step rolls out from the start"
SWITCHES = "read with streaming_training and a switch_mode only"
SHARDING = "all ranks share the weights; write layout.shard for a copy per group of ranks"

DROPPED = {
    **dict.fromkeys(("ckpt_step", "prompt_name", "prompt_path", "eval_first_n", "causal", "model_name"), UNUSED),
    **dict.fromkeys(("height", "width", "num_frames"), UNUSED),
    **dict.fromkeys(("config_name", "distributed"), "their program writes it itself"),
    **dict.fromkeys(("no_visualize", "disable_wandb", "auto_resume", "use_one_logger"), DOOR),
    "num_train_timestep": "always 1000",
    "denoising_loss_type": "flow matching is the critic's only loss here",
    "sharding_strategy": SHARDING,
    "gc_interval": "nothing is collected by hand",
    "load_raw_video": "videos are encoded before (scripts/encode_latents.py)",
    "backward_simulation": "the source decides: rollout or noised_data",
    "max_pair": "write fewer pairs into the folder",
    "train_first_chunk": STREAMING,
    "fixed_switch_index": SWITCHES,
    "min_switch_frame_index": SWITCHES,
    "max_switch_frame_index": SWITCHES,
    "switch_frame_indices": "generation reads it (data.switch_frames)",
    "inference_iter": "cut the prompt file instead",
    "extended_prompt_path": "write data.extended_path",
    "discriminator_warmup_steps": "critic and discriminator start together",
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
batch_size total_batch_size ema_weight ema_start_step log_iters max_checkpoints max_iters no_save
dfake_gen_update_ratio image_or_video_shape num_training_frames min_num_training_frames slice_last_frames
gradient_checkpointing real_guidance_scale fake_guidance_scale min_score_timestep sid_alpha teacher_forcing
same_step_across_blocks noise_augmentation_max_timestep last_step_only text_encoder_cpu_offload critic_timestep_shift
gan_g_weight gan_d_weight r1_weight r2_weight r1_sigma r2_sigma relativistic_discriminator concat_time_embeddings
num_class discriminator_lr_multiplier logdir mixed_precision gradient_accumulation_steps adapter.apply_to_critic
adapter.rank adapter.alpha
""".split()
SHARED_KEYS = """
denoising_step_list warp_denoising_step num_frame_per_block independent_first_frame data_path seed guidance_scale
negative_prompt context_noise i2v adapter model_kwargs.timestep_shift model_kwargs.local_attn_size
model_kwargs.sink_size model_kwargs.use_infinite_attention global_sink
""".split()
GENERATION_KEYS = (
    "switch_frame_indices output_folder num_output_frames use_ema num_samples save_with_index lora_ckpt".split()
)
ALL_KEYS = (*TRAINING_KEYS, *GENERATION_KEYS, *SHARED_KEYS)
LONGLIVE_GENERATION = ("output_folder", "num_output_frames", "switch_frame_indices", "lora_ckpt", "inference_iter")
DEFAULT_KEYS = """
independent_first_frame warp_denoising_step weight_decay same_step_across_blocks last_step_only i2v num_training_frames
context_noise
""".split()  # of their default_config.yaml; the others there are read by nothing
