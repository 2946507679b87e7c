"""scripts/migrate_config.py: every key of the ancestors is taken or dropped by name; the results load."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

import pipeline.config
import trainer.config
from scripts import migrate_config
from tests.architecture.source import ROOT
from wan.generation import StepsConfig

NEGATIVE = yaml.safe_load((ROOT / "configs/infer/wan.yaml").read_text())["negative_prompt"]
DMD = {
    "generator_ckpt": "checkpoints/ode_init.pt",
    **{f"{r}_fsdp_wrap_strategy": "size" for r in ("generator", "real_score", "fake_score", "text_encoder")},
    "real_name": "Wan2.1-T2V-14B",
    "denoising_step_list": [1000, 750, 500, 250],
    "warp_denoising_step": True,
    "ts_schedule": False,
    "num_train_timestep": 1000,
    "timestep_shift": 5.0,
    "guidance_scale": 3.0,
    "denoising_loss_type": "flow",
    "mixed_precision": True,
    "seed": 0,
    "wandb_host": "WANDB_HOST",
    "wandb_project": "WANDB_PROJECT",
    "sharding_strategy": "hybrid_full",
    "lr": 2.0e-06,
    "lr_critic": 4.0e-07,
    "beta1": 0.0,
    "beta2": 0.999,
    "beta1_critic": 0.0,
    "beta2_critic": 0.999,
    "data_path": "prompts/vidprom_filtered_extended.txt",
    "batch_size": 1,
    "total_batch_size": 64,
    "ema_weight": 0.99,
    "ema_start_step": 200,
    "log_iters": 50,
    "negative_prompt": NEGATIVE,
    "dfake_gen_update_ratio": 5,
    "image_or_video_shape": [1, 21, 16, 60, 104],
    "distribution_loss": "dmd",
    "trainer": "score_distillation",
    "gradient_checkpointing": True,
    "num_frame_per_block": 3,
    "load_raw_video": False,
    "model_kwargs": {"timestep_shift": 5.0},
}
LONGLIVE = {
    **DMD,
    "model_kwargs": {"timestep_shift": 5.0, "local_attn_size": 12, "sink_size": 3},
    "distribution_loss": "dmd_switch",
    "max_iters": 3000,
    "max_checkpoints": 3,
    "gradient_accumulation_steps": 1,
    "min_num_training_frames": 21,
    "num_training_frames": 39,
    "slice_last_frames": 21,
    "streaming_training": True,
    "streaming_chunk_size": 21,
    "streaming_max_length": 240,
    "streaming_min_new_frame": 18,
    "train_first_chunk": True,
    "switch_mode": "random_choice",
    "switch_choices": [21, 39],
    "switch_prompt_path": "b.txt",
    "vis_interval": 500,
    "val_data_path": "c.txt",
    "adapter": {"type": "lora", "rank": 256, "alpha": 256},
    "global_sink": False,
    "one_logger_project": "x",
}
INFER = {
    "denoising_step_list": [1000, 750, 500, 250],
    "warp_denoising_step": True,
    "num_frame_per_block": 3,
    "model_name": "Wan2.1-T2V-1.3B",
    "model_kwargs": {"local_attn_size": 12, "timestep_shift": 5.0, "sink_size": 3},
    "data_path": "prompts/long.txt",
    "output_folder": "videos/long",
    "inference_iter": -1,
    "num_output_frames": 120,
    "use_ema": False,
    "seed": 1,
    "num_samples": 1,
    "save_with_index": True,
    "global_sink": True,
    "context_noise": 0,
    "switch_frame_indices": "40, 80",
    "generator_ckpt": "longlive_base.pt",
    "lora_ckpt": "lora.pt",
    "adapter": {"type": "lora", "rank": 256, "alpha": 128},
}


def migrate(tmp_path, tree: dict, kind: str | None = None, **flags):
    """Returns (the typed configuration, dropped) of an ancestor's tree."""
    path, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump(tree))
    text, old = migrate_config.migrate(path, kind, **flags)
    new.write_text(text)
    room = trainer.config if "\ntrainer:" in text else pipeline.config
    return room.load_recipe(new)[0], old.dropped


