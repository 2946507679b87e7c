"""Videos of the tiny model that are killed and gone on with: what `test_snapshot.py` makes and compares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline.batch.request import Request
from pipeline.batch.resume import to_make
from pipeline.batch.run import Run
from pipeline.bundle import ModelBundle
from pipeline.config import CausalConfig, DataConfig, FewStepConfig, InferConfig, OutputConfig
from tests import tiny
from tests.digits_fixture import files
from utils.data.schedules import FRAME, Cue, Moment, ScheduleLine
from utils.log import VideoProgress
from wan.codec.base import StreamingDecoder
from wan.generation import GenerationConfig, StepsConfig
from wan.ledger import CacheConfig

FPS, FRAMES = 8, 24
PIXELS = 4 * FRAMES - 3


class Codec(StreamingDecoder):
    """A stream whose pixels depend on all latents before; its state has the kinds of entries that diffusers has."""

    strides, latent_channels = (4, 8, 8), 4

    def decode_stream(self, latents, state=None):
        """Returns (pixels, state)."""
        before = torch.zeros_like(latents[:, :1]) if state is None else state[0]
        running = 0.7 * before + latents.cumsum(1)
        counts = [1 if state is None and f == 0 else 4 for f in range(latents.shape[1])]
        parts = [(0.3 * running[:, f : f + 1, :3] + 0.1 * n).tanh() for f, c in enumerate(counts) for n in range(c)]
        pixels = torch.cat(parts, 1).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return pixels, (running[:, -1:], None, "Rep")


def encode(prompts):
    """Text embeddings that depend on the words alone."""
    return torch.stack([tiny.draw("text", p, shape=(4, tiny.SPEC.text_dim)) for p in prompts])


def request(index, *cues, seed=None):
    """A video named after its place; cues: (prompt, latent frame at which it ends or None)."""
    script = None
    if cues:
        cues = tuple(Cue(text, end and Moment(end, FRAME)) for text, end in cues)
        script = ScheduleLine("videos.jsonl, line 1", index + 1, cues, seed=seed)
    return Request(cues[0].text if cues else f"prompt {index}", index, 0, f"video{index}", None, script)


ONE = [request(0)]
TWO = [request(0), request(1)]
SWITCHED = [request(0, ("a", 7), ("b", 14), ("c", None), seed=5), request(1, ("d", 7), ("e", 14), ("f", None))]


def load_config(folder, **changes):
    """The configuration of a video of 24 latent frames at 32 x 48 pixels, with a snapshot every second of it."""
    output = {"save_every_seconds": 1.0, "latents": True, "gif": True, "fps": FPS, "sheet": False}
    output |= {name: changes.pop(name) for name in list(changes) if name in vars(OutputConfig())}
    return InferConfig(
        pipeline=CausalConfig(),
        generation=GenerationConfig(3, 0, StepsConfig((1000.0, 500.0), 3.0), CacheConfig(9, 2, "write", "causal")),
        sampler=FewStepConfig(guidance=changes.pop("guidance", 1.0)),
        output=OutputConfig(folder=str(folder), **output),
        data=DataConfig(),
        **{"height": 32, "width": 48, "num_output_frames": FRAMES, **changes},
    )


def make(folder, group, **changes):
    """Generates the videos of a batch that are not finished."""
    bundle = ModelBundle.of(tiny.denoiser(), Codec(), encode, torch.device("cpu"), torch.float32)
    with VideoProgress(len(group), 8) as bar:
        run = Run(load_config(folder, **changes), bundle)
        run.batch(group, to_make(group, run.config.output), bar)
    return bar


def content(folder):
    """Returns name -> content of the files, the time that it took left out of their JSON."""
    found = {name: data for name, data in files(folder).items() if not name.endswith(".tmp")}  # of a JSON half written
    for name in [n for n in found if n.endswith(".json")]:
        tree = json.loads(found[name])
        del tree["seconds"], tree["config_hash"]
        for record in tree.get("switches", ()):
            record["recache_ms"] = record["recache_ms"] is not None
        found[name] = tree
    return found


def killed(folder, group, chunk, error=KeyboardInterrupt, **changes):
    """Runs until the decoder has begun its `chunk`-th call, where the error comes."""
    calls = []

    class Broken(Codec):
        def decode_stream(self, latents, state=None):
            calls.append(len(calls))
            if len(calls) == chunk:
                raise error("here")
            return super().decode_stream(latents, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.Codec", Broken)
        with pytest.raises(error):
            make(folder, group, **changes)


def size(videos) -> int:
    """Returns the bytes of all tensors and arrays that hang on the videos."""
    seen, todo, total = set(), [videos], 0
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (torch.Tensor, np.ndarray)):
            total += thing.nbytes
        elif isinstance(thing, (bytes, bytearray)):
            total += len(thing)
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, (list, tuple, set)):
            todo += thing
        elif type(thing).__module__.split(".")[0] in ("pipeline", "utils", "wan"):
            todo += vars(thing).values()
    return total
