"""What recipes lose: SQNR of final samples to full precision, and bytes, for terrain and a DiT; ``run.py`` has speeds.

    python benchmarks/quantization_quality.py [terrain] [dit] [--samples 2] [--picture docs/images/terrain-w8a8.png]

Writes ``results/quantization-quality.json`` and the tables of docs/quantization.md, between its two markers. The DiT
(12 layers, width 384, 256 tokens) has random weights at the scale of trained ones: its samples mean nothing, their
errors do.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from networks import dit

from scoregraph import comparison, gallery
from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.render import hillshade

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "quantization-quality.json"
PAGE = HERE.parent / "docs" / "quantization.md"
MARKS = ("<!-- quality: begin -->\n", "<!-- quality: end -->\n")


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of the scale that training gives them; a fresh DiT has gates and modulations of nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3))
    return module


def dit_graph(steps: int) -> tuple[Any, dict[str, Any]]:
    """Guided DDIM over the DiT: a label and none."""
    net = dit(width=384, layers=12, tokens=256).target
    lively(net.score)
    g = GraphBuilder("dit")
    given, blank = g.condition(net, g.input("class_labels")), g.condition(net, None)
    with g.loop(schedules.linear(steps=steps), g.noise(net)) as step:
        pred = g.fuse(guidance.cfg(1.5), g.score(net, step, given), g.score(net, step, blank))
        step.advance(samplers.ddim(), pred)
    g.output(sample=step.result)
    return g, {"class_labels": 3}


def terrain_graph(steps: int) -> tuple[Any, dict[str, Any]]:
    return gallery.terrain(steps), {"difficulty": 60.0}


CALIBRATED = {"dit": {"class_labels": [1, 250, 500, 750]}}
"""Four trajectories for the DiT, whose samples take longer; eight, the default, for terrain."""

ALSO = {
    "terrain": ("w8a8:smooth=no", "w8a8:spare=10%", "w8a8:groups=4,spare=10%"),
    "dit": ("w8a8:smooth=yes",),
}
"""Recipes for one graph: a few convolutions of terrain bear little; the DiT has none, which are what is smoothed."""

GRAPHS = {"terrain": terrain_graph, "dit": dit_graph}


def table(name: str, found: dict[str, Any]) -> str:
    """The results of one graph as Markdown."""
    lines = [
        f"**{name}**, {found['samples']} sample(s), {found['steps']} steps, output `{found['output']}`:\n",
        "| recipe | SQNR dB | worst sample | MB | layers | kept |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        decibels = (f"{row[key]:.1f}" if key in row else "" for key in ("sqnr", "worst"))
        numbers = (f"{row['weights'] / 1e6:.1f}", str(row["layers"]), str(row["kept"]))
        recipe = row["recipe"].replace("|", "\\|")  # which would end the cell
        lines.append(f"| `{recipe}` | {' | '.join((*decibels, *numbers))} |")
    lines += [f"\n`{recipe}` changes nothing: {reasons}." for recipe, reasons in found["refused"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="*", default=list(GRAPHS), choices=list(GRAPHS))
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--steps", type=int, default=None, help="4 for terrain, 20 for the DiT unless given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", action="append", help="instead of all")
    parser.add_argument("--picture", type=Path, help="terrain in full precision and in w8a8 side by side")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in args.graphs:
        steps = args.steps or {"terrain": 4, "dit": 20}[name]
        graph, inputs = GRAPHS[name](steps)
        found = comparison.compare(
            graph,
            args.recipe or (*comparison.RECIPES, *ALSO.get(name, ())),
            inputs=inputs,
            batch=args.samples,
            threads=args.threads,
            calibrate_on=CALIBRATED.get(name),
            told=lambda recipe, name=name: print(f"{name} {recipe}", file=sys.stderr, flush=True),
        )
        rows = [{key: value for key, value in vars(row).items() if value != math.inf} for row in found.rows]
        results[name] = {
            "steps": steps,
            "samples": args.samples,
            "output": found.output,
            "rows": rows,
            "refused": dict(found.refused),
        }
        print(table(name, results[name]))
        if name == "terrain" and args.picture and "w8a8" in found.results:
            hillshade(comparison.pairs(found, "w8a8"), args.picture, "full precision, and beside it w8a8")
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(MARKS[0])
    tables = "\n".join(table(name, results[name]) for name in GRAPHS if name in results)
    PAGE.write_text(f"{head}{MARKS[0]}{tables}{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
