"""Names of models on the Hugging Face hub -> folders on this machine. What looks like a path is never such a name."""

from __future__ import annotations

import os
import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# First parts of paths that people write: our folders and those of the ancestors. No owner on the hub is meant by them.
ROOTS = frozenset(
    """
    models model checkpoints checkpoint ckpt ckpts weights pretrained pretrained_weights pretrained_models wan_models
    longlive_models lora loras runs run outputs output logs log exports export assets data dataset datasets prompts
    configs config videos images examples example scripts tmp home mnt
    """.split()
)
ENDINGS = frozenset(
    """
    .pt .pth .ckpt .bin .safetensors .sft .gguf .onnx .json .jsonl .yaml .yml .txt .csv .tsv .npz .npy .zip .tar .gz
    .mp4 .png .jpg .jpeg .lmdb .mdb
    """.split()
)
DOWNLOADS = Path(__file__).parent.parent / "scripts" / "downloads.txt"  # not there in an installed copy


def resolve(name_or_path: str | Path) -> Path:
    """Returns the local path of a model: itself if it is there, else the hub's copy (downloaded if need be).

    Errors: ValueError that says which command fetches the model, if it looks like a path and is not there, or if the
    hub does not answer (no network, HF_HUB_OFFLINE, a closed or missing repository).
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.exists():
        return path
    if looks_local(name_or_path):
        raise ValueError(describe_missing(name_or_path))
    return _download(str(name_or_path))


def looks_local(name_or_path: str | Path) -> bool:
    """Returns whether a name that is not there is meant as a path, not as a model on the hub (owner/model).

    A path: more or less than one slash, a first part that is a folder here or one that people keep models in, the
    ending of a file, or a Path.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or not HUB_NAME.fullmatch(name):
        return True
    first, last = name.split("/")
    return first.lower() in ROOTS or Path(first).exists() or Path(last).suffix.lower() in ENDINGS


def describe_missing(name_or_path: str | Path) -> str:
    """Returns that a path is not there, and what to do: the set of scripts/download.sh, or what lies near it."""
    path = Path(os.path.expanduser(name_or_path))
    head = f"{name_or_path} is not there"
    if advice := advise(path):
        return f"{head}; {advice}"
    near = path.parent if path.parent.is_dir() else None
    held = f"{near} holds: {', '.join(sorted(p.name for p in near.iterdir())[:20]) or 'nothing'}" if near else ""
    return f"{head} ({held or f'there is no folder {path.parent}'}); give a path, or a hub name of the form owner/model"


def advise(path: str | Path) -> str | None:
    """Returns which set of scripts/download.sh brings a file or folder, or None if none does."""
    wanted = Path(os.path.expanduser(path))
    if wanted.is_absolute() and wanted.is_relative_to(Path.cwd()):
        wanted = wanted.relative_to(Path.cwd())
    sets = [(name, target) for name, targets in read_downloads().items() for target in targets]
    exact = [(name, target) for name, target in sets if target == wanted or target in wanted.parents]
    alike = [(name, target) for name, target in sets if target.name == wanted.name]
    if not (found := exact or alike):
        return None
    name, target = found[0]
    place = "" if exact else f" to {target}"
    return f"`bash scripts/download.sh {name}` brings it{place}"


def check(*paths: str | Path) -> None:
    """Raises ValueError for a path that is not there and that a set of scripts/download.sh brings."""
    for path in paths:
        if not Path(os.path.expanduser(path)).exists() and (advice := advise(path)):
            raise ValueError(f"{path} is not there; {advice}")


def read_downloads() -> dict[str, list[Path]]:
    """Returns {set of scripts/download.sh: the files it brings, and the folder if it is a model's own}."""
    sets: dict[str, list[Path]] = {}
    for line in DOWNLOADS.read_text(encoding="utf-8").splitlines() if DOWNLOADS.is_file() else ():
        if line and not line.startswith("#"):
            name, _, folder, *files = line.split()
            own = [] if folder == "." else [Path(folder)]
            sets[name] = [*(Path(folder) / file for file in files), *own]
    return sets


def find_local(name_or_path: str | Path) -> Path | None:
    """Returns the path of a model that is on this machine: itself, or the hub's copy. Asks no network."""
    path = Path(os.path.expanduser(name_or_path))
    if path.exists() or looks_local(name_or_path):
        return path if path.exists() else None
    from huggingface_hub import constants  # the rest of the package loads for half a second

    store = Path(constants.HF_HUB_CACHE) / f"models--{str(name_or_path).replace('/', '--')}"
    latest = store / "refs" / "main"
    copy = latest.is_file() and store / "snapshots" / latest.read_text().strip()
    return copy if copy and copy.is_dir() else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name))
    except GatedRepoError:
        why = "its owner asks for an agreement: accept it on the model's page and run `hf auth login`"
    except RepositoryNotFoundError:
        why = "the hub knows no such model (or it is private: run `hf auth login`)"
    except HFValidationError as reason:
        why = f"the hub does not take the name: {reason}"
    except (HfHubHTTPError, OSError) as reason:  # no network, switched off, or not in the local store
        first = str(reason).strip().splitlines()[:1] or [type(reason).__name__]
        why = f"the hub does not answer and the local store lacks it ({first[0]})"
    raise ValueError(
        f"{name} is neither a local path nor to be had: {why}. Where there is a network, run: {command(name)}"
    )


def command(name: str) -> str:
    """Returns the command that fetches a model into a folder of its own."""
    return f"hf download {name} --local-dir models/{name.split('/')[-1]}"
