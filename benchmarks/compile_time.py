"""How long compiling takes, cold and from the cache, each time in a fresh process: ``python benchmarks/compile_time.py``.

The subject is a trajectory of twenty guided steps of a DiT (``networks.dit_loop``). ``cold`` compiles into an empty cache,
``again`` compiles the same once more in that process, ``other steps`` the same network with 25 steps, from its draft;
``cached`` is the first compilation of another process. ``import`` and ``network`` (from_module, with all that diffusers
imports) come before any of them. Every number is stated twice, as time passed and as time of the processor: on a machine
with other work to do only the second tells much. Medians over the processes go to ``results/compile-<case>.json``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
width, layers, tokens, cold = map(int, sys.argv[2:])
parts, before = {}, (time.perf_counter(), time.process_time())
def mark(name):
    global before
    now = time.perf_counter(), time.process_time()
    parts[name] = [b - a for a, b in zip(before, now)]
    before = time.perf_counter(), time.process_time()
import torch
torch.set_num_threads(1)
import scoregraph as sg
sg.compile
mark("import")
import networks
case = networks.dit_loop(width, layers, tokens)
graph = networks.graph_of(case).build()
longer = networks.graph_of(networks.dit_loop(width, layers, tokens, 25)).build() if cold else None
mark("network")
known = {ref.fingerprint: net for net in networks.graph_of(case).networks for ref in [net.ref]}
before = time.perf_counter(), time.process_time()
sg.compile(graph, device="cpu", networks=known)
mark("cold" if cold else "cached")
if cold:
    sg.compile(graph, device="cpu", networks=known)
    mark("again")
    sg.compile(longer, device="cpu", networks=known)
    mark("other steps")
print(json.dumps(parts))
"""
