"""A page for talking videos: portrait, voice and prompt in, the video plays while it is made.

    python demo/avatar.py                                    # the digit that speaks, on 127.0.0.1:7860
    python demo/avatar.py --config_path configs/infer/live_avatar.yaml
    torchrun --standalone --nproc_per_node=5 demo/avatar.py --config_path configs/infer/live_avatar_tpp.yaml

Videos are made one after another; each page waits for its place. Every knob of the recipe can be given as key=value.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import avatar_flags
from utils import log
from utils.door import check_folder, door
from utils.flags import read_flags
from utils.parallel import ranks
from utils.signals import as_interrupts

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs/infer/digits_avatar.yaml"
EXAMPLES = ROOT / "prompts/digits_avatar/talks.jsonl"
ADVICE = "--help lists all flags; knobs of the recipe are key=value"
VALUES = {  # flag -> (key of the configuration, help)
    "--model": ("model.path", "a model directory (official, diffusers or ours) or a hub name"),
    "--size": ("pipeline.size", 'an area, "704*384"; height and width follow the portrait'),
    "--seed": ("seed", "the seed that the page begins with"),
    "--output_folder": ("output.folder", "where the videos go, a folder for each"),
}
RENAMED = {
    **avatar_flags.RENAMED,
    "--server_name": "--host",
    "--server_port": "--port",
    "--share": "--host, or a tunnel of your own: nothing is sent to other machines",
    "--training_config": "model.lora_alpha=64, all that is read of it",
    "--num_clip": "the page's slider",
    "--infer_frames": "the page's slider, or generation.cache.window_frames (48 there are 12 here)",
    "--sample_steps": "the page's slider, or sampler.num_steps=4",
    "--sample_solver": "the page's list, or sampler.solver=euler",
    "--sample_guide_scale": "the page's slider, or sampler.guidance",
    "--using_merged_ckpt": "model.checkpoint=FILE, the merged weights alone",
    **dict.fromkeys(("--enable_tts", "--tts_prompt_audio", "--tts_prompt_text", "--tts_text"), "a voice, spoken"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line. Flags of Live-Avatar's page that have another name here are refused with it."""
    parser = argparse.ArgumentParser(
        prog="demo/avatar.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_path", default=str(RECIPE), help="a recipe of configs/infer/ for talking videos")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (0.0.0.0: all of this machine)")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one")
    parser.add_argument("--examples", help="a list of talking videos (.jsonl) whose parts the page offers")
    parser.add_argument("--lora_path", nargs="+", action="extend", metavar="PATH[:STRENGTH]", help="LoRA files")
    for flag, (_, text) in VALUES.items():
        parser.add_argument(flag, help=text)
    parser.add_argument("--log", default="info", help="debug, info, warning or error")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any knob of the recipe")
    return read_flags(parser, arguments, RENAMED, ADVICE)


def overrides(flags: argparse.Namespace) -> list[str]:
    """Returns the flags that were given as key=value, then the overrides themselves."""
    from utils.config.text import format_value

    given = {key: vars(flags)[flag.lstrip("-")] for flag, (key, _) in VALUES.items()}
    texts = [f"{key}={v if key == 'seed' else format_value(v)}" for key, v in given.items() if v is not None]
    texts += [f"model.lora={format_value(flags.lora_path)}"] if flags.lora_path else []
    return texts + flags.overrides


@door("demo/avatar.py", "the videos that are finished are kept")
def main(arguments: list[str] | None = None) -> None:
    """Serves until an interrupt. Status as of inference.py."""
    flags = parse(sys.argv[1:] if arguments is None else arguments)
    with as_interrupts():
        serve(flags)


def serve(flags: argparse.Namespace) -> None:
    """Loads the model and serves the page. Errors: ValueError, OSError; for a port that is taken before all else."""
    log.setup(flags.log)
    from pipeline.service.worker import Worker

    if ranks.rank() != 0:
        worker = Worker.build(flags.config_path, overrides(flags))
        worker.load()
        worker.follow()
        return
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed: pip install -e .[demo]")
    from demo.page import Page, listen
    from pipeline.service.jobs import Jobs
    from utils.data.talk_list import read_talk_list

    with listen(flags.host, flags.port) as socket:
        worker = Worker.build(flags.config_path, overrides(flags))
        check_folder(worker.config.output.folder)
        examples = flags.examples or (EXAMPLES if Path(flags.config_path).stem.startswith("digits") else None)
        talks = read_talk_list(examples) if examples else []
        worker.load()
        jobs = Jobs()
        with Page(worker, jobs, talks).served(socket) as address:
            print(f"open {address}", flush=True)
            worker.serve(jobs)


if __name__ == "__main__":
    raise SystemExit(main())
