"""The operators of ONNX that move data, or compute shapes: those have a form on plain numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.models.onnx.values import LONGEST, Value, is_number, numbers, shape, tensor

_FAR = 2**31


def Shape(x: Value, *, start: int = 0, end: int | None = None) -> Value:
    """The sizes of ``x``, or some of them."""
    return shape(x)[start:end]


def Size(x: Value) -> Value:
    """The number of elements."""
    return math.prod(shape(x))


def Reshape(x: Value, target: Value, *, allowzero: int = 0) -> Value:
    """A new shape: 0 keeps a size, one -1 is what remains."""
    sizes = list(numbers(target))
    if not isinstance(x, Tensor):
        return _reshaped_numbers(x, sizes)
    if not allowzero:
        sizes = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _reshaped_numbers(x: Value, sizes: list[Any]) -> Value:
    given = numbers(x)
    if len(sizes) > 1:
        return tensor(x).reshape(sizes)
    return given if sizes else given[0]


def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the sizes before ``axis`` and those after."""
    split = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def Squeeze(x: Value, axes: Value | None = None) -> Value:
    """Without the axes of size 1."""
    if not isinstance(x, Tensor):
        return x[0] if isinstance(x, tuple) and len(x) == 1 else x
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(int(axis) for axis in numbers(axes)))


def Unsqueeze(x: Value, axes: Value) -> Value:
    """With new axes of size 1."""
    where = [int(axis) for axis in numbers(axes)]
    if not isinstance(x, Tensor):
        if is_number(x) and len(where) == 1:
            return numbers(x)
        x = tensor(x)
    rank = x.ndim + len(where)
    for axis in sorted(axis % rank for axis in where):
        x = x.unsqueeze(axis)
    return x


def Transpose(x: Value, *, perm: list[int] | None = None) -> Value:
    """The axes in another order; by default reversed."""
    if not isinstance(x, Tensor):
        return x
    return x.permute(perm or list(range(x.ndim))[::-1])


def Concat(*parts: Value, axis: int) -> Value:
    """One after the other along an axis."""
    if not any(isinstance(part, Tensor) for part in parts):
        return sum((numbers(part) for part in parts), ())
    like = next(part for part in parts if isinstance(part, Tensor))
    return torch.cat([tensor(part, like) for part in parts], dim=axis)


def Split(
    x: Value, split: Value | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Value, ...]:
    """Pieces along an axis: of the sizes given, else equal, the last one smaller if it must be."""
    size: Any = shape(x)[axis]
    count = num_outputs or outputs
    if split is not None:
        sizes = [int(each) for each in numbers(split)]
    else:
        step = -(-size // count)
        sizes = [step] * (count - 1) + [size - step * (count - 1)]
    if isinstance(x, Tensor):
        return tuple(x.split(sizes, dim=axis))
    ends = np.cumsum([0, *sizes])
    return tuple(numbers(x)[a:b] for a, b in itertools.pairwise(ends))


def Slice(x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None) -> Value:
    """A part of some axes, which may be walked backwards."""
    first, last = numbers(starts), numbers(ends)
    strides = (1,) * len(first) if steps is None else numbers(steps)
    if not isinstance(x, Tensor):
        return numbers(x)[_near(first[0]) : _near(last[0]) : strides[0]]
    where = range(len(first)) if axes is None else numbers(axes)
    for axis, start, end, step in zip(where, first, last, strides, strict=True):
        x = _sliced(x, int(axis) % x.ndim, _near(start), _near(end), int(step))
    return x


def _near(bound: Any) -> Any:
    """A bound of a slice, None where it is so far off that it means the end of the axis."""
    return None if isinstance(bound, int) and abs(bound) >= _FAR - 1 else bound


def _sliced(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, end, step),)]
    chosen = range(*slice(start, end, step).indices(x.shape[axis]))
    return x.index_select(axis, torch.tensor(list(chosen)))


