"""A project of stand-in scripts for experiments: train.py, inference.py and the others in milliseconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from scripts import digits_long, digits_sparse, digits_table
from scripts.experiments import long_videos, objectives
from tests.architecture.source import ROOT

COMMON = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
flag = lambda name: words[words.index(name) + 1]
pair = lambda name, other="": next((w.split("=")[1] for w in words if w.startswith(name + "=")), other)
with open("calls.log", "a") as file:
    file.write(json.dumps([sys.argv[0], *words]) + "\\n")
"""
TRAIN = """
run, steps = Path(flag("--logdir")), int(pair("steps"))
run.mkdir(parents=True, exist_ok=True)
path, step = run / "metrics.jsonl", 0
if path.exists():
    step = json.loads(path.read_text().splitlines()[-1])["step"] + 20
    print("resumed at", step)
with path.open("a") as file:
    for step in range(step, steps, 20):
        row = {"step": step, "seconds": step / 10, "loss": 1.0, "critic_loss": 1.0, "generator_dmd_gradient": 0.5}
        file.write(json.dumps(row) + "\\n")
        file.flush()
        if step == 100 and Path("crash").exists() and Path("crash").read_text() in str(run):
            print("out of luck"); sys.exit(3)
        while step == 100 and Path("hang").exists():
            time.sleep(0.01)
export = run / "export/transformer"
export.mkdir(parents=True, exist_ok=True)
(export / "config.json").write_text("{}")
(export / "diffusion_pytorch_model.safetensors").write_text(str(run) + pair("seed"))
"""
INFERENCE = """
folder = Path(flag("--output_folder"))
folder.mkdir(parents=True, exist_ok=True)
for line in filter(None, Path(flag("--data_path")).read_text().splitlines()):
    for sample in range(int(pair("num_samples", "1"))):
        stem = " then ".join(cue["text"] for cue in json.loads(line)["prompts"]) if line[0] == "{" else line
        (folder / f"{stem}-{sample}.mp4").touch()
        sidecar = {"prompt": line, "seed": flag("--seed"), "seconds": {"total": 60.0}}
        (folder / f"{stem}-{sample}.json").write_text(json.dumps(sidecar))
"""
EVALUATE = """
interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
names = ("digit", "colour", "direction", "speed", "consistency", "identity", "area", "sharpness")
windows = int(flag("--windows")) if "--windows" in words else 4
clips = len(list(Path(flag("--videos")).glob("*.mp4")))
drift = {name: {"windows": [k / 10 for k in range(windows)], "change": interval} for name in names}
row = {"clips": clips, "metrics": {name: interval for name in names}, "drift": drift}
row["frechet"] = {"first": interval, "last": {**interval, "mean": 7.0}, "floor": {**interval, "mean": 2.0}}
row["looks"] = {"mean": 3.25, "low": 2.0, "high": 4.5}
rows, videos = {"videos": row}, None
if words[0] != "digits":
    requested = Path(flag("--prompts" if words[0] == "lengths" else "--scripts")).read_text().splitlines()
    videos = {"videos": min(clips, len(requested))}
if words[0] == "lengths":
    ends = words[words.index("--ends") + 1 : words.index("--videos")]
    row |= {"change": row["metrics"], "frechet": interval, "floor": row["frechet"]["floor"]}
    rows = {end: row for end in ends}
if words[0] == "switches":
    numbers = {name: interval for name in ("reached", "chunks", "kept", "jump", "usual", "flicker")}
    curve = [k / 12 for k in range(13)]
    rows = {name: {"switches": 3, **numbers, "curve": curve} for name in ("all", "colour", "direction", "digit")}
if not Path("no_result").exists():
    Path(flag("--output")).write_text(json.dumps({"frames": 33, "seconds": 30.0, "rows": rows, "videos": videos}))
sys.exit(1)  # a gate failed
"""
SHARDS = """
folder = Path(flag("--output") if "--output" in words else "runs/digits_ode_pairs")
folder.mkdir(parents=True, exist_ok=True)
count = int(flag("--clips") if "--clips" in words else flag("--pairs"))
for k in range(-(-count // 32)):
    (folder / f"shard_{k:05d}.safetensors").touch()
"""
SCRIPTS = {
    "train.py": TRAIN,
    "inference.py": INFERENCE,
    "scripts/evaluate.py": EVALUATE,
    "scripts/encode_latents.py": SHARDS,
    "scripts/make_ode_pairs.py": SHARDS,
}


STUDENT = "runs/student/export/transformer"
STUDENT_FLAGS = ("--weights", STUDENT)  # of scripts/digits_long.py


class Project:
    """The stand-in project in a folder. `table(*flags)` -> exit status of scripts/digits_table.py in it."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in SCRIPTS.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(COMMON + text)
        shutil.copytree(ROOT / "configs", root / "configs")
        shutil.copytree(ROOT / "prompts", root / "prompts")
        for training in objectives.TRAININGS.values():
            if training.shipped:
                record = {"recipe": training.recipe, "steps": 7, "minutes": 41.0, "hardware": "1 CPU thread"}
                self.write(f"docs/results/{training.record}.json", json.dumps(record))
                self.write(f"{training.shipped}/diffusion_pytorch_model.safetensors", training.shipped)

        self.write("assets/digits/student/diffusion_pytorch_model.safetensors", "the shipped student")
        tuning = "steps: 200\ntrainer: {name: distill, critic_updates_per_generator_update: 5}\n"
        self.write(long_videos.TUNING, tuning)
        self.write(f"{STUDENT}/diffusion_pytorch_model.safetensors", "a student")

    def write(self, name: str, text: str) -> Path:
        """Writes a file of the project."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def table(self, *flags: str) -> int:
        """Runs the script; several processes at once."""
        return digits_table.main(["--jobs", "4", *flags], self.root)

    def long(self, *flags: str) -> int:
        """Runs scripts/digits_long.py, likewise."""
        return digits_long.main(["--jobs", "4", *flags], self.root)

    def sparse(self, *flags: str) -> int:
        """Runs scripts/digits_sparse.py, likewise."""
        return digits_sparse.main(["--jobs", "4", *flags], self.root)

    def calls(self) -> list[list[str]]:
        """Returns the command lines since the last call of this method."""
        path = self.root / "calls.log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def record(self, row: str, seed: int = 0) -> dict:
        """Returns the record of a row of the digits table."""
        return json.loads((self.root / f"docs/results/table/{row}_seed{seed}.json").read_text())

    def long_record(self, row: str) -> dict:
        """Returns the record of a row of the long videos."""
        return json.loads((self.root / f"docs/results/long/{row}.json").read_text())
