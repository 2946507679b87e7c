"""Live-Avatar's training YAML becomes a recipe that loads, and no key of it is passed over in silence."""

from __future__ import annotations

import pytest
import yaml

import trainer.config
from scripts import migrate_config
from tests.architecture.source import ROOT

# The keys of liveavatar/configs/s2v_causal_sft.yaml with their values.
THEIRS = {
    **{"num_frames": 48, "max_steps": 100000, "val_check_interval": 250, "i2v": True, "use_audio": True},
    **{"drop_audio": 0.15, "drop_motion_frames": 0, "drop_part_motion_frames": 0, "add_noise_to_motion": None},
    **{"beta_a": 0.93, "beta_b": 3.79, "motion_noise_type": "std_scale", "debug": False, "sp_size": 1},
    **{"infer": False, "infer_steps": 20, "reset": False, "load_from": None, "valid_scale_guidance": 5},
    **{"use_captionemb": True, "strategy": "deepspeed", "dataset_path": [], "dataset_weights": [0.5, 50]},
    **{"val_list": [0, 10], "dataset_mix_wh": False, "dataset": {"max_num_frames": 121, "audio": True}},
    **{"ckpt_dir": "./Wan2.2-S2V-14B/", "wav2vec_path": "./Wan2.2-S2V-14B/", "dataloader_num_workers": 0},
    **{"learning_rate": 5e-5, "audio_learning_rate": 1e-5, "accumulate_grad_batches": 1, "model_config": None},
    **{"lora_target_modules": "q,k,v,o,ffn.0,ffn.2", "init_lora_weights": "kaiming", "lora_rank": 128},
    **{"lora_alpha": 64.0, "use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": False},
    **{"t5_cpu": True, "convert_model_dtype": True, "train_architecture": "lora", "pretrained_lora_path": None},
    **{"use_s2v_fsdp": False, "deepspeed_config": {"zero_optimization": {"stage": 2}}},
    **{"use_swanlab": True, "swanlab_mode": "cloud"},
}


def migrate(tmp_path, **changes):
    path = tmp_path / "s2v_causal_sft.yaml"
    path.write_text(yaml.safe_dump(THEIRS | changes))
    text, old = migrate_config.migrate(path)
    (tmp_path / "new.yaml").write_text(text)
    return trainer.config.load_recipe(tmp_path / "new.yaml")[0], old.dropped


def test_it_is_our_recipe_where_theirs_says_something(tmp_path):
    config, dropped = migrate(tmp_path)
    ours, _ = trainer.config.load_recipe(ROOT / "configs/train/live_avatar_sft.yaml")
    assert config.trainer.generator == ours.trainer.generator and config.generation == ours.generation
    assert config.trainer.loss == ours.trainer.loss and config.trainer.optim.rates == ours.trainer.optim.rates
    source = config.trainer.source
    assert (source.frames, source.silence, config.trainer.optim.lr, config.steps) == (12, 0.15, 5e-5, 100_000)
    taken = {key for key, value in THEIRS.items() if value is not None} - set(dropped)
    assert taken == {
        *("num_frames", "max_steps", "drop_audio", "learning_rate", "audio_learning_rate", "accumulate_grad_batches"),
        *("lora_target_modules", "lora_rank", "lora_alpha", "use_gradient_checkpointing", "ckpt_dir"),
    }
    assert all(dropped.values())


def test_other_values_go_over_or_are_named(tmp_path):
    config, _ = migrate(tmp_path, num_frames=96, lora_rank=64, lora_alpha=32, audio_learning_rate=None)
    lora = config.trainer.generator.lora
    assert (config.trainer.source.frames, lora.rank, lora.alpha, config.trainer.optim.rates) == (24, 64, 32, [])
    for changes, words in (
        ({"num_frames": 80}, "num_frames is 80; chunks have 12 frames"),
        ({"lora_target_modules": "q,k"}, "lora_target_modules is 'q,k'"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"learning_rat": 1}, "learning_rat is a key that neither ancestor reads"),
    ):
        with pytest.raises(ValueError, match=words):
            migrate(tmp_path, **changes)


def test_it_is_no_generation(tmp_path, capsys):
    (tmp_path / "s2v_causal_sft.yaml").write_text(yaml.safe_dump(THEIRS))
    assert migrate_config.main([str(tmp_path / "s2v_causal_sft.yaml"), "--kind", "infer"]) == 2
    assert "inference.py --training_config" in capsys.readouterr().err
