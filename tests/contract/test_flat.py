"""Once the window is full every chunk costs the same: operations, copies, allocations, objects.

Counted, not timed; `scripts/benchmark.py endless` measures time and resident memory of long videos.
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.batch.request import KeyedNoise, Request
from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.sampler import FewStep
from pipeline.session import Session
from pipeline.talking_session import SoundMissing, TalkingSession
from tests import avatar_fixture as avatar
from tests import tiny
from tests.contract.fresh import in_fresh_process
from utils.counter import CopiedBytes, count_allocations
from utils.media.audio import LiveSound
from utils.rng import Rng
from wan.audio.config import AudioConfig
from wan.audio.transformer import S2VTransformer
from wan.cache import Ring
from wan.checkpoint.library import VAE_CONFIGS, build_vae
from wan.codec.vae import StreamingVAE
from wan.denoiser import Denoiser
from wan.encoders.prompts import PromptCache
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig
from wan.rope import RotaryTable
from wan.schedule import Schedule

CHUNK, APART, COUNTED = 3, 60, 5  # so many chunks are counted early, and so many far later; a ring turns in four
FAR_APART = 50, 950  # chunks of a talking session, counted from 1
CPU = torch.device("cpu")
CACHES = [CacheConfig(9, sink, rope) for sink in (0, 2) for rope in ("write", "read")]  # 6 slots of history, or 4
SAME_STEP = CacheConfig(9, 2, content="same_step")
BLIND = SimpleNamespace(strides=(4, 8, 8))  # in place of a VAE, where nothing is decoded
SMALL = {"dim": 4, "dec_dim": 4, "z_dim": 4, "latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}


def encode(prompts):
    """Text embeddings that depend on the words alone."""
    return torch.stack([tiny.draw("text", p, shape=(4, tiny.SPEC.text_dim)) for p in prompts])


def small_vae() -> StreamingVAE:
    """Returns a VAE of random weights."""
    torch.manual_seed(0)
    return StreamingVAE(build_vae(VAE_CONFIGS["vae 2.1"] | SMALL)).eval().requires_grad_(False)


def make_pipeline(cache: CacheConfig, first_chunk: int = 0, vae=BLIND) -> Causal:
    """Returns a causal pipeline of the tiny model, one step a chunk; two where each has its cache."""
    bundle = ModelBundle.of(tiny.denoiser(), vae, encode, CPU, torch.float32)
    sigmas = (1.0, 0.6) if cache.content == "same_step" else (1.0,)
    knobs = GenerationConfig(CHUNK, first_chunk, cache=cache)
    return Causal(knobs, bundle, FewStep(sigmas, Schedule()), tiny.GEOMETRY)


def session_video(made: Causal, decode: bool = False):
    """Returns a function that makes the next chunk of a session."""
    session = Session(made, decode)
    session.start("one")
    return session.step


def batch_video(made: Causal):
    """Returns a function that makes the next chunk of batch generation."""
    request = Request("one", 0, 0, "one")
    noise = KeyedNoise(Rng(0), [request], tiny.GEOMETRY.latent_shape(1)[1:], torch.float32)
    made_chunks = made.generate(made.bundle.condition(["one"], None), noise, 1, made.round_up(2 * CHUNK * APART))
    return functools.partial(next, made_chunks)


def fill(make_chunk, window: int):
    """Makes chunks until the window is full; returns the same function."""
    while make_chunk().span.stop < window:
        pass
    return make_chunk


def work(make_chunk) -> tuple[frozenset, int]:
    """Makes a chunk; returns how often each operator ran and the bytes that were copied."""
    with CopiedBytes() as copies:
        chunk = make_chunk()
    tiny.healthy(chunk.latents)
    return frozenset(copies.operators.items()), copies.bytes.total()


def amounts_of_work(make_chunk, apart: int = APART) -> int:
    """Returns how many different amounts of work the counted chunks are, which lie `apart` from each other."""
    early = {work(make_chunk) for _ in range(COUNTED)}
    for _ in range(apart):
        make_chunk()
    return len(early | {work(make_chunk) for _ in range(COUNTED)})


@pytest.mark.parametrize(
    ("video", "cache"), [(session_video, c) for c in [*CACHES, SAME_STEP]] + [(batch_video, c) for c in CACHES[1:3]]
)
def test_flat_every_chunk_is_the_same_work(video, cache):
    make_chunk = fill(video(make_pipeline(cache)), cache.window_frames)
    _, early = count_allocations(make_chunk, CPU)
    assert amounts_of_work(make_chunk) == 1
    _, late = count_allocations(make_chunk, CPU)
    assert early == late and early["number"] > 50


def test_so_it_is_with_a_first_chunk_of_its_own_and_with_pixels():
    """Whatever the first chunk's length, and with the decoder, whose stream is steady after two latent frames."""
    cache = CacheConfig(9, 2)
    make_chunk = fill(session_video(make_pipeline(cache, 1, small_vae()), decode=True), cache.window_frames)
    _, early = count_allocations(make_chunk, CPU)
    assert amounts_of_work(make_chunk, apart=0) == 1
    assert count_allocations(make_chunk, CPU)[1] == early


