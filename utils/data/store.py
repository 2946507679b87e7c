"""Opens what training reads, whichever way it is stored: safetensors shards or LMDB."""

from __future__ import annotations

from pathlib import Path

from utils.data.latents import LatentFolder
from utils.data.lmdb_store import LmdbClips, LmdbPairs
from utils.data.pairs import PairFolder


def is_lmdb(path: str | Path) -> bool:
    """True for a folder with an LMDB environment in it, or one in each `shard_<k>` inside."""
    path = Path(path)
    return (path / "data.mdb").exists() or any(path.glob("shard_*/data.mdb"))


def open_clips(path: str | Path, on_bad: str = "stop"):
    """Returns the clean clips of a folder of latent shards or of an LMDB: `clips[i] -> (latents, prompt)`,
    `len(clips)`, `clips.shortest` and `clips.refresh()`.

    Errors: ValueError naming a folder that holds neither, or a bad record under `stop`.
    """
    return LmdbClips(path, on_bad) if is_lmdb(path) else LatentFolder(path, on_bad)


def open_pairs(path: str | Path, on_bad: str = "stop"):
    """Returns the ODE pairs of a folder of shards or of an LMDB: `pairs[i] -> (trajectory, prompt)`, `len(pairs)`,
    `pairs.shape` (T, F, C, h, w) and `pairs.sigmas`, or None where the store does not say them.

    Errors: ValueError naming a folder that holds neither.
    """
    return LmdbPairs(path, on_bad) if is_lmdb(path) else PairFolder(path, on_bad)
