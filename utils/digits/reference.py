"""Makes the reference rows of digits tables: what the metrics say about clips whose worth is known.

A metric is only worth its distance between these rows: `real` is the ceiling; `shuffled` shows what
ignoring the prompt scores; `noise` and `black` are floors; `frozen` is perfect but for its motion;
`blurred` shows which metrics see a loss of detail.
"""

from __future__ import annotations

import numpy as np

from utils.digits.metrics import box_blur
from utils.digits.world import DigitsConfig, all_prompts, prompt_clip

BLUR = 5  # pixels


def reference(name: str, num_frames: int, seed: int = 0, config: DigitsConfig | None = None, prompts=None):
    """Returns (iterator over uint8 clips [P, H, W, 3], subjects) of one row of REFERENCES.

    `prompts` lists the prompt numbers to use; all 240 by default.
    """
    if name not in REFERENCES:
        raise ValueError(f"there is no reference row {name!r}; choose from {list(REFERENCES)}")
    prompts = range(len(all_prompts())) if prompts is None else prompts
    subjects = [prompt_clip(i, 1, seed, config)[1] for i in prompts]
    if name == "shuffled":
        subjects = [subjects[i] for i in np.random.default_rng(seed).permutation(len(subjects))]
    change = REFERENCES[name]
    clips = (change(prompt_clip(i, num_frames, seed, config)[0], np.random.default_rng((seed, i))) for i in prompts)
    return clips, subjects


def blur(clip: np.ndarray) -> np.ndarray:
    """Returns the uint8 clip [P, H, W, 3] averaged over BLUR x BLUR pixels."""
    channels = [box_blur(clip[..., c].astype(np.float32), BLUR) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


REFERENCES = {
    "real": lambda clip, rng: clip,
    "shuffled": lambda clip, rng: clip,
    "noise": lambda clip, rng: rng.integers(0, 256, clip.shape, dtype=np.uint8),
    "black": lambda clip, rng: np.zeros_like(clip),
    "frozen": lambda clip, rng: np.repeat(clip[:1], len(clip), 0),
    "blurred": lambda clip, rng: blur(clip),
}
