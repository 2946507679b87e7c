"""A service on several ranks without its page; started by torchrun from test_ranks.py.

torchrun --nproc_per_node=3 -m tests.pipeline.service.ranks_worker FOLDER
The first rank asks for videos as pages do, prints what became of each as JSON, and ends as by Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.service.controls import Controls
from pipeline.service.jobs import Jobs
from pipeline.service.worker import Worker
from tests.architecture.source import ROOT
from tests.pipeline.service.talks import LONG, job, write_talk
from utils.door import door
from utils.parallel import ranks

RECIPE = ROOT / "configs/infer/digits_avatar_tpp.yaml"


def ask(worker: Worker, controls: Controls, jobs: Jobs, folder: Path) -> list:
    """Asks for videos one after another; returns [what, state, error, chunks, all chunks, video] of each."""
    short, long = write_talk(folder), write_talk(folder, LONG, "long")
    found = []

    def wait(what: str, made, until=lambda made: False) -> None:
        jobs.submit(made)
        while not made.is_over and not until(made):
            time.sleep(0.02)
        jobs.stop(made)
        while not made.is_over:
            time.sleep(0.02)
        found.append([what, made.state, made.error, made.chunks, made.num_chunks, str(made.path)])

    wait("first", job(worker, controls, "a", *short))
    wait("stopped", job(worker, controls, "a", *long, prompt=LONG.prompt), lambda made: made.chunks >= 2)
    wait("no LoRA", job(worker, controls, "a", *short, lora=(str(folder / "none.safetensors"),)))
    blocked = job(worker, controls, "a", *short)
    blocked.path.parent.parent.mkdir(parents=True, exist_ok=True)
    blocked.path.parent.write_text("no folder can have this name")
    wait("no folder", blocked)
    blocked = job(worker, controls, "a", *short)
    blocked.files[0].mkdir(parents=True)  # the last rank's: the first one writes nothing
    wait("no file", blocked)
    wait("again", job(worker, controls, "a", *short))
    return found


@door("ranks_worker")
def main() -> None:
    """Serves until the first rank has asked for everything."""
    folder = Path(sys.argv[1])
    worker = Worker.build(str(RECIPE), [f"output.folder={folder / 'out'}"])
    worker.load()
    if ranks.rank() != 0:
        return worker.follow()
    jobs, controls = Jobs(), worker.controls()

    def run() -> None:
        try:
            print(json.dumps(ask(worker, controls, jobs, folder)), flush=True)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=run, daemon=True).start()
    return worker.serve(jobs)


if __name__ == "__main__":
    raise SystemExit(main())
