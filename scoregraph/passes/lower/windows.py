"""Rules of the operators that only look at memory in another way, and of symbolic sizes: nothing is computed.

Only a reshape whose elements do not lie in order, and a concatenation, cost a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.rules import rule
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value

Size = int | Batch


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
def view(drafter: Drafter, site: str, x: Value, size: Sequence[Size]) -> Value:
    return shapes.view(drafter, drafter.as_buffer(x), size, site)


@rule("aten.flatten.using_ints")
def flatten(drafter: Drafter, site: str, x: Value, start: int = 0, end: int = -1) -> Value:
    start, end = start % len(x.shape), end % len(x.shape)
    merged = shapes.product(x.shape[start : end + 1])
    return view(drafter, site, x, (*x.shape[:start], merged, *x.shape[end + 1 :]))


@rule("aten.unflatten.int")
def unflatten(drafter: Drafter, site: str, x: Value, dim: int, sizes: Sequence[Size]) -> Value:
    dim %= len(x.shape)
    part = shapes.infer(Value(x.storage, (x.shape[dim],), (1,)), sizes)
    return view(drafter, site, x, (*x.shape[:dim], *part, *x.shape[dim + 1 :]))


@rule("aten.permute.default")
def permute(drafter: Drafter, site: str, x: Value, dims: Sequence[int]) -> Value:
    return shapes.permute(drafter.as_buffer(x), dims)


@rule("aten.transpose.int")
def transpose(drafter: Drafter, site: str, x: Value, a: int, b: int) -> Value:
    return shapes.transpose(drafter.as_buffer(x), a, b)


@rule("aten.t.default")
def t(drafter: Drafter, site: str, x: Value) -> Value:
    return shapes.transpose(drafter.as_buffer(x), 0, 1)


@rule("aten.einsum.default")
def einsum(drafter: Drafter, site: str, equation: str, operands: Sequence[Value]) -> Value:
    """A permutation of one operand; products have become attention or matmul before a program is lowered."""
    before, _, after = equation.replace(" ", "").partition("->")
    if len(operands) != 1 or sorted(before) != sorted(after) or len(set(before)) != len(before):
        raise ValueError(f"einsum {equation!r}")
    return shapes.permute(drafter.as_buffer(operands[0]), [before.index(letter) for letter in after])


@rule("aten.unsqueeze.default")
def unsqueeze(drafter: Drafter, site: str, x: Value, dim: int) -> Value:
    return shapes.unsqueeze(drafter.as_buffer(x), dim)


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(drafter: Drafter, site: str, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    return shapes.squeeze(drafter.as_buffer(x), [dims] if isinstance(dims, int) else dims)


@rule("aten.expand.default")
def expand(drafter: Drafter, site: str, x: Value, sizes: Sequence[Size], **_: object) -> Value:
    return shapes.expand(drafter.as_buffer(x), sizes)


@rule("aten.slice.Tensor")
def slice_(
    drafter: Drafter,
    site: str,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | Batch | None = None,
    step: int = 1,
) -> Value:
    return shapes.slice_(drafter.as_buffer(x), dim, start, end, step)


@rule("aten.select.int")
def select(drafter: Drafter, site: str, x: Value, dim: int, index: int) -> Value:
    return shapes.select(drafter.as_buffer(x), dim, index)


@rule("aten.split.Tensor")
def split(drafter: Drafter, site: str, x: Value, size: int, dim: int = 0) -> tuple[Value, ...]:
    return shapes.split_evenly(drafter.as_buffer(x), size, dim)


@rule("aten.split_with_sizes.default")
def split_with_sizes(drafter: Drafter, site: str, x: Value, sizes: Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    return shapes.split(drafter.as_buffer(x), sizes, dim)


@rule("aten.chunk.default")
def chunk(drafter: Drafter, site: str, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return shapes.chunk(drafter.as_buffer(x), chunks, dim)


@rule("aten.unbind.int")
def unbind(drafter: Drafter, site: str, x: Value, dim: int = 0) -> tuple[Value, ...]:
    size = x.shape[dim % len(x.shape)]
    if isinstance(size, Batch):
        raise ValueError("the batch is unbound")
    x = drafter.as_buffer(x)
    return tuple(shapes.select(x, dim, i) for i in range(size))


@rule(
    "aten.alias.default",
    "aten.detach.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.dropout.default",
)
def same(drafter: Drafter, site: str, x: Value, *_: object, **__: object) -> Value:
    """Values never change, so a copy of one is itself."""
    return x


@rule("aten.cat.default")
def cat(drafter: Drafter, site: str, parts: Sequence[Value], dim: int = 0) -> Value:
    return shapes.concatenate(drafter, parts, dim, site)


@rule("aten.stack.default")
def stack(drafter: Drafter, site: str, parts: Sequence[Value], dim: int = 0) -> Value:
    return shapes.concatenate(drafter, [shapes.unsqueeze(drafter.as_buffer(p), dim) for p in parts], dim, site)


@rule("aten.slice_backward.default")
def slice_backward(
    drafter: Drafter, site: str, part: Value, sizes: Sequence[Size], dim: int, start: int, end: int, step: int
) -> Value:
    """Zeros of the shape ``sizes`` with ``part`` where ``slice`` would take it from."""
    size = sizes[dim % len(sizes)]
    if isinstance(size, Batch):
        if (start, step) != (0, 1):
            raise ValueError("the batch dimension is sliced")
        return part
    return shapes.scatter(drafter, part, size, dim, slice(start, None, step).indices(size)[0], step, site)


@rule("aten.select_backward.default")
def select_backward(drafter: Drafter, site: str, part: Value, sizes: Sequence[Size], dim: int, index: int) -> Value:
    """Zeros of the shape ``sizes`` with ``part`` where ``select`` would take it from."""
    size = sizes[dim % len(sizes)]
    if isinstance(size, Batch):
        raise ValueError("one sample is selected from the batch")
    part = shapes.unsqueeze(drafter.as_buffer(part), dim % len(sizes))
    return shapes.scatter(drafter, part, size, dim, index % size, 1, site)


@rule("aten.constant_pad_nd.default")
def constant_pad(drafter: Drafter, site: str, x: Value, pad: Sequence[int], value: float = 0.0) -> Value:
    """``pad`` counts from the last dimension: (before, after), …; negative numbers cut."""
    x = drafter.as_buffer(x)
    for position in range(len(pad) // 2):
        dim = len(x.shape) - 1 - position
        before, after = pad[2 * position : 2 * position + 2]
        size = x.shape[dim]
        if before == after == 0:
            continue
        if isinstance(size, Batch):
            raise ValueError("the batch is padded")
        x = shapes.slice_(x, dim, max(0, -before), size + min(0, after))
        if before > 0 or after > 0:
            whole = size + before + after
            x = shapes.scatter(drafter, x, whole, dim, max(0, before), 1, site, value=float(value))
    return x


@rule("aten.sym_size.int")
def sym_size(drafter: Drafter, site: str, x: Value, dim: int) -> Size:
    return x.shape[dim]


@rule("<built-in function getitem>")
def getitem(drafter: Drafter, site: str, parts: Sequence[Any], index: int) -> Any:
    return parts[index]


@rule("<built-in function mul>")
def mul(drafter: Drafter, site: str, a: Size, b: Size) -> Size:
    return b * a if isinstance(b, Batch) else a * b


@rule("<built-in function floordiv>")
def floordiv(drafter: Drafter, site: str, a: Size, b: int) -> Size:
    return a // b
