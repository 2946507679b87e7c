"""Which files of a folder are pictures or videos, by their endings or else by their content; the others by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

IMAGE_SUFFIXES = tuple(".png .jpg .jpeg .webp .bmp .tif .tiff .avif .jfif .ppm".split())
VIDEO_SUFFIXES = tuple(
    ".mp4 .mov .mkv .webm .avi .gif .m4v .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv .vob .y4m".split()
)
KINDS = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
CAPTION = ".txt"
NAMED = 5  # files in one message
PLAYLISTS = {"hls", "concat", "dash"}  # name other files
LOCAL = {"protocol_whitelist": "file"}


@dataclass
class Media:
    """What a folder holds, by name: files of each kind, captions by stem, and what is left out, with the reason."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    captions: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)  # names
    folders: list[str] = field(default_factory=list)  # names

    def of(self, kind: str) -> list[Path]:
        """Returns the files of a kind, "image" or "video"."""
        return self.images if kind == "image" else self.videos

    def left_out(self, used: Sequence[Path]) -> list[str]:
        """Returns one sentence for each sort of thing that is in the folder and is not read."""
        stems = {file.stem for file in used}
        lonely = [path.name for stem, path in self.captions.items() if stem not in stems]
        sorts = (
            (self.others, "files are no pictures or videos that can be read"),
            (lonely, "captions have no picture or video"),
            (self.folders, "sub-folders are not read; encode each on its own"),
        )
        return [f"{len(names)} {what}: {listed(names)}" for names, what in sorts if names]


def scan(folder: str | Path) -> Media:
    """Returns what a folder holds. Hidden files are not looked at; pipes, devices and broken links are `others`.

    Errors: ValueError for two captions of one name.
    """
    media, unclear = Media(), []
    for path in sorted(Path(folder).iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            media.folders.append(path.name)
        elif not path.is_file():
            media.others.append(path.name)
        elif suffix == CAPTION:
            if path.stem in media.captions:
                raise ValueError(f"{folder} holds two captions of one name, {path.name} among them; keep one")
            media.captions[path.stem] = path
        elif suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES:
            media.of(media_kind(path)).append(path)
        else:
            unclear.append(path)
    clear = {path.stem for path in (*media.images, *media.videos)}  # a thing of the same name is what belongs to it
    for path in unclear:
        kind = None if path.stem in clear else media_kind(path)
        media.of(kind).append(path) if kind else media.others.append(path.name)
    media.images.sort()
    media.videos.sort()
    return media


def media_kind(path: str | Path) -> str | None:
    """Returns "image" or "video" by a file's ending, in any case, else by its content; None for something else."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None) or _look(str(path))


@lru_cache(1024)
def _look(path: str) -> str | None:
    import av

    try:
        with av.open(f"file:{path}", options=LOCAL, metadata_errors="replace") as container:
            name = container.format.name
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams or name in PLAYLISTS or name == "tty":  # which takes any text for a video
                return None
            return "image" if name.endswith("_pipe") or name == "image2" else "video"
    except (av.FFmpegError, OSError, ValueError):
        return None


def listed(names: Sequence[str], count: int = NAMED) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
