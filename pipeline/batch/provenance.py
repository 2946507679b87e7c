"""What makes a video what it is, as plain trees: one home for every fact that is written down or compared.

* The sidecar, `<name>.json` next to a video: `file_facts`, `batch_facts` and `video_facts`. A later run compares it
  with its own request (`sidecar_changes`), before any weights are read.
* The snapshot of an interrupted batch holds `resume_facts`, that of a session `session_facts`; where they differ, the
  snapshot is refused.

The names of these facts are read by other programs and by later versions: they do not change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pipeline.batch.plan import VideoPlan, requested_length
from pipeline.batch.request import Request
from pipeline.bundle import ModelBundle
from pipeline.causal import Causal
from pipeline.config import OLD_KEYS, InferConfig
from pipeline.track import PromptSchedule
from utils.config.renamed import OldKeys, rename
from utils.config.text import config_hash, to_dict
from utils.data.schedules import ScheduleLine
from utils.diff import differences
from utils.digest import content_hash, file_hash
from utils.json_reader import read_json
from wan.condition import Condition

# Of these sections only the named knobs affect the pixels of a given request; of every other section all do.
PIXEL_KNOBS = {"output": ("fps", "crf"), "data": ("i2v", "noise", "initial_latents")}


def settings(config: InferConfig) -> InferConfig:
    """Returns the configuration without the knobs that do not change the video (resume, overwrite), sampler chosen."""
    output = replace(config.output, resume=False, overwrite=False)
    return replace(config, sampler=config.chosen_sampler, output=output)


def settings_hash(config: InferConfig) -> str:
    """Returns the hash of the settings: the same with and without --resume and --overwrite."""
    return config_hash(settings(config))


def video_settings(config: InferConfig) -> dict:
    """Returns the settings as a plain tree, without devices, threads, the folder and what is written next to videos."""
    tree = to_dict(settings(config))
    tree["decoder"].pop("device", None)
    places = (("vae", "device"), ("text", "device"))
    for section, name in (("output", "folder"), ("output", "sheet"), ("data", "keep_going"), *places):
        del tree[section][name]
    del tree["threads"], tree["verify_archives"], tree["model"]["offload"]
    return tree


def get_seed(request: Request, config: InferConfig) -> int:
    """Returns the seed of the request's noise: that of its schedule, or the run's."""
    own = request.script.seed if request.script else None
    return config.seed if own is None else own


def get_negative_prompt(request: Request, config: InferConfig) -> str:
    """Returns the request's negative prompt: that of its schedule, or the run's."""
    own = request.script.negative_prompt if request.script else None
    return config.negative_prompt if own is None else own


def requested_facts(request: Request, config: InferConfig) -> dict:
    """Returns the settings that affect the pixels, apart from prompts, seed and start: the sidecar's `asked`.

    As the user wrote them, so that a later run can compare them before any weights are read.
    """
    script, tree = request.script, video_settings(config)
    sections = {name: value for name, value in tree.items() if isinstance(value, dict) and name not in PIXEL_KNOBS}
    knobs = {section: {name: tree[section][name] for name in names} for section, names in PIXEL_KNOBS.items()}
    return {
        "length": str(requested_length(script, config)[1]),
        **({"num_clip": request.avatar.num_clip} if request.avatar else {}),
        "ends": [str(cue.end) for cue in script.cues[:-1]] if script else [],
        "negative_prompt": get_negative_prompt(request, config),
        "height": (script and script.height) or config.height,
        "width": (script and script.width) or config.width,
        "start_seconds": request.start_seconds,
        "config": sections | knobs,
    }


def schedule_facts(line: ScheduleLine, track: PromptSchedule, recaches: Sequence[float]) -> list[dict]:
    """Returns a record of each prompt: its text, requested and actual latent frame, milliseconds of its recache.

    recaches: seconds of each recache, in order.
    """
    took = [None, *(1e3 * seconds for seconds in recaches)]
    return [
        {"text": cue.text, "asked_frame": requested, "frame": frame, "recache_ms": ms}
        for cue, (requested, _), frame, ms in zip(line.cues, track.cues, track.taken, took, strict=True)
    ]


def file_facts(request: Request, frames: int, fps: float) -> dict:
    """Returns what a sidecar says of any video, of a training's preview too: its prompt, place and pixel frames."""
    own = {"prompt": request.prompt, "index": request.index, "sample": request.sample}
    return own | {"frames": frames, "fps": fps}


def batch_facts(config: InferConfig, bundle: ModelBundle, plan: VideoPlan, seconds: dict[str, float]) -> dict:
    """Returns what the sidecars of a batch have in common. seconds: how long each part of the work took."""
    return {
        "model": bundle.spec.name,
        "config_hash": settings_hash(config),
        "weights_hash": bundle.weights_hash,
        "latent_frames": plan.total,
        "given_frames": plan.given,
        "seconds": seconds,
    }