def grown(make_chunk, chunks: int) -> int:
    """Returns how many objects stay when so many chunks have been made: the middle of three counts."""
    counts = []
    for _ in range(4):
        for _ in range(chunks):
            make_chunk()
        counts.append(count_objects())
    return sorted(after - before for before, after in itertools.pairwise(counts))[1]


def count_objects() -> int:
    """Returns how many objects there are in this process, but for frozen ones."""
    gc.collect()
    return len(gc.get_objects())


def conversation(recache: str):
    """Returns a session, and a function that makes its next chunk of a prompt that was never said before."""
    made = make_pipeline(CacheConfig(9, 2, recache=recache))
    made.bundle.text = PromptCache(encode, 5)
    session, words = Session(made, decode=False), itertools.count()
    session.start("one")

    def answer():
        session.switch_prompt(f"prompt {next(words)}")
        return session.step()

    return session, answer


def talking_video(left: float = 0.25):
    """Returns a function that makes the next chunk of a talking session, whose sound comes chunk by chunk.

    One block, with an injector behind it, and one step; the video's own first frame is the reference from the third
    chunk on.
    """
    bundle = copy.copy(avatar.bundle())
    spec = replace(bundle.spec.transformer, num_layers=1, audio_inject_layers=(0,))
    bundle.denoiser = Denoiser(tiny.filled(S2VTransformer(spec), dtype=torch.float32))
    pipeline = avatar.pipeline(steps=1, made=bundle, audio=AudioConfig(left=left))
    session = TalkingSession(pipeline, decode=False, patience=0.0)
    session.start("a two moves left", portrait=avatar.portrait(), audio=LiveSound(kept_seconds=10.0))
    samples, chunk_samples = itertools.count(), 24_000  # of 12 frames, 8 a second

    def step():
        try:
            return session.step()
        except SoundMissing:  # in the first chunk, which is later heard
            session.hear(np.sin(np.arange(chunk_samples) * (0.1 + 1e-4 * (next(samples) % 7))).astype("f4"), 16_000)
            return step()

    return step


def measured(make_chunk, number: int) -> dict:
    """Returns the work of the chunk of that number, as `alike` compares it; chunks before it are made."""
    for _ in range(number - COUNTED):
        make_chunk()
    amounts = {work(make_chunk) for _ in range(COUNTED)}
    operators, copied = sorted(amounts, key=str)[0]
    _, allocations = count_allocations(make_chunk, CPU)
    kinds = {"amounts": len(amounts), "operators": sorted(operators), "copied": copied}
    return json.loads(json.dumps(kinds | {"allocations": allocations, "objects": count_objects()}))


def alike(make_chunk, early: int, late: int) -> dict[str, bool]:
    """Returns of which measures two chunks of a video have as much; of objects the later one may have fewer."""
    text = json.dumps(measured(make_chunk, early))  # as one object, for objects are counted
    second = measured(make_chunk, late - early - 1)
    first = json.loads(text)
    return {name: first[name] == second[name] or name == "objects" and second[name] < first[name] for name in first}


