"""Finds out which model an ancestor's recipe is for, at which size, and how much of it runs in one step."""

from __future__ import annotations

from typing import Any

from scripts.migrate.old import Old
from wan.spec import SPECS, ModelSpec

FOLDER = "models"
SHAPE = "image_or_video_shape"
BASES = (SPECS["t2v-1.3B"], SPECS["ti2v-5B"])  # the smallest text-to-video model of each VAE
PUBLISHED = {spec.hub_name.split("/")[1]: spec for spec in SPECS.values() if spec.hub_name}
BASE_NAME = BASES[0].hub_name.split("/")[1]  # of their network wrapper
ENDLESS = 10_000  # steps; LongLive's own default


def get_name(spec: ModelSpec) -> str:
    """Returns the name of a published model's folder."""
    return spec.hub_name.split("/")[1]


def get_base(old: Old) -> ModelSpec:
    """Returns the model that the recipe trains or runs: the one it names, else the one that has its latents.

    Errors: ValueError for latents of no model, or of another model than the named ones.
    """
    shape, named = get_shape(old), old.text("model_kwargs.model_name")
    spec = PUBLISHED.get(named.strip("/"))
    if named and spec is None:
        known = ", ".join(PUBLISHED)
        raise old.error("model_kwargs.model_name", f"is {named!r}; models that run here are {known}")
    if not shape:
        return spec or BASES[0]
    channels = shape[2]
    if spec is None:
        spec = next((base for base in BASES if base.latent_channels == channels), None)
        if spec is None:
            known = " and ".join(f"{base.latent_channels} ({get_name(base)})" for base in BASES)
            raise old.error(SHAPE, f"is {shape}: no model here has {channels} latent channels; known are {known}")
        if spec is not BASES[0]:
            old.assume("the model", f"{get_name(spec)}, whose latents have {channels} channels as {SHAPE} says")
    for key in ("model_kwargs.model_name", "real_name", "fake_name"):
        other = PUBLISHED.get(str(old.find(key) or "").strip("/"))
        if other and other.latent_channels != channels:
            text = f"{channels} latent channels, but {key} is {get_name(other)}, whose latents have "
            fits = next((get_name(base) for base in BASES if base.latent_channels == channels), "")
            advice = f"write {key}: {fits}, or the shape of the other" if fits else "correct one of them"
            raise old.error(SHAPE, f"is {shape}: {text}{other.latent_channels}; {advice}")
    return spec


def get_shape(old: Old) -> list[int]:
    """Returns their [B, F, C, h, w] of a batch of latents, [] if the file does not say it."""
    shape = old.numbers(SHAPE)
    if shape and (len(shape) != 5 or any(n != int(n) or n < 1 for n in shape)):
        raise old.error(SHAPE, f"is {shape}; write 5 whole numbers: batch, frames, channels, rows, columns")
    return [int(n) for n in shape]


def get_size(old: Old) -> dict[str, int]:
    """Returns height and width in pixels, {} for the model's own. Errors: ValueError for rows that no patch fits."""
    spec, shape = get_base(old), get_shape(old)
    if not shape:
        return {}
    patch = spec.transformer.patch_size
    for what, count, size in zip(("rows", "columns"), shape[3:], patch[1:], strict=True):
        if count % size:
            near = f"{count - count % size} or {count + size - count % size}"
            raise old.error(SHAPE, f"is {shape}: {count} latent {what} do not fill patches of {size}; use {near}")
    height, width = (count * stride for count, stride in zip(shape[3:], spec.strides[1:], strict=True))
    return {} if (height, width) == (spec.height, spec.width) else {"height": height, "width": width}


def named_weights(old: Old, key: str) -> str:
    """Returns the folder of a network that the file names; theirs lie in wan_models/."""
    default = BASE_NAME if get_base(old).latent_channels == BASES[0].latent_channels else get_name(get_base(old))
    return f"{FOLDER}/{old.text(key, default).strip('/')}"


def get_batch(old: Old) -> int:
    """Returns the global batch: batch_size is theirs per GPU and part. Errors: ValueError for sizes that do not fit."""
    own = old.whole("batch_size", 1, least=1)
    parts, total = old.whole("gradient_accumulation_steps", 1, least=1), old.whole("total_batch_size", least=1)
    if old.gpus:
        made = own * parts * old.gpus
        if total not in (None, made):
            text = f"{total} is read by nothing there; {own} x {parts} parts x {old.gpus} GPUs = {made}"
            old.assume("total_batch_size", text)
        return made
    if total is None:
        old.assume(
            "1 GPU", f"batch {own} x {parts} parts = {own * parts}; the file does not say how many: write --gpus N"
        )
        return own * parts
    if total % (own * parts):
        text = f"is {total}, no multiple of batch_size {own} x {parts} parts; correct it, or write --gpus N"
        raise old.error("total_batch_size", text)
    gpus = f"{total // (own * parts)} GPUs x batch_size {own} x {parts} parts"
    old.assume("batch", f"{total}, as total_batch_size says: {gpus}; write --gpus N for another number")
    return total


def get_run(old: Old) -> dict[str, Any]:
    """Returns steps, seed, folder and checkpoints of a training."""
    steps, every = old.whole("max_iters", least=1), old.whole("log_iters", least=1)
    if steps is None:
        old.assume("max_iters", f"{ENDLESS}; their program runs until it is stopped, and so does Ctrl-C here")
    if not (seed := old.whole("seed", 0, least=0)):
        old.assume("seed", "0 draws a seed there; it is 0 here, and every run the same")
    recipe: dict[str, Any] = {"seed": seed, "steps": steps or ENDLESS}
    if old.text("logdir"):
        recipe["logdir"] = old.text("logdir")
    if old.flag("no_save"):
        recipe["save"] = False
    keep = old.whole("max_checkpoints", 0, least=0)
    checkpoint = {"every": every, "keep": keep or None, "keep_every": None if keep else every}
    return recipe | {"checkpoint": {key: value for key, value in checkpoint.items() if value}}
