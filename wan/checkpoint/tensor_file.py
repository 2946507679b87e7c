"""Reads files of tensors: safetensors, torch archives, sharded folders. No pickle is ever executed.

The kind of a file is told by its first bytes, never by its name.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import secrets
import stat
import zipfile
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from utils.json_reader import JsonError, get, read_json
from wan.checkpoint.foreign import name_format

STEM = "diffusion_pytorch_model"  # what official and diffusers folders call their weights
TRANSFORMERS_STEM = "pytorch_model"  # what older folders of transformers do

# Whether the checksums of torch archives are compared when one is read; one pass over the file, about a second per GB.
verify_archives: ContextVar[bool] = ContextVar("verify_archives", default=True)
INDEX = re.compile(r"(?P<stem>.+)\.(safetensors|bin)\.index(\.[\w-]+)?\.json")  # diffusers puts a variant's name inside
ALPHA = ".alpha"  # ends the names of single numbers that say how strong a LoRA is
PIECE = 1 << 24  # bytes of a record that are summed at a time

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def read(path: str | Path, shapes_only: bool = False) -> dict:
    """Returns the dict of tensors (nested where the file is) of a file, or of the shards of a folder or an index.

    `shapes_only`: safetensors give meta tensors without reading the data, except of a LoRA's alphas; torch archives
    are mapped lazily in any case, and their checksums compared unless it is set or `verify_archives` is not.
    Errors: ValueError naming the file if it is missing, truncated, damaged or no such file.
    """
    path = Path(path)
    if path.is_dir() or INDEX.fullmatch(path.name):
        return _read_shards(path, shapes_only)
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path, shapes_only)
    return _read_archive(path, verify_archives.get() and not shapes_only)


def metadata(path: str | Path) -> dict[str, str]:
    """Returns the safetensors header's text fields; empty for other files."""
    path = Path(path)
    if path.is_dir() or _kind(path) != "safetensors":
        return {}
    from safetensors import safe_open

    with _explained(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


def files(folder: str | Path) -> list[Path]:
    """Returns the weight files of a folder: one file, or the shards its index names; `folder` may be the index itself.

    Errors: ValueError listing what the folder holds.
    """
    folder = Path(folder)
    if index := find_index(folder):
        names = sorted(set(read_index(index).values()))
        if lost := [n for n in names if not (index.parent / n).is_file()]:
            listed = f"{len(lost)} of {len(names)} shards: {', '.join(lost[:5])}"
            raise ValueError(f"{index.parent} is without {listed}, which {index.name} names; download them again")
        return [index.parent / n for n in names]
    found = sorted(folder.glob("*.safetensors"))
    found = [f for f in found if f.stem == STEM] or found
    found = found or [file for name in (STEM, TRANSFORMERS_STEM) if (file := folder / f"{name}.bin").is_file()][:1]
    if len(found) != 1:
        why = "several weight files and no index" if found else "no weights"
        raise ValueError(f"{folder} holds {why}; {describe(folder)}")
    return found


def find_index(path: Path) -> Path | None:
    """Returns the index of a folder's shards (or `path`, if it is one), None if there is none.

    The index without a variant's name comes before those of variants (`*.safetensors.index.fp16.json`), and the one
    called as a transformer before others. Errors: ValueError where several remain.
    """
    if not path.is_dir():
        return path if INDEX.fullmatch(path.name) else None
    found = [file for file in sorted(path.iterdir()) if INDEX.fullmatch(file.name)]
    for rule in (lambda file: file.name.startswith(STEM), lambda file: file.name.endswith(".index.json")):
        found = [file for file in found if rule(file)] or found
    if len(found) > 1:
        raise ValueError(f"{path} holds several indices: {', '.join(f.name for f in found)}; give the path of one")
    return found[0] if found else None


def read_index(path: Path) -> dict[str, str]:
    """Returns key -> shard of an index. Errors: JsonError for another content, or a shard outside its folder."""
    entries = get(read_json(path), "weight_map", dict, str(path))
    for key, name in entries.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise JsonError(f"{path}: weight_map names {name!r} for {key}; it must be the name of a file in its folder")
    if not entries:
        raise JsonError(f"{path}: weight_map is empty; download it again")
    return entries


def describe(folder: Path) -> str:
    """Returns where a training's run folder has its weights; of another folder what it holds."""
    export = folder / "export"
    if (export / "lora.safetensors").is_file():
        return f"it is the folder of a training of adapters: give {export / 'lora.safetensors'} as LoRA"
    if parts := [path for path in sorted(export.glob("*")) if path.is_dir()]:
        return f"it is the folder of a training: give {next((p for p in parts if p.name == 'transformer'), parts[0])}"
    if any((folder / "checkpoints").glob("*/")):
        command = f"python scripts/export_checkpoint.py {folder} FILE"
        return f"it is the folder of a training that has no export yet: run `{command}`"
    return f"it has: {listing(folder)}"


def listing(folder: Path) -> str:
    """Returns the names in a folder, for error messages."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:20]) + ", ..." * (len(names) > 20) if names else "nothing"


def write_safetensors(path: str | Path, state: dict[str, torch.Tensor], notes: dict[str, str] | None = None):
    """Writes one safetensors file under a temporary name, then renames it; a failure leaves no file behind.

    The file has the modes of the user's umask. The temporary name cannot be known beforehand: no link can wait there.
    Errors: OSError naming the path (e.g. a full disk).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    seen, separate = set(), {}
    for name, tensor in state.items():  # the format knows no shared storage
        twin = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor.detach().clone() if twin else tensor.detach().contiguous()
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        save_file(separate, partial, {"format": "pt", **(notes or {})})  # in its place puts one of mode 0600
        partial.chmod(mode)
        _sync(partial)
        os.replace(partial, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync(path.parent)
    except SafetensorError as reason:  # the library's own kind, also for a full disk
        raise OSError(f"{path} cannot be written ({reason}); nothing half has this name; free space") from reason
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def safetensors_head(name: str, shape: tuple[int, ...]) -> bytes:
    """Returns the head of a safetensors file of one fp32 tensor, whose rows follow as their bytes, one by one."""
    size = 4 * math.prod(shape)
    tree = {"__metadata__": {"format": "pt"}, name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _kind(path: Path) -> str:
    if not path.is_file():
        if os.path.lexists(path):
            raise ValueError(f"{path} is not a regular file; give a file of weights")
        raise ValueError(f"{path} is missing; {path.parent} holds: {listing(path.parent)}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer to a large file, not the file; fetch it (git lfs pull, or hf download)")
    if head[8:9] == b"{":
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "archive"
    if name := name_format(head):
        raise ValueError(f"{path} is {name}; safetensors files and torch archives are read here")
    raise ValueError(f"{path} is neither a safetensors file nor a torch archive; or its beginning is damaged")


def _read_safetensors(path: Path, shapes_only: bool) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    out = {}
    with _explained(path), safe_open(path, "pt") as file:
        for name in file.keys():
            part = file.get_slice(name)
            if not shapes_only or (name.endswith(ALPHA) and math.prod(part.get_shape()) == 1):
                out[name] = file.get_tensor(name)
                continue
            dtype = _DTYPES.get(part.get_dtype())
            out[name] = torch.empty(part.get_shape(), dtype=dtype or torch.uint8, device="meta")
    return out


def _read_archive(path: Path, verify: bool) -> dict:
    _refuse_objects(path)
    if verify:
        check_archive(path)
    with _explained(path):
        # Mapping needs the zip layout; files of old torch releases are read whole.
        out = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    if not isinstance(out, dict):
        raise ValueError(f"{path} holds a {type(out).__name__}, not a dict of tensors")
    return out


def check_archive(path: str | Path) -> None:
    """Compares the checksum of each record of a torch archive; files of old torch releases have none.

    Errors: ValueError naming the first damaged record.
    """
    if not zipfile.is_zipfile(path):
        return
    with _explained(Path(path)), zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            bad = next((info.filename for info in archive.infolist() if _checksum(data, info) != info.CRC), None)
    if bad is not None:
        raise ValueError(
            f"{path} is damaged at record {bad}: its checksum is another; download it again (an archive that was "
            "written without checksums is read with verify_archives=false)"
        )


def _checksum(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Returns the CRC-32 of a stored record; -1 where it is not there as the directory says."""
    head = data[info.header_offset : info.header_offset + 30]
    if info.compress_type != zipfile.ZIP_STORED or head[:4] != b"PK\x03\x04":
        return -1
    begin = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    total = 0
    with memoryview(data) as view:
        for at in range(begin, begin + info.file_size, PIECE):
            with view[at : min(at + PIECE, begin + info.file_size)] as piece:
                total = zlib.crc32(piece, total)
    return total


def _refuse_objects(path: Path):
    """Raises ValueError naming the classes that an archive would have to import."""
    if not zipfile.is_zipfile(path):
        return  # an old or a truncated file: the reader itself refuses both
    with _explained(path):
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if classes:
        raise ValueError(
            f"{path} holds Python objects next to tensors ({', '.join(sorted(classes)[:5])}) and is refused: "
            "nothing in a checkpoint is executed. Save its tensors alone, as safetensors"
        )


def _read_shards(folder: Path, shapes_only: bool) -> dict:
    out: dict = {}
    for file in files(folder):
        part = read(file, shapes_only)
        if twice := sorted(out.keys() & part.keys()):
            raise ValueError(f"{file} repeats keys of another shard: {', '.join(twice[:5])}")
        out |= part
    index = find_index(folder)
    if index and (lost := sorted(read_index(index).keys() - out.keys())):
        raise ValueError(f"{index} names {len(lost)} keys that its shards do not hold: {', '.join(lost[:5])}")
    return out


def read_config(folder: Path) -> dict | None:
    """Returns config.json of a folder, or None if there is none. Errors: JsonError for one that is not an object."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else None


@contextmanager
def _explained(path: Path):
    """Turns what the readers raise on bad bytes into a ValueError naming the file."""
    from safetensors import SafetensorError

    # What torch's weights-only reader raises; it interprets a small safe part of the format itself.
    refusal = torch.serialization.pickle.UnpicklingError
    damage = (SafetensorError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)
    try:
        yield
    except PermissionError:
        raise ValueError(f"{path} may not be read; change its permissions") from None
    except refusal:
        raise ValueError(
            f"{path} is damaged, or holds Python objects next to tensors; nothing in a checkpoint is executed. "
            "Download it again, or save its tensors alone as safetensors"
        ) from None
    except damage as reason:
        first = str(reason).strip().splitlines()[:1] or [type(reason).__name__]
        if "allocate memory" in first[0]:
            raise OSError(errno.ENOMEM, f"not enough memory to read {path} ({first[0]})") from reason
        raise ValueError(f"{path} is truncated or damaged ({first[0]}); download it again") from None
