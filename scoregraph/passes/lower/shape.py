"""ATen operators that only move the window: they change strides of a ``Value`` and cost nothing."""

from __future__ import annotations

from collections.abc import Sequence

from scoregraph.plan.dims import Batch, dense_strides, product, view_strides
from scoregraph.plan.draft import Drafter, Value

Size = int | Batch


def view(drafter: Drafter, x: Value, shape: Sequence[Size], site: str) -> Value:
    """Reshape; copies only when the elements are not laid out so that strides can express it."""
    target = infer(x, shape)
    strides = view_strides(x.shape, x.strides, target)
    if strides is None:
        x = drafter.dense(x, site)
        strides = dense_strides(target)
        if strides is None:
            raise ValueError(f"a reshape to {target} does not keep the batch outermost")
    return Value(x.storage, target, strides, x.offset, x.dtype)


def infer(x: Value, shape: Sequence[Size]) -> tuple[Size, ...]:
    """``shape`` with its -1 worked out."""
    known = product([d for d in shape if d != -1])
    total = product(x.shape)
    if -1 not in shape:
        return tuple(shape)
    if isinstance(total, Batch) and not isinstance(known, Batch):
        missing: Size = total // known
    elif isinstance(total, Batch) and isinstance(known, Batch):
        missing = total.k // known.k
    else:
        assert isinstance(total, int)
        assert isinstance(known, int)
        missing = total // known
    return tuple(missing if d == -1 else d for d in shape)


def permute(x: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    order = [d % len(x.shape) for d in dims]
    return Value(x.storage, tuple(x.shape[d] for d in order), tuple(x.strides[d] for d in order), x.offset, x.dtype)


def transpose(x: Value, a: int, b: int) -> Value:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    a, b = a % len(order), b % len(order)
    order[a], order[b] = order[b], order[a]
    return permute(x, order)


def unsqueeze(x: Value, dim: int) -> Value:
    """A dimension of size 1 at ``dim``."""
    dim %= len(x.shape) + 1
    return Value(
        x.storage, (*x.shape[:dim], 1, *x.shape[dim:]), (*x.strides[:dim], 0, *x.strides[dim:]), x.offset, x.dtype
    )


def squeeze(x: Value, dims: Sequence[int] | None = None) -> Value:
    """Dimensions of size 1 dropped: those named, or all."""
    named = range(len(x.shape)) if dims is None else [d % len(x.shape) for d in dims]
    keep = [i for i in range(len(x.shape)) if not (i in named and x.shape[i] == 1)]
    return permute_subset(x, keep)


def permute_subset(x: Value, keep: Sequence[int]) -> Value:
    """The dimensions ``keep``, the others dropped (they have size 1 or were selected)."""
    return Value(x.storage, tuple(x.shape[i] for i in keep), tuple(x.strides[i] for i in keep), x.offset, x.dtype)


def expand(x: Value, sizes: Sequence[Size]) -> Value:
    """Dimensions of size 1 repeated by stride 0; -1 keeps a size; new dimensions lead."""
    lead = len(sizes) - len(x.shape)
    shape: list[Size] = []
    strides: list[int] = []
    for i, size in enumerate(sizes):
        have = x.shape[i - lead] if i >= lead else 1
        step = x.strides[i - lead] if i >= lead else 0
        same = size == -1 or size == have
        shape.append(have if same else size)
        strides.append(step if same else 0)
    return Value(x.storage, tuple(shape), tuple(strides), x.offset, x.dtype)


def narrow(x: Value, dim: int, start: int, length: int, step: int = 1) -> Value:
    """``length`` entries of ``dim`` from ``start``, every ``step``-th."""
    dim %= len(x.shape)
    shape = (*x.shape[:dim], length, *x.shape[dim + 1 :])
    strides = (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :])
    return Value(x.storage, shape, strides, x.offset + start * x.strides[dim], x.dtype)


