"""How our time grows with steps, batch, tokens, width and threads: ``python benchmarks/scaling.py [--quick]``.

The base is a DiT of width 384 with 6 layers and 64 tokens in a DDIM loop of 8 steps, float32, one thread; each curve
varies one size of it. A point is the least of several runs, since what disturbs a run only ever adds time. A line is
fitted to the logarithms, and its slope stated: 1 is proportional, below 1 is what a larger problem gains by fuller
tiles, tokens tend to 2 where attention dominates, width to 2 where products do.

Writes ``results/scaling-<instruction set>.json`` and ``docs/images/scaling.png``; ``--plot`` only draws what is there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import networks
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import scoregraph as sg

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs/images/scaling.png"
WIDTH, LAYERS, TOKENS, STEPS = 384, 6, 64, 8
CURVES: dict[str, tuple[int, ...]] = {
    "steps": (1, 2, 4, 8, 16, 32),
    "batch": (1, 2, 4, 8, 16),
    "tokens": (16, 64, 144, 256, 576),
    "width": (128, 256, 384, 512, 768),
    "threads": (),  # as many as there are
}

console = Console(width=150)


def main(
    curves: Annotated[list[str] | None, typer.Argument(help=f"Curves: {', '.join(CURVES)}; all unless named.")] = None,
    quick: Annotated[bool, typer.Option(help="A small network and two points a curve; writes nothing.")] = False,
    plot: Annotated[bool, typer.Option(help="Only draw the results that are there.")] = False,
    seconds: Annotated[float, typer.Option(help="Time for one point, at least three runs.")] = 2.0,
) -> None:
    """Measure every curve, write and draw."""
    from stamp import stamp

    origin = stamp()
    path = HERE / "results" / f"scaling-{origin['isa']}.json"
    if plot:
        draw(json.loads(path.read_text(encoding="utf-8")))
        return
    found = {}
    for name in curves or CURVES:
        points = CURVES[name] or threads_here()
        points = points[:2] if quick else points
        found[name] = [(point, round(measure(name, point, quick, seconds), 4)) for point in points]
    result = {
        "network": f"DiT width {WIDTH}, {LAYERS} layers, {TOKENS} tokens, DDIM with {STEPS} steps, float32, 1 thread",
        **origin,
        "curves": {
            name: {"slope": slope(points), "points": [{"size": size, "ms": ms} for size, ms in points]}
            for name, points in found.items()
        },
    }
    show(result)
    if not quick:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result)


def threads_here() -> tuple[int, ...]:
    """1, 2, 4 … up to the cores that this process may use, and all of them."""
    cores = len(os.sched_getaffinity(0))
    return tuple(sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores}))


def measure(curve: str, size: int, quick: bool, seconds: float) -> float:
    """Milliseconds of a whole trajectory where one size of the base is another."""
    sizes = {"steps": STEPS, "batch": 1, "tokens": TOKENS, "width": WIDTH, "threads": 1, curve: size}
    width, layers = (64, 1) if quick and curve != "width" else (sizes["width"], LAYERS)
    run = runner(width, layers, sizes["tokens"], sizes["steps"], sizes["batch"], sizes["threads"])
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and not quick):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


_CASES: dict[tuple[int, int, int], networks.Case] = {}


def runner(width: int, layers: int, tokens: int, steps: int, batch: int, threads: int) -> Callable[[], object]:
    """The trajectory, compiled; networks are made and captured once."""
    key = (width, layers, tokens)
    if key not in _CASES:
        console.print(f"capturing DiT {width} x {layers} x {tokens}", style="dim")
        _CASES[key] = networks.dit_loop(width, layers, tokens)
    case = _CASES[key]
    graph = networks.unguided(case, steps)
    plan = sg.compile(graph, device="cpu", threads=threads)
    x = np.repeat(case.given["x"], batch, axis=0)
    labels = np.arange(batch) % 1000
    return lambda: plan.run(x=x, class_labels=labels)


def slope(points: list[tuple[int, float]]) -> float:
    """Of the line through the points in logarithms, by least squares."""
    size, ms = (np.log([point[i] for point in points]) for i in (0, 1))
    return round(float(np.polyfit(size, ms, 1)[0]), 3) if len(points) > 1 else 0.0


def show(result: dict) -> None:
    """One row per curve."""
    table = Table(title=f"{result['network']}; {result['isa']}")
    for column in ("curve", "slope", "ms by size"):
        table.add_column(column)
    for name, curve in result["curves"].items():
        points = "  ".join(f"{point['size']}: {point['ms']:.1f}" for point in curve["points"])
        table.add_row(name, f"{curve['slope']:.2f}", points)
    console.print(table)


def draw(result: dict) -> None:
    """One panel per curve, both axes logarithmic, with the fitted line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = result["curves"]
    figure, panels = pyplot.subplots(1, len(curves), figsize=(3.1 * len(curves), 3.0), squeeze=False)
    for panel, (name, curve) in zip(panels[0], curves.items(), strict=True):
        sizes = np.array([point["size"] for point in curve["points"]], float)
        times = np.array([point["ms"] for point in curve["points"]])
        fit = np.exp(np.mean(np.log(times)) + curve["slope"] * (np.log(sizes) - np.mean(np.log(sizes))))
        panel.loglog(sizes, fit, color="#bbbbbb", linewidth=1)
        panel.loglog(sizes, times, "o", color="#1b6ca8", markersize=5)
        panel.set_title(f"{name}: slope {curve['slope']:.2f}", fontsize=10)
        panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.25, which="major")
    panels[0][0].set_ylabel("milliseconds")
    figure.suptitle(f"{result['network']} · {result['processor']}, {result['isa']}", fontsize=9)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    console.print(f"wrote {PICTURE}")


if __name__ == "__main__":
    typer.run(main)
