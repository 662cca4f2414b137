"""How long compiling takes, cold and from the cache, in fresh processes: ``python benchmarks/compile_time.py``.

The subject is a trajectory of twenty guided steps of a DiT (``networks.dit_loop``). ``cold`` compiles into an empty
cache, ``again`` compiles the same once more in that process, ``other steps`` the same network with 25 steps, from its
draft; ``cached`` is the first compilation of another process. ``import`` and ``network`` (from_module, with all that
diffusers imports) come before any of them. Every number is stated twice, as time passed and as time of the processor:
on a machine with other work to do only the second tells much. Medians go to ``results/compile-<case>.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent

CHILD = """
import json, sys, time
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
width, layers, tokens, cold = map(int, sys.argv[2:])
def now():
    return time.perf_counter(), time.process_time()
parts, before = {}, now()
def mark(name):
    global before
    parts[name] = [b - a for a, b in zip(before, now())]
    before = now()
import torch
torch.set_num_threads(1)
import scoregraph as sg
sg.compile
mark("import")
import networks
case = networks.dit_loop(width, layers, tokens)
graph = networks.graph_of(case)
longer = networks.graph_of(replace(case, loop=replace(case.loop, steps=25)))
mark("network")
sg.compile(graph, device="cpu")
mark("cold" if cold else "cached")
if cold:
    sg.compile(graph, device="cpu")
    mark("again")
    sg.compile(longer, device="cpu")
    mark("other steps")
print(json.dumps(parts))
"""
"""The paths of a process: what it imports, makes and compiles, and how long each took: [passed, of the processor]."""


def main(
    width: Annotated[int, typer.Option(help="Width of the DiT.")] = 384,
    layers: Annotated[int, typer.Option(help="Its blocks.")] = 12,
    tokens: Annotated[int, typer.Option(help="Tokens of an image.")] = 256,
    processes: Annotated[int, typer.Option(help="Pairs of fresh processes, one without and one with a cache.")] = 3,
) -> None:
    """Measure one DiT and write the results."""
    from stamp import stamp

    runs = [pair(width, layers, tokens) for _ in range(processes)]
    measured = {
        part: {
            "seconds": round(median(run[part][0] for run in runs), 3),
            "processor_seconds": round(median(run[part][1] for run in runs), 3),
        }
        for part in runs[0]
    }
    case = f"dit-{width}x{layers}x{tokens}"
    result = {
        **stamp(),
        "case": case,
        "processes": processes,
        "median": measured,
    }
    path = HERE / "results" / f"compile-{case}-{result['isa']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(measured, case)


def pair(width: int, layers: int, tokens: int) -> dict[str, list[float]]:
    """The parts of a process with an empty cache, and ``cached`` of one that finds the plan there."""
    sizes = [str(size) for size in (width, layers, tokens)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "SCOREGRAPH_CACHE": folder}
        parts: dict[str, list[float]] = {}
        for cold in ("1", "0"):
            command = [sys.executable, "-c", CHILD, str(HERE), *sizes, cold]
            parts |= json.loads(subprocess.check_output(command, text=True, env=environment).splitlines()[-1])
    return parts


def show(measured: dict[str, dict[str, float]], case: str) -> None:
    table = Table(title=f"compiling {case}, seconds")
    for column in ("part", "passed", "of the processor"):
        table.add_column(column, justify="right")
    for part, found in measured.items():
        table.add_row(part, f"{found['seconds']:.2f}", f"{found['processor_seconds']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
