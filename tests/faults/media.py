"""Pictures and videos of other makers, and damaged ones, wherever they come in."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from tests.faults.inputs import Inputs, captions
from tests.faults.judge import DONE, EITHER, REFUSED, Attempt, Fault
from tests.faults.mutate import damaged_bytes


def _bomb() -> bytes:
    """A PNG whose header says 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(40)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(marker) (w) file\nshowpage\n%%EOF\n"
PICTURES = {
    "eps.png": EPS,
    "eps.eps": EPS,
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="/etc/passwd"/></svg>',
    "bomb.png": _bomb(),
    "empty.png": b"",
    "text.jpg": b"not a picture\n",
    "pdf.png": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "xbm.png": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};\n",
}
VIDEOS = {
    "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "concat.mp4": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "sdp.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "address.mp4": b"http://127.0.0.1:9/video.mp4\n",
    "empty.mp4": b"",
    "text.mp4": b"not a video\n",
    "subtitles.mp4": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "dash.mp4": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>file:///etc/</BaseURL></MPD>',
}
SIZES = {"one pixel": (1, 1), "a line": (4000, 1), "tall": (3, 3000), "grey": (32, 32), "right": (64, 48)}


def faults(inputs: Inputs) -> Iterator[Fault]:
    """Yields pictures and videos as starts, in folders of clips and in comparisons."""
    for name, data in PICTURES.items():
        yield Fault("picture", name, "inference.py", partial(start, inputs, "--start_image", name, data, REFUSED))
    for name, data in VIDEOS.items():
        yield Fault("video", name, "inference.py", partial(start, inputs, "--start_video", name, data, REFUSED))
        yield Fault("clips", name, "scripts/encode_latents.py", partial(clips, name, data, REFUSED))
    picture = _png((32, 32))
    for name, size in SIZES.items():
        expect = EITHER if min(size) < 4 else DONE
        made = partial(start, inputs, "--start_image", "p.png", _png(size), expect)
        yield Fault("picture", name, "inference.py", made)
    first = sorted(inputs.videos.glob("*.mp4"))[0].read_bytes()
    for seed in range(16):
        name, data = damaged_bytes(first, seed)
        yield Fault(
            "video", f"{name} {seed}", "inference.py", partial(start, inputs, "--start_video", "v.mp4", data, EITHER)
        )
        if seed < 8:
            yield Fault("clips", f"{name} {seed}", "scripts/encode_latents.py", partial(clips, "v.mp4", data, EITHER))
            yield Fault("compared", f"{name} {seed}", "scripts/evaluate.py", partial(compared, inputs, data))
        name, data = damaged_bytes(picture, seed)
        yield Fault(
            "picture", f"{name} {seed}", "inference.py", partial(start, inputs, "--start_image", "p.png", data, EITHER)
        )


def start(inputs: Inputs, flag: str, name: str, data: bytes, expect: str, folder: Path) -> Attempt:
    """A picture or a video as the start of a video."""
    (folder / name).write_bytes(data)
    return Attempt(inputs.generate(folder, flag, folder / name), (name,), expect, folder / "out")


def clips(name: str, data: bytes, expect: str, folder: Path) -> Attempt:
    """A folder of one clip and its caption, to be encoded."""
    media = folder / "media"
    media.mkdir()
    (media / name).write_bytes(data)
    captions(media, [name])
    arguments = ["folder", "--vae", "assets/digits/vae", "--input", str(media), "--frames", "5"]
    arguments += ["--height", "32", "--width", "32", "--output", str(folder / "out")]
    return Attempt(arguments, (name, str(media)), expect, folder / "out")


def compared(inputs: Inputs, data: bytes, folder: Path) -> Attempt:
    """A damaged video against a good one."""
    good = sorted(inputs.videos.glob("*.mp4"))[0]
    (folder / "v.mp4").write_bytes(data)
    arguments = ["compare", str(good), str(folder / "v.mp4"), "--output", str(folder / "out.json")]
    return Attempt(arguments, ("v.mp4",), EITHER)


def _png(size: tuple[int, int]) -> bytes:
    import io

    file = io.BytesIO()
    Image.new("L", size, 120).save(file, "PNG")
    return file.getvalue()
