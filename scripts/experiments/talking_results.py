"""Shows the records of the talking digits (docs/results/avatar) as tables, verdicts and curves.

`avatar`: a line a model, at 1x and 20x, for the README; `avatar-sounds`: with the sound shifted, silenced, exchanged;
`avatar-thirds`: along the videos; `avatar-gates`: what was to be reached, and whether it is;
docs/images/avatar_follow.png: the height against the law, a video a model; docs/images/avatar_lag.png: correlation over
the shift.
"""

from __future__ import annotations

from pathlib import Path

from scripts.experiments import figures, talking
from scripts.experiments.records import read_record
from scripts.measure.markdown import table_head, table_row

SHOWN = ("follow", "digit", "direction", "colour")
SHARE = {"follow": 0.9, "digit": 0.7, "direction": 0.8, "colour": 0.9}  # of the codec's value
STYLES = {"the sound's law": ("black", "--"), "the digit": ("C3", "-")}
NEAR, QUIET, STRANGE = 0.1, 0.9, 0.2
REAL = {"real clips": "real", "real clips through the codec": "codec", "real, another's sound": "other"}
COMMAND = "python scripts/digits_avatar.py --rows"


def read(root: Path, name: str) -> dict | None:
    """Returns one record, or None."""
    return read_record(root / talking_folder() / f"{name}.json")


def talking_folder() -> Path:
    """Returns where the records are, from the project on."""
    return Path("docs/results/avatar")


def sound(root: Path, name: str, kind: str) -> dict | None:
    """Returns the metrics of a model on one kind of sound, or None."""
    record = read(root, name)
    return record["sounds"].get(kind) if record else None


def cell(row: dict | None, metric: str) -> str:
    """Returns a number, or a dash."""
    value = row.get(metric) if row else None
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def short(root: Path) -> str:
    """Returns a line a model: what was measured at one and twenty training lengths."""
    header = ["model", *(f"{metric} 1x" for metric in SHOWN), "lag 1x, frames", *(f"{metric} 20x" for metric in SHOWN)]
    lines = table_head(header)
    real = read(root, "real") or {}
    for title, key in REAL.items():
        row = real.get(key)
        lines.append(table_row([title, *(cell(row, metric) for metric in (*SHOWN, "lag")), *["" for _ in SHOWN]]))
    for name, model in talking.MODELS.items():
        once, long = sound(root, name, "1x"), sound(root, name, "20x")
        numbers = [*(cell(once, m) for m in (*SHOWN, "lag")), *(cell(long, m) for m in SHOWN)]
        empty = [f"not run: `{COMMAND} {name}`", *["" for _ in header[2:]]]
        lines.append(table_row([model.title, *(numbers if once else empty)]))
    return "\n".join(lines)


def sounds(root: Path) -> str:
    """Returns how each model answers another sound than its own."""
    header = ["model", "own sound: follow, lag, rms px", "shifted by 6 frames: lag", "silent: frames at rest"]
    lines = table_head([*header, "another's: follow"])
    for name, model in talking.MODELS.items():
        own = sound(root, name, "1x")
        if own and "silent" in model.sounds:
            shifted, silent, other = (sound(root, name, kind) for kind in ("shifted", "silent", "other"))
            first = ", ".join(cell(own, metric) for metric in ("follow", "lag", "rms"))
            rest = [cell(shifted, "lag"), cell(silent, "rest"), cell(other, "follow")]
            lines.append(table_row([model.title, first, *rest]))
    return "\n".join(lines)


def thirds(root: Path) -> str:
    """Returns the metrics along the videos: the first third is the weak one."""
    lines = table_head(["model", "length", *(f"{metric}, by thirds" for metric in SHOWN)])
    rows = [("through the codec", "1x", (read(root, "real") or {}).get("codec"))]
    models, kinds = talking.MODELS.items(), ("1x", "20x")
    rows += [(model.title, kind, sound(root, name, kind)) for name, model in models for kind in kinds]
    for title, kind, row in rows:
        if row:
            parts = [" / ".join(cell(third, metric) for third in row["thirds"]) for metric in SHOWN]
            lines.append(table_row([title, kind, *parts]))
    return "\n".join(lines)


