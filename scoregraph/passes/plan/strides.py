"""Which operands kernels read through strides (docs/plan-format.md, Calls); windows onto some columns of a matrix."""

from __future__ import annotations

from itertools import pairwise

from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Value

ANYHOW = {
    "attention": ("q", "k", "v", "mask"),
    "copy": ("x",),
    "matmul": ("x", "y"),
    "group_norm": ("scale", "shift"),
    "conv2d": ("emb",),
}
"""Roles that may have any strides; those of ``pointwise`` do, too."""

ROWS = {
    "linear": ("x", "gate", "residual"),
    "layer_norm": ("x", "scale", "shift"),
    "rms_norm": ("x", "scale", "shift"),
    "quantize": ("x",),
}
"""Roles whose rows may lie apart, evenly; a row itself is dense."""


def readable(op: str, role: str, window: Value) -> bool:
    """Whether the kernels of ``op`` read such a window in that role."""
    if window.dense() or op == "pointwise" or role in ANYHOW.get(op, ()):
        return True
    return role in ROWS.get(op, ()) and even_rows(window)


def even_rows(window: Value) -> bool:
    """Whether the last dimension is dense and the rows before it begin at equal distances."""
    dims = [(n, s) for n, s in zip(window.shape, window.strides, strict=True) if n != 1]
    if not dims or (window.shape[-1] != 1 and dims.pop()[1] != 1):
        return not dims
    return all(not isinstance(inner, Batch) and stride == inner * step for (_, stride), (inner, step) in pairwise(dims))


def onto_columns(window: Value, width: int, storage: str, total: int, start: int) -> Value | None:
    """The window onto the same elements once its dense matrix [.., width] has become columns of a wider one.

    Args:
        window: onto the matrix by itself.
        width: columns of that matrix.
        storage: the wider matrix, [.., total].
        start: its column where the matrix begins.

    Returns:
        None where a dimension of the window runs over the end of a row.
    """
    row, column = divmod(window.offset, width)
    last, strides = column, list[int]()
    for size, stride in zip(window.shape, window.strides, strict=True):
        if size == 1 or stride % width == 0:
            strides.append(0 if size == 1 else stride // width * total)
            continue
        if isinstance(size, Batch):
            return None
        last += (size - 1) * stride
        strides.append(stride)
    if last >= width:
        return None
    return Value(storage, window.shape, tuple(strides), row * total + start + column, window.dtype)
