"""`linear` of bytes and bf16 inside Rust: groups of weights, results of bytes or bf16, slices, on all instruction sets.

The answers are the formulas of docs/plan-format.md: whole numbers in 64 bits, and float32 from there, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from scoregraph.backends.cpu import Cpu
from scoregraph.errors import BadMachineSetting, PlanCorrupt
from scoregraph.passes.base import run_passes
from scoregraph.passes.lower.shape import narrow
from scoregraph.passes.plan.pipeline import memory_passes
from scoregraph.passes.quantize.recipe import MAGNITUDE, TOP, chain_limit
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

pytestmark = pytest.mark.native

ISAS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni")
BATCH, TOKENS, INPUTS, OUTPUTS = 3, 5, 96, 37
F32 = np.float32


def drafter() -> Drafter:
    d = Drafter("products", "cpu")
    d.begin("once")
    return d


def given(d: Drafter, name: str, *shape: int) -> Value:
    value = d.new((Batch(), *shape), name=name)
    d.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
    return value


def answers(d: Drafter, y: Value, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What every instruction set of this machine answers with one thread and with two: the same bits, asserted."""
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    made: dict[str, np.ndarray] = {}
    for isa in ISAS:
        for threads in (1, 2):
            try:
                program = Cpu(threads, isa).compile(plan, constants)
            except BadMachineSetting:
                continue  # not an instruction set of this machine
            made[f"{isa}, {threads} threads"] = program.run(inputs, np.zeros(BATCH, np.uint64))["y"]
    assert len(made) >= 2
    first = next(iter(made.values()))
    for name, result in made.items():
        np.testing.assert_array_equal(result, first, err_msg=name)
    return first