def test_self_forcing_dmd_becomes_our_recipe(tmp_path):
    config, dropped = migrate(tmp_path, DMD)
    ours, _ = trainer.config.load_recipe(ROOT / "configs/train/self_forcing_dmd.yaml")
    assert config.trainer == ours.trainer and config.model == ours.model and config.generation == ours.generation
    assert config.checkpoint.every == 50
    assert set(dropped) == {
        *(key for key in DMD if key.endswith("_fsdp_wrap_strategy") or key.startswith("wandb")),
        *("num_train_timestep", "denoising_loss_type", "sharding_strategy"),
        "load_raw_video",
    }
    assert all(dropped.values())


def test_adapters_accumulation_and_precision_go_over(tmp_path):
    config, dropped = migrate(tmp_path, {**LONGLIVE, "gradient_accumulation_steps": 2})
    roles = config.trainer
    assert (roles.generator.lora.rank, roles.generator.lora.alpha, roles.critic.lora.rank) == (256, 256, 256)
    assert roles.accumulate == 2 and roles.teacher.lora.rank == 0
    assert {roles.generator.dtype, roles.teacher.dtype, roles.critic.dtype} == {"bf16"}
    assert not {"adapter", "mixed_precision", "gradient_accumulation_steps"} & set(dropped)
    alone = {**LONGLIVE, "mixed_precision": False, "adapter": {"rank": 8, "apply_to_critic": False}}
    roles = migrate(tmp_path, alone)[0].trainer
    assert (roles.generator.lora.rank, roles.critic.lora.rank, roles.generator.dtype) == (8, 0, "fp32")


def test_the_keys_of_an_adapter_are_named_one_by_one(tmp_path):
    adapter = {"type": "lora", "rank": 8, "dropout": 0.1, "verbose": True}
    _, dropped = migrate(tmp_path, {**LONGLIVE, "adapter": adapter})
    assert {"adapter.type", "adapter.dropout", "adapter.verbose"} <= set(dropped)
    with pytest.raises(ValueError, match="adapter.rnk"):
        migrate(tmp_path, {**LONGLIVE, "adapter": {**adapter, "rnk": 3}})


def test_only_the_score_guidance_is_shifted(tmp_path):
    score = migrate(tmp_path, DMD)[0].trainer.loss.score
    assert (score.real_guidance, score.fake_guidance) == (4.0, 1.0)
    score = migrate(tmp_path, {**DMD, "real_guidance_scale": 2.5, "fake_guidance_scale": 0.5})[0].trainer.loss.score
    assert (score.real_guidance, score.fake_guidance) == (3.5, 1.5)
    sampling = {key: value for key, value in INFER.items() if key != "denoising_step_list"}
    config, _ = migrate(tmp_path, {**sampling, "guidance_scale": 3.0})
    assert config.sampler.name == "multi_step" and config.sampler.guidance == 3.0


def test_longlives_second_stage_becomes_our_stream(tmp_path):
    message = {"num_training_frames": None, "min_num_training_frames": None, "switch_choices": list(range(21, 202, 18))}
    message |= {
        "generator_ckpt": "models/LongLive-1.3B/models/longlive_base.pt",
        "lr": 1e-5,
        "lr_critic": 2e-6,
        "log_iters": 50,
    }
    message |= {"global_sink": True}  # their training reads it nowhere
    message["switch_prompt_path"] = "prompts/vidprom_filtered_extended_switch.txt"
    config, dropped = migrate(tmp_path, {**LONGLIVE, **message})
    ours, _ = trainer.config.load_recipe(ROOT / "configs/train/longlive_stream.yaml")
    mine = replace(config.trainer.source, switch_frames=list(config.trainer.source.switch_frames))
    assert mine == ours.trainer.source and not config.generation.cache.keep_sink
    assert replace(config.generation.cache, keep_sink=True) == ours.generation.cache
    same = replace(ours.trainer, source=config.trainer.source, ema=replace(ours.trainer.ema, start_step=0))
    assert (config.trainer, config.steps) == (same, ours.steps) and config.trainer.ema.decay == 0
    assert dropped["ema_weight"] == "their trainer keeps no average of adapters"
    assert (config.checkpoint.every, config.checkpoint.keep) == (50, 3)
    assert {"vis_interval", "val_data_path", "one_logger_project"} <= set(dropped)
    assert not any("streaming" in key or "switch" in key for key in dropped)


