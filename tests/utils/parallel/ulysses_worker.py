"""What four ranks find out about shared sequences; started by torchrun from test_sequence_parallel.py.

Each check computes the same thing alone and shared, in float64 and some in fp32 too, and returns errors relative to
the largest value. A twin repeats it with one thing left out, and must be far off. Everything is written to
`rank<r>.json` in argv[1].
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from model.config import DiscriminatorConfig
from model.discriminator import Discriminator
from pipeline.executor import PlainExecutor
from pipeline.track import Fixed
from tests import tiny
from tests.float64 import fp32_is_float64
from utils.parallel import fsdp, ranks, ulysses
from utils.parallel.layout import LayoutConfig
from wan.attention.masks import teacher_forcing
from wan.context import Full, Masked
from wan.geometry import Geometry
from wan.ledger import CacheConfig
from wan.transformer import RunInput

GEOMETRY = Geometry(32, 64, latent_channels=4)  # 2 x 4 tokens a frame
HEADS = 4
LENGTHS = (1, 3, 2, 3)
CHECKS = {}
IN_FP32 = ("whole_clip", "training_rollout", "half_precision", "sharded_weights")


def check(function):
    """Registers a check under its name."""
    CHECKS[function.__name__] = function
    return function


def groups() -> dict:
    """Returns size -> this rank's group of neighbours."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return {2: pairs[dist.get_rank() // 2], 4: dist.group.WORLD}


def network(group=None, checkpointing: bool = False, trained: bool = True, seed: int = 0):
    """Returns the tiny denoiser, shared by the ranks of a group if there is one."""
    model = tiny.denoiser(seed, num_heads=HEADS).requires_grad_(trained)
    model.transformer.checkpointing = checkpointing
    if group is not None:
        ulysses.apply(model.transformer, group)
    return model


def errors(given: dict, wanted: dict) -> float:
    """Returns the largest error, each relative to the largest value of what is wanted."""
    assert given.keys() == wanted.keys()
    return max(tiny.error(given[n], wanted[n]) / (wanted[n].abs().max().item() or 1) for n in wanted)


def gradients(out: torch.Tensor, inputs: dict, modules: dict, group=None) -> dict[str, torch.Tensor]:
    """Returns d (weighted sum of out): of the inputs as they are here, of the weights averaged over the group."""
    (tiny.healthy(out) * tiny.draw("loss", shape=out.shape)).sum().backward()
    weights = {f"{m}.{n}": w for m, module in modules.items() for n, w in module.named_parameters()}
    found = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items()}
    for gradient in found.values() if group is not None else ():
        dist.all_reduce(gradient, group=group)
        gradient /= dist.get_world_size(group)
    return found | {n: x.grad for n, x in inputs.items()}


def compare(run, group) -> dict[str, float]:
    """run(group) -> (output, inputs, modules); returns the errors of output, of inputs' and of weights' gradients."""
    alone, inputs, modules = run(None)
    wanted = gradients(alone, inputs, modules)
    shared, inputs, modules = run(group)
    given = gradients(shared, inputs, modules, group)
    weights = wanted.keys() - inputs.keys()
    return {
        "output": errors({"": shared.detach()}, {"": alone.detach()}),
        "inputs": errors(*({n: found[n] for n in inputs} for found in (given, wanted))),
        "weights": errors(*({n: found[n] for n in weights} for found in (given, wanted))),
    }


def forward(group, checkpointing: bool = False):
    """A whole clip with one sigma per frame."""
    model, x = network(group, checkpointing), tiny.latents(3, 2, geometry=GEOMETRY).requires_grad_()
    sigma = torch.tensor([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]], dtype=tiny.DTYPE)
    return model(x, sigma, tiny.condition(2), Full()), {"x": x}, {"model": model}


@check
def whole_clip(by_size) -> dict:
    return {f"{size} {name}": e for size, group in by_size.items() for name, e in compare(forward, group).items()}


@check
def twin_without_the_sum(by_size) -> dict:
    """Joining tokens whose backward hands on its own rank's gradient only."""

    def backward(ctx, grad):
        return grad[dist.get_rank(ctx.group)].clone(), None

    with mock.patch.object(ulysses._Gather, "backward", staticmethod(backward)):
        return compare(forward, by_size[4])


@check
def twin_without_the_other_tokens(by_size) -> dict:
    """Splitting tokens whose backward knows its own rank's tokens only."""

    def backward(ctx, grad):
        full = grad.new_zeros((dist.get_world_size(ctx.group), *grad.shape))
        full[dist.get_rank(ctx.group)] = grad
        return full, None, None

    with mock.patch.object(ulysses._Take, "backward", staticmethod(backward)):
        return compare(forward, by_size[4])


@check
def teacher_forcing_clip(by_size) -> dict:
    """Two runs and a frame mask."""

    def run(group):
        model, x = network(group), tiny.latents(4, 2, geometry=GEOMETRY).requires_grad_()
        clean = tiny.latents(4, 2, seed=3, geometry=GEOMETRY).requires_grad_()
        run = RunInput(clean, torch.zeros(2, 4), "clean")
        context = Masked(teacher_forcing(tiny.spans(1, 2, 1)))
        out = model(x, torch.tensor([[0.2, 0.9, 0.9, 0.5]]).expand(2, -1), tiny.condition(2), context, run)
        return out, {"x": x, "clean": clean}, {"model": model}

    return compare(run, by_size[4])


