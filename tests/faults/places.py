"""Places that cannot be written to, full disks and small machines, for every door that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.inputs import Inputs
from tests.faults.judge import EITHER, REFUSED, Attempt, Fault

KILOBYTES = (1, 8, 40, 200)  # of the largest file that can be written
MEGABYTES = (200, 600, 1200)  # of address space above what the libraries take


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields every writing door at every bad place, at every size of a full disk, and in little memory."""
    for name, (door, arguments) in doors(inputs).items():
        for where, make in PLACES.items():
            yield Fault("place", f"{name}: {where}", door, partial(placed, arguments, make))
        for size in KILOBYTES:
            limits = {"RLIMIT_FSIZE": size << 10}
            yield Fault("full disk", f"{name} at {size} KB", door, partial(limited, arguments, limits))
        for size in MEGABYTES:
            yield Fault("memory", f"{name} with {size} MB", door, partial(small, arguments, size))


def doors(inputs: Inputs) -> dict[str, tuple[str, Callable[[Path], list[str]]]]:
    """Returns name -> (door, arguments that write below the folder `out`)."""
    latents, run, weights = str(inputs.latents), str(inputs.run), str(inputs.weights)
    first = str(sorted(inputs.videos.glob("*.mp4"))[0])
    prompt = ["--config_path", str(inputs.recipe), "--prompt", "a red three moves right", "output.sheet=true"]
    train = ["--config_path", str(inputs.training), "steps=2", "checkpoint.every=1"]
    encode = ["digits", "--vae", "assets/digits/vae", "--clips", "2", "--frames", "5"]
    return {
        "generate": ("inference.py", lambda out: [*prompt, "--output_folder", str(out)]),
        "train": ("train.py", lambda out: [*train, "--logdir", str(out)]),
        "encode": ("scripts/encode_latents.py", lambda out: [*encode, "--output", str(out)]),
        "lmdb": ("scripts/encode_latents.py", lambda out: ["lmdb", "--input", latents, "--output", str(out)]),
        "export": ("scripts/export_checkpoint.py", lambda out: [run, str(out / "x.safetensors")]),
        "convert": ("scripts/convert_weights.py", lambda out: ["convert", weights, str(out), "--to", "diffusers"]),
        "compare": ("scripts/evaluate.py", lambda out: ["compare", first, first, "--output", str(out / "x.json")]),
        "memory": ("scripts/estimate_memory.py", lambda out: ["--output", str(out / "x.md")]),
    }


def placed(arguments: Callable[[Path], list[str]], make: Callable[[Path], Path], folder: Path) -> Attempt:
    place = make(folder)
    return Attempt(arguments(place), (str(folder), place.name, "/proc"), REFUSED)


def limited(arguments: Callable[[Path], list[str]], limits: dict, folder: Path) -> Attempt:
    return Attempt(arguments(folder / "out"), (), EITHER, folder / "out", limits)


def small(arguments: Callable[[Path], list[str]], megabytes: int, folder: Path) -> Attempt:
    """So much address space above what this process has mapped already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return Attempt(
        arguments(folder / "out"), (), EITHER, folder / "out", {"RLIMIT_AS": (pages << 12) + (megabytes << 20)}
    )


def _below_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "out"


def _long(folder: Path) -> Path:
    return folder / ("long" * 80)


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def _proc(folder: Path) -> Path:
    return Path("/proc/longtake")


PLACES: dict[str, Callable[[Path], Path]] = {
    "below a file": _below_file,
    "a name of 320 letters": _long,
    "a link to itself": _loop,
    "a read-only file system": _proc,
}
