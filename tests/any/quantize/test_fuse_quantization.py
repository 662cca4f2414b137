"""fuse-quantization: makers write what their readers want, to the last bit of the reference; and what stays, why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from scoregraph.backends.reference import Reference
from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.quantize.fuse_quantization import FuseQuantization
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, InputSpec, OutputSpec

RNG = np.random.default_rng(5)
PASS = FuseQuantization()
NORM = {"eps": 1e-5, "act": "none"}


class Net:
    """x [B, 6, 32] and an image [B, 8, 4, 4] as inputs; integer products as they stand behind insert-quantization."""

    def __init__(self) -> None:
        self.d = Drafter("net", "reference")
        self.d.begin("once")
        self.x, self.image = self.d.new((Batch(), 6, 32)), self.d.new((Batch(), 8, 4, 4))
        self.d.inputs += [InputSpec(name="x", buffer=0), InputSpec(name="image", buffer=1)]

    def call(self, op: str, x: Value, shape: tuple, attrs: dict, dtype: str = "f32", **ins: Value) -> Value:
        y = self.d.new(shape, dtype)
        self.d.call(op, {"x": x, **ins}, {"y": y}, attrs, op)
        return y

    def norm(self, op: str = "layer_norm", x: Value | None = None) -> Value:
        if op == "group_norm":
            return self.call(op, self.image, self.image.shape, {**NORM, "groups": 2})
        x = self.x if x is None else x
        return self.call(op, x, x.shape, NORM if op == "layer_norm" else {"eps": 1e-5})

    def quantize(self, x: Value, *, static: bool = False, smooth: bool = False) -> tuple[Value, Value]:
        image = len(x.shape) == 4
        channels = x.shape[1] if image else x.shape[-1]
        factors = np.linspace(0.5, 2.0, int(str(channels)), dtype=np.float32)
        ins = {"x": x, **({"smooth": self.d.constant(factors, "smooth")} if smooth else {})}
        q = self.d.new((x.shape[0], 2, 4, 4, 4) if image else x.shape, "u8")
        if static:
            grid = self.d.constant(np.array([[0.05, 120.0]], np.float32), "grid")
            self.d.call("quantize", {**ins, "ygrid": grid}, {"y": q}, {}, "quantize")
        else:
            grid = self.d.new((Batch() if image else Batch(6), 2))
            self.d.call("quantize", ins, {"y": q, "ygrid": grid}, {}, "quantize")
        return q, grid

    def product(self, q: Value, grid: Value) -> None:
        """An output that reads whole numbers."""
        image = len(q.shape) == 5
        shape = (8, 8, 3, 3) if image else (16, 32)
        w = self.d.constant(RNG.integers(-127, 128, shape).astype(np.int8), "w", "i8")
        ones = self.d.constant(np.ones((shape[0], 1), np.float32), "ones")
        y = self.d.new((q.shape[0], 8, 4, 4) if image else (*q.shape[:-1], 16))
        attrs = {"stride": [1, 1], "padding": [1, 1]} if image else {}
        ins = {"x": q, "w": w, "grid": grid, "wscale": ones, "wsum": ones}
        self.d.call("conv2d" if image else "linear", ins, {"y": y}, {**attrs, "act": "none", "chain": 0}, "product")
        self.output(y)

    def output(self, y: Value) -> None:
        number = len(self.d.outputs)
        self.d.outputs.append(OutputSpec(name=f"y{number}", buffer=int(self.d.ref(y)[1:])))

    def weights(self, dtype: str = "f32") -> Value:
        w = RNG.standard_normal((32, 32)).astype(np.float32)
        return self.d.constant((w.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else w, "w", dtype)


def run(draft: Draft) -> dict[str, np.ndarray]:
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.standard_normal([3, *plan.buffers[s.buffer].shape[1:]]) for s in plan.inputs}
    return Reference("float64").compile(plan, constants).run(inputs, np.zeros(3, np.uint64))


def ops(draft: Draft) -> list[str]:
    return [call.op for segment in draft.plan.segments for call in segment.calls]


def first(draft: Draft) -> Call:
    return draft.plan.segments[0].calls[0]


def checked(draft: Draft, **counters: int) -> PassResult[Draft]:
    """The pass's result, which computes the same and does nothing the second time."""
    result = PASS.run(draft)
    assert dict(result.counters) == counters
    assert result.rewrites == sum(counters.values())
    before, after = run(draft), run(result.module)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    again = PASS.run(result.module)
    assert (again.rewrites, again.module) == (0, result.module)
    return result


@pytest.mark.parametrize(("static", "smooth"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "group_norm"])
def test_a_norm_writes_whole_numbers(op, static, smooth):
    net = Net()
    net.product(*net.quantize(net.norm(op), static=static, smooth=smooth))
    result = checked(net.d.build(), **{op: 1})
    assert ops(result.module) == [op, "conv2d" if op == "group_norm" else "linear"]
    assert ("ygrid" in first(result.module).ins) == static
    assert ("ygrid" in first(result.module).outs) != static
    assert ("smooth" in first(result.module).ins) == smooth
    assert not result.misses


def test_a_product_on_a_static_grid_smooths_nothing():
    net = Net()
    y = net.call("linear", net.x, net.x.shape, {"act": "none"}, w=net.weights())
    net.product(*net.quantize(y, static=True, smooth=True))
    result = checked(net.d.build())
    assert ops(result.module) == ["linear", "quantize", "linear"]
    assert [miss.reason for miss in result.misses] == [
        "its result is smoothed, which a product on a static grid does not do"
    ]


def test_a_product_writes_a_static_grid():
    net = Net()
    y = net.call("linear", net.x, net.x.shape, {"act": "gelu_tanh"}, w=net.weights())
    net.product(*net.quantize(y, static=True))
    result = checked(net.d.build(), linear=1)
    assert ops(result.module) == ["linear", "linear"]
    assert result.module.plan.buffers[int(first(result.module).outs["y"][1:])].dtype == "u8"