def count_in_here() -> dict:
    """Returns what is measured in a fresh process: objects that stay, and what two chunks far apart have in common."""
    gc.collect()
    gc.freeze()  # objects that are there already are not counted: that takes half a second each time
    hoard: list = []
    leaking = session_video(make_pipeline(CacheConfig(9, 2)))
    found = {
        "session": grown(fill(session_video(make_pipeline(CACHES[2])), 9), 7),
        "batch": grown(fill(batch_video(make_pipeline(CACHES[1])), 9), 7),
        "causal": grown(fill(conversation("causal")[1], 12), 6),
        "bidirectional": grown(fill(conversation("bidirectional")[1], 12), 6),
        "hoard": grown(lambda: hoard.append(leaking()) or hoard[-1], 5),
        "talking, far apart": alike(talking_video(), *FAR_APART),
        "hoard, far apart": alike(lambda: hoard.append(leaking()) or hoard[-1], 12, 24),
        "talking, ever longer heard": alike(talking_video(left=60.0), 12, 24),
    }
    return found


@pytest.fixture(scope="module")
def fresh():
    """What is counted in a fresh process: what the threads of other tests keep would be counted too."""
    return in_fresh_process(count_in_here)


@pytest.mark.parametrize("video", ["session", "batch", "causal", "bidirectional"])
def test_no_object_outlives_its_chunk(fresh, video):
    """Of a session, a batch, and a conversation with a new prompt in every chunk, none of them said before."""
    assert fresh[video] <= 0


def test_a_talking_session_may_go_on_for_ever(fresh):
    """1,000 chunks: operators, copies, allocations and kept objects are those of the 50th at the 950th."""
    assert all(fresh["talking, far apart"].values()), fresh["talking, far apart"]


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
def test_the_latest_prompts_are_kept(recache):
    session, answer = conversation(recache)
    for _ in range(12):
        answer()
    bundle = session.pipeline.bundle
    assert bundle.text.prompts == [f"prompt {n}" for n in range(7, 12)], "the latest are kept"
    again = torch.cat([bundle.encode([prompt]) for prompt in ("prompt 0", session.prompt)])
    assert torch.equal(again, encode(["prompt 0", session.prompt])), "what was dropped is made again"


def kept_by(table: RotaryTable) -> int:
    """Returns the bytes of the tensors that a table keeps."""
    found = [x for entry in vars(table).values() if isinstance(entry, dict) for x in entry.values()]
    return sum(x.numel() * x.element_size() for x in found)


def test_far_positions_need_no_more_memory():
    table = RotaryTable(128)
    table(range(3), (30, 52), CPU)
    near = kept_by(table)
    for far in (range(3_000_000, 3_000_003), [0, 3_000_000]):
        table(far, (30, 52), CPU)
    assert 0 < near == kept_by(table)


class GrownTable(RotaryTable):
    """What was here before: angles of all positions so far are kept, twice as many when they do not reach."""

    def _axis(self, part, positions):
        kept = vars(self).setdefault("kept", {})
        if part not in kept or kept[part].shape[1] <= max(positions):
            kept[part] = super()._axis(part, range(2 * max(32, max(positions))))
        return kept[part][:, torch.tensor(list(positions))]


def committed_in_runs(self, plan):
    """What was here before: neighbours are copied together, and parted where the ring turns."""
    unit, chunk = self.shape.frame_tokens, self.ledger.chunk_frames
    turns = sum(b[1] != a[1] + 1 for a, b in itertools.pairwise(plan.writes))
    for _ in range(1 + turns):
        self.keys[:, :, :unit].copy_(self.keys[:, :, chunk * unit : (chunk + 1) * unit])
    self.ledger.commit(plan)


def test_the_twins_show(monkeypatch, fresh):
    """A table that grows, a commit that depends on the place in the ring, chunks that are kept, an ever longer ear."""
    made = make_pipeline(CacheConfig(9, 2))
    assert fresh["hoard"] >= 10 and not fresh["hoard, far apart"]["objects"]
    assert not fresh["talking, ever longer heard"]["allocations"]
    with monkeypatch.context() as patch:
        patch.setattr(Ring, "commit", committed_in_runs)
        assert amounts_of_work(fill(session_video(made), 9), apart=0) > 1
    made.bundle.denoiser.transformer.rotary = GrownTable(tiny.SPEC.head_dim)
    assert amounts_of_work(fill(session_video(made), 9), apart=12) > 1
