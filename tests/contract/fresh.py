"""Calls a function in a process of its own, where no earlier test has left threads, caches or garbage.

One of these is tqdm's monitor, a thread that the first progress bar of a process starts and that never ends: every ten
seconds it waits anew, and the arguments of that wait, (True, 10), are an object more until the next collection.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.architecture.source import ROOT

CODE = """
import importlib, json, sys
import torch
from tqdm import tqdm
torch.set_num_threads(1)
tqdm.monitor_interval = 0
module, name = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)()))
"""


def in_fresh_process(function):
    """Returns what a function of a module returns; what JSON holds."""
    command = [sys.executable, "-c", CODE, function.__module__, function.__name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