def of_whole_numbers(net: Net, **ins: Value) -> Value:
    """h [B, 6, 32] of a product of whole numbers."""
    q, grid = net.quantize(net.x)
    w = net.d.constant(RNG.integers(-127, 128, (32, 32)).astype(np.int8), "w", "i8")
    ones = net.d.constant(np.ones((32, 1), np.float32), "ones")
    ins = {"w": w, "grid": grid, "wscale": ones, "wsum": ones, **ins}
    return net.call("linear", q, net.x.shape, {"act": "relu", "chain": 0}, **ins)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_product_of_whole_numbers_measures_the_grids_of_its_rows(smooth):
    net = Net()
    net.product(*net.quantize(of_whole_numbers(net), smooth=smooth))
    result = checked(net.d.build(), linear=1)
    assert ops(result.module) == ["quantize", "linear", "linear"]
    hidden = result.module.plan.segments[0].calls[1]
    assert set(hidden.outs) == {"y", "ygrid"}
    assert ("smooth" in hidden.ins) == smooth
    assert not result.misses


def measured_of_floats(net: Net) -> Value:
    return net.call("linear", net.x, net.x.shape, {"act": "none"}, w=net.weights())


def measured_with_a_residual(net: Net) -> Value:
    return of_whole_numbers(net, residual=net.x)


def measured_with_a_gate(net: Net) -> Value:
    return of_whole_numbers(net, gate=net.d.constant(np.ones((1, 32), np.float32), "gate"))


@pytest.mark.parametrize("make", [measured_of_floats, measured_with_a_residual, measured_with_a_gate])
def test_other_products_do_not_measure_a_grid(make):
    net = Net()
    net.product(*net.quantize(make(net)))
    result = checked(net.d.build())
    assert ops(result.module)[-3:] == ["linear", "quantize", "linear"]
    assert not result.misses, "no kernel does, so it is no near miss"


def test_a_grid_that_rows_share_is_not_measured_by_a_product():
    net = Net()
    h = of_whole_numbers(net)
    q, grid = net.d.new(h.shape, "u8"), net.d.new((Batch(), 2))
    net.d.call("quantize", {"x": h}, {"y": q, "ygrid": grid}, {}, "quantize")
    net.product(q, grid)
    assert ops(checked(net.d.build()).module) == ["quantize", "linear", "quantize", "linear"]


def read_twice(net: Net, h: Value) -> Value:
    net.output(net.call("softmax", h, h.shape, {}))
    return h


def is_output(net: Net, h: Value) -> Value:
    net.output(h)
    return h


def in_parts(net: Net, h: Value) -> Value:
    return Value(h.storage, (Batch(), 3, 32), (192, 32, 1))


def transposed(net: Net, h: Value) -> Value:
    return Value(h.storage, (Batch(), 6, 32), (192, 1, 6))


MISSES: dict[str, tuple[Callable[[Net, Value], Value], str]] = {
    "read twice": (read_twice, "its result is also read in float32"),
    "is an output": (is_output, "its result is also read in float32"),
    "in parts": (in_parts, "its result is quantized in parts or in another shape"),
    "transposed": (transposed, "its result is quantized in parts or in another shape"),
}


@pytest.mark.parametrize("case", MISSES)
def test_a_norm_that_stays_says_why(case):
    use, reason = MISSES[case]
    net = Net()
    x = use(net, net.norm())
    q = net.d.new(x.shape, "u8")
    rows = Batch(int(x.shape[1]))
    grid = net.d.new((rows, 2))
    net.d.call("quantize", {"x": x}, {"y": q, "ygrid": grid}, {}, "quantize")
    net.product(q, grid)
    result = checked(net.d.build())
    assert [(miss.reason, miss.node) for miss in result.misses] == [(reason, "layer_norm")]


def test_makers_of_other_rows_or_written_twice_are_left_alone():
    net = Net()
    h = net.norm()
    net.d.call("softmax", {"x": net.x}, {"y": h}, {}, "again")
    net.product(*net.quantize(h))
    checked(net.d.build())
    net = Net()
    h = net.norm()
    net.d.begin("later")
    net.product(*net.quantize(h))
    checked(net.d.build())


def test_bf16_is_written_where_all_readers_want_it():
    net = Net()
    h = net.norm("rms_norm")
    hidden = net.call("linear", h, h.shape, {"act": "relu"}, w=net.weights("bf16"))
    other = net.call("linear", h, h.shape, {"act": "none"}, w=net.weights("bf16"))
    last = net.call("linear", hidden, h.shape, {"act": "none"}, w=net.weights("bf16"), residual=other)
    net.output(last)
    result = checked(net.d.build(), rms_norm=1, linear=1)
    types = [result.module.plan.buffers[int(call.outs["y"][1:])].dtype for call in result.module.plan.segments[0].calls]
    assert types == ["bf16", "bf16", "f32", "f32"], "a residual is read in float32"


def test_bf16_is_not_written_for_a_product_of_float32():
    net = Net()
    h = net.norm()
    for dtype in ("bf16", "f32"):
        net.output(net.call("linear", h, h.shape, {"act": "none"}, w=net.weights(dtype)))
    checked(net.d.build())


def test_fuel_is_spent_by_value():
    net = Net()
    net.product(*net.quantize(net.norm()))
    h = net.norm("rms_norm")
    net.output(net.call("linear", h, h.shape, {"act": "none"}, w=net.weights("bf16")))
    draft = net.d.build()
    assert [PASS.run(draft, Fuel(n)).rewrites for n in range(4)] == [0, 1, 2, 2]
