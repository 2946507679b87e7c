"""Turns where the ancestors' trainings get samples into our sources; steps, cache and chunks of any of their runs."""

from __future__ import annotations

from typing import Any

from scripts.migrate.model import get_batch, get_shape, get_size
from scripts.migrate.old import Old
from wan.schedule import NUM_TRAIN_TIMESTEPS

WRAPPER_SHIFT = 8.0  # of their network wrapper, where model_kwargs says nothing
LEAST_FRAMES = 21  # of their rollouts, and of their loss window; as far as they look back without a window
STREAM_FRAMES, STREAM_NEW = 57, 18  # of LongLive's stream where the file says nothing: its length, its least new frames


def source(old: Old, loss: str) -> dict[str, Any]:
    """Returns where samples come from. Errors: ValueError for switches without streaming, which never ran."""
    streaming = old.flag("streaming_training")
    if loss == "dmd_switch" and not streaming:
        raise old.error("distribution_loss", "dmd_switch needs streaming_training: true; write it, or dmd")
    if loss == "causvid":
        return noised_source(old)
    return stream_source(old, loss) if streaming else rollout_source(old, loss)


def rollout_source(old: Old, loss: str) -> dict[str, Any]:
    """Returns the source of self-forcing; GAN takes prompts and real clips from the data."""
    most = old.whole("num_training_frames", LEAST_FRAMES, least=1)
    least = old.whole("min_num_training_frames", min(LEAST_FRAMES, most), least=1)
    window = old.whole("slice_last_frames", LEAST_FRAMES)
    window = most if window == -1 else min(window, most)
    if (shape := get_shape(old)) and shape[1] != most:
        old.assume("image_or_video_shape", f"its {shape[1]} frames are not read; num_training_frames says {most}")
    chunks = get_chunks(old)
    for key, frames in (
        ("num_training_frames", most),
        ("min_num_training_frames", least),
        ("slice_last_frames", window),
    ):
        check_chunks(old, key, frames, chunks["chunk"], chunks.get("first_chunk", 0))
    return {
        "name": "rollout",
        "clips" if loss == "gan" else "prompts": needed(old, "data_path", "the data of the training"),
        "batch": get_batch(old),
        "frames": least,
        **({"frames_max": most} if most > least else {}),
        "loss_frames": window,
        **generating(old),
    }


def check_chunks(old: Old, key: str, frames: int, chunk: int, first: int) -> None:
    """Raises ValueError for a length that blocks do not fill behind a single first frame, as their assertions do."""
    if rest := (frames - first) % chunk:
        known = "" if old.find(key) is not None else ", as it is without the key"
        text = f"is {chunk}, and {key} is {frames}{known}: no whole number of blocks"
        raise old.error("num_frame_per_block", f"{text}; write {key}: {frames - rest} or {frames - rest + chunk}")


def needed(old: Old, key: str, what: str) -> str:
    """Returns a text that their trainings cannot do without."""
    if not (value := old.text(key)):
        raise old.error(key, f"is missing; write {what}")
    return value


def stream_source(old: Old, loss: str) -> dict[str, Any]:
    """Returns the source of streaming long tuning, with the switches of `dmd_switch`."""
    for key in ("num_training_frames", "min_num_training_frames"):
        old.drop(key, "a stream's stretches have streaming_chunk_size and streaming_min_new_frame")
    chunk, window = get_chunks(old)["chunk"], old.whole("streaming_chunk_size", LEAST_FRAMES, least=1)
    possible = old.numbers("streaming_possible_max_length")
    if possible:
        old.drop("streaming_max_length", "streaming_possible_max_length overrules it")
    most = old.whole("streaming_max_length", STREAM_FRAMES, least=1)
    return {
        "name": "stream",
        "prompts": needed(old, "data_path", "the data of the training"),
        **(switches(old) if loss == "dmd_switch" else {}),
        "batch": get_batch(old),
        "max_frames": [whole(n, chunk) for n in possible] if possible else whole(most, chunk),
        "loss_frames": window,
        "min_new_frames": old.whole("streaming_min_new_frame", STREAM_NEW, least=1),
        "train_first_chunk": old.flag("train_first_chunk"),
        **generating(old),
    }


def switches(old: Old) -> dict[str, Any]:
    """Returns what videos switch to, and when. Errors: ValueError for a mode that is not known."""
    mode, first = old.text("switch_mode", "fixed"), old.whole("min_switch_frame_index", LEAST_FRAMES)
    modes = {"fixed": "fixed_switch_index", "random": "max_switch_frame_index", "random_choice": "switch_choices"}
    if mode not in modes:
        raise old.error("switch_mode", f"is {mode!r}; known are {sorted(modes)}")
    tree: dict[str, Any] = {"switch_prompts": needed(old, "switch_prompt_path", "the file of the second prompts")}
    if mode == "random_choice":
        return tree | {"switch_frames": old.numbers(modes[mode])}
    given = old.whole(modes[mode], LEAST_FRAMES)
    return tree | ({"switch_range": [first, given]} if mode == "random" else {"switch_frames": given})


