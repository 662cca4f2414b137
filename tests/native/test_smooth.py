"""The operand `smooth`: what Rust quantizes channel by channel is what the reference does, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from scoregraph.backends.cpu import Cpu
from scoregraph.backends.reference import Reference
from scoregraph.errors import BadMachineSetting, ScoregraphError
from scoregraph.passes.base import run_passes
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec

pytestmark = pytest.mark.native

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
BATCH = 2


@dataclass(frozen=True)
class Case:
    """A quantizing call: its operation and attributes, the shape of a sample of x, and the grid's rows per sample."""

    op: str
    attrs: dict[str, object]
    shape: tuple[int, ...]
    grids: int

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def channels(self) -> int:
        return self.shape[0 if self.is_image else -1]


GROUP_NORM = {"groups": 2, "eps": 1e-5}
CASES = {
    "tokens": Case("quantize", {}, (5, 21), 5),
    "tokens of a sample": Case("quantize", {}, (5, 64), 1),
    "image of 3 channels": Case("quantize", {}, (3, 7, 9), 1),
    "image of 12 channels": Case("quantize", {}, (12, 8, 8), 1),
    "layer norm": Case("layer_norm", {"eps": 1e-6, "act": "none"}, (5, 37), 5),
    "layer norm of a sample": Case("layer_norm", {"eps": 1e-6, "act": "silu"}, (5, 48), 1),
    "rms norm": Case("rms_norm", {"eps": 1e-6}, (5, 19), 5),
    "group norm": Case("group_norm", {**GROUP_NORM, "act": "none"}, (6, 7, 11), 1),
    "group norm, silu": Case("group_norm", {**GROUP_NORM, "act": "silu"}, (10, 9, 17), 1),
}


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def draft(case: Case, static: bool, factors: int | None = None) -> Drafter:
    """The call alone, of an input x; ``factors`` makes as many of them as the case should not have."""
    d = Drafter("smooth", "cpu")
    d.begin("once")
    x = d.new((Batch(), *case.shape), name="x")
    d.inputs.append(InputSpec(name="x", buffer=int(x.storage[1:])))
    stored = (-(-case.channels // 4), *case.shape[1:], 4) if case.is_image else case.shape
    y = d.new((Batch(), *stored), "u8", name="y")
    # Channels that differ by a factor of a hundred.
    smooth = np.geomspace(0.1, 10, factors or case.channels).astype(np.float32)
    ins = {"x": x, "smooth": d.constant(smooth, "smooth")}
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    if static:
        ins["ygrid"] = d.constant(np.array([[0.04, 50.0]], np.float32), "grid")
        d.call(case.op, ins, {"y": y}, case.attrs, "site")
    else:
        grid = d.new((Batch(case.grids), 2), name="grid")
        d.outputs.append(OutputSpec(name="grid", buffer=int(grid.storage[1:])))
        d.call(case.op, ins, {"y": y, "ygrid": grid}, case.attrs, "site")
    return d


def planned(d: Drafter):
    laid, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    return files.lay_out(laid.plan, laid.arrays)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rust_smooths_as_the_reference_does(case: Case, static: bool) -> None:
    plan, constants = planned(draft(case, static))
    inputs, seeds = {"x": normal((BATCH, *case.shape), 5) + 0.3}, np.zeros(BATCH, np.uint64)
    expected = Reference("float64").compile(plan, constants).run(inputs, seeds)
    ran = []
    for isa in ISAS:
        for threads in (1, 2):
            try:
                made = Cpu(threads, isa).compile(plan, constants).run(inputs, seeds)
            except BadMachineSetting:
                continue  # not an instruction set of this machine
            ran.append(isa)
            off = np.abs(made["y"].astype(int) - expected["y"].astype(int))
            if case.is_image:  # channels beyond the last hold any byte
                off = np.moveaxis(off, -1, 2).reshape(BATCH, -1, *case.shape[1:])[:, : case.channels]
            if case.op == "quantize":
                assert not off.any(), isa
                np.testing.assert_array_equal(made.get("grid"), expected.get("grid"))
                continue
            # The norm is rounded: a value between two steps may fall to either.
            assert off.max() <= 1, isa
            assert off.mean() <= 2e-3, isa
            if not static:
                np.testing.assert_allclose(made["grid"][:, 0], expected["grid"][:, 0], rtol=1e-5)
                assert np.abs(made["grid"][:, 1] - expected["grid"][:, 1]).max() <= 1
    assert "scalar" in ran


@pytest.mark.parametrize("name", ["tokens", "image of 12 channels", "layer norm", "rms norm", "group norm"])
def test_there_is_a_factor_for_each_channel(name: str) -> None:
    case = CASES[name]
    plan, constants = planned(draft(case, static=False, factors=case.channels + 1))
    with pytest.raises(ScoregraphError, match="smooth has the shape"):
        Cpu(1).compile(plan, constants).run({"x": normal((1, *case.shape), 5)}, np.zeros(1, np.uint64))


def test_a_float_result_is_not_smoothed() -> None:
    d = Drafter("smooth", "cpu")
    d.begin("once")
    x, y = d.new((Batch(), 8), name="x"), d.new((Batch(), 8), name="y")
    d.inputs.append(InputSpec(name="x", buffer=int(x.storage[1:])))
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    smooth = d.constant(np.ones(8, np.float32), "smooth")
    d.call("layer_norm", {"x": x, "smooth": smooth}, {"y": y}, {"eps": 1e-6, "act": "none"}, "site")
    plan, constants = planned(d)
    with pytest.raises(ScoregraphError, match="y is f32; smooth belongs"):
        Cpu(1).compile(plan, constants).run({"x": normal((1, 8), 5)}, np.zeros(1, np.uint64))
