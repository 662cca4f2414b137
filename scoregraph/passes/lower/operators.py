"""One rule per operator of a tensor program: what it becomes in the plan.

A rule gets the drafter, the site (for error messages and profiles) and the operator's arguments, where tensors are
``Value``s and symbolic sizes are ``Batch``es; it returns ``Value``s. Rules for fused operators carry the names of the
functions in ``scoregraph.passes.tensor.fused``; the others carry ATen's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.rules import rule
from scoregraph.plan.dims import Batch, dense_strides
from scoregraph.plan.draft import Drafter, Value

# --- fused operators: one kernel call each -----------------------------------------------------


def _rows(drafter: Drafter, x: Value, site: str) -> Value:
    """``x`` with unit last stride and leading dimensions that collapse into evenly spaced rows, copied if need be."""
    if len(x.shape) >= 2 and x.strides[-1] == 1 and not x.is_constant:
        even = all(
            x.shape[i + 1] == 1 or not isinstance(n := x.shape[i + 1], int) or x.strides[i] == n * x.strides[i + 1]
            for i in range(len(x.shape) - 2)
        )
        if even:
            return x
    return drafter.dense(x, site)


def _image(drafter: Drafter, x: Value, site: str) -> Value:
    """``x`` [n, C, …] with dense pixels, copied if need be; samples and channels may be strided."""
    pixels = dense_strides(x.shape[2:])
    return x if not x.is_constant and pixels == tuple(x.strides[2:]) else drafter.dense(x, site)


def _modulation(drafter: Drafter, v: Value | None) -> Value | None:
    """A gate, scale or shift [n, C] as a window the kernels can read."""
    return None if v is None else drafter.as_buffer(v)


@rule("linear")
def linear(
    drafter: Drafter,
    site: str,
    x: Value,
    w: Value,
    bias: Value | None = None,
    residual: Value | None = None,
    gate: Value | None = None,
    act: str = "none",
) -> Value:
    x, w = _rows(drafter, x, site), drafter.dense(w, site)
    y = drafter.new((*x.shape[:-1], w.shape[0]), name=site)
    if residual is not None:
        residual = drafter.dense(drafter.as_buffer(shapes.expand(residual, y.shape)), site)
    gate = _modulation(drafter, gate)
    ins = {"x": x, "w": w, "bias": bias, "residual": residual, "gate": gate}
    drafter.call("linear", ins, {"y": y}, {"act": act}, site)
    return y


@rule("conv2d")
def conv2d(
    drafter: Drafter,
    site: str,
    x: Value,
    w: Value,
    bias: Value | None = None,
    residual: Value | None = None,
    emb: Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    up: Sequence[int] = (1, 1),
    act: str = "none",
) -> Value:
    x, w = _image(drafter, x, site), drafter.dense(w, site)
    n, _, height, width = x.shape
    out, _, kh, kw = w.shape
    assert isinstance(height, int)
    assert isinstance(width, int)
    assert isinstance(kh, int)
    assert isinstance(kw, int)
    top, left, bottom, right = padding
    rows = (height * up[0] + top + bottom - kh) // stride[0] + 1
    columns = (width * up[1] + left + right - kw) // stride[1] + 1
    y = drafter.new((n, out, rows, columns), name=site)
    if residual is not None:
        residual = _image(drafter, drafter.as_buffer(shapes.expand(residual, y.shape)), site)
    ins = {"x": x, "w": w, "bias": bias, "residual": residual, "emb": _modulation(drafter, emb)}
    attrs = {"stride": list(stride), "padding": list(padding), "up": list(up), "act": act}
    drafter.call("conv2d", ins, {"y": y}, attrs, site)
    return y


def _norm(
    drafter: Drafter,
    op: str,
    site: str,
    x: Value,
    vectors: tuple[Value | None, Value | None],
    modulation: tuple[Value | None, Value | None],
    attrs: dict[str, Any],
) -> Value:
    """A normalisation with (weight, bias) and (scale, shift)."""
    x = _image(drafter, x, site) if op == "group_norm" else drafter.dense(x, site)
    y = drafter.new(x.shape, name=site)
    scale, shift = (_modulation(drafter, v) for v in modulation)
    ins = {"x": x, "weight": vectors[0], "bias": vectors[1], "scale": scale, "shift": shift}
    drafter.call(op, ins, {"y": y}, attrs, site)
    return y


@rule("group_norm")
def group_norm(
    drafter: Drafter,
    site: str,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    scale: Value | None = None,
    shift: Value | None = None,
    groups: int = 32,
    eps: float = 1e-5,
    act: str = "none",
) -> Value:
    attrs = {"groups": groups, "eps": eps, "act": act}
    return _norm(drafter, "group_norm", site, x, (weight, bias), (scale, shift), attrs)


@rule("layer_norm")
def layer_norm(
    drafter: Drafter,
    site: str,
    x: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    scale: Value | None = None,
    shift: Value | None = None,
    eps: float = 1e-5,
    act: str = "none",
) -> Value:
    return _norm(drafter, "layer_norm", site, x, (weight, bias), (scale, shift), {"eps": eps, "act": act})


@rule("rms_norm")
def rms_norm(
    drafter: Drafter,
    site: str,
    x: Value,
    weight: Value | None = None,
    scale: Value | None = None,
    shift: Value | None = None,
    eps: float = 1e-6,
) -> Value:
    return _norm(drafter, "rms_norm", site, x, (weight, None), (scale, shift), {"eps": eps})


@rule("attention")
def attention(
    drafter: Drafter, site: str, q: Value, k: Value, v: Value, mask: Value | None = None, scale: float = 1.0
) -> Value:
    q, k, v = (drafter.as_buffer(t) for t in (q, k, v))
    n, heads, length, width = q.shape
    # The result is laid out as [n, S, H, D], which is what the projection after it reads: merging heads is then free.
    y = shapes.permute(drafter.new((n, length, heads, width), name=site), (0, 2, 1, 3))
    if mask is not None:
        mask = shapes.expand(drafter.as_buffer(mask), (n, heads, length, k.shape[2]))
    drafter.call("attention", {"q": q, "k": k, "v": v, "mask": mask}, {"y": y}, {"scale": scale}, site)
    return y


@rule("pointwise")
def pointwise(drafter: Drafter, site: str, program: Sequence[Sequence[Any]], *operands: Value) -> Value:
    out = shapes.broadcast_shape([o.shape for o in operands])
    y = drafter.new(out, name=site)
    ins = {f"x{i}": shapes.expand(_operand(drafter, o, out), out) for i, o in enumerate(operands)}
    drafter.call("pointwise", ins, {"y": y}, {"program": [list(step) for step in program]}, site)
    return y


def _operand(drafter: Drafter, value: Value, out: tuple[Any, ...]) -> Value:
    """A constant that needs no broadcasting is read in place; another one from a buffer."""
    return value if value.is_constant and value.shape == out and value.dense() else drafter.as_buffer(value)


# --- other kernels -----------------------------------------------------------------------------


@rule("aten.bmm.default", "aten.matmul.default")
def matmul(drafter: Drafter, site: str, x: Value, y: Value) -> Value:
    x, y = drafter.as_buffer(x), drafter.as_buffer(y)
    lead = shapes.broadcast_shape([x.shape[:-2], y.shape[:-2]])
    x, y = shapes.expand(x, (*lead, *x.shape[-2:])), shapes.expand(y, (*lead, *y.shape[-2:]))
    z = drafter.new((*lead, x.shape[-2], y.shape[-1]), name=site)
    drafter.call("matmul", {"x": x, "y": y}, {"z": z}, {"scale": 1.0}, site)
    return z


@rule("aten._softmax.default", "aten.softmax.int")
def softmax(drafter: Drafter, site: str, x: Value, dim: int, half_to_float: object = None) -> Value:
    if dim % len(x.shape) != len(x.shape) - 1:
        raise ValueError(f"softmax over dimension {dim} of {len(x.shape)}, only the last is covered")
    x = drafter.dense(x, site)
    y = drafter.new(x.shape, name=site)
    drafter.call("softmax", {"x": x}, {"y": y}, site=site)
    return y


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else ([*value] * 2)[:2]


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    drafter: Drafter,
    site: str,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        raise ValueError("a divisor other than the size of the window")
    return _pool2d(drafter, site, "avg_pool2d", x, kernel, stride, padding, ceil_mode)


@rule("aten.max_pool2d.default")
def max_pool2d(
    drafter: Drafter,
    site: str,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Value:
    if _pair(dilation) != [1, 1]:
        raise ValueError("pooling with dilation is not covered")
    return _pool2d(drafter, site, "max_pool2d", x, kernel, stride, padding, ceil_mode)


@rule("aten.max_pool2d_with_indices.default")
def max_pool2d_with_indices(drafter: Drafter, site: str, x: Value, *options: Any) -> tuple[Value | None, ...]:
    return max_pool2d(drafter, site, x, *options), None  # nothing that is covered reads the indices


def _pool2d(
    drafter: Drafter,
    site: str,
    op: str,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: int | Sequence[int],
    ceil_mode: bool,
) -> Value:
    if any(_pair(padding)):
        raise ValueError("pooling with padding is not covered")
    if ceil_mode:
        raise ValueError("pooling that rounds sizes up (ceil_mode) is not covered")
    x = drafter.dense(x, site)
    kernel = _pair(kernel)
    stride = _pair(stride) if stride else kernel
    n, channels, height, width = x.shape
    assert isinstance(height, int)
    assert isinstance(width, int)
    size = ((height - kernel[0]) // stride[0] + 1, (width - kernel[1]) // stride[1] + 1)
    y = drafter.new((n, channels, *size), name=site)
    drafter.call(op, {"x": x}, {"y": y}, {"kernel": kernel, "stride": stride}, site)
    return y


@rule("aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default")
def upsample_nearest2d(drafter: Drafter, site: str, x: Value, size: Sequence[Any] | None, *scales: Any) -> Value:
    height, width = x.shape[2:]
    assert isinstance(height, int)
    assert isinstance(width, int)
    factors: Sequence[float] = scales[0] if scales and size is None else (1.0, 1.0)
    out = tuple(size) if size is not None else (int(height * factors[0]), int(width * factors[1]))
    if out[0] % height or out[1] % width or any(factor != int(factor) for factor in factors):
        raise ValueError(f"nearest upsampling from {height}x{width} to {out[0]}x{out[1]} is not by whole factors")
    x = drafter.dense(x, site)
    y = drafter.new((*x.shape[:2], *out), name=site)
    drafter.call("upsample_nearest", {"x": x}, {"y": y}, {"factor": [out[0] // height, out[1] // width]}, site)
    return y


@rule("aten.embedding.default")
def embedding(drafter: Drafter, site: str, w: Value, index: Value, *options: object) -> Value:
    index = drafter.dense(index, site)
    y = drafter.new((*index.shape, w.shape[1]), name=site)
    drafter.call("embedding", {"index": index, "w": drafter.dense(w, site)}, {"y": y}, site=site)
    return y


@rule("aten.mean.dim", "aten.sum.dim_IntList", "aten.amin.default", "aten.amax.default")
def reduce(
    drafter: Drafter, site: str, x: Value, dims: Sequence[int], keepdim: bool = False, *, kind: str = "mean", **_: Any
) -> Value:
    if not dims:
        raise ValueError(f"a {kind} over the batch")
    axes = sorted(d % len(x.shape) for d in dims)
    lead = [i for i in range(len(x.shape)) if i not in axes]
    x = drafter.dense(shapes.permute(x, [*lead, *axes]), site)
    kept = tuple(x.shape[: len(lead)])
    y = drafter.new(kept, name=site)
    attrs = {"kind": kind, "axes": list(range(len(lead), len(x.shape)))}
    drafter.call("reduce", {"x": x}, {"y": y}, attrs, site)
    for axis in axes if keepdim else []:
        y = shapes.unsqueeze(y, axis)
    return y


KEYWORDS: dict[str, dict[str, str | float]] = {
    "aten.ones.default": {"value": 1.0},
    "aten.ones_like.default": {"value": 1.0},
    "aten.mean.dim": {"kind": "mean"},
    "aten.sum.dim_IntList": {"kind": "sum"},
    "aten.amin.default": {"kind": "min"},
    "aten.amax.default": {"kind": "max"},
}
"""What tells apart the operators that share a rule."""


@rule("aten._to_copy.default", "aten.to.dtype")
def to(drafter: Drafter, site: str, x: Value, *args: Any, **kwargs: Any) -> Value:
    wanted = str(next((a for a in (*args, kwargs.get("dtype")) if a is not None), "torch.float32"))
    if wanted in ("torch.float32", "torch.float64") and x.dtype == "i64":
        return pointwise(drafter, site, [["mul", 0, 1]], x, drafter.constant(np.ones((), np.float32), "one"))
    if wanted in ("torch.float32", "torch.float64") or (wanted in ("torch.int64", "torch.int32") and x.dtype == "i64"):
        return x
    raise ValueError(f"a cast from {x.dtype} to {wanted}")


@rule("aten.full_like.default", "aten.ones_like.default", "aten.zeros_like.default")
def full_like(drafter: Drafter, site: str, x: Value, value: float = 0.0, *, dtype: object = None, **_: object) -> Value:
    return full(drafter, site, x.shape, value, dtype)


@rule("aten.full.default", "aten.zeros.default", "aten.ones.default")
def full(
    drafter: Drafter, site: str, size: Sequence[int | Batch], value: float = 0.0, dtype: object = None, **_: object
) -> Value:
    if str(dtype) not in ("None", "torch.float32", "torch.float64"):
        raise ValueError(f"a constant of {dtype}")
    y = drafter.new(tuple(size), name=site)
    drafter.call("fill", {}, {"x": y}, {"value": float(value)}, site)
    return y