def stream(tmp_path, **keys):
    """Returns (source, dropped) of LongLive's second stage with other keys; its sink does not outlive a switch."""
    config, dropped = migrate(tmp_path, {**LONGLIVE, **keys})
    assert not config.generation.cache.keep_sink
    return config.trainer.source, dropped


def test_every_switch_mode_migrates(tmp_path):
    source, dropped = stream(tmp_path, switch_mode="fixed", fixed_switch_index=39)
    assert source.switches(3) == (39,) and "switch_choices" in dropped
    source, _ = stream(tmp_path, switch_mode="random", min_switch_frame_index=22, max_switch_frame_index=30)
    assert source.switches(3) == (22, 25, 28) and source.switch_prompts == "b.txt"
    source, dropped = stream(tmp_path, distribution_loss="dmd")
    assert source.name == "stream" and not source.switch_prompts and "switch_prompt_path" in dropped
    with pytest.raises(ValueError, match="switch_mode is 'often'; known are"):
        stream(tmp_path, switch_mode="often")


def test_lengths_of_a_stream(tmp_path):
    source, dropped = stream(tmp_path, streaming_possible_max_length=[60, 121], train_first_chunk=False)
    assert source.lengths == (60, 120) and not source.train_first_chunk and "streaming_max_length" in dropped
    with pytest.raises(ValueError, match="dmd_switch needs streaming_training"):
        stream(tmp_path, streaming_training=False)


OBJECTIVES = {
    "sid": ({**DMD, "distribution_loss": "sid", "sid_alpha": 0.5}, "sid", "rollout"),
    "causvid": ({**DMD, "distribution_loss": "causvid", "data_path": "clips"}, "dmd", "noised_data"),
    "gan": ({**DMD, "trainer": "gan", "distribution_loss": "gan", "gan_g_weight": 0.02}, "gan", "rollout"),
    "ode": ({**DMD, "trainer": "ode", "data_path": "pairs"}, "ode", "ode_pairs"),
    "diffusion": ({**DMD, "trainer": "diffusion", "teacher_forcing": True}, "flow", "latents"),
}