def gates(root: Path) -> str:
    """Returns what was to be reached, what was, and the verdict; a dash where nothing was measured."""
    lines = table_head(["what", "wanted", "reached", "verdict"])
    for what, wanted, reached, good in verdicts(root):
        word = "not run" if good is None else "reached" if good else "missed"
        lines.append(table_row([what, wanted, reached, word]))
    return "\n".join(lines)


def verdicts(root: Path) -> list[tuple[str, str, str, bool | None]]:
    """Returns (what, wanted, reached, whether) of every gate."""
    codec = (read(root, "real") or {}).get("codec")
    base, student = sound(root, "sft", "1x"), sound(root, "student", "1x")
    found = [compare(f"same-step training: {m}", base, m, codec, lambda c, m=m: SHARE[m] * c) for m in SHOWN]
    found.append(within("same-step training: lag", base, "lag", -1, 1))
    found += [compare(f"four-step student: {m}", student, m, base, lambda b: b - NEAR) for m in SHOWN]
    for name in ("sft", "student"):
        once, title = sound(root, name, "1x"), "same-step training" if name == "sft" else "four-step student"
        long = sound(root, name, "20x")
        found += [compare(f"{title}, 20x: {m}", long, m, once, lambda b: b - NEAR) for m in SHOWN]
        late = once["lag"] + talking.SHIFT if once else talking.SHIFT
        found.append(within(f"{title}, sound shifted: lag", sound(root, name, "shifted"), "lag", late - 1, late + 1))
        found.append(within(f"{title}, silent: at rest", sound(root, name, "silent"), "rest", QUIET, 1.0))
        found.append(within(f"{title}, another's sound: follow", sound(root, name, "other"), "follow", -1.0, STRANGE))
    return found


def compare(what: str, row: dict | None, metric: str, other: dict | None, least) -> tuple[str, str, str, bool | None]:
    """Returns the gate of a metric that must reach what `least` makes of another row's."""
    if not row or not other:
        return what, "-", cell(row, metric), None
    wanted = least(other[metric])
    return what, f">= {wanted:.2f}", cell(row, metric), row[metric] is not None and row[metric] >= wanted


def within(what: str, row: dict | None, metric: str, low: float, high: float) -> tuple[str, str, str, bool | None]:
    """Returns the gate of a metric that must lie between two numbers."""
    wanted = f"<= {high:g}" if low == -1.0 and isinstance(low, float) else f"{low:g} .. {high:g}"
    return what, wanted, cell(row, metric), None if not row or row[metric] is None else low <= row[metric] <= high


def draw(root: Path) -> None:
    """Draws the curves of the records."""
    lags, heights = {}, {}
    for name, model in {**talking.MODELS, "codec": None}.items():
        row = sound(root, name, "1x") if model else (read(root, "real") or {}).get("codec")
        if row:
            curve = sorted((int(lag), value) for lag, value in row["lags"].items())
            lags[name] = ([lag for lag, _ in curve], [value for _, value in curve], None)
            heights |= show_first(name, row)
    panels = {"correlation with the law over the shift of the picture": lags} if lags else {}
    figures.draw(panels, root / "docs/images/avatar_lag.png", "frames", 1)
    figures.draw(heights, root / "docs/images/avatar_follow.png", "pixel frames (8 a second)", 2, STYLES)


def show_first(name: str, row: dict) -> dict:
    """Returns a panel of the first video: the row that its sound asks for, and the row that is seen (up is high)."""
    first = row.get("first")
    if not first:
        return {}
    frames = list(range(len(first["row"])))
    lines = {"the sound's law": first["law"], "the digit": first["row"]}
    return {name: {line: (frames, [None if y is None else -y for y in rows], None) for line, rows in lines.items()}}


TABLES = {"avatar": short, "avatar-sounds": sounds, "avatar-thirds": thirds, "avatar-gates": gates}
