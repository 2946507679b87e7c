"""Trains the feature net of the digits videos' Frechet distance, once; minutes on one CPU thread.

    OMP_NUM_THREADS=1 python scripts/train_features.py

The net learns to name digit, colour, direction and speed of real clips. Mild blur, noise, fading and shifts keep its
features smooth: what a codec does to a clip must move them a little, not throw them over. It sees single frames first
(shapes need many examples, and a frame costs little), then short clips, then whole ones. Writes into --output: the
weights, features.json (command, seed, accuracy, hash) and the Gaussian of real clips. The clips' seeds (40,000 and on)
are drawn by no training run and by no evaluation.
"""

from __future__ import annotations

import argparse
import functools
import math
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from utils.atomic import write_json  # noqa: E402
from utils.digits.features import CANVAS, FOLDER, SPEEDS, WINDOW, FeatureNet, load_net, save_net, to_pixels  # noqa: E402
from utils.digits.frechet import make_reference  # noqa: E402
from utils.digits.world import COLOURS, DIRECTIONS, DigitsConfig, parse_prompt, quantise, random_clip  # noqa: E402
from utils.door import check_folder, door  # noqa: E402
from utils.rng import Rng, seed_libraries  # noqa: E402

TRAIN_SEED, TEST_SEED = 40_000, 41_000
PEAK_RATE, WARM_UP, WEIGHT_DECAY = 4e-3, 0.05, 0.02
STAGES = ((0.0, 1, 32), (0.45, 9, 16), (0.9, WINDOW, 16))  # from which part of the steps on: pixel frames, batch
MOVING = ("direction", "speed")  # what one frame does not show
WEIGHTS = {"digit": 2.0, "colour": 1.0, "direction": 1.0, "speed": 1.0}  # of the losses; digits are learned last
SMOOTHING = 0.05  # of the labels: features of sure hits need not run away
REPORT = 50  # steps
BLUR, NOISE, FADE, SHIFT = 0.5, 0.06, 0.3, 8  # share of blurred clips; levels in [0, 1]; pixels


