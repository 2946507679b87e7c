"""Family, size, batch, steps and average of a migrated training are those that the old program had."""

from __future__ import annotations

import pytest

from scripts import migrate_config
from tests.scripts.migrate.old_recipes import error, load, write

BATCHES = {  # text, --gpus -> batch, parts
    "batch_size: 3\ngradient_accumulation_steps: 2": (4, 24, 2),
    "batch_size: 2": (16, 32, 1),
    "batch_size: 1\ntotal_batch_size: 48\ngradient_accumulation_steps: 6": (None, 48, 6),
    "batch_size: 1\ntotal_batch_size: 64\ngradient_accumulation_steps: 8": (4, 32, 8),
    "batch_size: 5\ngradient_accumulation_steps: 3": (None, 15, 3),
}


@pytest.mark.parametrize("text", BATCHES)
def test_batch_is_that_of_all_gpus_and_parts(tmp_path, text):
    gpus, batch, parts = BATCHES[text]
    config, old = load(tmp_path, text, gpus=gpus)
    assert (config.trainer.source.batch, config.trainer.accumulate) == (batch, parts)
    assert bool(gpus) != any("--gpus" in note for note in old.assumed.values())


def test_batches_that_do_not_fit_are_refused(tmp_path, capsys):
    message = error(tmp_path, "batch_size: 3\ntotal_batch_size: 64", capsys)
    assert "old.yaml:14: total_batch_size is 64, no multiple of batch_size 3 x 1 parts" in message
    assert "--gpus is 0" in error(tmp_path, "", capsys, "--gpus", "0")
    assert "batch_size is 0; write 1 or more" in error(tmp_path, "batch_size: 0", capsys)


def test_latent_channels_choose_the_model(tmp_path):
    config, old = load(tmp_path, "image_or_video_shape: [1, 21, 48, 30, 52]\nreal_name: Wan2.2-TI2V-5B")
    assert config.model == "models/Wan2.2-TI2V-5B" == config.trainer.critic.weights
    assert (config.trainer.source.height, config.trainer.source.width) == (480, 832)
    assert "48 channels" in old.assumed["the model"]
    config, _ = load(tmp_path, "image_or_video_shape: [1, 21, 16, 30, 52]")
    assert (config.model, config.trainer.source.height) == ("models/Wan2.1-T2V-1.3B", 240)
    config, _ = load(tmp_path, "model_kwargs: {model_name: Wan2.1-T2V-14B}\ngenerator_ckpt: ~")
    assert config.model == "models/Wan2.1-T2V-14B" == config.trainer.generator.weights


