"""Runs a draft on samples of its own, to see the values that a recipe will quantize (``passes.quantize``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scoregraph import backends
from scoregraph.errors import CannotCalibrate
from scoregraph.passes.base import run_passes
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.passes.quantize.calibrate import Calibration
from scoregraph.passes.quantize.fuse_quantization import FuseQuantization
from scoregraph.passes.quantize.insert_quantization import InsertQuantization
from scoregraph.passes.quantize.observe import observe, statistics_of
from scoregraph.passes.quantize.recipe import Recipe
from scoregraph.passes.quantize.sites import Selection, select
from scoregraph.passes.quantize.smoothing import smoothings
from scoregraph.passes.quantize.spare import Measurement, layers_of, most_sensitive, noise_of_samples
from scoregraph.plan import files
from scoregraph.plan.dims import at, parse_dim
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import InputSpec, Plan

SAMPLES = 8
"""Trajectories that are looked at for static grids, which must cover what later ones do."""

FEWER = 4
"""Trajectories that are looked at where only the sizes of channels are asked for."""

FIRST_SEED = 1 << 31
"""The seeds of calibration samples count from here, far from those that users count from 0."""


def wanted(draft: Draft, recipe: Recipe) -> bool:
    """Whether a recipe needs to see what it quantizes: for static grids, or to smooth channels."""
    selection = select(draft, recipe)
    return bool(selection.sites) and (recipe.is_static or bool(_smoothed(draft, recipe, selection)))


def _smoothed(draft: Draft, recipe: Recipe, selection: Selection) -> frozenset[int]:
    """The sites whose channels a recipe evens out."""
    readers = ((draft.plan.segments[n].calls[at], site) for (n, at), site in selection.products.items())
    return frozenset(site for call, site in readers if recipe.smooths(call.op))


def calibrate(
    draft: Draft, recipe: Recipe, device: str, given: Mapping[str, Any] | None = None, threads: int | None = None
) -> Calibration:
    """The ranges and smoothing of the sites of ``recipe``, seen in a few trajectories, or in as many as ``given`` has
    samples.

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
    by_channel = _smoothed(draft, recipe, selection)
    observed, _ = run_passes(memory_passes(device), observe(draft, selection, by_channel), show=lambda _: "")
    plan, constants = files.lay_out(observed.plan, observed.arrays)
    inputs, chosen, count = _inputs(plan, recipe, given or {})
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    program = backends.load(device, threads).compile(plan, constants)
    results = program.run(inputs, np.array(seeds, np.uint64))
    statistics = statistics_of(results, len(selection.sites))
    smoothing = smoothings(draft, recipe, selection, statistics)
    return Calibration.of(statistics, smoothing, selection.sites, seeds, chosen)


def spared(
    draft: Draft,
    recipe: Recipe,
    calibration: Calibration | None,
    device: str,
    given: Mapping[str, Any] | None = None,
    threads: int | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> list[Measurement]:
    """The layers that lose most within the recipe's budget, measured on the samples of ``calibrate``.

    Attention stays in float32 meanwhile. The noise is that of all outputs, each as a share of a sample's power.

    Raises:
        CannotCalibrate: as ``calibrate``.
    """
    layers = layers_of(draft, select(draft, recipe))
    names = frozenset(each.name for each in layers)
    inputs, _, count = _inputs(draft.plan, recipe, given or {})
    seeds = np.arange(FIRST_SEED, FIRST_SEED + count, dtype=np.uint64)
    backend = backends.load(device, threads)
    unmixed = replace(recipe, attention="f32")

    def samples(quantized: Sequence[str]) -> list[np.ndarray]:
        passes = [InsertQuantization(unmixed, calibration, names - set(quantized)), FuseQuantization()]
        made, _ = run_passes([*passes, *memory_passes(device)], draft, show=lambda _: "")
        found = backend.compile(*files.lay_out(made.plan, made.arrays)).run(inputs, seeds)
        return [value.reshape(count, -1).astype(np.float64) for value in found.values()]

    exact = samples(())

    def noise_of(quantized: Sequence[str]) -> float:
        return noise_of_samples(samples(quantized), exact)

    def tell(measured: int, found: Sequence[Measurement]) -> None:
        told(f"measuring {len(layers)} layers: {measured} sets measured, {len(found)} layers spared")

    return most_sensitive(layers, recipe.spare, noise_of, tell)


def spared_text(found: Sequence[Measurement]) -> str:
    """A line for each layer: what it alone does to the samples, and its name."""
    lines = [f"{-10 * np.log10(each.noise):6.1f} dB alone  {each.layers[0].name}" for each in found]
    return "\n".join(["in float32, as they lose most for their multiply-adds:", *lines]) + "\n"


def check_ranges(draft: Draft, recipe: Recipe, ranges: Calibration) -> Calibration:
    """Ranges that were found before, if they are those of the same layers, steps and smoothing; raises
    ``CannotCalibrate``."""
    selection, plan = select(draft, recipe), draft.plan
    smoothed = _smoothed(draft, recipe, selection)

    def rows(number: int) -> int:
        segment = plan.segments[number]
        return 1 if segment.table is None or segment.repeat is not None else plan.tables[segment.table].rows

    expected = [(site.name, rows(site.place[0])) for site in selection.sites]
    foreign = [made for i, made in enumerate(ranges.smoothing) if made is not None and i not in smoothed]
    if foreign or expected != [(name, len(low)) for name, low in zip(ranges.sites, ranges.low, strict=True)]:
        problem = "the ranges given are those of other layers, steps or smoothing"
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
    count = counts.pop() if counts else SAMPLES if recipe.is_static else FEWER
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
