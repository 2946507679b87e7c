"""Trains the ear of the talking digits, once: a tiny wav2vec2 that hears pitch and voicing; minutes on one CPU thread.

    OMP_NUM_THREADS=1 python scripts/train_ear.py

A random wav2vec2 hears too little of the law. This one learns to read pitch (by octaves) and voicing off its last
hidden state; the two linear heads are thrown away and the network is frozen. Writes into --output, in transformers'
layout: config.json, model.safetensors (bf16), preprocessor_config.json, and ear.json with the command and what was
measured: how much of the pitch a linear read-out of all hidden states explains on sounds that were never heard (R2).
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import binary_cross_entropy_with_logits  # noqa: E402

from utils.atomic import write_json, write_tensors  # noqa: E402
from utils.digits.speaking import FPS, LOW, RATE, draw_law, hum, pitch_of  # noqa: E402
from utils.door import check_folder, door  # noqa: E402
from utils.rng import Rng, seed_libraries  # noqa: E402
from wan.audio.features import EXTRA, STATE_SAMPLES, load_hidden_states  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "digits_s2v" / "audio_encoder"
WIDTH, LAYERS, FRONT = 64, 3, 48
SECONDS, BATCH, PEAK_RATE = 2, 8, 2e-3
TRAIN_SEED, TEST_SEED = 50_000, 51_000
REPORT = 25  # steps


@door("train_ear.py")
def main(argv: list[str] | None = None) -> int:
    """Trains, saves, loads what was saved, measures it on sounds it never heard, records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--test", type=int, default=64, help="held-out sounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FOLDER)
    flags = parser.parse_args(argv)
    if min(flags.steps, flags.test) < 1:
        raise ValueError("--steps and --test must be 1 or more")
    check_folder(flags.output)
    busy = time.process_time()
    model, loss = train(flags.steps, Rng(flags.seed, "ear"))
    save(model, flags.output)
    facts = {
        "command": f"python scripts/train_ear.py --steps {flags.steps} --test {flags.test} --seed {flags.seed}",
        "sound_seeds": {"train": TRAIN_SEED + flags.seed, "test": TEST_SEED + flags.seed},
        "cpu_minutes": round((time.process_time() - busy) / 60, 2),
        "hardware": f"{torch.get_num_threads()} CPU thread, {platform.machine()}",
        "torch": torch.__version__,
        "loss": round(loss, 4),
        "read_out": test(load_hidden_states(flags.output), flags.test, TEST_SEED + flags.seed),
    }
    write_json(flags.output / "ear.json", facts)
    print(f"{facts['read_out']}, loss {loss:.3f}, {facts['cpu_minutes']} CPU minutes; saved {flags.output}")
    return 0


def settings() -> dict:
    """Returns the sizes: the published network's layers at a laptop's widths."""
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "conv_dim": [FRONT] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "vocab_size": 4,
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "hidden_dropout": 0.0,
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
    }


def train(steps: int, rng: Rng) -> tuple[nn.Module, float]:
    """Returns the network and the mean loss of the last steps."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    seed_libraries(rng.at("init"))
    model, heads, losses = Wav2Vec2Model(Wav2Vec2Config(**settings())).train(), nn.Linear(WIDTH, 2), []
    optim = torch.optim.AdamW([*model.parameters(), *heads.parameters()], PEAK_RATE, weight_decay=0.01)
    for step in range(steps):
        done = (step + 1) / steps
        optim.param_groups[0]["lr"] = PEAK_RATE * min(done / 0.05, 0.5 + 0.5 * math.cos(math.pi * done))
        sounds, pitch, voiced = make_batch(range(step * BATCH, (step + 1) * BATCH), TRAIN_SEED + rng.seed)
        read = heads(model(sounds).last_hidden_state)
        error = ((read[..., 0] - pitch).square() * voiced).sum() / voiced.sum().clamp(min=1)
        loss = error + 0.2 * binary_cross_entropy_with_logits(read[..., 1], voiced)
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        losses.append(loss.item())
        if (step + 1) % REPORT == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-REPORT:]):.3f}", flush=True)
    return model.eval(), float(np.mean(losses[-REPORT:]))


def make_sound(number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (samples, octaves above the lowest pitch and voicing at each hidden state) of one sound."""
    rng = np.random.default_rng((seed, number))
    count = SECONDS * FPS + 1
    rows, voiced = draw_law(count + 24, rng)
    begin = int(rng.integers(24))  # anywhere in a law, not at its rest
    rows, voiced = rows[begin : begin + count], voiced[begin : begin + count]
    sound = hum(rows, voiced, rng)[: SECONDS * RATE + EXTRA]
    sound = sound + rng.normal(0, 1e-4, len(sound))  # no real silence is empty
    sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    frames = np.arange(SECONDS * RATE // STATE_SAMPLES) * STATE_SAMPLES / RATE * FPS
    octaves = np.log2(pitch_of(np.interp(frames, np.arange(count), rows)) / LOW)
    return sound.astype(np.float32), octaves, np.interp(frames, np.arange(count), voiced.astype(float)) > 0.5


def make_batch(numbers, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns sounds [B, N], octaves [B, T] and voicing [B, T]."""
    rows = zip(*(make_sound(number, seed) for number in numbers), strict=True)
    sounds, octaves, voiced = (torch.from_numpy(np.stack(row)).float() for row in rows)
    return sounds, octaves - 1, voiced


def save(model: nn.Module, folder: Path) -> None:
    """Writes the folder as transformers lays it out."""
    config = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"], **settings()}
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {"do_normalize": True, "sampling_rate": RATE, "feature_size": 1})
    state = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})


def test(ear, count: int, seed: int) -> dict[str, float]:
    """Returns {R2 of the pitch where it hums, accuracy of the voicing} of linear read-outs fitted on half of them."""
    states, octaves, voiced = [], [], []
    for number in range(count):
        sound, pitch, hums = make_sound(number, seed)
        states.append(ear(sound).permute(1, 0, 2).flatten(1).numpy())
        octaves.append(pitch)
        voiced.append(hums)
    fits = slice(0, count // 2), slice(count // 2, count)
    x, y, v = ([np.concatenate(rows[part]) for part in fits] for rows in (states, octaves, voiced))
    wide = [np.concatenate((row, np.ones((len(row), 1))), 1) for row in x]

    def read(target, where):
        weights = np.linalg.solve(
            wide[0][where[0]].T @ wide[0][where[0]] + 1e-3 * np.eye(wide[0].shape[1]),
            wide[0][where[0]].T @ target[0][where[0]],
        )
        return wide[1][where[1]] @ weights

    found, true = read(y, v), y[1][v[1]]
    every = [np.ones(len(row), bool) for row in v]
    heard = read([row.astype(float) for row in v], every) > 0.5
    return {
        "pitch_r2": round(float(1 - ((found - true) ** 2).mean() / true.var()), 4),
        "voicing": round(float((heard == v[1]).mean()), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
