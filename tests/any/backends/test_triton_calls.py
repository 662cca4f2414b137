"""Each call of the Triton backend against numpy in the stated order of operations, or torch in float64."""

import numpy as np
import pytest
import torch
from triton_plans import Sketch

from scoregraph.backends.triton import TritonBackend
from scoregraph.backends.triton.binding import collapse
from scoregraph.errors import UncoveredCall
from scoregraph.graph import noise
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Value
from scoregraph.plan.schema import Call

pytest.importorskip("triton")

B = Batch(1)
ACTIVATIONS = {
    "none": lambda x: x,
    "silu": torch.nn.functional.silu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def view(value: Value, shape: tuple, strides: tuple[int, ...], offset: int = 0) -> Value:
    return Value(value.storage, shape, strides, offset, value.dtype)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# --- sampler step -------------------------------------------------------------------------------


def register_machine(table, columns, registers, predictions, branches, seeds, site):
    """docs/plan-format.md, "The sampler step", in numpy float32: one multiply and one add at a time."""
    a, b, c = columns
    size, all_branches = len(registers), sum(branches)
    samples, n = registers[0].shape
    for row in range(len(table)):
        z = noise.normals(np.array(seeds, np.uint64), site=site, micro=row, count=n)
        new = []
        for j in range(size):
            total = np.zeros((samples, n), np.float32)
            for i in range(size):
                if table[row, a + j * size + i] != 0:
                    total = total + table[row, a + j * size + i] * registers[i]
            terms = [
                p.reshape(samples, k, n)[:, i] for p, k in zip(predictions, branches, strict=True) for i in range(k)
            ]
            for k, term in enumerate(terms):
                if table[row, b + j * all_branches + k] != 0:
                    total = total + table[row, b + j * all_branches + k] * term
            if table[row, c + j] != 0:
                total = total + table[row, c + j] * z
            new.append(total)
        registers = new
    return registers


@pytest.mark.parametrize(("size", "branches", "n"), [(1, (1,), 5), (2, (2,), 1030), (3, (2, 1), 37)])
def test_register_machine_has_the_bits_of_the_stated_order(size: int, branches: tuple[int, ...], n: int) -> None:
    rows, samples = 4, 3
    total = sum(branches)
    columns = (1, 1 + size * size, 1 + size * size + size * total)
    table = random(rows, columns[2] + size, seed=1)
    table[0, columns[2] :] = 0  # a row without noise
    table[1, columns[0]] = 0  # a register that is not read
    table[2, columns[1]] = 0
    sketch = Sketch()
    number = sketch.table("loop", [f"c{i}" for i in range(table.shape[1])], table)
    registers = [sketch.input(f"r{j}", sketch.new((B, n))) for j in range(size)]
    predictions = [sketch.input(f"p{j}", sketch.new((Batch(k), n))) for j, k in enumerate(branches)]
    x_in = sketch.input("x_in", sketch.new((Batch(2), n)))
    sketch.begin("loop", number)
    named = {f"r{j}": r for j, r in enumerate(registers)}
    sketch.call(
        "sampler_step",
        {**named, **{f"p{j}": p for j, p in enumerate(predictions)}},
        {**named, "xin0": x_in},
        {"table": number, "a": columns[0], "b": columns[1], "c": columns[2], "cin": 0, "site": 6},
        site="step",
    )
    for j, register in enumerate(registers):
        sketch.output(f"r{j}", register)
    sketch.output("x_in", x_in)
    r = [random(samples, n, seed=10 + j) for j in range(size)]
    p = [random(samples * k, n, seed=20 + j) for j, k in enumerate(branches)]
    seeds = [7, 2**40, 2**64 - 1]
    given = {f"r{j}": v for j, v in enumerate(r)} | {f"p{j}": v for j, v in enumerate(p)}
    got = sketch.run(seeds, **given, x_in=np.zeros((samples * 2, n), np.float32))
    want = register_machine(table, columns, r, p, branches, seeds, site=6)
    for j in range(size):
        np.testing.assert_array_equal(got[f"r{j}"], want[j])
    # The last write of x_in is that of the row before the last, scaled by the last row's c_in.
    before = register_machine(table[:-1], columns, r, p, branches, seeds, site=6)
    np.testing.assert_array_equal(got["x_in"], np.repeat(table[-1, 0] * before[0], 2, axis=0))


def test_a_zero_coefficient_is_not_read() -> None:
    """NaN behind a coefficient of 0 does not reach the state: 0 * NaN would."""
    sketch = Sketch()
    number = sketch.table("loop", ["a", "b0", "b1", "c"], np.array([[0.5, 0.0, 2.0, 0.0]]))
    x = sketch.input("x", sketch.new((B, 6)))
    p = sketch.input("p", sketch.new((Batch(2), 6)))
    sketch.begin("loop", number)
    sketch.call(
        "sampler_step", {"r0": x, "p0": p}, {"r0": x}, {"table": number, "a": 0, "b": 1, "c": 3, "cin": -1, "site": 0}
    )
    sketch.output("x", x)
    got = sketch.run(x=np.ones((1, 6), np.float32), p=np.array([[np.nan] * 6, [3.0] * 6], np.float32))["x"]
    np.testing.assert_array_equal(got, np.full((1, 6), 6.5))


# --- table lookups ------------------------------------------------------------------------------


def test_step_time_and_step_input_read_the_current_or_a_fixed_row() -> None:
    table = np.array([[1.5, 10.0], [2.5, 20.0], [3.5, 30.0]], np.float32)
    sketch = Sketch()
    number = sketch.table("loop", ["t", "c_in"], table)
    x = sketch.input("x", sketch.new((B, 7)))
    t, first, last = sketch.new((B,)), sketch.new((Batch(3), 7)), sketch.new((Batch(3), 7))
    sketch.begin("before")
    sketch.call("step_input", {"x": x}, {"xin": first}, {"table": number, "column": 1, "row": 0})
    sketch.begin("loop", number)
    sketch.call("step_time", {}, {"t": t}, {"table": number, "column": 0})
    sketch.call("step_input", {"x": x}, {"xin": last}, {"table": number, "column": 1})
    for name, value in (("t", t), ("first", first), ("last", last)):
        sketch.output(name, value)
    given = random(2, 7)
    got = sketch.run([1, 2], x=given)
    np.testing.assert_array_equal(got["t"], [3.5, 3.5])
    np.testing.assert_array_equal(got["first"], np.repeat(given * np.float32(10), 3, axis=0))
    np.testing.assert_array_equal(got["last"], np.repeat(given * np.float32(30), 3, axis=0))


# --- linear -------------------------------------------------------------------------------------


def linear_error(m: int, n: int, k: int, act: str, *, bias: bool, residual: bool, gate: int) -> float:
    """The relative error of one linear call to float64."""
    sketch = Sketch()
    values = {"x": random(m, k), "w": random(n, k, seed=1) / np.float32(np.sqrt(k)), "b": random(n, seed=2)}
    values |= {"r": random(m, n, seed=3), "g": random(gate or 1, n, seed=4)}
    ins = {"x": sketch.input("x", sketch.new((m, k))), "w": sketch.constant(values["w"], "w")}
    exact = {name: torch.from_numpy(value).double() for name, value in values.items()}
    want = exact["x"] @ exact["w"].T
    if bias:
        ins["bias"] = sketch.constant(values["b"], "b")
        want = want + exact["b"]
    want = ACTIVATIONS[act](want)
    if gate:
        ins["gate"] = sketch.input("g", sketch.new((gate, n)))
        want = want * exact["g"].repeat_interleave(m // gate, 0)
    if residual:
        ins["residual"] = sketch.input("r", sketch.new((m, n)))
        want = want + exact["r"]
    y = sketch.new((m, n))
    sketch.begin("once")
    sketch.call("linear", ins, {"y": y}, {"act": act})
    sketch.output("y", y)
    inputs = {spec.name: values[spec.name] for spec in sketch.inputs}
    got = torch.from_numpy(sketch.run(**inputs)["y"]).double()
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_linear_with_each_activation(act: str) -> None:
    assert linear_error(33, 70, 45, act, bias=True, residual=False, gate=0) < 1e-6


@pytest.mark.parametrize(
    ("bias", "residual", "gate"), [(False, False, 0), (False, True, 0), (True, True, 1), (True, True, 3)]
)
def test_linear_epilogues(bias: bool, residual: bool, gate: int) -> None:
    assert linear_error(6, 3, 129, "silu", bias=bias, residual=residual, gate=gate) < 1e-6


def test_linear_reads_rows_on_two_strides() -> None:
    """x [B, 3, 8] is a slice of tokens 1…3 and channels 4…11 of [B, 5, 12]; y is dense."""
    sketch = Sketch()
    whole = sketch.input("x", sketch.new((B, 5, 12)))
    y = sketch.new((B, 3, 4))
    weight = random(4, 8, seed=1)
    sketch.begin("once")
    x = view(whole, (B, 3, 8), (60, 12, 1), offset=12 + 4)
    sketch.call("linear", {"x": x, "w": sketch.constant(weight, "w")}, {"y": y}, {"act": "none"})
    sketch.output("y", y)
    given = random(2, 5, 12)
    got = sketch.run([0, 1], x=given)["y"]
    np.testing.assert_allclose(got, given[:, 1:4, 4:].astype(np.float64) @ weight.T.astype(np.float64), atol=2e-6)


def test_a_sample_of_linear_does_not_depend_on_its_batch() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", sketch.new((B, 100))), sketch.new((B, 50))
    sketch.begin("once")
    sketch.call("linear", {"x": x, "w": sketch.constant(random(50, 100, seed=1), "w")}, {"y": y}, {"act": "silu"})
    sketch.output("y", y)
    given = random(40, 100)
    whole = sketch.run(list(range(40)), x=given)["y"]
    np.testing.assert_array_equal(sketch.run([0], x=given[37:38])["y"], whole[37:38])


# --- elementwise --------------------------------------------------------------------------------

PROGRAMS = {
    **{name: ([[name, 0]], f) for name, f in ACTIVATIONS.items() if name != "none"},
    "neg": ([["neg", 0]], torch.neg),
    "abs": ([["abs", 0]], torch.abs),
    "exp": ([["exp", 0]], torch.exp),
    "log": ([["abs", 0], ["log", 2]], lambda x: x.abs().log()),
    "sin": ([["sin", 0]], torch.sin),
    "cos": ([["cos", 0]], torch.cos),
    "sqrt": ([["abs", 0], ["sqrt", 2]], lambda x: x.abs().sqrt()),
    "rsqrt": ([["abs", 0], ["rsqrt", 2]], lambda x: x.abs().rsqrt()),
    "reciprocal": ([["reciprocal", 0]], torch.reciprocal),
    "square": ([["square", 0]], torch.square),
    "erf": ([["erf", 0]], torch.erf),
    "floor": ([["floor", 0]], torch.floor),
    **{f"pow {p}": ([["const", p], ["pow", 0, 2]], lambda x, p=p: x**p) for p in (-2, -1, 1, 2, 3, 4)},
    **{f"pow {p}": ([["abs", 0], ["const", p], ["pow", 2, 3]], lambda x, p=p: x.abs() ** p) for p in (0.5, -0.5)},
}
BINARIES = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "min": torch.minimum,
    "max": torch.maximum,
    "less": lambda x, y: (x < y).float(),
}


def run_pointwise(program: list, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sketch = Sketch()
    a, b, out = (sketch.new(x.shape) for _ in range(3))
    sketch.input("x", a)
    sketch.input("y", b)
    sketch.begin("once")
    sketch.call("pointwise", {"x0": a, "x1": b}, {"y": out}, {"program": program})
    sketch.output("out", out)
    return sketch.run(x=x, y=y)["out"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_unary_instructions(name: str) -> None:
    program, function = PROGRAMS[name]
    x = np.concatenate([random(30) * 3, np.array([0.6249, 0.6251, -0.6251, 9.5, -9.5, 1e-4], np.float32)])
    want = function(torch.from_numpy(x).double())
    got = torch.from_numpy(run_pointwise(program, x, x)).double()
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", BINARIES)
def test_binary_instructions(name: str) -> None:
    x, y = random(50), random(50, seed=1)
    want = BINARIES[name](torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_array_equal(run_pointwise([[name, 0, 1]], x, y), want.numpy())


def test_where_chooses_element_by_element() -> None:
    x, y = random(50), random(50, seed=1)
    got = run_pointwise([["less", 0, 1], ["where", 2, 0, 1]], x, y)
    np.testing.assert_array_equal(got, np.minimum(x, y))


@pytest.mark.parametrize("name", ["min", "max", "relu"])
def test_nan_stays_nan(name: str) -> None:
    x = np.array([np.nan, 1.0, -1.0], np.float32)
    program = [[name, 0]] if name == "relu" else [[name, 0, 1]]
    assert np.isnan(run_pointwise(program, x, np.zeros(3, np.float32))).tolist() == [True, False, False]


def test_a_chain_over_strides_broadcasts_and_integers() -> None:
    """y[b, c, i] = silu(x[b, i, c] * s[c] + label[b]), written into the middle channels of a wider buffer."""
    sketch = Sketch()
    x = sketch.input("x", sketch.new((B, 5, 3)))
    s = sketch.input("s", sketch.new((3,)))
    label = sketch.input("label", sketch.new((B,), "i64"))
    wide = sketch.input("wide", sketch.new((B, 4, 5)))
    shape = (B, 3, 5)
    ins = {"x0": view(x, shape, (15, 1, 3)), "x1": view(s, shape, (0, 1, 0)), "x2": view(label, shape, (1, 0, 0))}
    sketch.begin("once")
    program = [["mul", 0, 1], ["add", 3, 2], ["silu", 4]]
    sketch.call("pointwise", ins, {"y": view(wide, shape, (20, 5, 1), offset=5)}, {"program": program})
    sketch.output("wide", wide)
    given = {"x": random(2, 5, 3), "s": random(3, seed=1), "label": np.array([3, -2])}
    got = sketch.run([0, 1], **given, wide=np.full((2, 4, 5), 9.0, np.float32))["wide"]
    want = given["x"].transpose(0, 2, 1).astype(np.float64) * given["s"][:, None] + given["label"][:, None, None]
    np.testing.assert_allclose(got[:, 1:], want / (1 + np.exp(-want)), atol=1e-6)
    assert (got[:, 0] == 9.0).all()


@pytest.mark.parametrize("dtype", ["f32", "i64", "u8"])
def test_copy_permutes_any_dtype(dtype: str) -> None:
    sketch = Sketch()
    x, y = sketch.input("x", sketch.new((B, 4, 3), dtype)), sketch.new((B, 3, 4), dtype)
    sketch.begin("once")
    sketch.call("copy", {"x": view(x, (B, 3, 4), (12, 1, 3))}, {"y": y})
    sketch.output("y", y)
    given = np.random.default_rng(0).integers(0, 200, (2, 4, 3)).astype({"f32": "f4", "i64": "i8", "u8": "u1"}[dtype])
    given.flat[0] = 2**62 + 1 if dtype == "i64" else 200
    np.testing.assert_array_equal(sketch.run([0, 1], x=given)["y"], given.transpose(0, 2, 1))


def test_fill_writes_through_strides_only() -> None:
    sketch = Sketch()
    x = sketch.input("x", sketch.new((B, 3, 4)))
    sketch.begin("once")
    sketch.call("fill", {}, {"x": view(x, (B, 3), (12, 4), offset=2)}, {"value": -0.25})
    sketch.output("x", x)
    got = sketch.run([0, 1], x=np.ones((2, 3, 4), np.float32))["x"]
    assert (got[:, :, 2] == -0.25).all()
    assert (np.delete(got, 2, axis=2) == 1).all()


def test_collapse_keeps_the_order_of_elements() -> None:
    shape, strides = (2, 1, 3, 4), [(12, 99, 4, 1), (0, 99, 4, 1), (12, 99, 4, 1)]
    sizes, collapsed = collapse(shape, strides)
    assert sizes == (2, 12)
    assert collapsed == [(12, 1), (0, 1), (12, 1)]
    assert collapse((1, 1), [(5, 5)]) == ((1,), [(0,)])


# --- what is not covered ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(op="conv2d"), "no kernel for conv2d"),
        (Call(op="pointwise", ins={"x0": "b0", "x1": "b1"}, attrs={"program": [["pow", 0, 1]]}), "constant exponent"),
        (Call(op="pointwise", ins={"x0": "b0"}, attrs={"program": [["gamma", 0]]}), "'gamma' has no Triton form"),
    ],
)
def test_supports_names_the_reason(call: Call, reason: str) -> None:
    miss = TritonBackend().supports(call)
    assert miss is not None
    assert reason in miss.reason


def test_supports_everything_it_claims() -> None:
    assert all(
        TritonBackend().supports(Call(op=op, attrs={"program": []})) is None for op in TritonBackend().capabilities
    )


def test_an_uncovered_call_is_refused_when_compiled() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", sketch.new((B, 4))), sketch.new((B, 4))
    sketch.begin("once")
    sketch.call("softmax", {"x": x}, {"y": y}, site="head.softmax")
    with pytest.raises(UncoveredCall, match=r"SG403.*softmax at head\.softmax"):
        sketch.program()


def test_a_step_outside_of_a_loop_is_refused() -> None:
    sketch = Sketch()
    number = sketch.table("loop", ["t"], np.zeros((1, 1)))
    sketch.begin("once")
    sketch.call("step_time", {}, {"t": sketch.new((B,))}, {"table": number, "column": 0}, site="time")
    with pytest.raises(UncoveredCall, match="outside of a loop"):
        sketch.program()
