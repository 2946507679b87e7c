"""Measures digits clips: what a clip shows, frame by frame, against what its prompt asks for.

Every metric is a number per clip and frame, so one pass serves averages, windows along the clip
(drift) and prompt switches. Frames with no ink count as misses, never as chance hits.

| metric | meaning | real clip |
|---|---|---|
| digit | a classifier reads the requested digit in the crop centred on the ink | ~1 |
| colour | nearest palette entry of the ink-weighted mean colour is the requested one | 1 |
| direction | velocity over 4 frames within 50 % of the requested one, sideways too | 1 |
| speed | velocity along the requested direction, pixels per frame | 2 |
| consistency | correlation of the centred crops 4 frames apart (a frozen clip has 1) | 1 |
| identity | correlation of the centred crop with that of the first frame | 1 |
| area | mean ink of the canvas (fades, blow-ups) | ~.03 |
| sharpness | gradient per ink, 1/pixels (blur) | ~.2 |

What only a set of clips shows is measured elsewhere: `frechet.py` (distance to real clips), `looks.py` (handwritings).
"""

from __future__ import annotations

import functools

import numpy as np

from utils.digits.world import COLOURS, DIRECTIONS, DigitsConfig, Subject, unseen_handwriting

METRICS = ("digit", "colour", "direction", "speed", "consistency", "identity", "area", "sharpness")
LAG = 4  # frames between two compared frames: one latent frame
FLOOR = 0.1  # codecs leave a faint ground; ink starts above it
MIN_INK = 0.002  # mean ink below which a frame shows nothing (the thinnest sprite has ten times that)
CROP = 32  # pixels of the centred crop: a sprite and a margin


def measure(clips, subjects, config: DigitsConfig | None = None) -> dict[str, np.ndarray]:
    """Returns {metric: [N]}, the mean over the frames of each clip; arguments as `measure_frames`."""
    return clip_means(measure_frames(clips, subjects, config))


def measure_frames(clips, subjects, config: DigitsConfig | None = None) -> dict[str, np.ndarray]:
    """Returns {metric: [N, P]} float32; NaN where a metric looks back before the clip's start.

    clips: N uint8 arrays [P, H, W, 3] (an array [N, P, H, W, 3] or any iterable that yields clips
    of one length); subjects: what each clip should show. Errors: ValueError for other shapes,
    other dtypes or unequal counts.
    """
    config = config or DigitsConfig()
    rows = []
    subjects = [_single(s) for s in subjects]
    for clip in clips:
        _check_clip(clip, len(rows), rows)
        if len(rows) == len(subjects):
            raise ValueError(f"more clips than subjects ({len(subjects)}); give one subject for each clip")
        rows.append(_measure_clip(clip, subjects[len(rows)], config))
    if len(rows) != len(subjects) or not rows:
        raise ValueError(
            f"{len(rows)} clips but {len(subjects)} subjects; give one subject for each clip, at least one"
        )
    return {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in METRICS}


