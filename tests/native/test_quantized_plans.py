"""Quantized plans inside Rust: the reference's numbers, sums exact on every instruction set, threads do not matter."""

from __future__ import annotations

import functools
import itertools
import re

import numpy as np
import pytest
import quantized_networks as q
from subjects import program

import scoregraph as sg
from scoregraph.backends.cpu import Cpu
from scoregraph.backends.reference import Reference
from scoregraph.errors import BadMachineSetting
from scoregraph.passes.base import run_passes
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.passes.quantize.recipe import MAGNITUDE, TOP, chain_limit
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec

pytestmark = pytest.mark.native

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")

FLOORS = {
    "w8a8": 38, "w8a7": 34, "w7a7": 32, "w6a7": 28, "w4a8": 17, "w4a8:block=32": 18, "w2a8:block=32": 5,
    "bf16": 45, "w8a8:attention=i8": 38, "w8a8:attention=bf16": 38, "w8a8:groups=1": 34,
    "w8a8:smooth=yes": 38, "w8a8:groups=1,smooth=yes": 34,
}  # fmt: skip
"""Decibels to float32 that each recipe must keep in one evaluation of a small network."""

CASES = [
    (kind, recipe)
    for kind, recipe in itertools.product(("tokens", "image"), FLOORS)
    if kind == "tokens" or not {"bf16", "attention", "block"} & set(recipe.replace("=", ":").split(":"))
]


@functools.cache
def compiled(kind: str, recipe: str) -> sg.CompiledPlan:
    on = q.example(kind) if {"groups", "smooth"} & set(re.split("[:=,]", recipe)) else None
    return sg.compile(q.network(kind), device="cpu", quant=recipe, calibrate_on=on, use_cache=False)


def evaluated(plan: sg.CompiledPlan, inputs: dict[str, np.ndarray], isa: str | None = None, threads: int = 1):
    seeds = np.zeros(len(inputs["t"]), np.uint64)
    return on(plan, isa, threads).run(inputs, seeds)["m"]


