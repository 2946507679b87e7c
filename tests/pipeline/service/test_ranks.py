"""Jobs on ranks: the video of one process, stopped, failed and made again, without a restart of any rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipeline.batch.run import run
from pipeline.config import load_recipe
from tests.architecture.source import ROOT
from tests.pipeline.service.talks import RECIPE, TALK, write_talk
from utils.config.text import format_value
from utils.media.mp4 import find_damage


def test_ranks_outlive_jobs_that_fail(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    command += ["-m", "tests.pipeline.service.ranks_worker", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    assert lines, done.stderr[-3000:]
    first, stopped, no_lora, no_folder, no_file, again = json.loads(lines[0])
    assert first[:3] == ["first", "done", ""] and again[:3] == ["again", "done", ""]
    face, voice = write_talk(tmp_path, name="same")
    given = [f"data.image={format_value(str(face))}", f"data.audio={format_value(str(voice))}"]
    given += [f"data.prompt={format_value(TALK.prompt)}", f"output.folder={tmp_path / 'alone'}", "output.sheet=false"]
    (alone,) = run(load_recipe(RECIPE, given)[0])
    assert Path(first[-1]).read_bytes() == Path(again[-1]).read_bytes() == alone.read_bytes()
    assert stopped[1] == "stopped" and 2 <= stopped[3] < stopped[4]
    frames = json.loads(Path(stopped[-1]).with_suffix(".json").read_text())["frames"]
    assert find_damage(stopped[-1], frames) is None and frames == 12 * stopped[3] - 3
    assert no_lora[1] == "failed" and "none.safetensors is not there" in no_lora[2]
    assert no_folder[1] == no_file[1] == "failed" and "Not a directory" in no_folder[2]
    assert "partial.mp4" in no_file[2]
