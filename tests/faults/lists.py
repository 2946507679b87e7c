"""Lists of prompts and prompt schedules as people keep them, and as disks leave them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.faults.inputs import Inputs, one_line
from tests.faults.judge import DONE, EITHER, REFUSED, Attempt, Fault
from tests.faults.mutate import damaged_json

P = "a red three moves right"
SCHEDULE = {
    "prompts": [{"text": P, "end_frame": 2}, {"text": "a green five moves up", "end_frame": 3}],
    "seed": 3,
    "length": 3,
    "negative_prompt": "",
    "name": "one",
}
DRAWN = 45

TEXTS: dict[str, tuple[bytes, str]] = {
    "utf16": (f"{P}\n".encode("utf-16"), EITHER),
    "utf16 without mark": (f"{P}\n".encode("utf-16-le"), REFUSED),
    "latin1": (b"a red caf\xe9 moves right\n", REFUSED),
    "nul bytes": (b"a red three\0 moves right\n", REFUSED),
    "empty": (b"", REFUSED),
    "blank lines": (b"\n \n\t\n", REFUSED),
    "zero bytes": (bytes(4096), REFUSED),
    "byte order mark": (b"\xef\xbb\xbf" + P.encode() + b"\n", DONE),
    "carriage returns": (P.encode() + b"\r\n", DONE),
    "no newline at the end": (P.encode(), DONE),
    "escape codes": (b"\x1b[31ma red three moves right\n", EITHER),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), REFUSED),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(60), REFUSED),
    "json list": (json.dumps([P, P]).encode(), EITHER),
    "json of dictionaries": (json.dumps([{"caption": P}]).encode(), EITHER),
    "json of nothing known": (json.dumps({"a": {"b": 1}}, indent=1).encode(), REFUSED),
    "csv": (f"file,caption\na.mp4,{P}\n".encode(), EITHER),
    "tsv": (f"file\tcaption\na.mp4\t{P}\n".encode(), EITHER),
    "yaml": (f"prompts:\n  - {P}\n  - {P}\n".encode(), EITHER),
    "a line of a million letters": (b"a" * 1_000_000, REFUSED),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", REFUSED),
}
ENDINGS = {"json list": ".json", "json of dictionaries": ".json", "json of nothing known": ".json"}
ENDINGS |= {"csv": ".csv", "tsv": ".tsv", "yaml": ".yaml", "gzip": ".txt.gz", "png": ".png", "html": ".html"}

LINES: dict[str, str] = {
    "no JSON": "a red three moves right\n",
    "a list": "[]\n",
    "a number": "5\n",
    "no prompts": "{}\n",
    "empty prompts": '{"prompts": []}\n',
    "half a line": '{"prompts": [{"text": "a red',
    "a key twice": '{"prompts": ["a"], "prompts": ["b"]}\n',
    "unknown key": one_line({"prompts": [P], "sed": 3}),
    "nested": '{"prompts": ' + "[" * 5000 + "]" * 5000 + "}\n",
    "ends fall": one_line({"prompts": [{"text": P, "end_frame": 3}, {"text": P, "end_frame": 2}]}),
    "time of another unit": one_line({"prompts": [{"text": P, "end": "3 weeks"}]}),
    "missing image": one_line({"prompts": [P], "image": "nowhere.png"}),
    "image outside": one_line({"prompts": [P], "image": "../../../../../etc/hostname"}),
    "name of a path": one_line({"prompts": [P], "name": "../../x"}),
    "surrogates": '{"prompts": ["\\ud800"]}\n',
}


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields files given as --data_path."""
    for name, (data, expect) in TEXTS.items():
        file = "list" + ENDINGS.get(name, ".txt")
        yield Fault("list", name, "inference.py", partial(written, inputs, file, data, expect))
    for name, text in LINES.items():
        expect = EITHER if name in ("name of a path", "a key twice") else REFUSED
        yield Fault("schedule", name, "inference.py", partial(written, inputs, "s.jsonl", text.encode(), expect))
    for seed in range(DRAWN):
        name, text = damaged_json(json.dumps(SCHEDULE), seed)
        data = text.encode(errors="surrogateescape")
        made = partial(written, inputs, "s.jsonl", data, EITHER)
        yield Fault("schedule", f"{seed}: {name}", "inference.py", made)
    for name, make in PLACES.items():
        yield Fault("place of a list", name, "inference.py", partial(placed, inputs, make))


def written(inputs: Inputs, file: str, data: bytes, expect: str, folder: Path) -> Attempt:
    """Writes a list and returns the attempt that generates from it."""
    path = folder / file
    path.write_bytes(data)
    arguments = inputs.generate(folder, "--data_path", path, prompt="")
    return Attempt(arguments, (str(path), path.name), expect, folder / "out")


def placed(inputs: Inputs, make: Callable[[Path], None], folder: Path) -> Attempt:
    """Makes something that is no readable file and gives it as a list."""
    path = folder / "list.txt"
    make(path)
    return Attempt(inputs.generate(folder, "--data_path", path, prompt=""), (str(path),), REFUSED, folder / "out")


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a broken link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "memory of the process": lambda path: path.symlink_to("/proc/self/mem"),
}