def on(plan: sg.CompiledPlan, isa: str | None, threads: int = 1):
    try:
        return program(plan, threads, isa)
    except BadMachineSetting as problem:
        pytest.skip(str(problem).splitlines()[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kind", "recipe"), CASES)
def test_a_quantized_network_is_the_reference(kind, recipe, isa):
    """Up to float32 rounding, which may move a value that lies between two steps of its grid to the other one."""
    plan, inputs = compiled(kind, recipe), q.example(kind)
    oracle = Reference("float64").compile(plan.plan, plan._constants)
    expected = oracle.run(inputs, np.zeros(3, np.uint64))["m"]
    exact = compiled(kind, "none").run(**inputs)["m"]
    got = evaluated(plan, inputs, isa)
    same, kept = q.sqnr(got, expected), q.sqnr(got, exact)
    print(f"{kind} {recipe} on {isa}: {same:.1f} dB to the reference, {kept:.1f} dB to float32")
    # The order in which attention rounds its weights is its own.
    assert same > (40 if "attention" in recipe else 60)
    assert kept > FLOORS[recipe]


@pytest.mark.parametrize(("kind", "recipe"), [("tokens", "w8a8"), ("tokens", "w7a7:groups=1"), ("image", "w8a8")])
def test_neither_threads_nor_neighbours_change_a_sample(kind, recipe):
    plan, inputs = compiled(kind, recipe), q.example(kind, 5)
    whole = evaluated(plan, inputs)
    np.testing.assert_array_equal(evaluated(plan, inputs, threads=2), whole)
    for i in range(5):
        alone = evaluated(plan, {name: value[i : i + 1] for name, value in inputs.items()})
        np.testing.assert_array_equal(alone[0], whole[i])


def test_static_grids_by_step_and_a_saved_plan(tmp_path):
    label = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    exact = sg.compile(q.guided("image"), use_cache=False).run(label=label)["sample"]
    plan = sg.compile(q.guided("image"), quant="w8a8:groups=3", calibrate_on={"label": label}, use_cache=False)
    got = plan.run(label=label)["sample"]
    assert q.sqnr(got, exact) > 30
    oracle = Reference("float64").compile(plan.plan, plan._constants)
    expected = oracle.run({"label": label.astype(np.float32)}, np.arange(2, dtype=np.uint64))["sample"]
    assert q.sqnr(got, expected) > 45
    np.testing.assert_array_equal(sg.load(plan.save(tmp_path / "plan")).run(label=label)["sample"], got)


# --- whole numbers ------------------------------------------------------------------------------------

PRODUCTS = [
    (op, w, a)
    for op, w, a in itertools.product(("linear", "conv2d"), MAGNITUDE, TOP)
    if op == "linear" or w not in ("i4", "i2")
]
RANGE = {"i8": (-127, 127), "i7": (-63, 63), "i6": (-31, 31), "i4": (-8, 7), "i2": (-2, 1)}
RNG = np.random.default_rng(2)
ZERO = 43


def extreme(low: int, high: int, *shape: int) -> np.ndarray:
    """Whole numbers of which two thirds are an end of the range, with rows of one end alone."""
    values = RNG.choice([low, high, 0], size=shape)
    values = np.where(values == 0, RNG.integers(low, high, shape, endpoint=True), values)
    values[0], values[-1] = low, high
    return values


def sums(op: str, weights: str, activations: str, isa: str) -> tuple[np.ndarray, np.ndarray]:
    """What a product of whole numbers answers with scales of one, and the same in 64 bits.

    The input holds whole numbers A apart at its ends, so that its grid is exactly 1 a step.
    """
    top = TOP[activations]
    image = op == "conv2d"
    shape = (3, 12, 6, 7) if image else (3, 5, 96)
    x = extreme(-ZERO, top - ZERO, *shape).astype(np.float32)
    x[..., 0], x[..., 1] = -ZERO, top - ZERO
    w = extreme(*RANGE[weights], *((21, 12, 3, 3) if image else (37, 96)))
    d = Drafter("sums", "cpu")
    d.begin("once")
    value = d.new((Batch(), *shape[1:]), name="x")
    d.inputs.append(InputSpec(name="x", buffer=0))
    bytes_ = d.new((Batch(), 3, 6, 7, 4) if image else value.shape, activations)
    grid = d.new((Batch(1 if image else 5), 2))
    d.call("quantize", {"x": value}, {"y": bytes_, "ygrid": grid}, {}, "quantize")
    y = d.new((Batch(), 21, 6, 7) if image else (Batch(), 5, 37))
    ins = {
        "x": bytes_,
        "grid": grid,
        "w": d.constant(w.astype(np.int8), "w", weights),
        "wscale": d.constant(np.ones((len(w), 1), np.float32), "wscale"),
        "wsum": d.constant(w.reshape(len(w), -1).sum(axis=1, keepdims=True).astype(np.float32), "wsum"),
    }
    attrs = {"stride": [1, 1], "padding": [1, 1, 1, 1], "up": [1, 1]} if image else {}
    d.call(op, ins, {"y": y}, {**attrs, "act": "none", "chain": chain_limit(weights, activations)}, "product")
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    try:
        made = Cpu(1, isa).compile(plan, constants)
    except BadMachineSetting as problem:
        pytest.skip(str(problem).splitlines()[0])
    got = made.run({"x": x}, np.zeros(3, np.uint64))["y"]
    if not image:
        return got, np.einsum("btk,nk->btn", x.astype(np.int64), w)
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return got, np.einsum("nihwab,oiab->nohw", windows, w)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "weights", "activations"), PRODUCTS)
def test_sums_of_whole_numbers_are_exact(op, weights, activations, isa):
    got, expected = sums(op, weights, activations, isa)
    np.testing.assert_array_equal(got, expected)
