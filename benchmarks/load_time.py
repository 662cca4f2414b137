"""From a saved plan to the first step, each time in a fresh process without torch: ``python benchmarks/load_time.py``.

A process imports scoregraph, loads the plan with all its checks, makes its program, and runs it. ``first step`` is what
passes until ``progress`` is first called, with what comes before the loop. ``step`` is a step of a second run: the
network's own time. Medians over the processes go to ``results/load-<instruction set>.json``.
"""

from __future__ import annotations

import json
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
CASES = {"toy": {"tilt": 0.5}, "terrain": {"difficulty": 60.0}}
PARTS = ("import", "load", "bind", "first step", "load to first step", "step")

CHILD = """
import json, sys, time
clock = time.perf_counter
marks = [clock()]
import scoregraph as sg
sg.load
marks.append(clock())
plan = sg.load(sys.argv[1], threads=int(sys.argv[3]))
marks.append(clock())
plan.program
marks.append(clock())
given, seen = json.loads(sys.argv[2]), []
plan.run(**given, seed=7, progress=lambda done, total: seen.append(clock()))
first = seen[0]
seen.clear()
again = clock()
plan.run(**given, seed=7, progress=lambda done, total: seen.append(clock()))
step = (seen[-1] - seen[0]) / (len(seen) - 1) if len(seen) > 1 else seen[0] - again
assert "torch" not in sys.modules
a, b, c, d = marks
print(json.dumps([b - a, c - b, d - c, first - d, first - b, step]))
"""


def main(
    cases: Annotated[list[str] | None, typer.Argument(help="Graphs of the gallery; all unless named.")] = None,
    processes: Annotated[int, typer.Option(help="Fresh processes per graph.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads of the plan.")] = 2,
) -> None:
    """Measure every graph and write the results."""
    from stamp import stamp

    measured = {name: measure(name, processes, threads) for name in cases or CASES}
    result = {
        **stamp(),
        "threads": threads,
        "processes": processes,
        "median_ms": measured,
    }
    path = HERE / "results" / f"load-{result['isa']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(measured, result["isa"])


def measure(name: str, processes: int, threads: int) -> dict[str, float]:
    """Milliseconds of every part, and the plan's size, for one graph of the gallery."""
    import scoregraph as sg
    from scoregraph import gallery

    with tempfile.TemporaryDirectory() as folder:
        plan = sg.compile(gallery.find(name).build(), device="cpu").save(Path(folder) / "plan")
        command = [sys.executable, "-c", CHILD, str(plan), json.dumps(CASES[name]), str(threads)]
        runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(processes)]
        size = (plan / "constants.arrow").stat().st_size / 1e6
    times = {part: round(median(run[i] for run in runs) * 1e3, 3) for i, part in enumerate(PARTS)}
    return {**times, "constants_mb": round(size, 2)}


def show(measured: dict[str, dict[str, float]], isa: str) -> None:
    table = Table(title=f"saved plan to first step, median ms, {isa}")
    for column in ("plan", *PARTS, "constants MB"):
        table.add_column(column, justify="right")
    for name, found in measured.items():
        table.add_row(name, *(f"{found[part]:.1f}" for part in PARTS), f"{found['constants_mb']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
