"""What flows along the edges of an ONNX graph here: tensors, and plain numbers where a graph computes shapes.

ONNX writes the arithmetic of shapes with the operators of tensors (``Shape``, ``Gather``, ``Concat``, ``Reshape``). The
operators of this package keep it apart: a size is an ``int``, or a ``SymInt`` while torch traces, and an integer vector
is a tuple of them. So the batch stays symbolic and everything else folds, without any code for it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import SymInt, Tensor

Value: TypeAlias = Any
"""A ``Tensor``, a number (``int``, ``float``, ``bool``, ``SymInt``) or a tuple of numbers.

torch declares sizes as ``int`` and hands out ``SymInt``, so a union would be refused at every call: the names tell the
reader what is meant."""

Plain: TypeAlias = Any
"""A ``Value`` without tensors."""

Number: TypeAlias = Any
"""One number."""

LONGEST = 64
"""Integer vectors up to this length are tuples; longer ones are data."""


def from_array(array: np.ndarray) -> Value:
    """A constant: integers of rank 0 and 1 and single floats are plain, halves become float32, the rest is a tensor.

    A float of ONNX is a float32, which a Python float holds exactly.
    """
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    if array.ndim == 0:
        return array.item()
    if array.ndim == 1 and array.dtype.kind in "iub" and array.size <= LONGEST:
        return tuple(array.tolist())
    return torch.from_numpy(np.array(array))


def is_number(value: object) -> bool:
    """Whether this is one plain number."""
    return isinstance(value, (int, float, SymInt))


def numbers(value: Value) -> tuple[Number, ...]:
    """A plain value as a tuple: an axis, a shape, a list of sizes. Raises ``TypeError`` for data."""
    if isinstance(value, Tensor):
        raise TypeError(f"a tensor of shape {list(value.shape)} where the graph must know numbers")
    return value if isinstance(value, tuple) else (value,)


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """Any value as a tensor; floats in the type of ``like``."""
    if isinstance(value, Tensor):
        return value
    first = value[0] if isinstance(value, tuple) and value else value
    floating = isinstance(first, float) and like is not None and like.is_floating_point()
    return torch.tensor(value, dtype=like.dtype if floating and like is not None else None)


def shape(value: Value) -> tuple[Number, ...]:
    """The shape that ONNX sees."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return (len(value),) if isinstance(value, tuple) else ()