def slice_(x: Value, dim: int = 0, start: int | None = None, end: int | Batch | None = None, step: int = 1) -> Value:
    """Python's slice of one dimension; of a batch dimension only the whole."""
    size = x.shape[dim % len(x.shape)]
    if isinstance(size, Batch):
        whole = start in (None, 0) and step == 1 and (end is None or isinstance(end, Batch) or end >= 2**62)
        if not whole:
            raise ValueError("the batch dimension is sliced")
        return x
    first, last, stride = slice(start, None if end is None or isinstance(end, Batch) else end, step).indices(size)
    return narrow(x, dim, first, max(0, -(-(last - first) // stride)), stride)


def select(x: Value, dim: int, index: int) -> Value:
    """One entry of ``dim``, the dimension dropped."""
    dim %= len(x.shape)
    size = x.shape[dim]
    if isinstance(size, Batch):
        raise ValueError("one sample is selected from the batch")
    picked = narrow(x, dim, index % size, 1)
    return permute_subset(picked, [i for i in range(len(x.shape)) if i != dim])


def split(x: Value, sizes: Sequence[int], dim: int) -> tuple[Value, ...]:
    """Consecutive parts of ``dim`` with the given sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(x, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def split_evenly(x: Value, size: int, dim: int) -> tuple[Value, ...]:
    """Parts of ``size`` entries, the last one shorter if need be."""
    total = x.shape[dim % len(x.shape)]
    if isinstance(total, Batch):
        raise ValueError("the batch dimension is split")
    return split(x, [min(size, total - start) for start in range(0, total, size)], dim)


def chunk(x: Value, chunks: int, dim: int) -> tuple[Value, ...]:
    """At most ``chunks`` parts of equal size, as torch.chunk."""
    total = x.shape[dim % len(x.shape)]
    if isinstance(total, Batch):
        raise ValueError("the batch dimension is split")
    return split_evenly(x, -(-total // chunks), dim)


def broadcast_shape(shapes: Sequence[tuple[Size, ...]]) -> tuple[Size, ...]:
    """The common shape of operands under broadcasting."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Size] = []
    for i in range(rank):
        sizes = {s[i - rank + len(s)] for s in shapes if i - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            raise ValueError(f"sizes {', '.join(map(str, sizes))} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def concatenate(drafter: Drafter, parts: Sequence[Value], dim: int, site: str) -> Value:
    """The parts copied into one buffer, side by side along ``dim``."""
    parts = [p for p in parts if p.shape != (0,)]
    dim %= len(parts[0].shape)
    sizes = [p.shape[dim] for p in parts]
    if any(isinstance(s, Batch) for s in sizes):
        raise ValueError("samples are concatenated along the batch")
    total = sum(s for s in sizes if isinstance(s, int))
    first = parts[0]
    made = drafter.new((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype, site)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        assert isinstance(size, int)
        drafter.call("copy", {"x": drafter.as_buffer(part)}, {"y": narrow(made, dim, start, size)}, site=site)
        start += size
    return made


def scatter(
    drafter: Drafter, part: Value, size: int, dim: int, start: int, step: int, site: str, value: float = 0.0
) -> Value:
    """A buffer that is ``size`` long in ``dim``: ``part`` at start, start + step, …, and ``value`` everywhere else.

    Every element is written once, so that a kernel may write ``part`` in place (``forward-copies``).
    """
    dim %= len(part.shape)
    count = part.shape[dim]
    assert isinstance(count, int)
    made = drafter.new((*part.shape[:dim], size, *part.shape[dim + 1 :]), part.dtype, site)
    target = narrow(made, dim, start, count, step)
    drafter.call("copy", {"x": drafter.as_buffer(part)}, {"y": target}, site=site)
    behind = start + count * step
    between = [(start + r, len(range(start + r, size, step)), step) for r in range(1, step)]
    for first, length, every in ((0, start, 1), *between, (behind, len(range(behind, size, step)), step)):
        if length > 0:
            gap = narrow(made, dim, first, length, every)
            drafter.call("fill", {}, {"x": gap}, {"value": value}, site)
    return made
