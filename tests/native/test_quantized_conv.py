"""Images of bytes in Rust: group norms that quantize, convolutions that read slices, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from scoregraph.backends.cpu import Cpu
from scoregraph.backends.reference import Reference
from scoregraph.errors import BadMachineSetting
from scoregraph.passes.base import run_passes
from scoregraph.passes.lower.shape import narrow
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.passes.quantize.recipe import MAGNITUDE, chain_limit
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec

pytestmark = pytest.mark.native

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
BATCH, CHANNELS, FILTERS, HEIGHT, WIDTH = 2, 10, 11, 9, 21


@dataclass(frozen=True)
class Geometry:
    """A convolution after the norm: its attributes, and the size of its result."""

    kernel: int
    stride: int
    padding: tuple[int, int, int, int]
    up: int
    size: tuple[int, int]


GEOMETRIES = {
    "3x3": Geometry(3, 1, (1, 1, 1, 1), 1, (9, 21)),
    "1x1": Geometry(1, 1, (0, 0, 0, 0), 1, (9, 21)),
    "stride 2, padded behind": Geometry(3, 2, (0, 0, 1, 1), 1, (4, 10)),
    "upsampled": Geometry(3, 1, (1, 1, 1, 1), 2, (18, 42)),
}


def filled(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def block(geometry: Geometry, weights: str, activations: str, static: bool) -> Drafter:
    """silu(group_norm(x)) as bytes, convolved into channels 2 … 12 of an image of 14; the others keep 0.5.

    The embedding and the residual are slices as well.
    """
    d = Drafter("block", "cpu")
    d.begin("once")
    x = d.new((Batch(), CHANNELS, HEIGHT, WIDTH), name="x")
    emb = d.new((Batch(), FILTERS + 5), name="emb")
    residual = d.new((Batch(), FILTERS + 3, *geometry.size), name="residual")
    for value, name in ((x, "x"), (emb, "emb"), (residual, "residual")):
        d.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
    normed = d.new((Batch(), -(-CHANNELS // 4), HEIGHT, WIDTH, 4), activations)
    affine = {name: d.constant(filled((CHANNELS,), seed, 0.5) + 1, name) for seed, name in ((1, "weight"), (2, "bias"))}
    attrs = {"groups": 5, "eps": 1e-5, "act": "silu"}
    if static:
        # Narrower than the values of SiLU, so that some are clamped.
        top = 255 if activations == "u8" else 127
        grid = d.constant(np.array([[3.0 / top, round(0.2 * top / 3.0)]], np.float32), "grid")
        d.call("group_norm", {"x": x, **affine, "ygrid": grid}, {"y": normed}, attrs, "norm")
    else:
        grid = d.new((Batch(), 2))
        d.call("group_norm", {"x": x, **affine}, {"y": normed, "ygrid": grid}, attrs, "norm")
    largest = MAGNITUDE[weights]
    kernel = (FILTERS, CHANNELS, geometry.kernel, geometry.kernel)
    w = np.random.default_rng(3).integers(-largest, largest, kernel, endpoint=True)
    whole = d.new((Batch(), FILTERS + 3, *geometry.size), name="whole")
    d.call("fill", {}, {"x": whole}, {"value": 0.5}, "fill")
    ins = {
        "x": normed,
        "grid": grid,
        "w": d.constant(w.astype(np.int8), "w", weights),
        "wscale": d.constant(np.abs(filled((FILTERS, 1), 4, 0.01)) + 0.001, "wscale"),
        "wsum": d.constant(w.reshape(FILTERS, -1).sum(axis=1, keepdims=True).astype(np.float32), "wsum"),
        "bias": d.constant(filled((FILTERS,), 5), "conv bias"),
        "emb": narrow(emb, 1, 3, FILTERS),
        "residual": narrow(residual, 1, 1, FILTERS),
    }
    attrs = {
        "stride": [geometry.stride] * 2,
        "padding": list(geometry.padding),
        "up": [geometry.up] * 2,
        "act": "silu",
        "chain": chain_limit(weights, activations),
    }
    d.call("conv2d", ins, {"y": narrow(whole, 1, 2, FILTERS)}, attrs, "conv")
    d.outputs.append(OutputSpec(name="y", buffer=int(whole.storage[1:])))
    return d


def answers(d: Drafter) -> tuple[np.ndarray, dict[tuple[str, int], np.ndarray]]:
    """The reference's image, and Rust's by instruction set (those that this machine has) and number of threads."""
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    inputs = {
        buffer.name: filled((BATCH, *(size for size in buffer.shape[1:] if isinstance(size, int))), seed)
        for seed, buffer in enumerate(plan.buffers[:3], 10)
    }
    seeds = np.zeros(BATCH, np.uint64)
    made = {}
    for isa in ISAS:
        for threads in (1, 2):
            try:
                made[isa, threads] = Cpu(threads, isa).compile(plan, constants).run(inputs, seeds)["y"]
            except BadMachineSetting:
                continue  # not an instruction set of this machine
    return Reference("float64").compile(plan, constants).run(inputs, seeds)["y"], made


def check(d: Drafter) -> None:
    """Within rounding of the reference, threads change nothing, and VNNI changes nothing."""
    expected, made = answers(d)
    assert ("scalar", 1) in made
    size = np.abs(expected).max()
    for (isa, threads), got in made.items():
        np.testing.assert_array_equal(got, made[isa, 1], err_msg=f"{isa}, {threads} threads")
        # A value between two steps of its grid may fall to the other one: one step of one input, times a weight.
        assert np.abs(got - expected).max() <= 2e-2 * size, isa
        assert np.sqrt(np.square(got - expected).mean()) <= 1e-3 * np.sqrt(np.square(expected).mean()), isa
    for plain, vnni in (("avx2", "avxvnni"), ("avx512", "avx512vnni")):
        if (plain, 1) in made and (vnni, 1) in made:
            np.testing.assert_array_equal(made[plain, 1], made[vnni, 1])


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_quantized_block_is_the_reference(geometry, static):
    check(block(geometry, "i8", "u8", static))


@pytest.mark.parametrize(
    ("weights", "activations"), [("i8", "u7"), ("i7", "u7"), ("i6", "u7"), ("i7", "u8"), ("i6", "u8")]
)
def test_formats(weights, activations):
    check(block(GEOMETRIES["3x3"], weights, activations, False))
