"""Every flag of Live-Avatar's three commands is honoured, or refused with what is written here instead."""

from __future__ import annotations

import re

import pytest

import inference
from pipeline.config import load_recipe
from tests.architecture.source import ROOT

# Of minimal_inference/s2v_streaming_interact.py, gradio_app.py and batch_eval.py.
GENERATION = """
task size frame_num ckpt_dir offload_model ulysses_size t5_fsdp dit_fsdp t5_cpu save_file save_dir prompt
use_prompt_extend prompt_extend_method prompt_extend_model prompt_extend_target_lang base_seed image audio sample_solver
sample_steps sample_shift sample_guide_scale convert_model_dtype num_clip infer_frames enable_tts tts_prompt_audio
tts_prompt_text tts_text pose_video start_from_ref drop_motion_noisy use_dataset dataset_sample_idx using_merged_ckpt
lora_path load_lora lora_path_dmd training_config single_gpu num_gpus_dit enable_vae_parallel offload_kv_cache
enable_online_decode fp8
"""
FLAGS = [f"--{name}" for name in f"{GENERATION} sample_list server_name server_port".split()]
HONOURED = (
    "--size --prompt --image --audio --num_clip --infer_frames --pose_video --lora_path --training_config".split()
)
RECIPE = str(ROOT / "configs/infer/live_avatar.yaml")
TRAINING = (
    "num_frames: 48\ndrop_audio: 0.15\nlora_target_modules: 'q,k,v,o,ffn.0,ffn.2'\nlora_rank: 128\nlora_alpha: 32.0\n"
)


def config(*arguments, recipe=RECIPE):
    flags = inference.parse(["--config_path", recipe, *map(str, arguments)])
    return load_recipe(flags.config_path, inference.overrides(flags))[0]


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag not in HONOURED])
def test_the_others_are_refused_with_what_is_written_here(flag, capsys):
    with pytest.raises(SystemExit) as end:
        inference.parse(["--config_path", RECIPE, flag, "4"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"{flag} is not a flag here; use {inference.RENAMED[flag]}" in said
    advice = inference.RENAMED[flag]
    known = {*inference.VALUES, *inference.SWITCHES, inference.LORA, "--config_path", "--nproc_per_node"}
    assert set(re.findall(r"--\w+", advice)) <= known
    knobs = re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+=[\w.]+", advice)
    load_recipe(RECIPE, ["model.lora_merge=true", *knobs])  # a knob that is advised is one


def test_what_is_honoured_reaches_its_knob(tmp_path):
    (tmp_path / "s2v_causal_sft.yaml").write_text(TRAINING)
    made = config(
        *("--size", "720*400", "--prompt", "p", "--image", "a.png", "--audio", "b.wav", "--num_clip", 7),
        *("--infer_frames", 60, "--pose_video", "c.mp4", "--lora_path", "d.safetensors"),
        *("--training_config", tmp_path / "s2v_causal_sft.yaml"),
    )
    assert (made.pipeline.size, made.pipeline.num_clip, made.generation.cache.window_frames) == ("720*400", 7, 15)
    assert (made.data.prompt, made.data.image, made.data.audio, made.data.pose_video) == (
        "p",
        "a.png",
        "b.wav",
        "c.mp4",
    )
    assert (made.model.lora, made.model.lora_alpha) == ("d.safetensors", 32.0)
    assert config("--infer_frames", 48).generation.cache.window_frames == 12


@pytest.mark.parametrize("frames", [80, 0, -12, 16])
def test_a_window_of_other_frames_is_refused(frames):
    with pytest.raises(ValueError, match="write a multiple of 12"):
        config("--infer_frames", frames)


def test_clips_have_another_knob(capsys):
    recipe = str(ROOT / "configs/infer/wan_s2v.yaml")
    assert inference.main(["--config_path", recipe, "--infer_frames", "84", "--print_config"]) == 2
    assert "pipeline.clip_frames=21" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["lora_rank: 128\n", "lora_alpha: strong\n", "lora_alpha: 0\n", "lora_alpha: [64]\n"])
def test_a_training_config_without_a_strength_is_named(tmp_path, text):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"other\.yaml .*lora_alpha.*write model\.lora_alpha=64"):
        config("--training_config", tmp_path / "other.yaml")
    with pytest.raises(ValueError, match=r"gone\.yaml: no such file"):
        config("--training_config", tmp_path / "gone.yaml")


def test_clips_need_a_length(capsys):
    with pytest.raises(ValueError, match="generation.cache.window_frames is -1"):
        config("--num_clip", 2, "generation.cache.window_frames=-1")
    with pytest.raises(ValueError, match="num_clip"):
        config("--num_clip", 2, recipe=str(ROOT / "configs/infer/digits.yaml"))
    with pytest.raises(ValueError, match="pipeline.name=audio_driven"):
        config("--pose_video", "x.mp4", recipe=str(ROOT / "configs/infer/digits.yaml"))
