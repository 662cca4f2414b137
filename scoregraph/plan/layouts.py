"""How constants lie in memory: packed layouts of weights, and values that share bytes (docs/plan-format.md, Formats).

Every packed layout is one rearrangement: W [N, I, …] → [ceil(N/width)][ceil(I/group)][…][width][group], padded with 0,
so that a kernel reads ``width`` outputs of ``group`` neighbouring inputs from adjacent memory.
"""

from __future__ import annotations

import math

import numpy as np

from scoregraph.plan.schema import Constant

PACKED = {"n16": (16, 1), "oc8": (8, 1), "k2n16": (16, 2), "q4n16": (16, 4), "q4oc8": (8, 4)}
"""Of each packed layout its width (outputs side by side) and its group (inputs side by side)."""

_BYTES = dict.fromkeys(("u8", "u7", "i4", "i2"), np.dtype("u1")) | dict.fromkeys(("i8", "i7", "i6"), np.dtype("i1"))
STORED = {"f32": np.dtype("<f4"), "i64": np.dtype("<i8"), "bf16": np.dtype("<u2"), **_BYTES}
"""The numpy type of what a plan stores: bf16 as its bits, i4 and i2 as the bytes that they share."""

_SHARED = {"i4": 2, "i2": 4}
_RUN = 64
"""Bytes that an aligned run of i4 or i2 values becomes."""


def pack(array: np.ndarray, layout: str) -> np.ndarray:
    """``array`` [N, I, …] in ``layout``: [ceil(N/width), ceil(I/group), …, width · group].

    Raises:
        ValueError: the inputs of a matrix do not fill their groups (K must be a multiple of 4, or even for bf16).
    """
    if layout == "plain":
        return array
    width, group = PACKED[layout]
    n, inputs, *space = array.shape
    if not space and inputs % group:
        raise ValueError(f"{inputs} inputs are no multiple of {group}, as the layout {layout} needs")
    rows, groups = -(-n // width), -(-inputs // group)
    padded = np.zeros((rows * width, groups * group, *space), array.dtype)
    padded[:n, :inputs] = array
    split = padded.reshape(rows, width, groups, group, *space)
    # (rows, width, groups, group, …) → (rows, groups, …, width, group)
    return np.ascontiguousarray(np.moveaxis(split, (1, 3), (-2, -1))).reshape(rows, groups, *space, width * group)


def unpack(packed: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """The way back: the values of ``packed`` (of any shape) in their logical ``shape``, padding dropped."""
    if layout == "plain":
        return packed.reshape(shape)
    width, group = PACKED[layout]
    n, inputs, *space = shape
    rows, groups = -(-n // width), -(-inputs // group)
    split = np.moveaxis(packed.reshape(rows, groups, *space, width, group), (-2, -1), (1, 3))
    return split.reshape(rows * width, groups * group, *space)[:n, :inputs]


def store(array: np.ndarray, dtype: str) -> np.ndarray:
    """``array``, the values of a constant of ``dtype`` in its layout's order, as a plan stores them; bytes stay bytes.

    i4 and i2 values share bytes: byte j of an aligned run holds values j, j + 64 (, j + 128, j + 192) from its low
    bits up, each with half its range added, so that none is negative.
    """
    if dtype not in _SHARED or array.dtype == STORED[dtype]:
        return np.ascontiguousarray(array, STORED[dtype])
    share = _SHARED[dtype]
    bits = 8 // share
    half = 1 << (bits - 1)
    run = share * _RUN
    values = np.zeros(-(-array.size // run) * run, np.uint8)
    values[: array.size] = array.reshape(-1)
    values = (values + np.uint8(half)).reshape(-1, share, _RUN)
    stored = np.zeros((len(values), _RUN), np.uint8)
    for place in range(share):
        stored |= values[:, place] << np.uint8(place * bits)
    return stored.reshape(-1)


def values(stored: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """The way back: the first ``count`` values that ``stored`` holds; i4 and i2 as int8, bf16 as its bits."""
    if dtype not in _SHARED:
        return stored[:count]
    share = _SHARED[dtype]
    bits = 8 // share
    runs = stored.reshape(-1, 1, _RUN) >> (np.arange(share, dtype=np.uint8) * bits)[:, None]
    found = (runs & ((1 << bits) - 1)).astype(np.int8) - np.int8(1 << (bits - 1))
    return found.reshape(-1)[:count]


def nbytes(array: np.ndarray, dtype: str) -> int:
    """Bytes that :func:`store` makes of ``array``."""
    if dtype in _SHARED and array.dtype != STORED[dtype]:
        return -(-array.size // (_SHARED[dtype] * _RUN)) * _RUN
    return array.size * STORED[dtype].itemsize


def logical(constant: Constant, stored: np.ndarray) -> np.ndarray:
    """A constant's values in its logical shape, whatever its layout, from what the plan stores of it."""
    shape = tuple(constant.shape)
    if constant.layout == "plain":
        return values(stored, constant.dtype, math.prod(shape)).reshape(shape)
    width, group = PACKED[constant.layout]
    n, inputs, *space = shape
    count = -(-n // width) * width * (-(-inputs // group)) * group * math.prod(space)
    return unpack(values(stored, constant.dtype, count), shape, constant.layout)
