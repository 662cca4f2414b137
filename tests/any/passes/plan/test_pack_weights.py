"""pack-weights: the layouts of docs/plan-format.md, and what keeps a constant plain."""

from __future__ import annotations

import numpy as np
import pytest
from drafts import given, loop, output, run
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from scoregraph.passes.base import Fuel
from scoregraph.passes.plan.pack_weights import PackWeights
from scoregraph.passes.plan.pipeline import LAYOUTS
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter
from scoregraph.plan.layouts import logical, pack

RNG = np.random.default_rng(0)
PASS = PackWeights(LAYOUTS["cpu"])


def unpack_n16(packed: np.ndarray, n: int, k: int) -> np.ndarray:
    """W[i, j] = packed[i // 16][j][i % 16], element by element."""
    return np.array([[packed[i // 16, j, i % 16] for j in range(k)] for i in range(n)], np.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@for_all(st.integers(1, 50), st.integers(1, 20))
def test_n16_puts_sixteen_rows_side_by_side(n, k):
    w = RNG.standard_normal((n, k)).astype(np.float32)
    packed = pack(w, "n16")
    assert packed.shape == (-(-n // 16), k, 16)
    np.testing.assert_array_equal(unpack_n16(packed, n, k), w)
    assert not packed[-1, :, n % 16 or 16 :].any(), "padding is zero"


@settings(max_examples=40, deadline=None, derandomize=True)
@for_all(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_oc8_puts_eight_output_channels_side_by_side(o, i, kh, kw):
    w = RNG.standard_normal((o, i, kh, kw)).astype(np.float32)
    packed = pack(w, "oc8")
    assert packed.shape == (-(-o // 8), i, kh, kw, 8)
    for at in np.ndindex(o, i, kh, kw):
        assert packed[at[0] // 8, at[1], at[2], at[3], at[0] % 8] == w[at]
    assert not packed[-1, ..., o % 8 or 8 :].any(), "padding is zero"


def layers() -> tuple[Drafter, np.ndarray]:
    """x → linear → y, and a convolution beside it."""
    d = Drafter("layers", "cpu")
    d.begin("once")
    w = RNG.standard_normal((5, 4)).astype(np.float32)
    y = d.new((Batch(), 5))
    d.call("linear", {"x": given(d, "x", 4), "w": d.constant(w, "w")}, {"y": y}, {"act": "none"}, "linear")
    output(d, "y", y)
    kernel = d.constant(RNG.standard_normal((3, 2, 3, 3)).astype(np.float32), "kernel")
    z = d.new((Batch(), 3, 6, 6))
    attrs = {"stride": [1, 1], "padding": [1, 1], "act": "none"}
    d.call("conv2d", {"x": given(d, "image", 2, 6, 6), "w": kernel}, {"y": z}, attrs, "conv")
    output(d, "z", z)
    return d, w


def layouts(draft: Draft) -> dict[str, str]:
    return {constant.name: constant.layout for constant in draft.plan.constants}


def test_weights_are_packed_and_compute_the_same():
    draft = layers()[0].build()
    result = PASS.run(draft)
    assert (result.rewrites, result.misses) == (2, ())
    assert layouts(result.module) == {"w": "n16", "kernel": "oc8"}
    assert [tuple(c.shape) for c in result.module.plan.constants] == [(5, 4), (3, 2, 3, 3)], "shapes stay logical"
    for name, value in run(result.module).items():
        np.testing.assert_array_equal(value, run(draft)[name])


@pytest.mark.parametrize("role", ["bias", "residual", "embedding", "table"])
def test_a_constant_with_two_roles_stays_plain(role):
    d, w = layers()
    constant = d.constant(w, "w")
    y = d.new((Batch(), 5) if role != "embedding" else (Batch(), 4))
    if role == "bias":
        constant = d.constant(w[:, 0], "unused")
        square = d.constant(np.eye(5, dtype=np.float32), "square")
        d.call("linear", {"x": given(d, "x2", 5), "w": square, "bias": square}, {"y": y}, {"act": "none"}, "tied")
    elif role == "residual":
        d.call("linear", {"x": given(d, "x2", 4), "w": constant, "residual": constant}, {"y": y}, {}, "tied")
    elif role == "embedding":
        index = d.new((Batch(),), "i64")
        d.call("embedding", {"index": index, "w": constant}, {"y": y}, site="tied")
    else:
        d.table("rows", tuple("abcd"), w)
        loop(d)
    result = PASS.run(d.build())
    (miss,) = result.misses
    assert miss.reason.startswith("read as ")
    assert miss.node == ("square" if role == "bias" else "w")
    assert layouts(result.module)[miss.node] == "plain"
    assert layouts(result.module)["kernel"] == "oc8"


def test_without_layouts_nothing_changes():
    draft = layers()[0].build()
    assert PackWeights({}).run(draft).module == draft


def test_fuel_limits_the_constants_packed():
    assert [PASS.run(layers()[0].build(), Fuel(n)).rewrites for n in range(4)] == [0, 1, 2, 2]


def test_packing_twice_changes_nothing_more():
    once = PASS.run(layers()[0].build()).module
    again = PASS.run(once)
    assert again.rewrites == 0
    for number, array in again.module.arrays.items():
        np.testing.assert_array_equal(array, once.arrays[number])


@pytest.mark.parametrize(
    ("dtype", "linear", "conv"),
    [("bf16", "k2n16", "plain"), ("i8", "q4n16", "q4oc8"), ("i7", "q4n16", "q4oc8"), ("i4", "q4n16", "q4oc8")],
)
def test_the_type_of_weights_chooses_the_counterpart_of_a_layout(dtype, linear, conv):
    d = Drafter("typed", "cpu")
    d.begin("once")
    stored = np.uint16 if dtype == "bf16" else np.int8
    w = d.constant(RNG.integers(0, 7, (5, 8)).astype(stored), "w", dtype)
    kernel = d.constant(RNG.integers(0, 7, (3, 2, 3, 3)).astype(stored), "kernel", dtype)
    y, z = d.new((Batch(), 5)), d.new((Batch(), 3, 6, 6))
    d.call("linear", {"x": given(d, "x", 8), "w": w}, {"y": y}, {}, "linear")
    d.call("conv2d", {"x": given(d, "image", 2, 6, 6), "w": kernel}, {"y": z}, {}, "conv")
    draft = d.build()
    packed = PASS.run(draft).module
    assert layouts(packed) == {"w": linear, "kernel": conv}
    for constant in packed.plan.constants:
        stored = packed.arrays[constant.id].reshape(-1)
        np.testing.assert_array_equal(logical(constant, stored), draft.arrays[constant.id])
