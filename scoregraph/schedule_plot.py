"""Pictures of schedules: where their points lie, several of them in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoregraph.errors import MissingExtra, UnknownName
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.spec import Spec

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#000000")
"""Okabe and Ito's colours, which the colour-blind tell apart."""


def read(text: str) -> Schedule:
    """A schedule from its text, ``karras(steps=12)``.

    Raises:
        UnknownName: it is not one.
    """
    try:
        return Schedule.parse("schedule", text, where=text)
    except (SyntaxError, ValueError):
        raise UnknownName(kind="schedule", name=text, known=Spec.registry["schedule"], where=text) from None


def draw(schedules: Sequence[Schedule], path: Path) -> None:
    """Write a figure: noise level, alpha and sigma, log signal-to-noise ratio, and time over the steps.

    Where a quantity is infinite (no signal, or no noise) its point is an arrow at the edge.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(package="matplotlib", extra="terrain") from None
    grids = [schedule.grid() for schedule in schedules]
    figure = Figure(figsize=(11.0, 7.6 + 0.22 * len(grids)), layout="constrained")
    ((level, parts), (ratio, time)) = figure.subplots(2, 2)
    together = len({grid.steps for grid in grids}) == 1
    for axis in (level, parts, ratio, time):
        axis.set_xlabel("step" if together else "fraction of the steps")
        axis.grid(visible=True, color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    level.set_title("noise level  sigma / alpha", loc="left")
    level.set_yscale("log")
    parts.set_title("alpha (solid) and sigma (dashed), alpha² + sigma² = 1", loc="left")
    ratio.set_title("lambda = ln(alpha / sigma)", loc="left")
    time.set_title("timestep (solid), 1000 sigma / (alpha + sigma) (dotted)", loc="left")
    finite = [k for grid in grids for k in grid.kappa if 0.0 < k < math.inf] or [1.0]
    low, high = min(finite), max(finite)
    for i, (schedule, grid) in enumerate(zip(schedules, grids, strict=True)):
        steps = [float(n) if together else n / grid.steps for n in range(grid.steps + 1)]
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.4, "markersize": 3.5}
        scaled = grid.in_space("vp")
        _curve(level, steps, list(grid.kappa), (low / 2, high * 2), {**style, "label": str(schedule)})
        parts.plot(steps, scaled.alpha, marker="o", **style)
        parts.plot(steps, scaled.sigma, marker="o", linestyle="--", **style)
        lam = [grid.point(n).lam for n in range(grid.steps + 1)]
        _curve(ratio, steps, lam, (-math.log(high) - 0.7, -math.log(low) + 0.7), style)
        time.plot(steps[:-1], grid.times("flow1000"), marker=".", linestyle=":", **style)
        if grid.timesteps is not None:
            time.plot(steps[:-1], grid.timesteps, marker="o", **style)
    figure.legend(loc="outside lower left", fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _curve(axis: Any, x: list[float], y: list[float], edges: tuple[float, float], style: dict[str, Any]) -> None:
    """A line through the finite points; those beyond the edges are arrows on them."""
    low, high = edges
    inside = [low < value < high for value in y]
    shown = [min(max(value, low), high) for value in y]
    axis.plot(x, shown, **style)
    plain = {"color": style["color"], "linestyle": "none"}
    for marker, size, held in (
        ("o", 3.5, inside),
        ("^", 7.0, [v >= high for v in y]),
        ("v", 7.0, [v <= low for v in y]),
    ):
        points = [(a, b) for a, b, hold in zip(x, shown, held, strict=True) if hold]
        if points:
            axis.plot(*zip(*points, strict=True), marker=marker, markersize=size, **plain)
