"""Packed layouts and shared bytes: the sentences of docs/plan-format.md, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoregraph.plan import files
from scoregraph.plan.draft import Drafter
from scoregraph.plan.layouts import PACKED, STORED, logical, nbytes, pack, store, unpack, values

RNG = np.random.default_rng(0)
RANGES = {"i8": (-127, 127), "i7": (-63, 63), "i6": (-31, 31), "i4": (-8, 7), "i2": (-2, 1)}


def weights(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "bf16":
        return RNG.integers(0, 1 << 16, shape, np.uint16)
    low, high = RANGES[dtype]
    return RNG.integers(low, high, shape, np.int8, endpoint=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 6))
def test_q4n16_holds_four_inputs_of_sixteen_outputs(n, quads):
    k = 4 * quads
    w = weights("i8", (n, k))
    packed = pack(w, "q4n16")
    assert packed.shape == (-(-n // 16), quads, 64)
    flat = packed.reshape(-1, quads, 16, 4)
    for row, col in np.ndindex(n, k):
        assert flat[row // 16, col // 4, row % 16, col % 4] == w[row, col]
    assert not flat[-1, :, n % 16 or 16 :].any(), "padding is zero"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 6))
def test_k2n16_holds_two_inputs_of_sixteen_outputs(n, pairs):
    w = weights("bf16", (n, 2 * pairs))
    flat = pack(w, "k2n16").reshape(-1, pairs, 16, 2)
    for row, col in np.ndindex(*w.shape):
        assert flat[row // 16, col // 2, row % 16, col % 2] == w[row, col]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_q4oc8_holds_four_channels_of_eight_outputs(o, i, kh, kw):
    w = weights("i8", (o, i, kh, kw))
    flat = pack(w, "q4oc8").reshape(-(-o // 8), -(-i // 4), kh, kw, 8, 4)
    for a, b, y, x in np.ndindex(*w.shape):
        assert flat[a // 8, b // 4, y, x, a % 8, b % 4] == w[a, b, y, x]
    assert not flat[:, -1, :, :, :, i % 4 or 4 :].any(), "channels beyond the last have weight 0"


@pytest.mark.parametrize("layout", ["plain", *PACKED])
@pytest.mark.parametrize("shape", [(1, 4), (16, 8), (33, 12), (8, 4, 1, 1), (9, 5, 3, 3), (17, 3, 1, 2)])
def test_unpacking_is_the_way_back(layout, shape):
    w = RNG.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(w, layout), shape, layout), w)


@pytest.mark.parametrize(("layout", "k"), [("q4n16", 6), ("k2n16", 3)])
def test_rows_fill_their_groups(layout, k):
    with pytest.raises(ValueError, match=f"{k} inputs are no multiple"):
        pack(np.zeros((2, k), np.int8), layout)


@pytest.mark.parametrize(("dtype", "share", "half"), [("i4", 2, 8), ("i2", 4, 2)])
def test_runs_of_values_share_64_bytes(dtype, share, half):
    run = 64 * share
    given = weights(dtype, (2 * run + 5,))
    stored = store(given, dtype)
    assert stored.dtype == np.uint8
    assert stored.size == nbytes(given, dtype) == 3 * 64
    padded = np.concatenate([given, np.zeros(run - 5, np.int8)])
    for at, value in enumerate(padded):
        byte = int(stored[at // run * 64 + at % 64])
        field = byte >> (at % run // 64 * (8 // share)) & (2 * half - 1)
        assert field == value + half
    np.testing.assert_array_equal(values(stored, dtype, given.size), given)
    np.testing.assert_array_equal(store(stored, dtype), stored, "bytes stay bytes")
    assert nbytes(stored, dtype) == stored.size


@pytest.mark.parametrize("dtype", [*RANGES, "bf16"])
@pytest.mark.parametrize(
    ("shape", "layout"), [((33, 12), "q4n16"), ((5, 6, 3, 1), "q4oc8"), ((20, 6), "k2n16"), ((3, 7), "plain")]
)
def test_a_file_holds_every_type_in_every_layout(dtype, shape, layout):
    w = weights(dtype, shape)
    d = Drafter("weights", "reference")
    d.begin("once")
    d.constant(w, "w", dtype)
    d.constant(np.arange(3, dtype=np.float32), "after")
    draft = d.build()
    first = draft.plan.constants[0].model_copy(update={"layout": layout})
    plan = draft.plan.model_copy(update={"constants": (first, *draft.plan.constants[1:])})
    packed = {0: pack(draft.arrays[0], layout), 1: draft.arrays[1]}
    plan, data = files.lay_out(plan, packed)
    constant, after = plan.constants
    assert (constant.dtype, constant.shape) == (dtype, shape)
    stored = files.read_constant(constant, data)
    assert stored.nbytes == constant.nbytes
    if layout == "plain":
        whole = math.prod(shape)
        assert constant.nbytes == {"i4": 64, "i2": 64, "bf16": 2 * whole}.get(dtype, whole)
    np.testing.assert_array_equal(logical(constant, stored), w)
    np.testing.assert_array_equal(files.read_constant(after, data), [0, 1, 2])
    again, same = files.lay_out(plan, {c.id: files.read_constant(c, data) for c in plan.constants})
    assert (again, same) == (plan, data), "what was read back is written as it was"


def test_weights_of_different_types_are_different_constants():
    d = Drafter("weights", "reference")
    w = np.zeros((4, 4), np.int8)
    names = [d.constant(w, dtype, dtype).storage for dtype in (*RANGES, "i8")]
    assert names == ["c0", "c1", "c2", "c3", "c4", "c0"]
    assert all(array.dtype == np.int8 for array in d.arrays.values())
    assert d.constant(np.ones(3, np.int8), "index").dtype == "i64", "integers without a type are indices"
    assert set(STORED) >= {*RANGES, "bf16", "f32", "i64", "u8"}
