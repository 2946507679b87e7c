"""Checks that need no network: missing files, incompatible parts.

Values that are wrong by themselves are refused when the configuration is read (`check` of each dataclass).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from trainer.lora import load_start
from trainer.sources.config import EncodedTextConfig
from trainer.sources.latents import read_pairs
from utils import hub, memory
from utils.config.field import collect_error, values
from utils.config.text import DEFAULT_ORIGIN
from utils.data.encoded_prompts import LIST, EncodedPrompts
from utils.data.prompts import read_prompts
from utils.data.store import open_clips, open_pairs
from utils.data.talking import TalkingFolder
from utils.digest import content_hash
from utils.lora import BLOCK_LINEARS, match_linears
from utils.parallel import ranks
from wan.checkpoint import tensor_file
from wan.checkpoint.parts import Parts, find_parts
from wan.checkpoint.weights import read_weights
from wan.family import find_published, get_family, published_specs
from wan.geometry import Geometry
from wan.spec import TransformerSpec

TRAINED, HALF = 16.0, 2.0  # bytes of a weight: master, gradient and two moments in fp32; one that rests in bf16
ROLES = ("generator", "teacher", "critic")
DATA = {
    "prompts": "write a text file with one prompt per line",
    "switch_prompts": "write a text file that belongs line by line to prompts",
    "clips": "write a folder or LMDB of encoded clips (scripts/encode_latents.py)",
    "path": "write the folder or LMDB that scripts/encode_latents.py or scripts/make_ode_pairs.py filled",
}

Problem = tuple[str, str]  # (key of the configuration, what is wrong and what to do)


def check(config, origins: Mapping[str, str] | None = None) -> None:
    """Raises one ValueError that lists all problems of a `TrainConfig`, each with its key and where it was written."""
    problems = list(find_problems(config))
    if not problems:
        return
    head = f"{len(problems)} problems before the training\n" if len(problems) > 1 else ""
    written = {key: place for key, place in (origins or {}).items() if place != DEFAULT_ORIGIN}
    lines = [f"{written[key]}: {key}: {text}" if key in written else f"{key}: {text}" for key, text in problems]
    raise ValueError(head + "\n".join(lines))


def find_problems(config) -> Iterator[Problem]:
    """Yields what is wrong: packages, data, model parts, weights; and where these are there, whether they fit."""
    yield from ((f"track.{name}", text) for name, text in config.track.missing().items())
    knobs = values(config.trainer)
    if "generator" not in knobs:
        return  # a codec starts from nothing and reads nothing
    yield from find_lost_data("trainer.source", knobs["source"])
    if knobs["source"].name == "stream":
        yield from find_unfit_stream(knobs["source"])
    yield from find_lost_data("preview", config.preview)
    sizes: dict[str, TransformerSpec] = {}
    lost: list[Problem] = []
    for name in ROLES:
        if knobs.get(name) is not None and name in knobs["loss"].needs | {"generator"}:
            found, problems = read_sizes(f"trainer.{name}", knobs[name])
            sizes |= {name: found} if found else {}
            lost += problems
    store = isinstance(knobs["text"], EncodedTextConfig)
    parts, problems = read_parts(config, needs_vae="teacher" in knobs or config.preview.every > 0, needs_text=not store)
    yield from (*lost, *problems)
    yield from find_misfits(sizes, replace(parts, text_encoder=None) if store and parts else parts)
    if store:
        yield from find_unfit_prompts(config, sizes.get("generator"), parts)
    if "generator" in sizes and not sizes["generator"].causal_ok and not config.trainer.whole:
        text = "these weights see whole clips, without a cache, and this training goes chunk by chunk"
        yield "trainer.generator", f"{text}; write trainer.source.name=trajectory, trainer.source.mode=bidirectional"
    for name, spec in sizes.items():
        if spec.num_heads % config.layout.sequence:
            text = f"{config.layout.sequence} ranks cannot share the {spec.num_heads} heads of trainer.{name}"
            yield "layout.sequence", f"{text}; write a divisor of {spec.num_heads}"
        yield from find_lost_targets(f"trainer.{name}.lora", knobs[name].lora, spec)
    if not lost:
        yield from find_too_large(config, sizes)
    if "generator" in sizes:
        made = knobs["source"], sizes["generator"]
        wrong = list(find_wrong_size("trainer.source", *made)) if "height" in values(knobs["source"]) else []
        yield from wrong or find_unfit_clips(*made)
        yield from find_misheard(knobs["source"], config.generation)
    if "critic" in sizes and "discriminator" in values(knobs["loss"]):
        yield from find_lost_layers(knobs["loss"].discriminator.layers, sizes["critic"].num_layers)


def find_too_large(config, sizes: Mapping[str, TransformerSpec]) -> Iterator[Problem]:
    """Yields that the networks cannot fit, at the least, on the ranks of this training."""
    parts = {}
    for name, spec in sizes.items():
        role = values(config.trainer)[name]
        with torch.device("meta"):
            network = get_family(spec).network(spec)
        number = sum(weight.numel() for weight in network.parameters())
        if role.lora.rank and not any(find_lost_targets("", role.lora, spec)):
            named = dict(network.named_modules())
            sides = sum(sum(named[n].weight.shape) for n in match_linears(network, role.lora.targets))
            parts[f"trainer.{name}.lora"] = TRAINED * role.lora.rank * sides
        trained = name != "teacher" and not role.lora.rank
        parts[f"trainer.{name}"] = number * (TRAINED if trained else HALF)
    share = config.layout.shard or ranks.world_size()
    try:
        advice = "take smaller networks or LoRA ranks, or more ranks (layout.shard)"
        memory.check_fits({name: size / share for name, size in parts.items()}, advice)
    except ValueError as error:
        yield max(parts, key=lambda name: parts[name]), str(error)


def find_lost_data(where: str, config) -> Iterator[Problem]:
    """Yields the paths of a source (or of the previews) that are not there."""
    for name, advice in DATA.items():
        path = values(config).get(name)
        if path and not Path(path).exists():
            near, brings = Path(path).parent, hub.advise(path)
            held = f" ({near} holds: {tensor_file.listing(near)})" if not brings else ""
            yield f"{where}.{name}", f"{path} is not there{held}; {brings or advice}"


def find_unfit_stream(source) -> Iterator[Problem]:
    """Yields prompt files whose lines do not belong together."""
    if source.switch_prompts and Path(source.prompts).exists() and Path(source.switch_prompts).exists():
        try:
            read_pairs(source.prompts, source.switch_prompts)
        except ValueError as error:
            yield "trainer.source.switch_prompts", str(error)


def read_sizes(where: str, role) -> tuple[TransformerSpec | None, list[Problem]]:
    """Returns the sizes of a role's network, from `spec` or without reading a weight of its file; and what is wrong."""
    if role.lora.weights and not Path(role.lora.weights).exists():
        advice = fetch(role.lora.weights, "a LoRA file, or leave it empty")
        lost = [(f"{where}.lora.weights", f"{role.lora.weights} is not there; {advice}")]
    else:
        lost = []
    if role.spec:
        return find_published(role.spec).transformer, lost
    try:
        return read_weights(role.weights, use_ema=role.use_ema, shapes_only=True).spec, lost
    except ValueError as error:
        return None, [*lost, (f"{where}.weights", f"{error}; {fetch(role.weights, 'a weight file or its folder')}")]