@door("train_features.py")
def main(argv: list[str] | None = None) -> int:
    """Trains, saves, loads what was saved, measures it on held-out clips, records it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--test", type=int, default=512, help="held-out clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FOLDER)
    flags = parser.parse_args(argv)
    if min(flags.steps, flags.test) < 1:
        raise ValueError("--steps and --test must be 1 or more")
    check_folder(flags.output)
    begin, busy = time.time(), time.process_time()
    net, losses = train(flags.steps, Rng(flags.seed, "features"))
    minutes, busy = (time.time() - begin) / 60, (time.process_time() - busy) / 60
    digest = save_net(net, flags.output)
    facts = {
        "command": f"python scripts/train_features.py --steps {flags.steps} --test {flags.test} --seed {flags.seed}",
        "seed": flags.seed,
        "steps": flags.steps,
        "clip_seeds": {"train": TRAIN_SEED + flags.seed, "test": TEST_SEED + flags.seed},
        "minutes": round(minutes, 2),
        "cpu_minutes": round(busy, 2),
        "hardware": f"{torch.get_num_threads()} CPU thread, {platform.machine()}",
        "torch": torch.__version__,
        "loss": losses,
        "sha256": digest,
    }
    write_json(flags.output / "features.json", facts)
    saved = load_net(flags.output)
    rng = Rng(flags.seed, "features", "test")
    facts["accuracy"] = {"clips": flags.test, "plain": test(saved, flags.test, flags.seed, None)}
    facts["accuracy"]["augmented"] = test(saved, flags.test, flags.seed, rng)
    facts["reference_clips"] = make_reference(flags.output)
    write_json(flags.output / "features.json", facts)
    print(f"{facts['accuracy']}, {minutes:.1f} min; saved {flags.output}")
    return 0


def train(steps: int, rng: Rng) -> tuple[FeatureNet, dict[str, float]]:
    """Returns the trained network and the last losses of its labels."""
    seed_libraries(rng.at("init"))
    net, losses = FeatureNet(), []
    optim = torch.optim.AdamW(net.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        done = (step + 1) / steps
        optim.param_groups[0]["lr"] = PEAK_RATE * min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done))
        _, num_frames, batch = [stage for stage in STAGES if stage[0] < done][-1]
        numbers = [step * STAGES[0][2] + b for b in range(batch)]
        pixels, labels = make_batch(numbers, TRAIN_SEED + rng.seed, num_frames)
        logits = net(augment(pixels, rng.at("step", step)))
        parts = [cross_entropy(logits[name], labels[name], label_smoothing=SMOOTHING) for name in WEIGHTS]
        weights = [0.0 if num_frames == 1 and name in MOVING else weight for name, weight in WEIGHTS.items()]
        loss = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append([part.item() for part in parts])
        if (step + 1) % REPORT == 0 or step + 1 == steps:
            print(f"step {step + 1}: {describe(losses)}", flush=True)
    return net.eval(), describe(losses)


def describe(losses) -> dict[str, float]:
    """Returns {label: mean loss of the last REPORT steps}."""
    rows = losses[-REPORT:]
    return {name: round(sum(row[i] for row in rows) / len(rows), 3) for i, name in enumerate(WEIGHTS)}


def test(net: FeatureNet, count: int, seed: int, rng: Rng | None) -> dict[str, float]:
    """Returns {label: accuracy} on held-out clips, augmented if an `rng` is given."""
    hits: dict[str, list[torch.Tensor]] = {}
    for start in range(0, count, 16):
        pixels, labels = make_batch(range(start, min(start + 16, count)), TEST_SEED + seed, WINDOW)
        with torch.no_grad():
            logits = net(pixels if rng is None else augment(pixels, rng.at(start)))
        for name, value in labels.items():
            hits.setdefault(name, []).append(logits[name].argmax(1) == value)
    return {name: round(torch.cat(found).float().mean().item(), 4) for name, found in hits.items()}


def make_batch(numbers, seed: int, num_frames: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns (pixels [B, 3, P, 64, 64] in [0, 1], {label: [B]}) of digits clips at all SPEEDS in turn."""
    clips, labels = [], {"digit": [], "colour": [], "direction": [], "speed": []}
    for number in numbers:
        speed = SPEEDS[number % len(SPEEDS)]  # the clip itself is drawn by its number
        clip, prompt = random_clip(number, num_frames, seed, DigitsConfig(speed=speed))
        subject = parse_prompt(prompt)[0]
        clips.append(quantise(clip))
        labels["digit"].append(subject.digit)
        labels["colour"].append(list(COLOURS).index(subject.colour))
        labels["direction"].append(list(DIRECTIONS).index(subject.direction))
        labels["speed"].append(SPEEDS.index(speed))
    return to_pixels(np.stack(clips)), {name: torch.tensor(values) for name, values in labels.items()}


def augment(pixels_BCPHW: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Returns the pixels, each clip shifted as a whole, partly blurred, faded, and with noise.

    The noise is one field, moved to another place for every clip: drawing it again takes as long as the network.
    """
    shape, clips = pixels_BCPHW.shape, []
    field = noise_field((*shape[1:2], WINDOW, *shape[3:]))[:, : shape[2]]
    shifts = rng.integers(0, SHIFT, "shift", shape=(len(pixels_BCPHW), 2)).tolist()
    moves = rng.integers(0, CANVAS, "move", shape=(len(pixels_BCPHW), 3)).tolist()
    strengths = rng.uniform("strength", shape=(len(pixels_BCPHW), 4)).tolist()
    for clip, shift, move, (blur, blurred, fade, noise) in zip(pixels_BCPHW, shifts, moves, strengths, strict=True):
        clip = clip.roll(shift, (-2, -1))
        if blurred < BLUR:
            clip = clip.lerp(soften(soften(clip, -2), -1), blur)
        clip = clip * (1 - FADE * fade) + field.roll(move, (-3, -2, -1)) * (NOISE * noise)
        clips.append(clip.clamp(0, 1))
    return torch.stack(clips)


def soften(clip: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns the mean of three neighbours along an axis, wrapping at the edges."""
    return (clip.roll(-1, axis) + clip + clip.roll(1, axis)) / 3


@functools.cache
def noise_field(shape) -> torch.Tensor:
    """Returns standard normal numbers of the shape of a clip."""
    return Rng(0, "features", "noise").normal(shape)


if __name__ == "__main__":
    sys.exit(main())
