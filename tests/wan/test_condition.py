"""Conditions: every field follows the rule that it declares once, and a new one is one line."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from tests import tiny
from wan.condition import Condition, part, select_frames
from wan.geometry import Span


@dataclass(frozen=True, eq=False)
class Heard(Condition):
    """A condition with sound: silent in the unconditional branch, one row for each latent frame."""

    sound: torch.Tensor | None = part(null=lambda c: torch.zeros_like(c.sound), frames=2, default=None)


def condition(**fields) -> Heard:
    base = tiny.condition(2)
    sound = tiny.draw("sound", shape=(2, 3, 8, 5))
    image, channels = tiny.draw("image", shape=(2, 7, 12)), tiny.latents(8, 2)
    return Heard(base.text, base.null_text, image, channels, **{"sound": sound, **fields})


def test_condition_null_follows_rules():
    whole = condition()
    null = whole.null()
    assert null.text is whole.null_text and null.null_text is None
    assert null.image is whole.image and null.channels is whole.channels
    assert torch.equal(null.sound, torch.zeros(2, 3, 8, 5)) and whole.sound.abs().max() > 0
    assert null.key == whole.null().key != whole.key
    assert condition(sound=None).null().sound is None
    with pytest.raises(ValueError, match="guidance needs the encoded negative prompt"):
        replace(whole, null_text=None).null()


@pytest.mark.parametrize("frames", [Span(2, 5), [0, 1, 5, 6, 7], [3], range(0, 8)])
def test_condition_cut_follows_rules(frames):
    whole, listed = condition(), list(range(frames.start, frames.stop)) if isinstance(frames, Span) else list(frames)
    cut = whole.cut(frames)
    assert torch.equal(cut.channels, whole.channels[:, listed]) and torch.equal(cut.sound, whole.sound[:, :, listed])
    assert cut.text is whole.text and cut.null_text is whole.null_text and cut.image is whole.image
    assert cut.key == whole.key, "another frame is not a prompt switch"
    assert torch.equal(cut.null().channels, whole.null().cut(frames).channels)


def test_condition_cut_copies_nothing_it_need_not():
    whole, text = condition(), tiny.condition()
    assert text.cut(Span(0, 3)) is text
    assert whole.cut(Span(2, 5)).channels.untyped_storage().data_ptr() == whole.channels.untyped_storage().data_ptr()


def test_condition_cut_beyond_its_end_is_refused():
    for frames in (Span(6, 9), [0, 8]):
        with pytest.raises(ValueError, match=r"channels holds 8 latent frames and frame 8 is asked for; give it for"):
            condition().cut(frames)


def test_condition_repeat_is_the_batch_twice():
    whole = condition()
    twice = whole.repeat(2)
    for name in ("text", "null_text", "image", "channels", "sound"):
        value = vars(whole)[name]
        assert torch.equal(vars(twice)[name], torch.cat((value, value))), name
    assert twice.key == whole.repeat(2).key not in (whole.key, whole.repeat(3).key)


def test_condition_to_moves_every_field():
    whole = condition()
    assert whole.to("cpu").key == whole.key and torch.equal(whole.to("cpu").sound, whole.sound)
    half = whole.to("cpu", torch.bfloat16)
    dtypes = {vars(half)[name].dtype for name in ("text", "null_text", "image", "channels", "sound")}
    assert dtypes == {torch.bfloat16} and half.key != whole.key, "rounded, it is another one to a cache"
    assert {t.device.type for t in vars(whole.to("meta")).values() if isinstance(t, torch.Tensor)} == {"meta"}


def test_select_frames_is_indexing():
    x = tiny.latents(8)
    for frames in ([0], [2, 3, 4], [0, 1, 5], [7, 2, 3], range(8)):
        assert torch.equal(select_frames(x, frames), x[:, list(frames)])
