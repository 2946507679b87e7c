"""Metrics of any video: SSIM against its definition, sharpness and flicker against known pictures."""

import math

import numpy as np
import pytest

from utils.metrics.video import brightness, decibels, flicker, mean_square, saturation, sharpness, ssim


def picture(seed=0, size=(24, 30)):
    """A bright picture with structure, uint8 [H, W, 3]; bright, because that is where fp32 variances go wrong."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None]
    return np.clip(150 + 2 * ramp + rng.normal(0, 10, (*size, 3)), 0, 255).astype(np.uint8)


def ssim_by_definition(x, y):
    """Wang et al. 2004, one window after the other, in float64."""
    k = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(k, k) / np.outer(k, k).sum()
    c1, c2, values = 6.5025, 58.5225, []
    for channel in range(3):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = (f[i : i + 11, j : j + 11, channel].astype(np.float64) for f in (x, y))
                ma, mb = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                cov = (weight * (a - ma) * (b - mb)).sum()
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


def test_ssim_is_that_of_wang():
    x, y = picture(0), picture(1)
    y[:12] = 255 - y[:12]  # negative correlation too
    assert ssim(x, y) == pytest.approx(ssim_by_definition(x, y), abs=1e-5)
    assert ssim(x, x) == 1
    assert ssim(x, np.roll(x, 1, 2)) < 0.99  # channels changed places: a grey picture would hardly tell


def test_ssim_names_what_does_not_fit():
    with pytest.raises(ValueError, match="one size, 11 pixels"):
        ssim(picture()[:10], picture()[:10])
    with pytest.raises(ValueError, match="one size"):
        ssim(picture(), picture()[:20])


def test_psnr_of_a_known_shift():
    dark, bright = np.full((4, 4, 3), 250, np.uint8), np.full((4, 4, 3), 3, np.uint8)  # differences beyond 8 bits
    assert mean_square(dark, bright) == mean_square(bright, dark) == 247**2
    assert decibels(100.0) == pytest.approx(28.1308, abs=1e-4)
    assert decibels(0.0) == math.inf


def test_sharpness_counts_steps_of_luma_on_both_axes():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[::2] = 200
    assert sharpness(stripes) == pytest.approx(100, rel=1e-5)  # 200 down every column, 0 along every row
    assert sharpness(stripes.transpose(1, 0, 2)) == pytest.approx(100, rel=1e-5)
    blue, green = (np.zeros_like(stripes) for _ in range(2))
    blue[..., 2], green[..., 1] = stripes[..., 2], stripes[..., 1]
    assert sharpness(green) == pytest.approx(71.52, rel=1e-4) and sharpness(blue) == pytest.approx(7.22, rel=1e-4)


def test_flicker_is_the_mean_absolute_change():
    before = np.zeros((4, 4, 3), np.uint8)
    after = before.copy()
    after[:2] = 240
    assert flicker(after, before) == flicker(before, after) == 120


def test_brightness_is_the_luma_and_grey_has_no_colour():
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert brightness(grey) == pytest.approx(100) and saturation(grey) == 0
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4, :, 1] = 200
    assert brightness(half) == pytest.approx(0.7152 * 100) and saturation(half) == 100
