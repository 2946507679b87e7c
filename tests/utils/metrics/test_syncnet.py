"""SyncNet: cepstra against the package it was trained with, looks one by one, known shifts, the face's crop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests import tiny
from utils.metrics.mfcc import mfcc
from utils.metrics.syncnet import CROP_GREY, FACE, SHIFTS, SyncNet, check_box, compare_looks, crop_face, sync_score

# python_speech_features 0.6 of `chirp`, frames 0 and 3 (the last, filled up with zeros).
FIRST = [19.134764, 12.226151, 13.343079, -12.530313, -25.142616, -21.636129, -9.234399]
FIRST += [-6.846145, -5.089417, 6.862918, 12.129425, -16.457681, -20.286899]
LAST = [20.879691, 7.17981, -24.039523, -40.120823, 1.0437, 28.084591, 18.412863]
LAST += [-5.303047, -20.214995, -8.547021, 11.369595, 0.167833, -8.947907]


@pytest.fixture(scope="module")
def net():
    """Drawn weights, with statistics that are none of a fresh network's."""
    net = tiny.filled(SyncNet(), dtype=torch.float32)
    for name, buffer in net.named_buffers():
        if buffer.ndim:
            buffer.copy_(0.5 + tiny.draw(name, shape=buffer.shape).abs())
    return net


def chirp() -> np.ndarray:
    n = np.arange(800)
    return np.rint(9000 * np.sin(n**2 / 3000) + (n * 7919 % 1000 - 500))


def test_cepstra_are_those_of_its_training():
    found = mfcc(chirp())
    assert found.shape == (4, 13)
    assert np.abs(found[0] - FIRST).max() < 1e-6 and np.abs(found[3] - LAST).max() < 1e-6


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16_000, 99)])
def test_a_sound_has_a_hundred_cepstra_a_second(samples, frames):
    found = mfcc(np.zeros(samples))
    assert found.shape == (frames, 13) and np.isfinite(found).all()
    assert found[0, 0] == math.log(np.finfo(np.float64).eps)


def test_only_a_row_of_samples_has_cepstra():
    for wrong in (np.zeros(0), np.zeros((1, 800))):
        with pytest.raises(ValueError, match="one row of samples"):
            mfcc(wrong)


def test_looks_share_layers_and_are_as_if_seen_one_by_one(net):
    faces = np.random.default_rng(0).integers(0, 256, (22, FACE, FACE, 3), dtype=np.uint8)  # more than one piece
    together = net.see(faces)
    assert together.shape == (18, 1024)
    for look in (0, 15, 16, 17):
        alone = net.see(faces[look : look + 5])[0]
        assert torch.allclose(together[look], alone, atol=1e-5 * float(alone.abs().max())), look
    swapped = net.see(faces[:5, :, :, ::-1].copy())[0]
    assert not torch.allclose(together[0], swapped, atol=1e-3 * float(swapped.abs().max()))


def test_a_look_hears_the_fifth_of_a_second_from_its_frame_on(net):
    cepstra = tiny.draw("cepstra", shape=(60, 13)).numpy()
    before = net.hear(cepstra, 10)
    changed = cepstra.copy()
    changed[24:] += 1  # 20 cepstra from 4 on end here
    moved = (net.hear(changed, 10) - before).abs().amax(1) > 0
    assert moved.tolist() == [False] * 2 + [True] * 8


@pytest.mark.parametrize("behind", [-15, -4, 0, 7, 15])
def test_a_known_shift_is_found(behind):
    track = tiny.draw("track", shape=(140, 32)) + 3  # farther from zeros than from each other
    lips, sounds = track[20 : 20 + 100], track[20 + behind : 120 + behind]
    found = compare_looks(lips, sounds)
    assert found.offset == behind
    ends = abs(behind) / 100  # as many looks have zeros beside them
    assert found.distance == pytest.approx(float((lips.norm(dim=1)).mean()) * ends, rel=0.2, abs=1e-3)


def test_the_score_is_that_of_its_definition():
    lips, sounds = tiny.draw("lips", shape=(9, 6)), tiny.draw("sounds", shape=(9, 6))
    means = []
    for shift in range(-SHIFTS, SHIFTS + 1):
        inside = [sounds[i + shift] if 0 <= i + shift < 9 else torch.zeros(6) for i in range(9)]
        means.append(float(sum(functional.pairwise_distance(a, b) for a, b in zip(lips, inside, strict=True)) / 9))
    found = compare_looks(lips, sounds)
    assert found.distance == pytest.approx(min(means)) and found.offset == SHIFTS - means.index(min(means))
    assert found.confidence == pytest.approx(sorted(means)[SHIFTS] - min(means), abs=1e-6)


def test_a_score_needs_a_second_and_hears_the_sound_of_its_frames(net, monkeypatch):
    faces = np.random.default_rng(1).integers(0, 256, (26, FACE, FACE, 3), dtype=np.uint8)
    sound = tiny.draw("sound", shape=(16_640,)).numpy().clip(-1, 1)
    assert sync_score(net, faces[:24], sound) is None and sync_score(net, faces, sound[:15_999]) is None
    levels = np.clip(np.rint(sound.astype(np.float64) * 32768), -32768, 32767)
    looks = net.see(faces)
    monkeypatch.setattr(net, "see", lambda given: looks[: len(given) - 4])
    expected = compare_looks(looks[:21], net.hear(mfcc(levels), 21))
    assert sync_score(net, faces, sound) == expected


def test_the_crop_is_a_square_around_the_box_with_more_room_below():
    frame = np.random.default_rng(2).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    box = (170.0, 120.0, 330.0, 260.0)  # 160 wide: 1.4 times that are 224 pixels, so nothing is resized
    assert (crop_face(frame, box) == frame[110:334, 138:362]).all()
    outside = crop_face(frame, (0.0, 0.0, 160.0, 160.0))
    assert (outside[:, :32] == CROP_GREY).all() and (outside[:, 32:] == frame[:224, :192]).all()


@pytest.mark.parametrize("box", [(-1, 0, 9, 9), (0, 0, 33, 9), (5, 0, 5, 9), (0, 9, 9, 3), (0, 0, 9, float("nan"))])
def test_a_box_lies_inside_the_picture(box):
    with pytest.raises(ValueError, match="left, top, right, bottom.*32 x 32 pixels"):
        check_box(box, 32, 32)
    check_box((0, 0, 32, 32), 32, 32)


def test_the_names_and_sizes_are_those_of_the_published_weights():
    state = {name: tensor for name, tensor in SyncNet().state_dict().items() if not name.endswith("batches_tracked")}
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (88, 13_640_256)
    shapes = {name: tuple(state[f"{name}.weight"].shape) for name in ("netcnnaud.18", "netcnnlip.4", "netfclip.3")}
    assert shapes == {"netcnnaud.18": (512, 256, 5, 4), "netcnnlip.4": (256, 96, 1, 5, 5), "netfclip.3": (1024, 512)}
