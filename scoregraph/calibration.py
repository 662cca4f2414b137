"""Runs a draft on samples of its own, to see the ranges of what a recipe will quantize (``passes.quantize``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scoregraph import backends
from scoregraph.errors import CannotCalibrate
from scoregraph.passes.base import run_passes
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.passes.quantize.calibrate import Calibration, calibration_of, observe
from scoregraph.passes.quantize.recipe import Recipe
from scoregraph.passes.quantize.sites import select
from scoregraph.plan import files
from scoregraph.plan.dims import at, parse_dim
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import InputSpec, Plan

SAMPLES = 8
"""Trajectories that are looked at."""

FIRST_SEED = 1 << 31
"""The seeds of calibration samples count from here, far from those that users count from 0."""


def calibrate(
    draft: Draft, recipe: Recipe, device: str, given: Mapping[str, Any] | None = None, threads: int | None = None
) -> Calibration:
    """The ranges of the sites of ``recipe`` over eight trajectories, or over as many as ``given`` has samples.

    Args:
        draft: in float32, its memory not planned.
        recipe: the formats; only what it selects is looked at.
        device: where it runs: ``cpu`` or ``reference``.
        given: inputs by name, each one number, an array for all samples, or one per sample [n, …]. Others take their
            default, or numbers drawn evenly from between their bounds.
        threads: of a CPU plan.

    Raises:
        CannotCalibrate: an input has neither default nor bounds and is not given, or what is given does not fit.
    """
    selection = select(draft, recipe)
    observed, _ = run_passes(memory_passes(device), observe(draft, selection), show=lambda _: "")
    plan, constants = files.lay_out(observed.plan, observed.arrays)
    inputs, chosen, count = _inputs(plan, recipe, given or {})
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    program = backends.load(device, threads).compile(plan, constants)
    results = program.run(inputs, np.array(seeds, np.uint64))
    return calibration_of(results, selection.sites, seeds, chosen)


def check_ranges(draft: Draft, recipe: Recipe, ranges: Calibration) -> Calibration:
    """Ranges that were found before, if they are those of the same layers and steps; raises ``CannotCalibrate``."""
    sites, plan = select(draft, recipe).sites, draft.plan

    def rows(number: int) -> int:
        segment = plan.segments[number]
        return 1 if segment.table is None or segment.repeat is not None else plan.tables[segment.table].rows

    wanted = [(site.name, rows(site.place[0])) for site in sites]
    if wanted != [(name, len(low)) for name, low in zip(ranges.sites, ranges.low, strict=True)]:
        problem = "the ranges given are those of other layers or steps"
        raise CannotCalibrate(recipe=recipe, name=plan.name, problem=problem, help="calibrate anew: leave them out")
    return ranges


def _inputs(plan: Plan, recipe: Recipe, given: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str], int]:
    """The arrays, how each was chosen, and the number of samples."""
    shapes = {spec.name: tuple(parse_dim(d) for d in plan.buffers[spec.buffer].shape) for spec in plan.inputs}

    def refuse(problem: str, help: str) -> CannotCalibrate:
        return CannotCalibrate(recipe=recipe, name=plan.name, problem=problem, help=help)

    for name in given:
        if name not in shapes:
            raise refuse(f"it has no input named {name!r}", f"its inputs are {', '.join(shapes) or 'none'}")
    counts = {np.asarray(value).shape[0] for name, value in given.items() if np.ndim(value) == len(shapes[name]) > 0}
    counts -= {1}
    if len(counts) > 1:
        raise refuse(f"the inputs given have {sorted(counts)} samples", "give the same number of each")
    count = counts.pop() if counts else SAMPLES
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    chosen: dict[str, str] = {}
    for spec in plan.inputs:
        shape, dtype = at(shapes[spec.name], count), _dtype(plan, spec)
        if spec.name in given:
            value, how = np.asarray(given[spec.name]), "given"
        elif spec.buffer == plan.bank:
            value, how = rng.standard_normal(shape), "standard normals"
        elif spec.default is not None:
            value, how = np.asarray(spec.default), f"its default {spec.default:g}"
        elif spec.low is not None and spec.high is not None:
            value, how = _between(spec.low, spec.high, shape, dtype, rng), f"evenly from {spec.low:g} to {spec.high:g}"
        else:
            raise refuse(f"nothing bounds its input {spec.name!r}", f"give calibrate_on={{{spec.name!r}: …}}")
        try:
            arrays[spec.name] = np.array(np.broadcast_to(value, shape), dtype)
        except ValueError:
            raise refuse(f"{spec.name!r} is of shape {list(value.shape)}", f"give {list(shape)}") from None
        chosen[spec.name] = how
    return arrays, chosen, count


def _dtype(plan: Plan, spec: InputSpec) -> np.dtype:
    return {"i64": np.dtype(np.int64), "u8": np.dtype(np.uint8)}.get(
        plan.buffers[spec.buffer].dtype, np.dtype(np.float32)
    )


def _between(low: float, high: float, shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    if dtype.kind == "f":
        return rng.uniform(low, high, shape)
    return rng.integers(int(low), int(high), shape, endpoint=True)
