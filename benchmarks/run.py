"""Measure network steps against the peers, alternating in one process: ``python benchmarks/run.py [CASE …]``.

Each round runs every engine, so that drift of the machine meets all of them; what is compared are medians over the
rounds. An engine's turn is a pause, one run that is not measured, and one that is: the pause lets the threads of the
engine before go to sleep (they spin for a while, which would cost the next one a core), and the first run brings
caches and threads back. Results go to ``results/<case>-<instruction set>-<threads>t.json`` with processor, versions
and commit.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated

import networks
import numpy as np
import typer
from engines import ENGINES
from rich.console import Console
from rich.table import Table

from scoregraph import _native
from scoregraph.diagnosis import processor

HERE = Path(__file__).parent
PAUSE = 0.3
"""Seconds between two engines; the longest that a default OpenMP thread spins is 0.2."""

console = Console()


def main(
    cases: Annotated[list[str] | None, typer.Argument(help="Cases to run; all unless named.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds, each of which runs every engine once.")] = 25,
    threads: Annotated[int, typer.Option(help="Threads of every engine.")] = 2,
    engines: Annotated[list[str] | None, typer.Option("--engine", help="Engines to run; all unless named.")] = None,
) -> None:
    """Measure every engine on every case and write the results."""
    for name in cases or networks.CASES:
        measure(name, rounds, threads, engines or list(ENGINES))


def measure(name: str, rounds: int, threads: int, engines: list[str]) -> None:
    case = networks.CASES[name]()
    steps, setup = {}, {}
    for engine in engines:
        started = time.perf_counter()
        steps[engine] = ENGINES[engine](case, threads)
        steps[engine]()
        setup[engine] = time.perf_counter() - started
    answers = {engine: step() for engine, step in steps.items()}
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, step in steps.items():
            time.sleep(PAUSE)
            step()
            started = time.perf_counter()
            step()
            times[engine].append((time.perf_counter() - started) * 1e3)

    oracle = answers.get("torch eager", next(iter(answers.values())))
    scale = float(np.abs(oracle).max())
    isa = _native.isa()
    result = {
        "case": case.name,
        "threads": threads,
        "rounds": rounds,
        "processor": processor(),
        "isa": isa,
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True).strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in ("torch", "onnxruntime", "numpy")},
        "engines": {
            engine: {
                "median_ms": round(float(np.median(ms)), 3),
                "p10_ms": round(float(np.percentile(ms, 10)), 3),
                "p90_ms": round(float(np.percentile(ms, 90)), 3),
                "gflops": round(case.gflop / float(np.median(ms)) * 1e3, 1),
                "setup_s": round(setup[engine], 2),
                "error_to_eager": float(np.abs(answers[engine] - oracle).max()) / scale,
            }
            for engine, ms in times.items()
        },
    }
    path = HERE / "results" / f"{case.name}-{isa}-{threads}t.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


def show(result: dict) -> None:
    ours = result["engines"].get("scoregraph", {}).get("median_ms")
    table = Table(title=f"{result['case']}, {result['threads']} threads, {result['isa']}, {result['processor']}")
    for column in ("engine", "median ms", "p10", "p90", "GFLOP/s", "error", "scoregraph is faster by"):
        table.add_column(column, justify="right")
    for engine, found in result["engines"].items():
        ratio = f"{found['median_ms'] / ours:.2f}x" if ours else ""
        shown = (found["median_ms"], found["p10_ms"], found["p90_ms"], found["gflops"])
        table.add_row(engine, *map(str, shown), f"{found['error_to_eager']:.1e}", ratio)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