def fetch(path: str, what: str) -> str:
    """Returns the command that fetches published weights, if they are not there, or else what to write."""
    return (None if Path(path).exists() else hub.advise(path)) or f"write {what}"


def find_unfit_prompts(config, sizes: TransformerSpec | None, parts: Parts | None) -> Iterator[Problem]:
    """Yields encoded prompts that are not there, lack a prompt of the training, or are another encoder's."""
    knobs = values(config.trainer)
    try:
        store = EncodedPrompts(knobs["text"].path)
    except ValueError as error:
        yield "trainer.text.path", str(error)
        return
    if sizes and (store.text_len, store.width) != (sizes.text_len, sizes.text_dim):
        made, wanted = f"{store.text_len} x {store.width}", f"{sizes.text_len} x {sizes.text_dim}"
        text = f"{store.folder} holds embeddings of {made}, the generator reads {wanted}"
        yield "trainer.text.path", f"{text}; encode the prompts by the text encoder of this model"
    if parts and parts.text_encoder and parts.tokenizer and store.encoder:
        if content_hash({"text_encoder": parts.text_encoder, "tokenizer": parts.tokenizer}) != store.encoder:
            text = f"{store.folder} was encoded by another text encoder or tokenizer than those of {config.model}"
            yield "trainer.text.path", f"{text}; encode the prompts again, or name their model"
    files = [values(knobs["source"]).get(name) for name in ("prompts", "switch_prompts")]
    files = [path for path in [*files, config.preview.prompts] if path and Path(path).exists()]
    asked = [line.prompt for path in files for line in read_prompts(path)]
    if "null" in knobs["loss"].needs:
        asked.append(knobs["negative_prompt"])
    if lost := list(store.missing(asked)):
        text = f"{len(lost)} prompts of this training are not in {store.folder}, the first of them {lost[0]!r:.200}"
        yield "trainer.text.path", f"{text}; encode them, or train on {store.folder / LIST}"