def video_facts(
    request: Request, config: InferConfig, track: Condition | PromptSchedule, recaches: Sequence[float]
) -> dict:
    """Returns what a sidecar says of its own video: seed, settings, start, prompt schedule."""
    facts: dict[str, Any] = {"seed": get_seed(request, config), "asked": requested_facts(request, config)}
    facts |= {"start": str(request.start)} if request.start else {}
    facts |= avatar_facts(request)
    if request.script and isinstance(track, PromptSchedule):
        facts["switches"] = schedule_facts(request.script, track, recaches)
    return facts


def avatar_facts(request: Request) -> dict:
    """Returns of which sounds, masks and pose video a talking video is made; of any other nothing."""
    if not (avatar := request.avatar):
        return {}
    pose = [str(avatar.pose)] if avatar.pose else []
    return {"sounds": [*map(str, avatar.sounds)], "masks": [*map(str, avatar.masks)], "pose": pose}


def sidecar_changes(path: Path, request: Request, config: InferConfig) -> dict[str, object]:
    """Returns dotted name -> recorded value of what a finished video's sidecar says other than the request.

    Names that only one of the two has are ignored: another version wrote the sidecar.
    Errors: ValueError naming a sidecar that is damaged.
    """
    try:
        facts = read_json(path)
        texts = [switch["text"] for switch in facts.get("switches", ())]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from error
    before: dict[str, Any] = {"prompt": None, "seed": None, "start": None} | facts
    if isinstance(before.get("asked"), dict) and isinstance(before["asked"].get("config"), dict):
        before["asked"] |= {"config": rename(before["asked"]["config"], old_keys(before["asked"]["config"]))}
        if isinstance(model := before["asked"]["config"].get("model"), dict):
            model.setdefault("linears", "weights")  # of videos from before there was a choice
    now: dict[str, Any] = {"prompt": request.prompt, "seed": get_seed(request, config)}
    now |= {"start": str(request.start) if request.start else None, "asked": requested_facts(request, config)}
    now |= avatar_facts(request)
    if request.script:
        before["prompts"], now["prompts"] = texts, request.prompts
    return {change.path: change.old for change in differences(before, now) if change.in_both}


def old_keys(settings: dict) -> OldKeys:
    """Returns the keys that these recorded settings may have from earlier versions; multi_step has its shift still."""
    sampler = settings.get("sampler")
    kept = {"sampler.shift"} if isinstance(sampler, dict) and sampler.get("name") == "multi_step" else set()
    return OldKeys({old: new for old, new in OLD_KEYS.renamed.items() if old not in kept})


def resume_facts(
    config: InferConfig,
    weights_hash: str,
    group: Sequence[Request],
    requested: Sequence[int],
    total: int,
    content: Callable[[str | Path], str] = file_hash,
    model: Mapping[str, str] = MappingProxyType({}),
) -> dict:
    """Returns what must be equal for an interrupted batch to be resumed: the facts that determine its videos.

    requested: latent frames at which prompts are requested. content(path) -> hash; long runs pass a cached one.
    model: part -> hash of all its files, from `model_facts`.
    """
    given = {path: content(path) for path in {config.data.noise, config.data.initial_latents} if path}
    given |= {str(path): content(path) for path in {request.start for request in group} if path}
    given |= {path: content(path) for request in group for paths in avatar_facts(request).values() for path in paths}
    videos = [
        {
            "name": r.stem,
            "prompts": r.prompts,
            "seed": r.script.seed if r.script else None,
            "negative_prompt": r.script.negative_prompt if r.script else None,
            "start": [str(r.start), r.start_seconds] if r.start else None,
            "place": [r.index, r.sample],
            **avatar_facts(r),
        }
        for r in group
    ]
    facts = {"config": video_settings(config), "weights": weights_hash, "films": videos, "files": given}
    return _plain(facts | {"model": dict(model), "switches": list(requested), "latent_frames": total})


def model_facts(bundle: ModelBundle) -> dict[str, str]:
    """Returns part -> SHA-256 of its files, whole: transformers, LoRA, VAE, encoders, tokenizer."""
    return {part: content_hash(paths) for part, paths in bundle.files.items()}


def session_facts(pipeline: Causal, decode: bool, tensors: dict[str, torch.Tensor]) -> dict:
    """Returns what a session must have in common with the one whose snapshot it restores.

    decode: whether its chunks come with pixels. tensors: of the snapshot; their types and shapes count.
    """
    bundle, sampler = pipeline.bundle, pipeline.rollout.sampler
    facts = {
        "model": bundle.spec,
        "weights": bundle.weights_hash,
        "dtype": str(bundle.dtype),
        "generation": pipeline.generation,
        "sampler": {"name": type(sampler).__name__, **vars(sampler)},
        "geometry": pipeline.rollout.geometry,
        "decode": decode,
        "decoder": type(bundle.decoder).__name__ if decode else None,
        "tensors": {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()},
    }
    return _plain(facts)


def _plain(facts: dict) -> dict:
    """Returns facts as JSON gives them back; dataclasses become trees."""
    return json.loads(json.dumps(facts, default=to_dict))
