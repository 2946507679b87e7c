"""Talking videos: sound by chunks, portrait and refresh, whole clips, what a resumed run or a recache hears."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.audio_driven import AudioTrack
from pipeline.track import Fixed, PromptSchedule
from tests import avatar_fixture as avatar
from tests import tiny
from utils.media.audio import ArraySound
from wan.codec.still import STILL_LATENTS, PrimedDecoder, steady_latent
from wan.generation import GenerationConfig
from wan.geometry import Span
from wan.ledger import CacheConfig

TOTAL = 15
PORTRAIT, SOUND = avatar.portrait()[None], ArraySound(avatar.sound(), 16_000)
NOISE = tiny.noise(geometry=avatar.pipeline().geometry)


def text(prompt="a three moves left"):
    return replace(avatar.bundle().condition([prompt], None), key=prompt)


def voice(pipeline, condition=None, sounds=(SOUND,), **options):
    return pipeline.voice(condition or text(), PORTRAIT, [list(sounds)], 8, **options)


def video(pipeline, track, total=TOTAL, state=None) -> torch.Tensor:
    return torch.cat([c.latents for c in pipeline.generate(track, NOISE, 1, total, state=state)], 1)


def test_sound_moves_the_video_from_where_it_differs():
    pipeline = avatar.pipeline()
    made = video(pipeline, voice(pipeline).track)
    later = SOUND.samples.copy()
    later[3 * 16_000 :] = 0  # pixel frame 24 of 57; heard from latent frame (24 + 3) / 4 on, in chunk [6, 9)
    other = video(pipeline, voice(pipeline, sounds=(ArraySound(later, 16_000),)).track)
    assert torch.equal(made[:, :6], other[:, :6]) and not torch.equal(made[:, 6:9], other[:, 6:9])


def test_the_portrait_is_seen_and_refreshed():
    never = replace(avatar.GENERATION, portrait=replace(avatar.GENERATION.portrait, refresh=0))
    still, fresh = avatar.pipeline(never), avatar.pipeline()
    before, after = video(still, voice(still).track), video(fresh, voice(fresh).track)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.equal(before[:, 6:], after[:, 6:])
    other = still.voice(text(), PORTRAIT.flip(1), [[SOUND]], 8)
    assert not torch.equal(before[:, :3], video(still, other.track)[:, :3])


def test_a_track_is_a_function_of_the_chunk():
    """A resumed run asks for a late chunk first and gets what it would have got."""
    pipeline = avatar.pipeline()
    track, late = voice(pipeline).track, voice(pipeline).track
    spans = pipeline.spans(30)
    for span in spans:
        condition = track.at(span)
    again = late.at(spans[-1])
    assert torch.equal(condition.audio, again.audio) and condition.audio_start == again.audio_start > 0
    assert condition.cut(spans[-1]).heard.shape == (1, 1, 3, 9, 4, 64)


def test_memory_of_features_does_not_grow():
    pipeline = avatar.pipeline()
    track, sizes = voice(pipeline).track, []
    for start in range(0, 120, 3):
        sizes.append(track.at(Span(start, start + 3)).audio.shape[2])
    assert max(sizes) == sizes[-1] <= 4 * (9 + 2 + 2 * 3)


def test_a_recache_hears_what_its_frames_heard():
    generation = replace(avatar.GENERATION, cache=CacheConfig(9, recache="causal", content="same_step"))
    pipeline = avatar.pipeline(generation)
    schedule = PromptSchedule([(0, text()), (9, text("a four moves right"))])
    made = video(pipeline, voice(pipeline, schedule).track)
    assert made.isfinite().all() and made.shape[1] == TOTAL
    alone = video(pipeline, voice(pipeline).track)
    assert torch.equal(made[:, :9], alone[:, :9]) and not torch.equal(made[:, 9:], alone[:, 9:])


def test_a_video_goes_on_from_its_state():
    pipeline = avatar.pipeline()
    whole = video(pipeline, voice(pipeline).track)
    state, track = pipeline.start(1, TOTAL), voice(pipeline).track
    first = []
    for chunk in pipeline.generate(track, NOISE, 1, TOTAL, state=state):
        first.append(chunk.latents)
        if chunk.span.stop == 9:
            break
    rest = video(pipeline, track, state=state)
    assert torch.equal(torch.cat([*first, rest], 1), whole)


def test_clips_carry_their_motion_over():
    generation = GenerationConfig(steps=avatar.GENERATION.steps)
    pipeline = avatar.pipeline(generation, clip_frames=6)
    made = video(pipeline, voice(pipeline).track, 12)
    assert [len(span) for span in pipeline.spans(12)] == [6, 6]

    class Forgetful(type(pipeline)):
        def generate(self, condition, noise, batch, total, given=None, state=None):
            for span in self.spans(total):
                state = self.start(batch, total)
                state.next_frame = span.start
                yield next(super().generate(condition, noise, batch, span.stop, state=state))

    forgetful = avatar.pipeline(generation, clip_frames=6)
    forgetful.__class__ = Forgetful
    alone = video(forgetful, voice(forgetful).track, 12)
    assert torch.equal(made[:, :6], alone[:, :6]) and not torch.equal(made[:, 6:], alone[:, 6:])


def test_long_chunks_are_heard_in_the_pieces_of_training():
    generation = GenerationConfig(steps=avatar.GENERATION.steps)
    clips, chunks = avatar.pipeline(generation, clip_frames=6), avatar.pipeline()
    whole = voice(clips).track.at(Span(0, 6)).audio
    track = voice(chunks).track
    track.at(Span(0, 3))
    assert torch.equal(whole, track.at(Span(3, 6)).audio)


def test_speakers_have_their_strips():
    pipeline = avatar.pipeline()
    masks = torch.zeros(1, 2, 4, 4)
    masks[:, 0, :, :2], masks[:, 1, :, 2:] = 1, 1
    two = voice(pipeline, sounds=(SOUND, SOUND), masks=masks)
    assert two.track.at(Span(0, 3)).audio.shape[1] == 2
    assert tiny.error(video(pipeline, two.track, 3), video(pipeline, voice(pipeline).track, 3)) < 1e-4


def test_the_decoder_begins_behind_the_still():
    vae = avatar.bundle().vae
    still = steady_latent(vae, PORTRAIT)
    latents = torch.randn(1, 6, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = PrimedDecoder(vae, still)
    whole = decoder.decode_stream(latents)[0]
    assert whole.shape[1] == 1 + 4 * 5
    first, state = decoder.decode_stream(latents[:, :2])
    rest, _ = decoder.decode_stream(latents[:, 2:], state)
    assert torch.equal(whole, torch.cat((first, rest), 1))
    with torch.no_grad():
        clip = vae.decode(torch.cat((still.expand(-1, STILL_LATENTS, -1, -1, -1), latents), 1))
    assert tiny.error(whole, clip[:, 25 + 3 :]) < 1e-5
    assert tiny.error(whole[:, :1], vae.decode(latents)[:, :1]) > 1e-2, "unprimed it is another picture"


def test_a_still_becomes_steady():
    vae = avatar.bundle().vae
    still = steady_latent(vae, PORTRAIT)
    with torch.no_grad():
        one = vae.encode(PORTRAIT[:, None])
    assert still.shape == one.shape and tiny.error(still, one) > 0.1


def test_the_length_is_the_sounds(caplog):
    pipeline = avatar.pipeline()

    class Two:
        num_clip = 0

        def open(self):
            return [ArraySound(avatar.sound()[:16_000], 16_000), SOUND]

    assert pipeline.length(Two(), 8) == 21  # 10.125 s, 81 pixel frames, whole chunks
    assert pipeline.length(Two(), 8, most=2.0) == 6 and not caplog.records

    class Short(Two):
        sounds = ("a.wav",)

        def open(self):
            return super().open()[:1]

    assert pipeline.length(Short(), 8) == 3
    assert "a.wav: 1 s of sound, and a chunk lasts 1.12 s; silence follows" in caplog.text


def test_models_that_do_not_hear_say_so():
    from wan.spec import SPECS

    deaf = replace(avatar.bundle(), spec=SPECS["digits"])
    with pytest.raises(ValueError, match="digits does not hear; take an S2V model"):
        deaf.hear("")
    with pytest.raises(ValueError, match="without an audio encoder .*name one: pipeline.encoder=FOLDER"):
        avatar.bundle().hear("")


def test_a_track_over_another_keeps_the_voice():
    pipeline = avatar.pipeline()
    track = voice(pipeline).track
    other = track.over(Fixed(text("a four moves right")))
    assert isinstance(other, AudioTrack) and other.streams is track.streams
    assert torch.equal(other.at(Span(0, 3)).audio, track.at(Span(0, 3)).audio)
