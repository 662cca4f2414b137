"""What recipes lose and save: the same samples in full precision and quantized, side by side in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scoregraph.compiler import compile
from scoregraph.errors import NothingToQuantize
from scoregraph.passes.quantize.calibrate import Calibration
from scoregraph.passes.quantize.recipe import Recipe, parse_recipe
from scoregraph.runtime import CompiledPlan

RECIPES = (
    "w8a8",
    *(f"w8a8:groups={groups}" for groups in (1, 2, 4, 8)),
    *("w8a8:attention=i8", "w8a7", "w7a7", "w6a7", "w4a8", "w4a8:block=32", "w2a8:block=32", "bf16"),
)
"""What ``scoregraph compare`` compares unless told: every format, dynamic grids and groups of static ones."""


@dataclass(frozen=True)
class Measured:
    """One recipe.

    Attributes:
        recipe: its text; ``none`` is full precision.
        sqnr: of the final samples to those of full precision, in decibels, the noise's power summed over all of them;
            infinite where they are equal.
        worst: the same of the worst sample.
        weights: bytes of the plan's constants.
        ms_per_step: the faster of two runs, whatever comes before and after the loop included.
        compile_s: seconds to the plan, calibration included.
        layers: products that compute in the recipe's formats.
        kept: products that stay in float32.
    """

    recipe: str
    sqnr: float
    worst: float
    weights: int
    ms_per_step: float
    compile_s: float
    layers: int
    kept: int


@dataclass(frozen=True)
class Comparison:
    """All recipes.

    Attributes:
        output: the name of the output that was compared.
        exact: it in full precision, [B, …].
        rows: full precision first.
        results: the output by recipe.
        refused: recipes that change nothing, and why.
    """

    output: str
    exact: np.ndarray
    rows: tuple[Measured, ...]
    results: Mapping[str, np.ndarray]
    refused: Mapping[str, str]


def sqnr(got: np.ndarray, exact: np.ndarray) -> float:
    """Signal to quantization noise in decibels: 10 log10(sum exact² / sum (got - exact)²)."""
    signal = np.square(exact, dtype=np.float64).sum()
    noise = np.square(np.subtract(got, exact, dtype=np.float64)).sum()
    return float(10.0 * np.log10(signal / noise)) if noise else float("inf")


def compare(
    target: Any,
    recipes: Sequence[str] = RECIPES,
    *,
    inputs: Mapping[str, Any],
    seed: int = 0,
    batch: int = 4,
    output: str | None = None,
    calibrate_on: Mapping[str, Any] | Calibration | None = None,
    told: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Comparison:
    """Compile ``target`` in every recipe and run it from the same seeds.

    Args:
        target: a graph or network, as for ``compile``.
        recipes: texts of recipes.
        inputs: of every run, by name.
        seed: of the first sample.
        batch: the number of samples.
        output: which of the graph's outputs is compared; its first unless said.
        calibrate_on: see ``compile``.
        told: called with what is being done.
        **options: others of ``compile``.
    """

    seen: dict[Recipe, Calibration] = {}

    def made(text: str) -> tuple[CompiledPlan, np.ndarray, float, float]:
        told(text)
        started = time.perf_counter()
        recipe = parse_recipe(text)
        # The same layers have the same ranges, whatever the number of groups that they fall into.
        layers = None if recipe is None else replace(recipe, groups=0)
        known = calibrate_on if layers is None or layers.spare else seen.get(layers, calibrate_on)
        plan = compile(target, quant=text, calibrate_on=known, **options)
        if layers is not None and "quantization" in plan.stages:
            seen[layers] = Calibration.from_json(plan.stages["quantization"])
        compiled = time.perf_counter() - started
        times: list[float] = []
        results: dict[str, np.ndarray] = {}
        for _ in range(2):
            started = time.perf_counter()
            results = plan.run(seed=seed, batch=batch, **inputs)
            times.append(time.perf_counter() - started)
        steps = max(plan.counters()["steps"] // 2, 1)
        return plan, results[output or next(iter(results))], compiled, min(times) * 1e3 / steps

    plan, exact, compiled, ms = made("none")
    name = output or plan.plan.outputs[0].name
    none = Measured("none", float("inf"), float("inf"), _weights(plan), ms, compiled, 0, 0)
    rows, results, refused = [none], dict[str, np.ndarray](), dict[str, str]()
    for recipe in recipes:
        try:
            plan, got, compiled, ms = made(recipe)
        except NothingToQuantize as error:
            refused[recipe] = str(error.values["reasons"])
            continue
        worst = min(sqnr(a, b) for a, b in zip(got, exact, strict=True))
        stage = next(stage for stage in plan.plan.stages if stage.name == "insert-quantization")
        layers, kept = stage.rewrites, len(stage.misses)
        rows.append(Measured(recipe, sqnr(got, exact), worst, _weights(plan), ms, compiled, layers, kept))
        results[recipe] = got
    return Comparison(name, exact, tuple(rows), results, refused)


def _weights(plan: CompiledPlan) -> int:
    return sum(constant.nbytes for constant in plan.plan.constants)


def pairs(comparison: Comparison, recipe: str) -> np.ndarray:
    """Each sample in full precision, and beside it in a recipe: [2 B, …]."""
    return np.stack([comparison.exact, comparison.results[recipe]], axis=1).reshape(-1, *comparison.exact.shape[1:])
