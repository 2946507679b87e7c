"""Writes the generator of a run's checkpoint as one safetensors file with official names.

    python scripts/export_checkpoint.py runs/digits_self_forcing_dmd out.safetensors
    python scripts/export_checkpoint.py runs/digits_self_forcing_dmd out.safetensors --step 1000 --no_ema
    python inference.py --config_path configs/infer/digits.yaml --checkpoint_path out.safetensors

A run that trained LoRA gives its adapters, whose header says their alpha (`inference.py --checkpoint_path BASE
--lora_path FILE`), or with --merge base and adapters as one plain model. The training need not be over, and none of its
processes takes part. How the model generates is written next to the file, as generation_config.json, which inference.py
takes as its defaults.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.door import check_output, door  # noqa: E402


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("export_checkpoint.py", description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--step", type=int, default=0, help="which checkpoint (default: the newest whole one)")
    parser.add_argument("--no_ema", action="store_true", help="the weights themselves and not their average")
    parser.add_argument("--merge", action="store_true", help="LoRA: add the adapters into the base")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    return parser.parse_args(arguments)


@door("export_checkpoint.py")
def main(arguments: list[str] | None = None) -> None:
    """Ends with status 0 (done) or 2 (bad input or a full disk)."""
    flags = parse(arguments)
    check_output(flags.output)
    export(flags)


def export(flags: argparse.Namespace) -> None:
    """Reads the weights and writes the file."""
    from trainer.config import LoraConfig
    from trainer.lora import export_lora
    from wan.checkpoint.tensor_file import write_safetensors
    from wan.checkpoint.weights import export_transformer, load_transformer
    from wan.encoders.text import DTYPES
    from wan.family import read_spec

    saved = find(flags.run, flags.step)
    write_generation(saved.recipe, flags.output)
    weights = read(saved, "generator")
    begun = saved.recipe["trainer"]["ema"]["decay"] and saved.metadata("method", "ema", "started")
    average = read(saved, "ema/average") if begun and not flags.no_ema else {}  # before its start it is all zeros
    if not (average or flags.no_ema):
        print(f"{saved.folder} holds no average yet; the weights themselves are written", file=sys.stderr)
    state, role = {**weights, **average}, saved.recipe["trainer"]["generator"]
    lora = role["lora"]
    if flags.merge and not lora["rank"]:
        raise ValueError(f"{flags.run} trained no LoRA; leave --merge out")
    if flags.merge:
        _, base = load_transformer(role["weights"], use_ema=role["use_ema"])
        state = {k: v.float() for k, v in base.items()} | state
    notes: dict[str, str] = {}
    if lora["rank"]:
        state, notes = export_lora(LoraConfig(rank=lora["rank"], alpha=lora["alpha"], merged=flags.merge), state)
    state = {k: v.to(DTYPES[flags.dtype]).contiguous() for k, v in state.items()}
    if bad := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise ValueError(f"{saved.folder}: {bad} is not finite; export an earlier checkpoint with --step")
    if lora["rank"] and not flags.merge:
        return write_safetensors(flags.output, state, notes)
    spec = read_spec(saved.metadata("method", "spec"))
    export_transformer(flags.output, state, spec, {"step": saved.step, "ema": bool(average)})


def write_generation(recipe: dict, output: Path) -> None:
    """Writes how the model generates next to its weights. Errors: ValueError where that of other weights lies."""
    from utils.atomic import write_json
    from utils.config.renamed import fill
    from utils.config.text import to_dict
    from utils.json_reader import read_json
    from wan.generation import FILE, GenerationConfig

    path, tree = output.with_name(FILE), fill(recipe.get("generation", {}), to_dict(GenerationConfig()))
    sparse = recipe.get("trainer", {}).get("generator", {}).get("sparse", {})
    if sparse.get("name", "none") != "none":
        tree["sparse"] = sparse
    if path.exists() and read_json(path) != tree:
        raise ValueError(f"{path} is of weights that generate otherwise; write into a folder of their own")
    write_json(path, tree)


def find(run: Path, step: int):
    """Returns the checkpoint. Errors: ValueError naming what is there instead."""
    from trainer.checkpoint.folder import Checkpoint, CheckpointConfig, Saved, find_damage
    from trainer.config import OLD_KEYS

    checkpoints = Checkpoint(run, CheckpointConfig(), old=OLD_KEYS)
    if not step:
        saved = checkpoints.find()
        if saved is None:
            raise ValueError(f"{checkpoints.folder} holds no checkpoint; give the folder of a run")
        return saved
    folders = {int(p.name.partition("_")[2]): p for p in checkpoints.complete()}
    if step not in folders:
        raise ValueError(f"{checkpoints.folder} has no step {step}; it has {sorted(folders) or 'none'}")
    if problem := find_damage(folders[step]):
        raise ValueError(f"{folders[step]} is damaged ({problem}); it has {sorted(folders)}: take another step")
    return Saved(folders[step], None, OLD_KEYS)


def read(saved, part: str):
    """Returns name -> tensor of one part of the method's state, whole, on the CPU."""
    import torch

    from trainer.checkpoint import dcp

    prefix = f"method/{part}/"
    index = {name: entry for name, entry in dcp.read_index(saved.folder).items() if name.startswith(prefix)}
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in index.items()}
    dcp.load(tensors, saved.folder, None)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


if __name__ == "__main__":
    raise SystemExit(main())
