"""Once the window is full every chunk costs the same: operations, copies, allocations, objects.

Counted, not timed; `scripts/benchmark.py endless` measures time and resident memory of long videos.
"""

from __future__ import annotations

import functools
import gc
import itertools
from types import SimpleNamespace

import pytest
import torch

from pipeline.batch.request import KeyedNoise, Request
from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.sampler import FewStep
from pipeline.session import Session
from tests import tiny
from utils.counter import CopiedBytes, count_allocations
from utils.rng import Rng
from wan.cache import Ring
from wan.checkpoint.library import VAE_CONFIGS, build_vae
from wan.codec.vae import StreamingVAE
from wan.encoders.prompts import PromptCache
from wan.generation import GenerationConfig
from wan.ledger import CacheConfig
from wan.rope import RotaryTable
from wan.schedule import Schedule

CHUNK, APART, COUNTED = 3, 60, 5  # so many chunks are counted early, and so many far later; a ring turns in four
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
    """Returns how many objects stay when so many chunks have been made: the middle of three counts.

    A leak shows in each of the three; an object of another thread (the test runner's) may come or go in one.
    """
    counts = []
    for _ in range(4):
        for _ in range(chunks):
            make_chunk()
        gc.collect()
        counts.append(len(gc.get_objects()))
    return sorted(after - before for before, after in itertools.pairwise(counts))[1]


@pytest.mark.parametrize(("video", "cache"), [(session_video, CACHES[2]), (batch_video, CACHES[1])])
def test_no_object_outlives_its_chunk(video, cache):
    assert grown(fill(video(make_pipeline(cache)), cache.window_frames), 7) <= 0


@pytest.mark.parametrize("recache", ["causal", "bidirectional"])
def test_a_conversation_may_go_on_for_ever(recache):
    """A new prompt in every chunk, none of them said before."""
    made = make_pipeline(CacheConfig(9, 2, recache=recache))
    made.bundle.text = PromptCache(encode, 5)
    session, words = Session(made, decode=False), itertools.count()
    session.start("one")

    def answer():
        session.switch_prompt(f"prompt {next(words)}")
        return session.step()

    assert grown(fill(answer, 12), 6) <= 0
    bundle = session.pipeline.bundle
    last = next(words)
    assert bundle.text.prompts == [f"prompt {n}" for n in range(last - 5, last)], "the latest are kept"
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


def test_the_twins_show(monkeypatch):
    """A table that grows, a commit that depends on the place in the ring, latents that are never let go of."""
    made = make_pipeline(CacheConfig(9, 2))
    make_chunk, hoard = session_video(made), []
    assert grown(lambda: hoard.append(make_chunk()) or hoard[-1], 5) >= 10
    with monkeypatch.context() as patch:
        patch.setattr(Ring, "commit", committed_in_runs)
        assert amounts_of_work(fill(session_video(made), 9), apart=0) > 1
    made.bundle.denoiser.transformer.rotary = GrownTable(tiny.SPEC.head_dim)
    assert amounts_of_work(fill(session_video(made), 9), apart=12) > 1