def read_parts(config, needs_vae: bool, needs_text: bool = True) -> tuple[Parts | None, list[Problem]]:
    """Returns the parts of the model folder, or what of them is missing."""
    problems = []
    try:
        parts = find_parts(config.model)
    except ValueError as error:
        return None, [("model", f"{error}; {fetch(config.model, 'a folder with text encoder and VAE')}")]
    for part in [*["text_encoder", "tokenizer"] * needs_text, *["vae"] * needs_vae]:
        try:
            parts.need(part)
        except ValueError as error:
            problems.append(("model", f"{error}; write a folder that has it"))
    return parts, problems


def find_misfits(sizes: Mapping[str, TransformerSpec], parts: Parts | None) -> Iterator[Problem]:
    """Yields the roles whose latent channels or text width are not those of the model folder and of the generator."""
    channels = {f"trainer.{name}": s.out_dim for name, s in sizes.items()}
    widths = {f"trainer.{name}": s.text_dim for name, s in sizes.items()}
    family = get_family(next(iter(sizes.values()))) if sizes else None
    if family and parts and parts.vae:
        channels["model (its VAE)"] = family.latent_channels(parts.vae)
    if family and parts and parts.text_encoder:
        widths["model (its text encoder)"] = family.text_width(parts.text_encoder)
    for what, found in (("latent channels", channels), ("text widths", widths)):
        known = {name: value for name, value in found.items() if value}
        if len(set(known.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in known.items())
            yield next(iter(known)), f"the {what} differ: {listed}; take weights and a model folder of one family"


def find_wrong_size(where: str, source, sizes: TransformerSpec) -> Iterator[Problem]:
    """Yields a video size that the generator cannot make."""
    try:
        get_geometry(source, sizes)
    except ValueError as error:
        yield where, str(error)


def get_geometry(source, sizes: TransformerSpec) -> Geometry | None:
    """Returns the size of a source's videos; None of a model of its own, where the VAE knows more, later.

    Errors: ValueError for a size that the generator cannot make.
    """
    published = [spec for spec in published_specs().values() if spec.transformer == sizes]
    return Geometry.of(published[0], source.height, source.width) if published else None


def find_unfit_clips(source, sizes: TransformerSpec) -> Iterator[Problem]:
    """Yields recorded latents that are not of the generator's channels, or not of the size of its rollouts."""
    name = next((name for name in ("clips", "path") if values(source).get(name)), None)
    path = name and values(source)[name]
    if not path or not Path(path).exists():
        return
    try:
        records = (open_pairs if source.name == "ode_pairs" else open_clips)(path, source.on_bad)
        channels, *size = records[0][0].shape[-3:]
    except ValueError as error:
        yield f"trainer.source.{name}", str(error)
        return
    if channels != sizes.out_dim:
        text = f"{path} holds latents of {channels} channels, the generator makes {sizes.out_dim}"
        yield f"trainer.source.{name}", f"{text}; encode the videos by the VAE of this model"
    geometry = get_geometry(source, sizes) if source.name == "rollout" else None
    if geometry:
        own = list(geometry.latent_size)
        if own != size:
            text = f"{path} holds latents of {size[0]} x {size[1]}, the rollouts are {own[0]} x {own[1]}"
            yield (
                f"trainer.source.{name}",
                f"{text}; encode clips of that size, or write height and width of the clips",
            )


def find_misheard(source, generation) -> Iterator[Problem]:
    """Yields talking clips whose sound was heard otherwise than the recipe says."""
    name = "clips" if source.generates else "path"
    path = values(source).get(name)
    if "audio" in values(source) and path and Path(path).exists():
        with suppress(ValueError):  # of the folder, which is told already
            clips = TalkingFolder(path, source.on_bad)
            found = collect_error(clips.check_heard, vars(source.audio), generation.chunk)
            yield from ((f"trainer.source.{name}", text) for text in found)


def find_lost_targets(where: str, lora, sizes: TransformerSpec) -> Iterator[Problem]:
    """Yields a pattern for adapters that fits no layer, or a LoRA to start from that is not one of this network."""
    if lora.rank:
        with torch.device("meta"):
            network = get_family(sizes).network(sizes)
        try:
            match_linears(network, lora.targets)
        except ValueError as error:
            yield f"{where}.targets", f"{error}; write e.g. {BLOCK_LINEARS!r} (every linear of every block)"
            return
        if lora.weights and Path(lora.weights).exists():
            yield from ((f"{where}.weights", text) for text in collect_error(load_start, lora, network))


def find_lost_layers(layers: Sequence[int], count: int) -> Iterator[Problem]:
    """Yields the blocks that a discriminator taps and its critic does not have."""
    if lost := [layer for layer in layers if not 0 <= layer < count]:
        yield (
            "trainer.loss.discriminator.layers",
            f"block {lost[0]} of a critic of {count} blocks; write 0..{count - 1}",
        )
