"""What a killed run left, damaged before it goes on: snapshots, checkpoints, logs, finished videos."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.inputs import Inputs, copied
from tests.faults.judge import EITHER, Attempt, Fault
from tests.faults.mutate import damaged_bytes, damaged_json

PLANTED = ("a red three moves right-0.partial.mp4", "contact_sheet.png", "a red three moves right-0.json")


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields damages of each file in an interrupted output folder and in a run's folder."""
    for file in sorted(path.name for path in inputs.snapshots.iterdir()):
        for seed in range(8):
            name = f"{file[-24:]} {damaged_bytes(b'abc' * 99, seed)[0]}"
            yield Fault("snapshot", name, "inference.py", partial(snapshot, inputs, file, seed))
    files = sorted(path.relative_to(inputs.run) for path in inputs.run.rglob("*") if path.is_file())
    for file in files:
        for seed in (0, 1, 5) if file.suffix != ".json" else (0, 1, 3, 4, 5, 6, 13):
            yield Fault("run", f"{file} {seed}", "train.py", partial(resumed, inputs, file, seed))
        if "checkpoints" in file.parts:
            yield Fault("export", f"{file}", "scripts/export_checkpoint.py", partial(exported, inputs, file, 5))
    for name in PLANTED:
        yield Fault("planted link", name, "inference.py", partial(planted, inputs, name))


def snapshot(inputs: Inputs, file: str, seed: int, folder: Path) -> Attempt:
    """One damaged file of an interrupted generation, gone on with --resume: refused, or made again."""
    copied(inputs.snapshots, folder / "out")
    path = folder / "out" / file
    path.write_bytes(damaged_bytes(path.read_bytes(), seed)[1])
    arguments = inputs.generate(folder, "--resume", "output.save_every_seconds=0.1", "num_output_frames=12")
    return Attempt(arguments, (path.stem.partition(".")[0],), EITHER, folder / "out")


def resumed(inputs: Inputs, file: Path, seed: int, folder: Path) -> Attempt:
    """One damaged file of a run, gone on with."""
    run = copied(inputs.run, folder / "run")
    _damage(run / file, seed)
    return Attempt(inputs.train(folder, "steps=3", "checkpoint.every=1"), (str(run), file.name), EITHER, run)


def exported(inputs: Inputs, file: Path, seed: int, folder: Path) -> Attempt:
    run = copied(inputs.run, folder / "run")
    _damage(run / file, seed)
    step = next(part for part in file.parts if part.startswith("step_")).removeprefix("step_")
    arguments = [str(run), str(folder / "out/x.safetensors"), "--step", str(int(step))]
    return Attempt(arguments, (str(run), file.name), EITHER, folder / "out")


def planted(inputs: Inputs, name: str, folder: Path) -> Attempt:
    """A link to another file under a name that a run writes."""
    victim = folder / "victim"
    victim.write_text("mine")
    (folder / "out").mkdir()
    (folder / "out" / name).symlink_to(victim)
    return Attempt(inputs.generate(folder, "output.sheet=true"), (name,), EITHER, folder / "out", untouched=victim)


def _damage(path: Path, seed: int) -> None:
    if path.suffix == ".json" and seed > 1:
        path.write_bytes(damaged_json(path.read_text(), seed)[1].encode(errors="surrogateescape"))
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), seed)[1])