def generating(old: Old) -> dict[str, Any]:
    """Returns what of a rollout is the training's alone: video size, exit step."""
    return {
        **get_size(old),
        "exit_per_chunk": not old.flag("same_step_across_blocks", True),
        "last_step_only": old.flag("last_step_only"),
    }


def noised_source(old: Old) -> dict[str, Any]:
    """Returns the source of CausVid; a 0 in the step list means chunks that stay clean."""
    get_size(old)  # clips have their own; rows that cannot be are refused
    return {
        "name": "noised_data",
        "clips": needed(old, "data_path", "the data of the training"),
        "batch": get_batch(old),
        "frames": get_frames(old),
        "clean_step": 0 in old.numbers("denoising_step_list"),
        "teacher_forcing": old.flag("teacher_forcing"),
    }


def get_frames(old: Old) -> int:
    """Returns the frames of recorded clips, which the shape says."""
    shape = get_shape(old)
    if not shape:
        old.silent["image_or_video_shape"] = f"{LEAST_FRAMES} frames"
    return shape[1] if shape else LEAST_FRAMES


def trained_generation(old: Old, source: str) -> dict[str, Any]:
    """Returns how the trained model will generate. source: the name of ours."""
    tree, cache, noise = get_chunks(old), get_cache(old), 0
    if source in ("rollout", "stream"):
        noise = old.number("context_noise", 0)
    if source == "rollout" and cache["window_frames"] == -1:
        bound_window(old, cache, old.whole("num_training_frames", LEAST_FRAMES))
    if source == "stream":
        if tree.pop("first_chunk", 0):
            old.drop("independent_first_frame", "a stream has chunks of one length")
        old.drop("global_sink", "their training never reads it, so no sink outlives a switch; see cache.keep_sink")
        cache |= {"recache": "bidirectional", "keep_sink": False}
        reach = old.whole("slice_last_frames", LEAST_FRAMES)
        if cache["window_frames"] != -1 and reach > cache["window_frames"]:
            cache["recache_frames"] = reach
    steps = {"shift": wrapper_shift(old)} if source == "latents" else get_steps(old)
    return {**tree, "steps": steps, "cache": cache, **context(noise)}


def bound_window(old: Old, cache: dict[str, Any], frames: int) -> None:
    """Bounds a cache without a window as their attention does: it never looks back further than 21 frames."""
    if frames > LEAST_FRAMES:
        cache["window_frames"] = LEAST_FRAMES
        text = f"a window of {LEAST_FRAMES}: -1 looks no further back there"
        old.assume("model_kwargs.local_attn_size", text)


def context(noise: float) -> dict[str, Any]:
    """Returns the context pass at their noise of 1000; nothing where it is clean."""
    return {"context": {"sigma": noise / NUM_TRAIN_TIMESTEPS}} if noise else {}


def get_steps(old: Old) -> dict[str, Any]:
    """Returns the student's step list without a closing 0, and its clock."""
    steps = [float(s) for s in old.numbers("denoising_step_list") if s]
    if not steps:
        raise old.error("denoising_step_list", "is missing; write the noise levels, e.g. [1000, 750, 500, 250]")
    return {"steps": steps, "shift": wrapper_shift(old), "warp": old.flag("warp_denoising_step")}


def wrapper_shift(old: Old) -> float:
    """Returns the shift of their generator's table."""
    return float(old.number("model_kwargs.timestep_shift", WRAPPER_SHIFT))


def get_cache(old: Old) -> dict[str, Any]:
    """Returns window and sink; the infinity model is rotary positions that are written when read."""
    tree: dict[str, Any] = {"window_frames": old.whole("model_kwargs.local_attn_size", -1)}
    tree["sink_frames"] = old.whole("model_kwargs.sink_size", 0)
    return tree | ({"rope": "read"} if old.flag("model_kwargs.use_infinite_attention") else {})


def get_chunks(old: Old) -> dict[str, int]:
    """Returns the chunk, and a first chunk of one frame where theirs is independent."""
    tree = {"chunk": old.whole("num_frame_per_block", 1, least=1)}
    return tree | ({"first_chunk": 1} if old.flag("independent_first_frame") else {})


def whole(frames: int, chunk: int) -> int:
    """Returns the length cut to whole chunks: theirs never fill the rest."""
    return int(frames) - int(frames) % chunk
