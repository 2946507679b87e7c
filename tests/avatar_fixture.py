"""A tiny talking model: random S2V weights at the digits model's sizes, its codec, its ear."""

from __future__ import annotations

import functools

import numpy as np
import torch

from pipeline.audio_driven import AudioDriven
from pipeline.bundle import ModelBundle
from pipeline.config import AudioDrivenConfig, MultiStepConfig
from tests import tiny
from tests.architecture.source import ROOT
from utils.digits.speaking import random_talk
from wan.audio.config import AudioConfig
from wan.audio.transformer import S2VTransformer
from wan.checkpoint.parts import find_parts
from wan.config import TextConfig, VAEConfig
from wan.denoiser import Denoiser
from wan.encoders.text import load_text_encoder
from wan.family import find_published, get_family
from wan.generation import GenerationConfig, PortraitConfig, StepsConfig
from wan.geometry import Geometry
from wan.ledger import CacheConfig

EAR = ROOT / "assets/digits_s2v/audio_encoder"
GENERATION = GenerationConfig(
    steps=StepsConfig(shift=3.0),
    cache=CacheConfig(9, rope="read", content="same_step"),
    portrait=PortraitConfig((4, 30), refresh=2),
)
TALK = random_talk(0, 81, seed=5)


@functools.cache
def bundle() -> ModelBundle:
    """Returns the model; one for all tests, which do not change it."""
    spec, device = find_published("digits-s2v"), torch.device("cpu")
    network = tiny.filled(S2VTransformer(spec.transformer), dtype=torch.float32)
    parts = find_parts(ROOT / "assets/digits")
    text = load_text_encoder(parts, spec.transformer.text_len, TextConfig(dtype="fp32"), device)
    vae = get_family(spec.transformer).open_vae(parts.need("vae"), VAEConfig(), device)
    return ModelBundle(spec, Denoiser(network), vae, text, None, device, torch.float32, "random")


def pipeline(generation: GenerationConfig = GENERATION, steps: int = 2, made=None, **knobs) -> AudioDriven:
    """Returns a pipeline of the tiny model, or of the bundle `made`; knobs: of `AudioDrivenConfig`."""
    knobs = {"audio": AudioConfig(left=2.0), "encoder": str(EAR)} | knobs
    sampler = MultiStepConfig("euler", steps, guidance=1.0, grid="table").build(generation.steps)
    size = Geometry(64, 64)
    return AudioDrivenConfig(**knobs).build(generation, made or bundle(), sampler, size, 0)


def portrait(talk=TALK) -> torch.Tensor:
    """Returns a talk's picture, [3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(talk.picture / 127.5 - 1).float().permute(2, 0, 1)


def sound(talk=TALK) -> np.ndarray:
    """Returns a talk's sound, 16 kHz."""
    return talk.sound