def video(group, cache: CacheConfig, checkpointing: bool = False):
    """A training rollout where every step has a gradient (x flows from call to call), with the noise as inputs."""
    model = network(group, checkpointing)
    rolls = tiny.rollout(model, cache, training=True, geometry=GEOMETRY)
    noise, leaves = tiny.noise(2, geometry=GEOMETRY), {}

    def leaf(span, k):
        return leaves.setdefault(f"noise {span.start} {k}", noise(span, k).requires_grad_())

    state = tiny.start(rolls, tiny.spans(*LENGTHS), 2)
    chunks = PlainExecutor(rolls).run(state, Fixed(tiny.condition(2)), tiny.spans(*LENGTHS), leaf)
    out, kept = torch.cat([chunk.latents for chunk in chunks], 1), state.caches[0][0]
    assert len(kept.ledger.slot_of) < out.shape[1], "nothing was evicted before backward"
    held = HEADS // (dist.get_world_size(group) if group is not None else 1)
    assert kept.frame(0, out.shape[1] - 1)[0].shape[2] == model.cache_heads == held
    return out, leaves, {"model": model}


@check
def training_rollout(by_size) -> dict:
    """Chunks with evictions before backward; the shared one recomputes, so its collectives run once more."""
    return compare(lambda group: video(group, CacheConfig(6, 2), checkpointing=group is not None), by_size[2])


@check
def training_rollout_rotated_when_read(by_size) -> dict:
    return compare(lambda group: video(group, CacheConfig(6, 2, "read")), by_size[4])


@check
def streaming_rollout(by_size) -> dict:
    """A guided video over rings that hold this rank's heads."""
    videos = []
    for group in (None, by_size[4]):
        model = network(group, trained=False)
        rolls = tiny.rollout(model, CacheConfig(6, 2, "read"), guidance=3.0, geometry=GEOMETRY)
        with torch.no_grad():
            videos.append(tiny.video(rolls, tiny.condition(2), tiny.spans(*LENGTHS), tiny.noise(2, geometry=GEOMETRY)))
    assert tiny.start(rolls, tiny.spans(*LENGTHS)).caches[0][0].keys.shape[3] == HEADS // 4
    return {"output": errors({"": videos[1]}, {"": tiny.healthy(videos[0])})}


@check
def half_precision(by_size) -> dict:
    """bf16 tokens and gradients travel, next to a residual stream in fp32."""
    videos = []
    for group in (None, by_size[4]):
        model = network(group).to(torch.bfloat16)
        model.transformer.precision = "upstream"
        x = tiny.latents(3, 2, geometry=GEOMETRY).requires_grad_()
        velocity = model(x, 0.6, tiny.condition(2), Full())
        videos.append((velocity.detach(), gradients(velocity, {"x": x}, {"model": model}, group)))
    (alone, wanted), (shared, given) = videos
    return {"output": errors({"": shared}, {"": alone}), "gradients": errors(given, wanted)}


def classified(group):
    model, x = network(group, checkpointing=True), tiny.latents(3, 2, geometry=GEOMETRY).requires_grad_()
    torch.manual_seed(0)
    judge = Discriminator(model.spec, DiscriminatorConfig((0, 1), ffn_dim=24, num_class=3, time_embedding=True)).to(
        tiny.DTYPE
    )
    out = judge(model, x, torch.full((2, 3), 0.4), tiny.condition(2))
    return 4 * out, {"x": x}, {"critic": model, "judge": judge}


@check
def discriminator(by_size) -> dict:
    return compare(classified, by_size[4])


@check
def twin_of_the_discriminator(by_size) -> dict:
    """Readers that read their own rank's tokens only."""
    join = ulysses.SharedSequence.join

    def joined(self, x, num_frames):
        return x if x.shape[-1] == tiny.SPEC.dim else join(self, x, num_frames)

    with mock.patch.object(ulysses.SharedSequence, "join", joined):
        return {"output": compare(classified, by_size[4])["output"]}


def one_sample(model, sample: int) -> torch.Tensor:
    """Returns a rollout of one sample, after backward."""
    rolls = tiny.rollout(model, CacheConfig(6, 2), training=True, geometry=GEOMETRY, dtype=tiny.DTYPE)
    noise = tiny.noise(1, seed=sample, geometry=GEOMETRY)
    video = tiny.video(rolls, tiny.condition(1, seed=sample), tiny.spans(3, 3, 3), noise)
    (tiny.healthy(video) * tiny.draw("loss", sample, shape=video.shape)).sum().backward()
    return video.detach()


@check
def sharded_weights(by_size) -> dict:
    """Recompute, two ranks a sample, and weights sharded over the ranks of two samples."""
    alone = network()
    videos = [one_sample(alone, sample) for sample in (0, 1)]
    wanted = {n: w.grad / 2 for n, w in alone.named_parameters()}
    layout = LayoutConfig(sequence=2).build(torch.device("cpu"))
    model = network(layout.sequence_group, checkpointing=True)
    with fp32_is_float64() if tiny.DTYPE == torch.float64 else nullcontext():
        fsdp.shard(model.transformer, model.transformer.blocks, layout, tiny.DTYPE)
    video = one_sample(model, dist.get_rank() // 2)
    given = {n: fsdp.whole(w.grad) for n, w in model.named_parameters()}
    return {"output": errors({"": video}, {"": videos[dist.get_rank() // 2]}), "weights": errors(given, wanted)}


def main(folder: str) -> None:
    ranks.init("gloo")
    by_size = groups()
    found = {}
    for tiny.DTYPE, names in ((torch.float64, CHECKS.keys() - {"half_precision"}), (torch.float32, IN_FP32)):
        wide = tiny.DTYPE == torch.float64
        found |= {name if wide else f"{name} fp32": CHECKS[name](by_size) for name in sorted(names)}
    Path(folder, f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    ranks.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
