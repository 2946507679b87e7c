"""A file that grows arrives whole: whenever it is begun, renamed, removed, and however it is written."""

from __future__ import annotations

import asyncio

from utils.media import growing
from utils.media.growing import follow


def collect(paths, is_over, *events) -> bytes:
    """Returns what arrives while the events, callables, happen one after another."""

    async def run() -> bytes:
        got, stream = [], follow(paths, is_over)

        async def read():
            async for data in stream:
                got.append(data)

        reader = asyncio.create_task(read())
        for event in events:
            await asyncio.sleep(2.5 * growing.PAUSE)
            event()
        await asyncio.wait_for(reader, 20)
        return b"".join(got)

    return asyncio.run(run())


def test_all_bytes_arrive_though_the_file_is_late_and_is_renamed(tmp_path):
    partial, path, over = tmp_path / "v.partial.mp4", tmp_path / "v.mp4", []
    parts = [bytes([n]) * (3 * growing.PIECE + n) for n in range(4)]

    def write(part):
        with partial.open("ab") as file:
            file.write(part)

    def end():
        partial.rename(path)
        with path.open("ab") as file:
            file.write(b"end")
        over.append(True)

    got = collect([partial, path], lambda: bool(over), *[lambda part=part: write(part) for part in parts], end)
    assert got == b"".join(parts) + b"end"


def test_a_finished_file_is_sent_at_once_under_its_last_name(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"whole")
    assert collect([tmp_path / "v.partial.mp4", tmp_path / "v.mp4"], lambda: True) == b"whole"


def test_a_file_that_is_removed_is_read_to_its_end(tmp_path):
    path, over = tmp_path / "v", []
    path.write_bytes(b"some")
    assert collect([path], lambda: bool(over), path.unlink, lambda: over.append(1)) == b"some"


def test_a_file_that_never_comes_ends_with_its_job(tmp_path):
    over = []
    assert collect([tmp_path / "none"], lambda: bool(over), lambda: over.append(1)) == b""