SHAPES = {
    "[1, 31, 48, 44, 80]": "48 latent channels, but real_name is Wan2.1-T2V-14B, whose latents have 16",
    "[1, 21, 32, 60, 104]": "no model here has 32 latent channels",
    "[1, 21, 16, 45, 80]": "45 latent rows do not fill patches of 2; use 44 or 46",
    "[1, 21, 16, 44, 79]": "79 latent columns do not fill patches of 2; use 78 or 80",
    "[21, 16, 60, 104]": "write 5 whole numbers",
    "[1, 21, 16, 60.5, 104]": "write 5 whole numbers",
    "1x21x16x60x104": "write a list of numbers",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_no_model_are_refused(tmp_path, shape, capsys):
    message = error(tmp_path, f"image_or_video_shape: {shape}", capsys)
    assert "old.yaml:13: image_or_video_shape is " in message and SHAPES[shape] in message


def test_every_trainer_looks_at_the_shape(tmp_path, capsys):
    for text in ("trainer: ode", "trainer: diffusion", "trainer: gan", "distribution_loss: causvid"):
        message = error(tmp_path, f"{text}\nimage_or_video_shape: [1, 21, 16, 61, 104]", capsys)
        assert "61 latent rows" in message


def test_steps_average_and_checkpoints_are_the_old_ones(tmp_path):
    config, old = load(tmp_path, "log_iters: 40\nema_weight: 0.98\nema_start_step: 70")
    assert (config.steps, config.checkpoint.every, config.checkpoint.keep_every) == (10_000, 40, 40)
    assert (config.trainer.ema.decay, config.trainer.ema.start_step) == (0.98, 70)
    assert "until it is stopped" in old.assumed["max_iters"] and "draws a seed" in old.assumed["seed"]
    config, _ = load(tmp_path, "log_iters: 40\nmax_iters: 80\nmax_checkpoints: 2")
    assert (config.steps, config.checkpoint.keep, config.checkpoint.keep_every) == (80, 2, 0)
    for text in ("adapter: {rank: 4}", "trainer: diffusion", "trainer: ode"):
        config, old = load(tmp_path, f"ema_weight: 0.9\n{text}")
        assert config.trainer.ema.decay == 0 and "average" in old.dropped["ema_weight"]


def test_a_rollout_without_a_window_looks_back_as_far_as_theirs(tmp_path):
    config, old = load(tmp_path, "num_training_frames: 33")
    assert config.generation.cache.window_frames == 21 and "model_kwargs.local_attn_size" in old.assumed
    assert load(tmp_path, "num_training_frames: 21")[0].generation.cache.window_frames == -1
    path = tmp_path / "old.yaml"
    path.write_text("num_output_frames: 60\nnum_frame_per_block: 3\ndenoising_step_list: [1000, 500]\n")
    assert "window_frames: 21" in migrate_config.migrate(path)[0]


def test_a_single_first_frame_counts_among_the_frames(tmp_path, capsys):
    config, _ = load(tmp_path, "independent_first_frame: true\nnum_frame_per_block: 4\nnum_training_frames: 29")
    source = config.trainer.source
    assert (source.frames, source.frames_max, config.generation.first_chunk) == (21, 29, 1)
    message = error(tmp_path, "independent_first_frame: true\nnum_training_frames: 24", capsys)
    assert "num_frame_per_block is 3, and num_training_frames is 24: no whole number of blocks" in message


def test_flags_of_a_run_are_taken_or_named(tmp_path):
    text = "no_save: true\nno_visualize: true\nauto_resume: false\ndistributed: true\nuse_one_logger: false"
    config, old = load(tmp_path, text)
    assert not config.save and {"no_visualize", "auto_resume", "distributed", "use_one_logger"} <= set(old.dropped)


VALUES = {
    'denoising_step_list: "900, 450"': "denoising_step_list is '900, 450'; write a list of numbers, e.g. [900, 450]",
    "denoising_step_list: 1000": "denoising_step_list is 1000; write a list of numbers, e.g. [1000]",
    "denoising_step_list: ~": "denoising_step_list is missing",
    "denoising_step_list: [500, 1000]": "denoising_step_list gives generation.steps: steps [500.0, 1000.0]",
    "data_path: ~": "data_path is missing",
    'lr: "fast"': "lr is 'fast'; write a number, without quotes",
    "lr: .nan": "lr is nan; write a number",
    "lr_critic: -1.0": "lr_critic gives trainer.critic_optim.lr is -1.0; write",
    "num_frame_per_block: 2.5": "num_frame_per_block is 2.5; write a whole number",
    "num_frame_per_block: 5": "num_training_frames is 21, as it is without the key",
    "model_kwargs: {local_attn_size: [12, 9]}": "model_kwargs.local_attn_size is [12, 9]; write a number",
    "model_kwargs: {sink: 3}": "model_kwargs.sink is a key that neither ancestor reads",
    "mixed_precision: [bf16]": "mixed_precision is ['bf16']; write true or false",
    "trainer: [dmd]": "trainer is ['dmd']; write a text",
    "adapter: lora": "adapter is 'lora'; write a group of keys",
}


@pytest.mark.parametrize("text", VALUES)
def test_errors_name_the_users_file_and_key(tmp_path, text, capsys):
    message = error(tmp_path, text, capsys)
    assert message.startswith(str(tmp_path / "old.yaml")) and VALUES[text] in message, message
    assert "migrated.yaml" not in message


def test_all_notes_stand_in_the_recipe_too(tmp_path, capsys):
    assert migrate_config.main([str(write(tmp_path, "wandb_key: x")), str(tmp_path / "new.yaml")]) == 0
    told = capsys.readouterr().err.splitlines()
    recipe = (tmp_path / "new.yaml").read_text().splitlines()
    assert [f"# {line}" for line in told] == recipe[1 : len(told) + 1] and any("dropped wandb_key" in x for x in told)
