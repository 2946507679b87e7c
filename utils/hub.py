"""Names of models on the Hugging Face hub -> folders on this machine."""

from __future__ import annotations

import re
from pathlib import Path

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name_or_path: str | Path) -> Path:
    """Returns the local path of a model: itself if it is there, else the hub's copy (downloaded if need be).

    Errors: ValueError that says which command fetches the model, if the name is not a path and the hub
    does not answer (no network, HF_HUB_OFFLINE, a closed or missing repository).
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = str(name_or_path)
    if not HUB_NAME.fullmatch(name):
        near = path.parent if path.parent.is_dir() else None
        held = f"; {near} holds: {', '.join(sorted(p.name for p in near.iterdir())[:20]) or 'nothing'}" if near else ""
        raise ValueError(f"{name} is not a path on this machine and no hub name of the form owner/model{held}")
    return _download(name)


def find_local(name_or_path: str | Path) -> Path | None:
    """Returns the path of a model that is on this machine: itself, or the hub's copy. Asks no network."""
    path = Path(name_or_path).expanduser()
    if path.exists() or not HUB_NAME.fullmatch(str(name_or_path)):
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
