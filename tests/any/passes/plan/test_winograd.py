"""winograd: what transformed weights compute, which convolutions take them, and why others do not."""

from __future__ import annotations

import numpy as np
import pytest
from drafts import given, output, run
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from scoregraph.passes.base import Fuel
from scoregraph.passes.plan.pack_weights import PackWeights
from scoregraph.passes.plan.pipeline import LAYOUTS, product_passes
from scoregraph.passes.plan.winograd import MinimalFiltering, transformed
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value

RNG = np.random.default_rng(0)
PASS = MinimalFiltering()


def weight(d: Drafter, filters: int = 16, channels: int = 16, kernel: int = 3) -> Value:
    shape = (filters, channels, kernel, kernel)
    return d.constant(RNG.standard_normal(shape).astype(np.float32), f"w{len(d.constants)}")


def convolve(
    d: Drafter,
    x: Value,
    w: Value,
    *,
    up: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (1, 1, 1, 1),
    stride: tuple[int, int] = (1, 1),
) -> Value:
    """y = conv(x, w), an output of the plan."""
    (_, _, height, width), (filters, _, *kernel) = x.shape, w.shape
    assert isinstance(height, int)
    assert isinstance(width, int)
    rows = (height * up[0] + padding[0] + padding[2] - int(kernel[0])) // stride[0] + 1
    columns = (width * up[1] + padding[1] + padding[3] - int(kernel[1])) // stride[1] + 1
    y = d.new((Batch(), filters, rows, columns))
    attrs = {"stride": list(stride), "padding": list(padding), "up": list(up), "act": "none"}
    d.call("conv2d", {"x": x, "w": w}, {"y": y}, attrs, "conv")
    output(d, f"y{len(d.outputs)}", y)
    return y


def drafted(side: int = 16, **form: tuple[int, ...]) -> Draft:
    d = Drafter("one", "cpu")
    d.begin("once")
    convolve(d, given(d, "x", 16, side, side), weight(d), **form)  # pyright: ignore[reportArgumentType]
    return d.build()


def marks(draft: Draft) -> list[int | None]:
    return [call.attrs.get("winograd") for segment in draft.plan.segments for call in segment.calls]


def check(draft: Draft, result: Draft) -> None:
    """Both compute the same but for what the weights' rounding to float32 makes of it."""
    before, after = run(draft), run(result)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6 * np.abs(value).max(), rtol=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@for_all(st.integers(1, 9), st.integers(1, 9), st.tuples(*[st.integers(0, 2)] * 4), st.booleans())
def test_a_transformed_weight_computes_the_same(height, width, padding, twice):
    padding = (1, 1, 1, 1) if twice else padding
    if min(height * (1 + twice) + padding[0] + padding[2], width * (1 + twice) + padding[1] + padding[3]) < 3:
        return
    d = Drafter("one", "cpu")
    d.begin("once")
    convolve(d, given(d, "x", 3, height, width), weight(d, 5, 3), up=(1 + twice,) * 2, padding=padding)
    draft = d.build()
    plan = draft.plan
    (call,) = plan.segments[0].calls
    call = call.model_copy(update={"attrs": {**call.attrs, "winograd": 2}})
    number = int(call.ins["w"][1:])
    arrays = {**draft.arrays, number: transformed(draft.arrays[number], 3 if twice else 4)}
    constants = list(plan.constants)
    constants[number] = constants[number].model_copy(update={"shape": arrays[number].shape})
    segments = (plan.segments[0].model_copy(update={"calls": (call,)}),)
    check(draft, Draft(plan.model_copy(update={"constants": tuple(constants), "segments": segments}), arrays))


def test_the_transform_is_that_of_the_paper():
    """F(2, 3) by hand, Lavin & Gray 2016, eq. 5: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2), along both axes."""
    g = RNG.standard_normal((70, 2, 3, 3)).astype(np.float32)
    rows = np.float64(g)
    for axis in (2, 3):
        a, b, c = np.moveaxis(rows, axis, 0)
        rows = np.stack([a, (a + b + c) / 2, (a - b + c) / 2, c], axis)
    u, exact = transformed(g, 4), rows.transpose(2, 3, 0, 1)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u, exact, rtol=1e-7, atol=1e-12)
    # Behind an upsampling the third position vanishes, and the second one is doubled.
    twice = transformed(g, 3)
    np.testing.assert_array_equal(twice[::2, ::2], u[::3, ::3])
    np.testing.assert_allclose(twice[1, 1], 4 * exact[1, 1], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("up", "points"), [((1, 1), 4), ((2, 2), 3)])
def test_a_convolution_of_three_by_three_is_rewritten(up, points):
    draft = drafted(up=up)
    result = PASS.run(draft)
    assert (result.rewrites, result.misses, marks(result.module)) == (1, (), [2])
    (w,) = result.module.plan.constants
    assert tuple(w.shape) == (points, points, 16, 16)
    assert result.counters == {"bytes": 4 * 16 * 16 * (points * points - 9)}
    check(draft, result.module)
    assert marks(draft) == [None], "the argument stays as it was"
    assert PASS.run(result.module).rewrites == 0, "once is enough"
    packed = PackWeights(LAYOUTS["cpu"]).run(result.module)
    assert packed.module.plan.constants[0].layout == "plain", "its kernel reads rows"


@pytest.mark.parametrize(
    "form",
    [
        {"stride": (2, 2)},
        {"padding": (3, 1, 1, 1)},
        {"up": (2, 1)},
        {"up": (3, 3)},
        {"up": (2, 2), "padding": (0, 0, 0, 0)},
        {"side": 8},
    ],
    ids=str,
)
def test_others_stay_direct(form):
    draft = drafted(**form)
    assert PASS.run(draft).module is draft


@pytest.mark.parametrize("size", [(16, 15), (15, 16)])
def test_few_channels_or_filters_stay_direct(size):
    d = Drafter("one", "cpu")
    d.begin("once")
    convolve(d, given(d, "x", size[1], 16, 16), weight(d, *size))
    assert PASS.run(d.build()).rewrites == 0


def test_a_weight_serves_all_of_its_calls_or_none():
    d = Drafter("shared", "cpu")
    d.begin("once")
    x, small, w = given(d, "x", 16, 16, 16), given(d, "small", 16, 8, 8), weight(d)
    convolve(d, x, w)
    convolve(d, x, w)
    both = d.build()
    result = PASS.run(both)
    assert (result.rewrites, marks(result.module)) == (1, [2, 2])
    check(both, result.module)
    convolve(d, small, w)
    result = PASS.run(d.build())
    assert (result.rewrites, [str(miss) for miss in result.misses]) == (0, ["w0: read elsewhere, too"])


def test_fuel_and_devices():
    draft = drafted()
    assert PASS.run(draft, Fuel(0)).rewrites == 0
    assert product_passes("cpu") == [PASS]
    assert product_passes("reference") == product_passes("triton") == []