@dataclass(frozen=True)
class Weights:
    """Integer weights of a type, in groups."""

    dtype: str
    w: np.ndarray
    scale: np.ndarray
    groups: int

    @classmethod
    def random(cls, dtype: str, groups: int) -> Weights:
        rng = np.random.default_rng(4)
        low = -MAGNITUDE[dtype]
        high = -low - 1 if dtype in ("i4", "i2") else -low
        w = rng.integers(low, high, (OUTPUTS, INPUTS), endpoint=True)
        return cls(dtype, w, (rng.random((OUTPUTS, groups)) * 0.01).astype(F32), groups)

    def operands(self, d: Drafter) -> dict[str, Value]:
        sums = self.w.reshape(OUTPUTS, self.groups, -1).sum(axis=2).astype(F32)
        return {
            "w": d.constant(self.w.astype(np.int8), "w", self.dtype),
            "wscale": d.constant(self.scale, "wscale"),
            "wsum": d.constant(sums, "wsum"),
        }

    def product(self, q: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """The page's sum over groups; q and the grid by token."""
        total: np.ndarray | None = None
        for number, columns in enumerate(np.split(np.arange(INPUTS), self.groups)):
            centred = q[..., columns].astype(np.int64) - grid[..., 1:].astype(np.int64)
            sums = (centred @ self.w[:, columns].T).astype(F32)
            part = sums * (grid[..., :1].astype(F32) * self.scale[:, number])
            total = part if total is None else total + part
        assert total is not None
        return total


def quantized(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes and the grids of tokens, each operation in float32."""
    low, high = np.minimum(x.min(-1, keepdims=True), F32(0)), np.maximum(x.max(-1, keepdims=True), F32(0))
    inv = F32(top) / (high - low)
    zero = np.rint(-low * inv)
    q = np.clip(np.rint(x * inv) + zero, 0, top)
    return q, np.concatenate([(high - low) / F32(top), zero], axis=-1)


def tokens(seed: int, width: int = INPUTS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BATCH, TOKENS, width)).astype(F32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("activations", ["u8", "u7"])
@pytest.mark.parametrize("weights", list(MAGNITUDE))
def test_products_are_the_formula_bit_for_bit(weights, activations, groups):
    """With a bias, an activation and a residual of strided rows; the rows of y are strided as well."""
    d, of = drafter(), Weights.random(weights, groups)
    x, residual = given(d, "x", TOKENS, INPUTS), given(d, "residual", TOKENS, OUTPUTS + 3)
    q = d.new(x.shape, activations)
    grid = d.new((Batch(TOKENS), 2))
    d.call("quantize", {"x": x}, {"y": q, "ygrid": grid})
    whole = d.new((Batch(), TOKENS, OUTPUTS + 9))
    d.call("fill", {}, {"x": whole}, {"value": 0.25})
    bias = np.linspace(-1, 1, OUTPUTS, dtype=F32)
    ins = {"x": q, "grid": grid, **of.operands(d), "bias": d.constant(bias, "bias")}
    ins["residual"] = narrow(residual, 2, 1, OUTPUTS)
    attrs = {"act": "relu", "chain": chain_limit(weights, activations)}
    d.call("linear", ins, {"y": narrow(whole, 2, 4, OUTPUTS)}, attrs)
    inputs = {"x": tokens(1), "residual": tokens(2, OUTPUTS + 3)}
    got = answers(d, whole, inputs)
    expected = np.maximum(of.product(*quantized(inputs["x"], TOP[activations])) + bias, F32(0))
    expected = inputs["residual"][..., 1 : OUTPUTS + 1] + expected
    np.testing.assert_array_equal(got[..., 4 : OUTPUTS + 4], expected)
    assert (got[..., :4] == 0.25).all()
    assert (got[..., OUTPUTS + 4 :] == 0.25).all()


@pytest.mark.parametrize("activations", ["u8", "u7"])
def test_results_are_bytes_for_the_next_product(activations):
    """Two products in a row: the first writes the bytes that the second takes, on a grid by sample."""
    d, first = drafter(), Weights.random("i8", 1)
    second = Weights.random("i7", 1)
    x = given(d, "x", TOKENS, INPUTS)
    q, grid = d.new(x.shape, "u8"), d.new((Batch(TOKENS), 2))
    d.call("quantize", {"x": x}, {"y": q, "ygrid": grid})
    top = TOP[activations]
    # Too narrow for some values, which are clamped.
    chosen = np.array([[4.0 / top, 20.0]], F32)
    hidden, chosen_grid = d.new((Batch(), TOKENS, OUTPUTS), activations), d.constant(chosen, "ygrid")
    ins = {"x": q, "grid": grid, **first.operands(d), "ygrid": chosen_grid}
    d.call("linear", ins, {"y": hidden}, {"act": "none", "chain": chain_limit("i8", "u8")})
    # Rows of 36 of its 37 columns: whole quads, strided.
    w = second.w[:, :36]
    ins = {
        "x": narrow(hidden, 2, 1, 36),
        "grid": chosen_grid,
        "w": d.constant(w.astype(np.int8), "w2", "i7"),
        "wscale": d.constant(second.scale, "wscale2"),
        "wsum": d.constant(w.sum(axis=1, keepdims=True).astype(F32), "wsum2"),
    }
    y = d.new((Batch(), TOKENS, OUTPUTS))
    d.call("linear", ins, {"y": y}, {"act": "none", "chain": chain_limit("i7", activations)})
    inputs = {"x": 4 * tokens(5)}
    got = answers(d, y, inputs)
    values = first.product(*quantized(inputs["x"], 255))
    inv = F32(1) / chosen[0, 0]
    made = np.clip(np.rint(values * inv) + 20, 0, top)
    assert (made == 0).any()
    assert (made == top).any()
    sums = (made[..., 1:].astype(np.int64) - 20) @ w.T
    np.testing.assert_array_equal(got, sums.astype(F32) * (chosen[0, 0] * second.scale[:, 0]))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("count", [TOKENS, 130])
@pytest.mark.parametrize("activations", ["u8", "u7"])
def test_a_result_is_measured_in_the_same_call(activations, count, smooth):
    """Few tokens, which threads share, and many, of which each makes blocks; what bytes mean is read back exactly."""
    d, of, top = drafter(), Weights.random("i8", 1), TOP[activations]
    x = given(d, "x", count, INPUTS)
    q, grid = d.new(x.shape, "u8"), d.new((Batch(count), 2))
    d.call("quantize", {"x": x}, {"y": q, "ygrid": grid})
    factors = np.linspace(0.5, 3.0, OUTPUTS, dtype=F32) if smooth else np.ones(OUTPUTS, F32)
    ins = {"x": q, "grid": grid, **of.operands(d)} | ({"smooth": d.constant(factors, "smooth")} if smooth else {})
    whole, grids = d.new((Batch(), count, OUTPUTS + 3), activations), d.new((Batch(count), 2))
    hidden = narrow(whole, 2, 0, 36)
    d.call("linear", ins, {"y": narrow(whole, 2, 0, OUTPUTS), "ygrid": grids}, {"act": "relu", "chain": 0})
    identity = np.eye(36, dtype=np.int8)
    ones = d.constant(np.ones((36, 1), F32), "ones")
    y = d.new((Batch(), count, 36))
    ins = {"x": hidden, "grid": grids, "w": d.constant(identity, "eye", "i8"), "wscale": ones, "wsum": ones}
    d.call("linear", ins, {"y": y}, {"act": "none", "chain": 0})
    inputs = {"x": np.random.default_rng(12).standard_normal((BATCH, count, INPUTS)).astype(F32)}
    got = answers(d, y, inputs)
    made, spanned = quantized(np.maximum(of.product(*quantized(inputs["x"], 255)), F32(0)) * factors, top)
    expected = (made - spanned[..., 1:])[..., :36].astype(F32) * spanned[..., :1]
    np.testing.assert_array_equal(got, expected)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bf16, the even one of a tie."""
    bits = x.astype(F32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(F32)


def bf16_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sums of the page: of each pair the odd product first; products are exact in float32, so sums round once."""
    total = np.zeros((*x.shape[:-1], len(w)), F32)
    for pair in range(0, x.shape[-1], 2):
        for k in (pair + 1, pair):
            total = total + x[..., k : k + 1] * w[:, k]
    return total


def test_bf16_products_add_in_the_order_of_the_page():
    """The first takes float32 and writes bf16, the second takes that."""
    d, rng = drafter(), np.random.default_rng(6)
    x = given(d, "x", TOKENS, INPUTS)
    weights = [to_bf16(rng.standard_normal(shape) / 8) for shape in ((OUTPUTS + 1, INPUTS), (OUTPUTS, OUTPUTS + 1))]
    hidden = d.new((Batch(), TOKENS, OUTPUTS + 1), "bf16")
    bias = rng.standard_normal(OUTPUTS + 1).astype(F32)
    ins = {"x": x, "w": d.constant(weights[0], "w", "bf16"), "bias": d.constant(bias, "bias")}
    d.call("linear", ins, {"y": hidden}, {"act": "relu"})
    y = d.new((Batch(), TOKENS, OUTPUTS))
    d.call("linear", {"x": hidden, "w": d.constant(weights[1], "w2", "bf16")}, {"y": y}, {"act": "none"})
    inputs = {"x": tokens(7)}
    got = answers(d, y, inputs)
    first = bf16_product(from_bf16(to_bf16(inputs["x"])), from_bf16(weights[0]))
    middle = from_bf16(to_bf16(np.maximum(first + bias, F32(0))))
    np.testing.assert_array_equal(got, bf16_product(middle, from_bf16(weights[1])))


def test_a_gate_and_a_residual_in_place():
    """y is the residual itself; the gate is fused or not, which is rounding."""
    d, of = drafter(), Weights.random("i8", 1)
    x, gate = given(d, "x", TOKENS, INPUTS), given(d, "gate", OUTPUTS)
    q, grid = d.new(x.shape, "u8"), d.new((Batch(), 2))
    d.call("quantize", {"x": x}, {"y": q, "ygrid": grid})
    y = d.new((Batch(), TOKENS, OUTPUTS))
    d.call("fill", {}, {"x": y}, {"value": 2.0})
    ins = {"x": q, "grid": grid, **of.operands(d), "gate": gate, "residual": y}
    d.call("linear", ins, {"y": y}, {"act": "silu", "chain": 0})
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    inputs = {"x": tokens(8), "gate": tokens(9, OUTPUTS)[:, 0]}
    q_values, grids = quantized(inputs["x"].reshape(BATCH, -1), 255)
    exact = of.product(q_values.reshape(BATCH, TOKENS, INPUTS), grids[:, None]).astype(np.float64)
    expected = 2 + inputs["gate"][:, None] * exact / (1 + np.exp(-exact))
    for isa in ISAS:
        try:
            program = Cpu(2, isa).compile(plan, constants)
        except BadMachineSetting:
            continue
        got = program.run(inputs, np.zeros(BATCH, np.uint64))["y"]
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6, err_msg=isa)


def refused(edit: str) -> str:
    """The message about a product that is broken in one way."""
    d, of = drafter(), Weights.random("i8", 1)
    x = given(d, "x", TOKENS, INPUTS)
    q, grid = d.new(x.shape, "u8"), d.new((Batch(TOKENS), 2))
    d.call("quantize", {"x": x}, {"y": q, "ygrid": grid})
    measured = edit.startswith("measured")
    y = d.new((Batch(), TOKENS, OUTPUTS), "u8" if edit == "no ygrid" or measured else "f32")
    ins, outs = {"x": q, "grid": grid, **of.operands(d)}, {"y": y}
    if measured:
        outs["ygrid"] = d.new((Batch(1 if edit == "measured by sample" else TOKENS), 2))
    if edit == "measured of floats":
        ins = {"x": x, "w": d.constant(np.zeros((OUTPUTS, INPUTS), F32), "w32")}
    if edit == "measured with a residual":
        ins["residual"] = given(d, "residual", TOKENS, OUTPUTS)
    if edit == "bf16 weights":
        ins = {"x": q, "w": d.constant(np.zeros((OUTPUTS, INPUTS), np.uint16), "w16", "bf16")}
    if edit == "a grid of other rows":
        ins["grid"] = d.constant(np.ones((7, 2), F32), "grid")
    if edit == "a scale too many":
        ins["wscale"] = d.constant(np.ones((OUTPUTS, 3), F32), "wscale3")
    d.call("linear", ins, outs, {"chain": 1 if edit == "a chain" else 0} if "wsum" in ins else {})
    d.outputs.append(OutputSpec(name="y", buffer=int(y.storage[1:])))
    draft, _ = run_passes(memory_passes("cpu"), d.build(), show=lambda _: "")
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    with pytest.raises(PlanCorrupt) as problem:
        Cpu(1).compile(plan, constants).run(
            {spec.name: tokens(1, INPUTS if spec.name == "x" else OUTPUTS) for spec in plan.inputs},
            np.zeros(BATCH, np.uint64),
        )
    return str(problem.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("no ygrid", "ygrid"),
        ("bf16 weights", "bf16"),
        ("a grid of other rows", "grid"),
        ("a scale too many", "groups"),
        ("a chain", "16 bits"),
        ("measured by sample", "a grid row for each"),
        ("measured of floats", "integer weights"),
        ("measured with a residual", "no residual"),
    ],
)
def test_what_does_not_fit_is_refused(edit, said):
    assert said in refused(edit)


def test_the_rows_of_a_matrix_may_be_a_slice_of_tokens():
    """Rows that are not evenly spaced: the last tokens of each sample, in float32, bytes and bf16."""
    rng = np.random.default_rng(11)
    x_values, take = tokens(10), 3
    w = rng.integers(-127, 127, (OUTPUTS, INPUTS))
    exact = np.rint(x_values * 20).clip(-60, 60).astype(F32)
    for kind in ("f32", "bf16"):
        d = drafter()
        x = narrow(given(d, "x", TOKENS, INPUTS), 1, TOKENS - take, take)
        bits = to_bf16(w.astype(F32)) if kind == "bf16" else w.astype(F32)
        whole = d.new((Batch(), TOKENS, OUTPUTS))
        d.call("fill", {}, {"x": whole}, {"value": math.pi})
        d.call("linear", {"x": x, "w": d.constant(bits, "w", kind)}, {"y": narrow(whole, 1, 1, take)}, {})
        got = answers(d, whole, {"x": exact})
        # Whole numbers below 2^24: exact in every order.
        np.testing.assert_array_equal(got[:, 1 : 1 + take], exact[:, TOKENS - take :] @ w.T.astype(F32))
        assert (got[:, [0, 4]] == F32(math.pi)).all()