def Gather(data: Value, indices: Value, *, axis: int = 0) -> Value:
    """Elements of an axis by number: a size of a shape, a row of an embedding, or a slice."""
    if not isinstance(data, Tensor):
        known = numbers(data)
        if is_number(indices):
            return known[int(indices)]
        return tuple(known[int(index)] for index in numbers(indices))
    axis %= data.ndim
    if is_number(indices):
        return data.select(axis, indices)
    if isinstance(indices, tuple):
        chosen = [int(index) % data.shape[axis] for index in indices]
        if chosen == list(range(chosen[0], chosen[0] + len(chosen))):
            return data.narrow(axis, chosen[0], len(chosen))
        return data.index_select(axis, torch.tensor(chosen))
    if axis == 0:
        rows = data if data.ndim == 2 else data.reshape(data.shape[0], -1)
        found = functional.embedding(indices.long(), rows)
        return found if data.ndim == 2 else found.reshape(*indices.shape, *data.shape[1:])
    found = data.index_select(axis, indices.long().reshape(-1))
    return found.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def GatherElements(data: Value, indices: Value, *, axis: int = 0) -> Tensor:
    """``out[i][j] = data[i][index[i][j]]``, by example of axis 1."""
    source, index = tensor(data), tensor(indices)
    return torch.gather(source, axis, torch.where(index < 0, index + source.shape[axis], index))


def GatherND(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Elements or slices by whole coordinates, which are the last axis of ``indices``."""
    if batch_dims:
        raise TypeError("GatherND with batch dimensions")
    return data[tuple(indices.unbind(-1))]


def Expand(x: Value, target: Value, *, unit: Tensor) -> Value:
    """Broadcast to a shape, of which a size may also be 1."""
    source = tensor(x, unit)
    wanted = list(numbers(target))
    have = [1] * (len(wanted) - source.ndim) + list(source.shape)
    wanted = [1] * (len(have) - len(wanted)) + wanted
    # Sizes are only compared where they are known: a comparison would be a condition on the batch.
    sizes = [new if isinstance(old, int) and old == 1 else old for old, new in zip(have, wanted, strict=True)]
    return source.expand(sizes)


def Tile(x: Value, repeats: Value) -> Value:
    """Copies side by side."""
    times = numbers(repeats)
    if isinstance(x, Tensor):
        return x.repeat(times)
    return numbers(x) * int(times[0])


def ConstantOfShape(target: Value, *, value: np.ndarray | None = None, unit: Tensor) -> Value:
    """One number everywhere; by default 0.0."""
    element = 0.0 if value is None else value.reshape(-1)[0].item()
    sizes = numbers(target)
    if not isinstance(element, float) and len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] <= LONGEST:
        return (element,) * sizes[0]
    dtype = unit.dtype if isinstance(element, float) else torch.bool if isinstance(element, bool) else torch.int64
    return torch.full(sizes, element, dtype=dtype)


def Range(start: Value, limit: Value, delta: Value, *, unit: Tensor) -> Tensor:
    """Numbers from ``start`` up to but without ``limit``."""
    bounds = (start, limit, delta)
    dtype = unit.dtype if any(isinstance(bound, float) for bound in bounds) else torch.int64
    return torch.arange(*bounds, dtype=dtype)


def Pad(
    x: Tensor, pads: Value, constant: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Tensor:
    """More elements around: of a number, of the edge, mirrored or repeated."""
    amounts = [int(each) for each in numbers(pads)]
    where = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in numbers(axes)]
    count = len(amounts) // 2
    around = {axis: (amounts[i], amounts[i + count]) for i, axis in enumerate(where)}
    outermost = min((axis for axis, amount in around.items() if any(amount)), default=x.ndim)
    flat = [amount for axis in reversed(range(outermost, x.ndim)) for amount in around.get(axis, (0, 0))]
    if not flat:
        return x
    if mode == "constant":
        return functional.pad(x, flat, value=float(numbers(constant)[0]) if constant is not None else 0.0)
    return functional.pad(x, flat, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels become pixels: [n, C s², H, W] to [n, C, s H, s W]."""
    n, channels, height, width = x.shape
    s, kept = blocksize, channels // blocksize**2
    if mode == "CRD":
        parts = x.reshape(n, kept, s, s, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, s, s, kept, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, kept, height * s, width * s)


def SpaceToDepth(x: Tensor, *, blocksize: int) -> Tensor:
    """Pixels become channels: [n, C, s H, s W] to [n, s² C, H, W]."""
    n, channels, height, width = x.shape
    s = blocksize
    parts = x.reshape(n, channels, height // s, s, width // s, s).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, s * s * channels, height // s, width // s)


def Trilu(x: Value, k: Value = 0, *, upper: int = 1) -> Tensor:
    """The part of matrices on one side of a diagonal, zeros elsewhere."""
    diagonal = int(numbers(k)[0])
    return torch.triu(tensor(x), diagonal) if upper else torch.tril(tensor(x), diagonal)


def CumSum(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sums."""
    if exclusive or reverse:
        raise TypeError("a running sum that is exclusive or backwards")
    return torch.cumsum(tensor(x), int(numbers(axis)[0]))
