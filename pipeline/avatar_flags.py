"""Flags of Live-Avatar's scripts and of Wan2.2's S2V that have another name here: what is said where one is given."""

from __future__ import annotations

EXTENDED = "a prompt that is rewritten already"
SPOKEN = "--audio FILE, spoken"
NOTHING = "nothing: it did nothing there"
RENAMED = {
    "--ckpt_dir": "--model",
    "--base_seed": "--seed",
    "--save_dir": "--output_folder",
    "--lora_path_dmd": "--lora_path",
    "--load_lora": "--lora_path alone, which loads it",
    "--using_merged_ckpt": "--checkpoint_path with the merged weights alone",
    "--sample_steps": "sampler.num_steps=4",
    "--sample_solver": "sampler.solver=euler",
    "--sample_shift": "generation.steps.shift=3",
    "--sample_guide_scale": "sampler.guidance; the four-step model was distilled for 1",
    "--offload_model": "model.offload.parts=true",
    "--offload_kv_cache": "model.offload.caches=cpu",
    "--t5_cpu": "text.device=cpu",
    "--t5_fsdp": "text.device=cpu",
    "--fp8": "model.linears=fp8",
    "--convert_model_dtype": "model.dtype=bf16, the default",
    "--single_gpu": "nothing: one process is the default",
    "--num_gpus_dit": "torchrun --nproc_per_node=N and executor.name=tpp (configs/infer/live_avatar_tpp.yaml)",
    "--enable_vae_parallel": "executor.name=tpp executor.decoder_rank=own",
    "--enable_online_decode": "generation.portrait.refresh=4",
    "--ulysses_size": "torchrun and executor.name=tpp: ranks share the steps",
    "--dit_fsdp": "executor.name=tpp, or model.offload.blocks=true on one GPU",
    "--task": "--config_path configs/infer/live_avatar.yaml or wan_s2v.yaml",
    **dict.fromkeys(("--use_prompt_extend", "--prompt_extend_method"), EXTENDED),
    **dict.fromkeys(("--prompt_extend_model", "--prompt_extend_target_lang"), EXTENDED),
    **dict.fromkeys(("--enable_tts", "--tts_prompt_audio", "--tts_prompt_text", "--tts_text"), SPOKEN),
    **dict.fromkeys(("--start_from_ref", "--drop_motion_noisy"), NOTHING),
}
