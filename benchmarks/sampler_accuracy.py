"""Every sampler beside diffusers: python benchmarks/sampler_accuracy.py [--counts 4,20]

Sampler × parameterization × spacing × final sigma × number of steps, guidance 3, noise injected. Two errors of each:
the worst single step from the library's own states (open loop, at most 1e-6), and the end of the whole loop (closed
loop, at most 1e-5). Each is measured against the library as it is, whose coefficients are float32, and against the
library with its own numbers in float64. Prints one table; writes docs/sampler-accuracy.md and
results/sampler_accuracy.json; fails if a sampler is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stamp import stamp

from scoregraph.graph.schedules import Schedule

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/any/interop"), str(ROOT / "tests/any/samplers")]
warnings.simplefilter("ignore")

# The tests' own harness and catalogue, which are found only behind the lines above.
from against_diffusers import compare  # noqa: E402
from catalogue import COUNTS, LIMITED, PAIRS, Cell, cells, points_of, precise  # noqa: E402
from library_limits import LIMITS, Outcome  # noqa: E402

OPEN, CLOSED = 1e-6, 1e-5
diffusers.utils.logging.set_verbosity_error()

PAGE = """\
A cell is a sampler with a parameterization, a spacing of timesteps, an end (`zero`, or the smallest sigma of the
training schedule) and a number of steps N. Both sides see the same smooth, non-linear network with guidance 3, the same
start and the same noise. *Open loop* is the worst single step from the library's own states, *closed loop* the end of
the whole loop, each relative to the largest value; the worst cell of a sampler is shown.

