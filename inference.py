"""Generates videos from prompts: `python inference.py --config_path configs/infer/digits.yaml --prompt "..."`.

Every knob of the recipe can be given as key=value, e.g. `sampler.num_steps=20 output.gif=true`.
Under torchrun the videos are shared by the ranks; files do not depend on their number.
"""

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

try:
    from pipeline import avatar_flags
    from utils import log
    from utils.door import check_folder, door
    from utils.flags import read_flags
    from utils.parallel import ranks
    from utils.signals import as_interrupts
except ImportError as error:
    if (error.name or "").partition(".")[0] != "utils":
        raise
    hidden = f"another module named utils hides this project's ({error})"
    raise SystemExit(f"inference.py: {hidden}; run from the checkout, or take the other off sys.path") from error

# flag -> (key of the configuration, help)
VALUES = {
    "--model": ("model.path", "a model directory (official, diffusers or ours) or a hub name"),
    "--checkpoint_path": ("model.checkpoint", "other weights for its transformer (.pt, .safetensors)"),
    "--data_path": ("data.path", "one prompt per line (.txt), or scripts (.jsonl); with --i2v a folder of images"),
    "--extended_prompt_path": ("data.extended_path", "line-aligned rewritten prompts"),
    "--prompt": ("data.prompt", "one prompt"),
    "--output_folder": ("output.folder", "where the videos go"),
    "--num_samples": ("num_samples", "videos per prompt"),
    "--num_output_frames": ("num_output_frames", "length in latent frames"),
    "--seconds": ("seconds", "length in seconds, rounded up to whole chunks"),
    "--duration": ("seconds", "the same as a time: 90s, 10m, 1h30m"),
    "--seed": ("seed", "seed of the noise"),
    "--start_image": ("data.start_image", "a picture that all videos start from, or a folder: one per line of prompts"),
    "--start_video": ("data.start_video", "the same with videos, whose last seconds are the videos' start"),
    "--start_seconds": ("data.start_seconds", "how much of their end (default: what the window holds)"),
    "--image": ("data.image", "the portrait of a talking video"),
    "--audio": ("data.audio", "its sound; several speakers: a.wav+b.wav"),
    "--size": ("pipeline.size", 'of a talking video: an area, "704*384"; height and width follow the portrait'),
    "--masks": ("data.masks", "pictures that are white where each speaker is: a.png+b.png (default: strips)"),
    "--pose_video": ("data.pose_video", "a video of skeletons that the talking video follows"),
    "--num_clip": ("pipeline.num_clip", "its length in clips at most: of the window, or of pipeline.clip_frames"),
    "--switch_frames": ("data.switch_frames", "latent frames at which scripts without ends switch: '40, 80, 120'"),
    "--noise": ("data.noise", "a safetensors file with the start noise [N, F, C, h, w]"),
}
LORA = "--lora_path"  # takes several values
LORA_HELP = "LoRA files, folders or hub names, each with a strength after a colon if it is not 1: A.safetensors:0.8 B"
NUMBERS = {
    "--num_samples",
    "--num_output_frames",
    "--seconds",
    "--seed",
    "--start_seconds",
    "--num_clip",
}  # the others are text
TRAINING_CONFIG, INFER_FRAMES = "--training_config", "--infer_frames"  # two of Live-Avatar's, which are computed with
SWITCHES = {
    "--use_ema": ("model.use_ema", "the averaged weights of a training checkpoint"),
    "--i2v": ("data.i2v", "start from images"),
    "--save_with_index": ("output.save_with_index", "<line>-<sample>.mp4 instead of the prompt as name"),
    "--overwrite": ("output.overwrite", "make finished videos anew (after a kill go on with --resume alone)"),
    "--resume": ("output.resume", "go on with videos whose run was killed, from their snapshots"),
    "--keep-going": ("data.keep_going", "leave out the bad lines of a script and list them at the end"),
}
KNOB = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
RECIPES = Path(__file__).parent / "configs" / "infer"
ADVICE = "--help lists all flags; knobs of the recipe are key=value"
RENAMED = {
    "--lora_ckpt": "--lora_path",
    "--generator_ckpt": "--checkpoint_path",
    "--num_frames": "--num_output_frames",
    "--keep_going": "--keep-going",
    "--inference_iter": "a shorter prompt file",
    "--local_rank": "torchrun, which sets the rank itself",
    "--gpu": "the environment: CUDA_VISIBLE_DEVICES=N",
    **avatar_flags.RENAMED,
    "--save_file": "--output_folder; a list (--data_path talks.jsonl) may name each video",
    "--sample_list": "--data_path, a JSONL list of {image, audio, prompt, name}",
    "--frame_num": "--seconds; without it a talking video is as long as its sound",
    **dict.fromkeys(("--use_dataset", "--dataset_sample_idx"), "--data_path, a JSONL list"),
    **dict.fromkeys(("--server_name", "--server_port"), "demo/avatar.py, which is the page"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line. Flags of the ancestors that have another name here are refused with it."""
    parser = argparse.ArgumentParser(
        prog="inference.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_path", required=True, help="a recipe of configs/infer/")
    for flag, (_, text) in VALUES.items():
        parser.add_argument(flag, help=text)
    parser.add_argument(LORA, nargs="+", action="extend", metavar="PATH[:STRENGTH]", help=LORA_HELP)
    parser.add_argument(INFER_FRAMES, type=int, help="window in pixel frames, a multiple of 12: 48 is a window of 12")
    parser.add_argument(TRAINING_CONFIG, help="Live-Avatar's YAML, which tells the strength of its LoRA (lora_alpha)")
    for flag, (_, text) in SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("--print_config", action="store_true", help="show every value and where it comes from")
    parser.add_argument("--log", default="info", help="debug, info, warning or error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any knob of the recipe")
    flags = read_flags(parser, arguments, RENAMED, ADVICE, RECIPES)
    knobs = [text for text in flags.lora_path or () if KNOB.match(text) and not Path(text).exists()]
    if flags.lora_path and len(knobs) == len(flags.lora_path):
        parser.error(f"{LORA} needs a LoRA file before {knobs[0]}")
    flags.lora_path = [text for text in flags.lora_path or () if text not in knobs]
    # A flag of several values takes in the key=value arguments that follow it.
    flags.overrides = sorted([*flags.overrides, *knobs], key=arguments.index)
    return flags


def overrides(flags: argparse.Namespace) -> list[str]:
    """Returns the flags that were given as key=value, then the overrides themselves."""
    from utils.config.text import format_value

    given = []
    for flag, (key, _) in (VALUES | SWITCHES).items():
        value = vars(flags)[flag.lstrip("-").replace("-", "_")]
        if flag == "--duration" and value is not None:
            given.append(f"seconds={duration(value, flags)}")
        elif value is not None and value is not False:
            # Quoted: a prompt or a path may look like a number, a list or a truth value.
            given.append(f"{key}={value if flag in NUMBERS else format_value(value)}")
    if flags.lora_path:
        given.append(f"model.lora={format_value(flags.lora_path)}")
    if flags.training_config is not None:
        from pipeline.ancestors import read_lora_alpha

        given.append(f"model.lora_alpha={read_lora_alpha(flags.training_config)}")
    if flags.infer_frames is not None:
        given.append(f"generation.cache.window_frames={window(flags.infer_frames)}")
    return given + flags.overrides


def window(infer_frames: int) -> int:
    """Returns the latent frames of --infer_frames. Errors: ValueError for what is no multiple of a chunk of 12."""
    if infer_frames < 12 or infer_frames % 12:
        near = max(12, round(infer_frames / 12) * 12)
        raise ValueError(f"{INFER_FRAMES} is {infer_frames}; write a multiple of 12 (chunks of 12 frames), e.g. {near}")
    return infer_frames // 4


def duration(text: str, flags: argparse.Namespace) -> float:
    """Returns the seconds of --duration. Errors: ValueError for no time, or where another flag says another length."""
    from utils.data.schedules import parse_time

    number = text.strip().replace(".", "", 1).isdigit()
    seconds = parse_time(f"{text.strip()}s" if number else text)
    if seconds is None:
        raise ValueError(f'--duration is {text!r}; write a time like "90s", "10m" or "1h30m", or seconds')
    pairs = [pair.partition("=") for pair in flags.overrides]
    others = [(f"{key}=", value) for key, _, value in pairs if key in ("seconds", "num_output_frames")]
    others += [("--seconds ", flags.seconds), ("--num_output_frames ", flags.num_output_frames)]
    for name, value in others:
        same = "seconds" in name and value is not None and parse_time(f"{value}s") == seconds
        if value is not None and not same:
            raise ValueError(f"--duration {text} and {name}{value} both tell the length; write one")
    return seconds


@door("inference.py", "finished videos are kept, run again to go on (--resume: also within a video)")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done), 2 (bad input or a full disk), 130 (interrupted) or 128 + the number of a signal."""
    flags = parse(sys.argv[1:] if arguments is None else arguments)
    with as_interrupts():
        generate(flags)


def generate(flags: argparse.Namespace) -> None:
    """Does what the flags ask for. Errors: ValueError, OSError."""
    log.setup(flags.log)
    from pipeline.config import load_recipe
    from utils.config.text import render

    config, origins = load_recipe(flags.config_path, overrides(flags))
    if flags.infer_frames is not None and getattr(config.pipeline, "clip_frames", 0):
        frames = window(flags.infer_frames)
        raise ValueError(
            f"{INFER_FRAMES} is the window of a stream and {flags.config_path} makes whole clips; write "
            f"pipeline.clip_frames={frames} instead"
        )
    if flags.print_config:
        print(render(replace(config, sampler=config.chosen_sampler), origins))
        return
    check_folder(config.output.folder)
    from pipeline.batch.run import run

    count = ranks.total(len(run(config)))
    if ranks.rank() == 0:
        print(f"{count} videos in {config.output.folder}")
    ranks.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