def clip_means(frames: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns {metric: [N]}: the mean over the frames that have a value, NaN where none has."""
    return {name: _nanmean(values) for name, values in frames.items()}


def window_means(frames: dict[str, np.ndarray], num_windows: int = 4) -> dict[str, np.ndarray]:
    """Returns {metric: [N, num_windows]}: means over equal stretches of the clip, first to last."""
    num_frames = next(iter(frames.values())).shape[1]
    if not 1 <= num_windows <= num_frames:
        raise ValueError(f"{num_windows} windows do not fit {num_frames} frames; choose 1 to {num_frames}")
    borders = window_borders(num_frames, num_windows)
    spans = list(zip(borders[:-1], borders[1:], strict=True))
    return {name: np.stack([_nanmean(v[:, a:b]) for a, b in spans], 1) for name, v in frames.items()}


def window_borders(num_frames: int, num_windows: int) -> list[int]:
    """Returns the `num_windows + 1` frame numbers between which the windows lie."""
    return [round(k * num_frames / num_windows) for k in range(num_windows + 1)]


def summary(per_clip: dict[str, np.ndarray], draws: int = 2000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Returns {metric: {mean, low, high}} with the 95 % interval of a bootstrap over clips.

    Clips are the independent units; the frames of one clip are not. NaN clips are left out.
    """
    return {name: interval(values, draws, seed) for name, values in per_clip.items()}


def interval(values_N: np.ndarray, draws: int = 2000, seed: int = 0) -> dict[str, float]:
    """Returns {mean, low, high} of the mean of [N] values (all None if every value is NaN)."""
    values = np.asarray(values_N, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return {"mean": None, "low": None, "high": None}
    picks = np.random.default_rng(seed).integers(values.size, size=(draws, values.size))
    low, high = np.percentile(values[picks].mean(1), (2.5, 97.5))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def drift(frames: dict[str, np.ndarray], num_windows: int = 4) -> dict[str, dict]:
    """Returns {metric: {windows: [means], change: interval of last minus first window, paired}}."""
    result = {}
    for name, values in window_means(frames, num_windows).items():
        means = [None if np.isnan(column).all() else float(np.nanmean(column)) for column in values.T]
        result[name] = {"windows": means, "change": interval(values[:, -1] - values[:, 0])}
    return result


def _single(subject) -> Subject:
    if isinstance(subject, Subject):
        return subject
    if len(subject) != 1:
        raise ValueError(f"the metrics follow one digit, the prompt asks for {len(subject)}; use one-digit prompts")
    return subject[0]


def _check_clip(clip, index, rows):
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
        raise ValueError(f"clip {index} is {clip.dtype} {clip.shape}; give uint8 [frames, height, width, 3]")
    if rows and len(clip) != len(rows[0]["area"]):
        raise ValueError(f"clip {index} has {len(clip)} frames, the first {len(rows[0]['area'])}; measure one length")


def _measure_clip(clip, subject: Subject, config: DigitsConfig) -> dict[str, np.ndarray]:
    """Returns {metric: [P]} of one uint8 clip [P, H, W, 3]."""
    rgb = clip.astype(np.float32) / 255.0
    ink = measure_ink(rgb)
    area = ink.mean((1, 2))
    visible = area > MIN_INK
    centre = circular_centroid(ink)
    crops = centred(ink, centre)
    speed, direction = _motion(centre, visible, subject, config, clip.shape[1:3])
    names = np.array(list(COLOURS))
    digit = visible & (digit_classifier(config.exemplars)(crops) == subject.digit)
    colour = visible & (names[nearest_colour(rgb, ink)] == subject.colour)
    return {
        "digit": digit,
        "colour": colour,
        "direction": direction,
        "speed": speed,
        "consistency": _late(correlation(crops[LAG:], crops[:-LAG]) * (visible[LAG:] & visible[:-LAG]), LAG, clip),
        "identity": _late(correlation(crops[1:], crops[:1]) * (visible[1:] & visible[:1]), 1, clip),
        "area": area,
        "sharpness": _sharpness(ink) * visible,
    }


def measure_ink(rgb_PHW3: np.ndarray) -> np.ndarray:
    """Returns [P, H, W] in [0, 1]: how much of a digit lies on each pixel; rgb in [0, 1]."""
    brightest = np.maximum(np.maximum(rgb_PHW3[..., 0], rgb_PHW3[..., 1]), rgb_PHW3[..., 2])  # 10 x as fast as max(-1)
    return np.clip(brightest - FLOOR, 0.0, None) / (1.0 - FLOOR)


def torus_steps(centre_P2: np.ndarray, lag: int, canvas: tuple[int, int]) -> np.ndarray:
    """Returns [P - lag, 2]: the shortest way (x, y) in pixels between centres `lag` frames apart; canvas: (H, W)."""
    size = np.array(canvas[::-1])
    return (centre_P2[lag:] - centre_P2[:-lag] + size / 2) % size - size / 2


def circular_centroid(ink_PHW: np.ndarray) -> np.ndarray:
    """Returns [P, 2] (x, y) in pixels: the centre of mass on the torus; 0 where there is no ink."""
    centre = []
    for axis in (1, 2):  # summing over rows leaves x, over columns y
        profile = ink_PHW.sum(axis)
        size = profile.shape[1]
        moment = profile @ np.exp(2j * np.pi * np.arange(size) / size)
        centre.append(np.angle(moment) * size / (2 * np.pi) % size)
    return np.stack(centre, 1)


def centred(ink_PHW: np.ndarray, centre_P2: np.ndarray, size: int = CROP) -> np.ndarray:
    """Returns [P, size, size]: the ink around `centre`, sub-pixel (bilinear), wrapping at the edges."""
    out = ink_PHW
    for axis, position in ((1, centre_P2[:, 1]), (2, centre_P2[:, 0])):
        begin = position - (size - 1) / 2
        whole = np.floor(begin).astype(int)
        index = (whole[:, None] + np.arange(size + 1)) % ink_PHW.shape[axis]
        out = np.take_along_axis(out, np.expand_dims(index, 3 - axis), axis)
        rest = (begin - whole).astype(np.float32)[:, None, None]
        first, second = (out[:, :-1], out[:, 1:]) if axis == 1 else (out[..., :-1], out[..., 1:])
        out = first * (1 - rest) + second * rest
    return out


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns [P], Pearson over the last two axes; 0 where one side is constant."""
    a, b = (v - v.mean((-2, -1), keepdims=True) for v in (a, b))
    norm = np.sqrt((a**2).sum((-2, -1)) * (b**2).sum((-2, -1)))
    return np.where(norm > 1e-6, (a * b).sum((-2, -1)) / np.maximum(norm, 1e-6), 0.0)


def nearest_colour(rgb_PHW3: np.ndarray, ink_PHW: np.ndarray) -> np.ndarray:
    """Returns [P] indices into COLOURS; brightness is divided out, `area` measures that."""
    mean = np.einsum("phw,phwc->pc", ink_PHW, rgb_PHW3)
    palette = np.array(list(COLOURS.values()), np.float32)
    mean, palette = (v / np.maximum(v.max(1, keepdims=True), 1e-6) for v in (mean, palette))
    return ((mean[:, None] - palette) ** 2).sum(-1).argmin(1)


def _motion(centre, visible, subject, config, canvas):
    """Returns (speed along the requested direction [P], hit [P]), NaN for the first LAG frames."""
    both = visible[LAG:] & visible[:-LAG]
    velocity = torus_steps(centre, LAG, canvas) / LAG * both[:, None]
    wanted = np.array(DIRECTIONS[subject.direction])
    along, aside = velocity @ wanted, velocity @ wanted[::-1]
    if config.motion == "bounce":  # the requested direction is only where the digit starts for
        along = np.abs(along)
    near = (np.abs(along - config.speed) <= config.speed / 2) & (np.abs(aside) < config.speed / 2)
    return _late(along, LAG, visible), _late(near & both, LAG, visible)


def _late(values, lag, clip):
    """Returns [P]: `values` behind `lag` frames without a value (all of them in a shorter clip)."""
    return np.concatenate([np.full(min(lag, len(clip)), np.nan), values])


def _sharpness(ink):
    """Returns [P]: summed absolute differences of neighbours per ink and axis."""
    steps = sum(np.abs(ink - np.roll(ink, 1, axis)).sum((1, 2)) for axis in (1, 2))
    return steps / 2 / np.maximum(ink.sum((1, 2)), 1e-6)


def _nanmean(values_NP):
    known = ~np.isnan(values_NP)
    count = known.sum(1)
    total = np.where(known, values_NP, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@functools.lru_cache(maxsize=2)
def digit_classifier(exemplars: int = 8):
    """Returns a function crops [M, 32, 32] -> digits [M], fitted now (seconds) and never stored.

    A support vector machine on handwritings that are not among the sprites, so that it cannot
    reward a memorised sprite. Blurred, shifted and faint copies keep it fair to codecs' output.
    """
    from sklearn.decomposition import PCA
    from sklearn.svm import SVC

    sprites, labels = unseen_handwriting(exemplars)
    rng = np.random.default_rng(0)
    copies = [_augment(sprites, rng, blur) for blur in (1, 3, 5)]
    x, y = _features(np.concatenate(copies)), np.tile(labels, len(copies))
    basis = PCA(40, random_state=0).fit(x)
    machine = SVC(C=10.0, gamma="scale").fit(basis.transform(x), y)
    return lambda crops: machine.predict(basis.transform(_features(crops)))


def _augment(sprites, rng, blur):
    """Returns centred crops of sprites at jittered centres, blurred and with another contrast."""
    margin = CROP // 2
    canvas = np.pad(sprites, ((0, 0), (margin, margin), (margin, margin)))
    canvas = box_blur(canvas, blur) ** rng.uniform(0.7, 1.5, (len(sprites), 1, 1)).astype(np.float32)
    jitter = rng.uniform(-1, 1, (len(sprites), 2))
    return centred(canvas, circular_centroid(canvas) + jitter)


def box_blur(images: np.ndarray, width: int) -> np.ndarray:
    """Returns [P, H, W] images averaged over width x width pixels, wrapping at the edges."""
    for axis in (1, 2):
        images = sum(np.roll(images, k - width // 2, axis) for k in range(width)) / width
    return images


def _features(crops):
    """Returns [M, 256]: the crops in 2x2 means, at unit length (brightness is not shape)."""
    half = CROP // 2
    x = crops.reshape(len(crops), half, 2, half, 2).mean((2, 4)).reshape(len(crops), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