@pytest.mark.parametrize("old, loss, source", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective_migrates(tmp_path, old, loss, source):
    config, _ = migrate(tmp_path, old)
    assert (config.trainer.loss.name, config.trainer.source.name) == (loss, source)
    assert config.trainer.optim.lr == 2e-6 and config.trainer.source.batch == 64
    if loss == "flow":
        assert config.trainer.loss.mode == "teacher_forcing"


def test_penalties_are_halved_as_their_trainer_does(tmp_path):
    config, _ = migrate(tmp_path, {**OBJECTIVES["gan"][0], "r1_weight": 0.5, "r2_weight": 3, "r1_sigma": 0.1})
    loss = config.trainer.loss
    assert (loss.r1_weight, loss.r2_weight, loss.r1_sigma, loss.r2_sigma) == (0.25, 1.5, 0.1, 0.01)


def test_time_embedding_of_the_classifier_migrates(tmp_path):
    config, _ = migrate(tmp_path, {**OBJECTIVES["gan"][0], "concat_time_embeddings": True})
    assert config.trainer.loss.discriminator.time_embedding
    assert not migrate(tmp_path, OBJECTIVES["gan"][0])[0].trainer.loss.discriminator.time_embedding


@pytest.mark.parametrize(("entries", "low"), [(100, 0.979), (1000, 0.0)])
def test_noise_augmentation_migrates_to_a_range(tmp_path, entries, low):
    """Of shift 5.2: 5.2 * .9 / (1 + 4.2 * .9)."""
    old = {**OBJECTIVES["diffusion"][0], "model_kwargs": {"timestep_shift": 5.2}}
    config, _ = migrate(tmp_path, {**old, "noise_augmentation_max_timestep": entries})
    assert config.trainer.loss.context_range == pytest.approx((low, 1.0), abs=1e-3)
    config, dropped = migrate(tmp_path, {**old, "noise_augmentation_max_timestep": entries, "teacher_forcing": False})
    assert config.trainer.loss.context_range == () and "noise_augmentation_max_timestep" in dropped
    with pytest.raises(ValueError, match="1001; their table has 1000"):
        migrate(tmp_path, {**old, "noise_augmentation_max_timestep": 1001})


def test_causvids_closing_zero_is_the_clean_step(tmp_path):
    old = {**OBJECTIVES["causvid"][0], "denoising_step_list": [1000, 757, 522, 0], "warp_denoising_step": False}
    config, _ = migrate(tmp_path, old)
    assert config.generation.steps.steps == (1000, 757, 522) and not config.generation.steps.warp
    assert config.trainer.source.clean_step


def test_missing_keys_mean_the_ancestors_defaults(tmp_path):
    old = {key: value for key, value in DMD.items() if key not in ("ts_schedule", "warp_denoising_step", "fake_name")}
    config, _ = migrate(tmp_path, {**old, "model_kwargs": {}, "context_noise": 100})
    assert config.trainer.loss.score.from_exit
    assert not config.generation.steps.warp and config.generation.steps.shift == 8.0
    assert config.generation.context.sigma == 0.1


def test_generation_migrates(tmp_path):
    config, dropped = migrate(tmp_path, INFER)
    model = config.model
    assert (model.checkpoint, model.lora, model.lora_alpha) == ("longlive_base.pt", "lora.pt", 128)
    assert config.generation.cache.window_frames == 12 and config.generation.cache.sink_frames == 3
    assert config.sampler.name == "few_step"
    assert config.generation.steps == StepsConfig((1000, 750, 500, 250), 5.0)
    assert (config.num_output_frames, config.seed, config.data.path) == (120, 1, "prompts/long.txt")
    assert config.output.save_with_index and config.output.folder == "videos/long"
    assert (config.generation.cache.recache, config.generation.cache.keep_sink) == ("bidirectional", True)
    assert config.data.switch_frames == "40, 80"
    assert set(dropped) == {"model_name", "inference_iter", "adapter.type", "adapter.rank"}


def test_infinity_is_rope_when_read_and_scripts_stay(tmp_path):
    old = {**INFER, "data_path": "a.jsonl", "model_kwargs": {**INFER["model_kwargs"], "use_infinite_attention": True}}
    config, dropped = migrate(tmp_path, old)
    assert config.generation.cache.rope == "read" and config.data.path == "a.jsonl" and "data_path" not in dropped


def test_a_training_file_can_become_a_generation(tmp_path):
    config, dropped = migrate(tmp_path, DMD, "infer")
    assert config.model.checkpoint == "checkpoints/ode_init.pt" and config.sampler.name == "few_step"
    assert dropped["lr"] == "read by training only"


@pytest.mark.parametrize("old", [{**DMD, "lr_critc": 1}, {**INFER, "model_kwargs": {"sink": 3}}])
def test_unknown_keys_are_an_error(tmp_path, old):
    with pytest.raises(ValueError, match="lr_critc|model_kwargs.sink"):
        migrate(tmp_path, old)


@pytest.mark.parametrize("key, value", [("trainer", "magic"), ("distribution_loss", "x"), ("denoising_loss_type", "v")])
def test_unknown_values_are_an_error(tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{key} is '{value}'"):
        migrate(tmp_path, {**DMD, key: value})


def test_the_door(tmp_path, capsys):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(yaml.safe_dump(DMD))
    assert migrate_config.main([str(old)]) == 0
    printed = capsys.readouterr()
    assert "real_guidance: 4.0" in printed.out and "dropped sharding_strategy: " in printed.err
    assert migrate_config.main([str(old), str(new)]) == 0
    assert new.read_text() == printed.out
    assert migrate_config.main([str(old), str(new)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert migrate_config.main([str(tmp_path / "no.yaml")]) == 2