The first two columns of errors are against the library as it is, which computes its coefficients in float32, with our
schedule where it is the same one ({ours} of the cells; else the library's points). The last two are against the library
with its own numbers in float64, which shows that the difference is its rounding. Required, in float64: at most
{open:.0e} open and {closed:.0e} closed."""


@dataclass
class Row:
    """The cells of one sampler."""

    sampler: str
    scheduler: str
    cells: int = 0
    kinds: set[str] = field(default_factory=set)
    spacings: set[str] = field(default_factory=set)
    finals: set[str] = field(default_factory=set)
    counts: set[int] = field(default_factory=set)
    shipped: tuple[float, float] = (0.0, 0.0)
    exact: tuple[float, float] = (0.0, 0.0)
    ours: int = 0
    worst: str = ""

    def add(self, cell: Cell) -> None:
        """Measure a cell."""
        scheduler = cell.make()
        schedule, whose = cell.schedule(scheduler)

        def errors(scheduler: object, points: Schedule) -> tuple[float, float]:
            found = compare(
                scheduler,
                cell.pair.sampler,
                points,
                cell.prediction,
                space=cell.space,
                carried=cell.pair.carried,
                arguments=cell.pair.arguments,
            )
            return tuple(e if math.isfinite(e) else math.inf for e in (found.open_loop, found.closed_loop))

        try:
            shipped = errors(scheduler, schedule)
            # The points too are the library's numbers, where the sampler needs no training timesteps.
            theirs = points_of(scheduler, cell.space) if cell.pair.points == "dpm" else schedule
            exact = errors(precise(cell.make()), theirs)
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
            print(f"{cell}: {type(error).__name__} {error}", file=sys.stderr)
            shipped = exact = (math.inf, math.inf)
        if exact[0] > self.exact[0]:
            self.worst = f"{cell.kind} {cell.spacing} {cell.final} {cell.steps}"
        self.cells += 1
        self.ours += whose == "ours"
        self.kinds.add(cell.kind)
        self.spacings.add(cell.spacing or "own")
        self.finals.add(cell.final or "own")
        self.counts.add(cell.steps)
        self.shipped = tuple(map(max, self.shipped, shipped))
        self.exact = tuple(map(max, self.exact, exact))

    @property
    def holds(self) -> bool:
        """Whether the sampler is the library's, to the tolerances."""
        return self.exact[0] <= OPEN and self.exact[1] <= CLOSED

    def columns(self) -> list[str]:
        """As the table shows it."""
        return [
            self.sampler,
            self.scheduler.removesuffix("Scheduler"),
            " ".join(_short(kind) for kind in sorted(self.kinds)),
            " ".join(sorted(self.spacings)),
            " ".join(sorted(self.finals)),
            str(self.cells),
            *(f"{e:.0e}" for e in (*self.shipped, *self.exact)),
        ]


HEADER = ["sampler", "diffusers", "network", "spacing", "end", "cells",
          "float32: open", "closed", "float64: open", "closed"]  # fmt: skip


def _short(kind: str) -> str:
    return {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}.get(kind, kind)


def measure(pairs: list, counts: tuple[int, ...], say: Callable[[str], None]) -> list[Row]:
    """One row per sampler and scheduler class."""
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells(counts, pairs):
        key = (_spelled(cell), cell.pair.scheduler)
        if key not in rows:
            say(" ".join(key))
        rows.setdefault(key, Row(*key)).add(cell)
    return list(rows.values())


def _spelled(cell: Cell) -> str:
    """The sampler with the options that are not its defaults."""
    sampler = cell.pair.sampler
    options = {}
    for name, value in sampler.options().items():
        default = type(sampler).__dataclass_fields__[name].default
        if value != default and name != "third":
            options[name] = round(value, 2) if isinstance(value, float) else value
    return f"{sampler.name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def markdown(rows: list[Row], limited: list[tuple[str, str, Row]], outcomes: list[Outcome], seconds: float) -> str:
    """The page."""
    total = sum(row.cells for row in rows)
    worst = [max(row.exact[i] for row in rows) for i in (0, 1)]
    shipped = [max(row.shipped[i] for row in rows) for i in (0, 1)]

    def table(header: list[str], lines: list[list[str]]) -> list[str]:
        marks = ["---"] * len(header)
        return ["| " + " | ".join(line) + " |" for line in (header, marks, *lines)]

    counts = ", ".join(str(n) for n in sorted(set().union(*(row.counts for row in rows))))
    return "\n".join(
        [
            "# Samplers against diffusers, in numbers",
            "",
            "Written by `python benchmarks/sampler_accuracy.py`; do not edit. The same in full precision is in",
            "benchmarks/results/sampler_accuracy.json.",
            "",
            f"diffusers {diffusers.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
            f"Python {platform.python_version()}; {total} cells in {seconds:.0f} s. Number of steps N: {counts}.",
            "",
            *PAGE.format(open=OPEN, closed=CLOSED, ours=sum(row.ours for row in rows)).splitlines(),
            "",
            f"**Worst of all: {worst[0]:.1e} open, {worst[1]:.1e} closed** (float32: {shipped[0]:.1e} and "
            f"{shipped[1]:.1e}).",
            "",
            *table(HEADER, [row.columns() for row in rows]),
            "",
            "## Where the library goes another way, or loses digits",
            "",
            *table(
                ["case", "float32: open", "closed", "float64: open", "closed", "why"],
                [[name, *(f"{e:.0e}" for e in (*row.shipped, *row.exact)), why] for name, why, row in limited],
            ),
            "",
            "## Where the library has NaN, or stops",
            "",
            "Each line is run: theirs as a loop of the library, ours as the table on the same points.",
            "",
            *table(
                ["case", "theirs", "ours", "what we do"],
                [[o.case, o.theirs, o.ours, o.reason] for o in outcomes],
            ),
            "",
        ]
    )


def main() -> int:
    """Measure, print, write; 1 if a sampler is not the library's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of steps")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/sampler-accuracy.md")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/sampler_accuracy.json")
    options = parser.parse_args()
    counts = tuple(int(n) for n in options.counts.split(","))
    console = Console(width=190)
    started = time.perf_counter()
    with console.status("measuring") as status:
        rows = measure(PAIRS, counts, status.update)
        limited = [
            (name, why, *measure([pair], tuple(pair.counts), status.update)) for name, (pair, why) in LIMITED.items()
        ]
        outcomes = [limit.outcome() for limit in LIMITS]
    seconds = time.perf_counter() - started
    shown = Table(*HEADER, title=f"samplers against diffusers {diffusers.__version__}")
    for row in rows:
        shown.add_row(*row.columns(), style=None if row.holds else "red")
    console.print(shown)
    for outcome in outcomes:
        console.print(f"{outcome.case}: theirs {outcome.theirs}; ours {outcome.ours}")
    options.out.write_text(markdown(rows, [(n, w, r) for n, w, r in limited], outcomes, seconds), encoding="utf-8")
    report = {
        **stamp(),
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "required": {"open": OPEN, "closed": CLOSED},
        "seconds": round(seconds, 1),
        "rows": [
            {
                "sampler": row.sampler, "scheduler": row.scheduler, "cells": row.cells,
                "points_ours": row.ours, "networks": sorted(row.kinds), "spacings": sorted(row.spacings),
                "ends": sorted(row.finals), "steps": sorted(row.counts), "float32": row.shipped,
                "float64": row.exact, "worst": row.worst,
            }
            for row in [*rows, *(row for *_, row in limited)]
        ],
        "limits": [vars(outcome) for outcome in outcomes],
    }  # fmt: skip
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.holds for row in rows) and all(outcome.ours_is_sound for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
