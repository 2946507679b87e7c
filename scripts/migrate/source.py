"""Turns where the ancestors' trainings get samples into our sources; steps, cache and chunks of any of their runs."""

from __future__ import annotations

from typing import Any

from scripts.migrate.keys import Old
from wan.schedule import NUM_TRAIN_TIMESTEPS
from wan.spec import SPECS

BASE = SPECS["t2v-1.3B"]
WRAPPER_SHIFT = 8.0  # of their network wrapper, where model_kwargs says nothing
LEAST_FRAMES = 21  # of their rollouts, and of their loss window


def source(old: Old, loss: str) -> dict[str, Any]:
    """Returns where samples come from. Errors: ValueError for switches without streaming, which never ran."""
    streaming = old.take("streaming_training", False)
    if loss == "dmd_switch" and not streaming:
        raise ValueError(f"{old.where}: dmd_switch needs streaming_training: true; write it, or distribution_loss: dmd")
    if loss == "causvid":
        return noised_source(old)
    return stream_source(old, loss) if streaming else rollout_source(old, loss)


def rollout_source(old: Old, loss: str) -> dict[str, Any]:
    """Returns the source of self-forcing; GAN takes prompts and real clips from the data."""
    most = old.take("num_training_frames", LEAST_FRAMES)
    least = old.take("min_num_training_frames", min(LEAST_FRAMES, most))
    window = old.take("slice_last_frames", LEAST_FRAMES)
    window = most if window == -1 else min(window, most)
    lengths = get_chunks(old)
    extra = lengths.get("first_chunk", 0)  # theirs count whole chunks, the single first frame comes on top
    return {
        "name": "rollout",
        "clips" if loss == "gan" else "prompts": old.take("data_path", ""),
        "batch": batch(old),
        "frames": least + extra,
        **({"frames_max": most + extra} if most > least else {}),
        "loss_frames": window + extra,
        **generating(old),
    }


def stream_source(old: Old, loss: str) -> dict[str, Any]:
    """Returns the source of streaming long tuning, with the switches of `dmd_switch`."""
    for key in ("num_training_frames", "min_num_training_frames"):
        old.drop(key, "a stream's stretches have streaming_chunk_size and streaming_min_new_frame")
    chunk, window = get_chunks(old)["chunk"], old.take("streaming_chunk_size", LEAST_FRAMES)
    possible = old.take("streaming_possible_max_length")
    if possible:
        old.drop("streaming_max_length", "streaming_possible_max_length overrules it")
    most = old.take("streaming_max_length", LEAST_FRAMES)
    return {
        "name": "stream",
        "prompts": old.take("data_path", ""),
        **(switches(old) if loss == "dmd_switch" else {}),
        "batch": batch(old),
        "max_frames": [whole(n, chunk) for n in possible] if possible else whole(most, chunk),
        "loss_frames": window,
        "min_new_frames": old.take("streaming_min_new_frame", window - chunk),
        "train_first_chunk": old.take("train_first_chunk", True),
        **generating(old),
    }


def switches(old: Old) -> dict[str, Any]:
    """Returns what videos switch to, and when. Errors: ValueError for a mode that is not known."""
    mode, first = old.take("switch_mode", "fixed"), old.take("min_switch_frame_index", LEAST_FRAMES)
    modes = {"fixed": "fixed_switch_index", "random": "max_switch_frame_index", "random_choice": "switch_choices"}
    if mode not in modes:
        raise ValueError(f"{old.where}: switch_mode is {mode!r}; known are {sorted(modes)}")
    tree = {"switch_prompts": old.take("switch_prompt_path", "")}
    given = old.take(modes[mode], LEAST_FRAMES if mode != "random_choice" else [])
    if mode == "random":
        return tree | {"switch_range": [first, given]}
    return tree | {"switch_frames": given}


def generating(old: Old) -> dict[str, Any]:
    """Returns what of a rollout is the training's alone: video size, exit step."""
    shape, sizes = old.take("image_or_video_shape", []), {}
    if len(shape) == 5:
        rows, columns = (n * stride for n, stride in zip(shape[3:], BASE.strides[1:], strict=True))
        sizes = {} if (rows, columns) == (BASE.height, BASE.width) else {"height": rows, "width": columns}
    return {
        **sizes,
        "exit_per_chunk": not old.take("same_step_across_blocks", True),
        "last_step_only": old.take("last_step_only", False),
    }


def noised_source(old: Old) -> dict[str, Any]:
    """Returns the source of CausVid; a 0 in the step list means chunks that stay clean."""
    shape = old.take("image_or_video_shape", [1, LEAST_FRAMES])
    clean = 0 in old.take("denoising_step_list", [])
    return {
        "name": "noised_data",
        "clips": old.take("data_path", ""),
        "batch": batch(old),
        "frames": shape[1],
        "clean_step": clean,
        "teacher_forcing": old.take("teacher_forcing", False),
    }


def trained_generation(old: Old, source: str) -> dict[str, Any]:
    """Returns how the trained model will generate. source: the name of ours."""
    tree, cache, noise = get_chunks(old), get_cache(old), 0
    if source in ("rollout", "stream"):
        noise = old.take("context_noise", 0)
    if source == "stream":
        if tree.pop("first_chunk", 0):
            old.drop("independent_first_frame", "a stream has chunks of one length")
        cache |= {"recache": "bidirectional", "keep_sink": old.take("global_sink", False)}
        reach = old.take("slice_last_frames", LEAST_FRAMES)
        if cache["window_frames"] != -1 and reach > cache["window_frames"]:
            cache["recache_frames"] = reach
    steps = {"shift": wrapper_shift(old)} if source == "latents" else get_steps(old)
    return {**tree, "steps": steps, "cache": cache, **context(noise)}


def context(noise: float) -> dict[str, Any]:
    """Returns the context pass at their noise of 1000; nothing where it is clean."""
    return {"context": {"sigma": noise / NUM_TRAIN_TIMESTEPS}} if noise else {}


def get_steps(old: Old) -> dict[str, Any]:
    """Returns the student's step list without a closing 0, and its clock."""
    steps = [float(s) for s in old.take("denoising_step_list", []) if s]
    return {"steps": steps, "shift": wrapper_shift(old), "warp": old.take("warp_denoising_step", False)}


def wrapper_shift(old: Old) -> float:
    """Returns the shift of their generator's table."""
    return float(old.take("model_kwargs.timestep_shift", WRAPPER_SHIFT))


def get_cache(old: Old) -> dict[str, Any]:
    """Returns window and sink; the infinity model is rotary positions that are written when read."""
    tree = {"window_frames": old.take("model_kwargs.local_attn_size", -1)}
    tree["sink_frames"] = old.take("model_kwargs.sink_size", 0)
    return tree | ({"rope": "read"} if old.take("model_kwargs.use_infinite_attention", False) else {})


def get_chunks(old: Old) -> dict[str, int]:
    """Returns the chunk, and a first chunk of one frame where theirs is independent."""
    tree = {"chunk": old.take("num_frame_per_block", 1)}
    return tree | ({"first_chunk": 1} if old.take("independent_first_frame", False) else {})


def batch(old: Old) -> int:
    """Returns the global batch."""
    total = old.take("total_batch_size")
    if total is None:
        return old.take("batch_size", 1)
    old.drop("batch_size", "per GPU; source.batch is total_batch_size, the batch of all")
    return total


def whole(frames: int, chunk: int) -> int:
    """Returns the length cut to whole chunks: theirs never fill the rest."""
    return frames - frames % chunk
