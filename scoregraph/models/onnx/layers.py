"""The operators of ONNX with weights, windows or sums: products, convolutions, norms, pooling, resizing, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.models.onnx.values import Value, numbers, shape, tensor


def MatMul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, batched over leading axes."""
    return torch.matmul(a, b)


def Linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x wᵀ + bias`` with w [N, K]: what ``simplify`` makes of a product with a constant matrix. Not of ONNX."""
    return functional.linear(x, w, bias)


def Gemm(
    a: Tensor, b: Tensor, c: Value | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    """``alpha * a b + beta * c``, either factor transposed first."""
    left, right = (a.t() if transA else a), (b if transB else b.t())
    if c is None or (isinstance(c, Tensor) and c.ndim == 1 and beta == alpha == 1.0):
        product = functional.linear(left, right, c)
        return product if alpha == 1.0 else product * alpha
    product = functional.linear(left, right) * alpha
    return product + (c if beta == 1.0 else tensor(c, a) * beta)


def Einsum(*operands: Tensor, equation: str) -> Tensor:
    """A sum of products named by letters."""
    return torch.einsum(equation, *operands)


def Conv(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *,
    strides: list[int] | None = None, pads: list[int] | None = None, dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """Cross-correlation over one, two or three axes."""
    spatial = w.ndim - 2
    stride, dilation = strides or [1] * spatial, dilations or [1] * spatial
    before, after = _padding(x, list(w.shape[2:]), stride, dilation, pads, auto_pad)
    if before != after:
        x, before = functional.pad(x, _innermost_first(before, after)), [0] * spatial
    convolve: Callable[..., Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    return convolve(x, w, bias, stride, before, dilation, group)


def ConvTranspose(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *,
    strides: list[int] | None = None, pads: list[int] | None = None, dilations: list[int] | None = None,
    group: int = 1, kernel_shape: list[int] | None = None, output_padding: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """The transpose of a convolution, padded alike on both sides."""
    spatial = w.ndim - 2
    padding = pads or [0] * (2 * spatial)
    if padding[:spatial] != padding[spatial:]:
        raise TypeError("a transposed convolution that is padded on one side")
    convolve: Callable[..., Tensor] = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )[spatial - 1]
    more = output_padding or [0] * spatial
    return convolve(
        x, w, bias, strides or [1] * spatial, padding[:spatial], more, group, dilations or [1] * spatial
    )  # fmt: skip


def _padding(
    x: Tensor, kernel: list[int], stride: list[int], dilation: list[int], pads: list[int] | None, auto: str
) -> tuple[list[int], list[int]]:
    """Elements before and after every spatial axis."""
    spatial = len(kernel)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        given = [0] * (2 * spatial) if pads is None or auto == "VALID" else pads
        return given[:spatial], given[spatial:]
    smaller: list[int] = []
    larger: list[int] = []
    for size, width, step, gap in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        needed = max((-(-size // step) - 1) * step + (width - 1) * gap + 1 - size, 0)
        smaller.append(needed // 2)
        larger.append(needed - needed // 2)
    return (smaller, larger) if auto == "SAME_UPPER" else (larger, smaller)


def _innermost_first(before: list[int], after: list[int]) -> list[int]:
    """Pairs in the order of ``functional.pad``."""
    return [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]


def AveragePool(
    x: Tensor, *,
    kernel_shape: list[int], strides: list[int] | None = None, pads: list[int] | None = None, ceil_mode: int = 0,
    count_include_pad: int = 0, dilations: list[int] | None = None, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    """Means over windows."""
    spatial = len(kernel_shape)
    stride = strides or [1] * spatial
    before, after = _padding(x, kernel_shape, stride, [1] * spatial, pads, auto_pad)
    if before != after or any(step != 1 for step in dilations or ()):
        raise TypeError("average pooling with dilation, or padded on one side")
    pool: Callable[..., Tensor] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[spatial - 1]
    return pool(x, kernel_shape, stride, before, bool(ceil_mode), bool(count_include_pad))


def MaxPool(
    x: Tensor, *,
    kernel_shape: list[int], strides: list[int] | None = None, pads: list[int] | None = None, ceil_mode: int = 0,
    dilations: list[int] | None = None, auto_pad: str = "NOTSET", storage_order: int = 0,
) -> Tensor:  # fmt: skip
    """Maxima over windows."""
    spatial = len(kernel_shape)
    stride = strides or [1] * spatial
    before, after = _padding(x, kernel_shape, stride, dilations or [1] * spatial, pads, auto_pad)
    if before != after:
        x, before = functional.pad(x, _innermost_first(before, after), value=-math.inf), [0] * spatial
    pool: Callable[..., Tensor] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[spatial - 1]
    return pool(x, kernel_shape, stride, before, dilations or 1, bool(ceil_mode))


def GlobalAveragePool(x: Tensor) -> Tensor:
    """The mean over all spatial axes, which stay with size 1."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def Resize(
    x: Tensor, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None, *,
    mode: str = "nearest", coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor", axes: list[int] | None = None, antialias: int = 0,
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:  # fmt: skip
    """Pixels repeated by whole factors, or linear interpolation, over the spatial axes."""
    where = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    given = numbers(scales) if scales is not None and shape(scales) != (0,) else None
    if isinstance(scales, Tensor):
        given = tuple(scales.tolist())
    factors: dict[int, float] = {}
    for position, axis in enumerate(where):
        if axis < 2:  # batch and channels: sizes are theirs, scales 1
            continue
        size: Any = x.shape[axis]
        target: Any = numbers(sizes)[position] if given is None and sizes is not None else None
        factors[axis] = float(given[position]) if given is not None else target / size
    scale = [factors.get(axis, 1.0) for axis in range(2, x.ndim)]
    if mode == "nearest" and all(s >= 1 and s == int(s) for s in scale):
        # Halves never round up in these combinations, so pixel i of the result is pixel i // factor.
        floors = coordinate_transformation_mode == "asymmetric" and nearest_mode == "floor"
        centred = coordinate_transformation_mode == "half_pixel" and nearest_mode.startswith("round_prefer")
        twice = coordinate_transformation_mode == "asymmetric" and nearest_mode == "round_prefer_floor"
        if floors or centred or (twice and all(s <= 2 for s in scale)):
            return functional.interpolate(x, scale_factor=scale, mode="nearest")
    linear = mode == "linear" and not antialias
    if linear and coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        wanted = [int(size * s) for size, s in zip(x.shape[2:], scale, strict=True)]
        kind = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(wanted)]
        corners = coordinate_transformation_mode == "align_corners"
        return functional.interpolate(x, size=wanted, mode=kind, align_corners=corners)
    problem = f"{mode} by {scale}, {coordinate_transformation_mode}, {nearest_mode}"
    raise TypeError(f"resizing other than nearest by whole factors and linear: {problem}")


def InstanceNormalization(x: Tensor, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Tensor:
    """Every channel of every sample by itself: a group norm with as many groups as channels."""
    return functional.group_norm(x, x.shape[1], tensor(scale, x), tensor(bias, x), epsilon)


def GroupNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Groups of channels; before opset 21 scale and bias are per group."""
    channels = x.shape[1]
    if scale.shape[0] != channels:
        scale, bias = (each.repeat_interleave(channels // num_groups) for each in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def LayerNormalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """The axes from ``axis`` on."""
    return functional.layer_norm(x, x.shape[axis % x.ndim :], scale, bias, epsilon)


def RMSNormalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """``x / sqrt(mean(x²) + epsilon) * scale`` over the axes from ``axis`` on."""
    return functional.rms_norm(x, x.shape[axis % x.ndim :], scale, epsilon)


def BatchNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    """By the statistics of training: one factor and one summand per channel."""
    if training_mode:
        raise TypeError("a batch norm in training mode")
    factor = scale / torch.sqrt(variance + epsilon)
    shift = bias - mean * factor
    return x * factor.reshape(-1, *[1] * (x.ndim - 2)) + shift.reshape(-1, *[1] * (x.ndim - 2))


def Softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Over one axis."""
    return functional.softmax(x, dim=axis)


def LogSoftmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """The logarithm of ``Softmax``, from the largest element down."""
    shifted = x - x.amax(dim=axis, keepdim=True)
    return shifted - shifted.exp().sum(dim=axis, keepdim=True).log()


def _reduction(tensors: Callable[..., Tensor], plain: Callable[..., Any]) -> Callable[..., Value]:
    """A reduction over axes, which are an attribute or, later, an input."""

    def reduce(x: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Value:
        if not isinstance(x, Tensor):
            found = plain(numbers(x))
            return (found,) if keepdims else found
        given = [] if axes is None else [int(axis) for axis in numbers(tuple(axes))]
        if not given and noop_with_empty_axes:
            return x
        return tensors(x, given or list(range(x.ndim)), bool(keepdims))

    return reduce


ReduceMean = _reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep), lambda x: sum(x) / len(x))
ReduceSum = _reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep), sum)
ReduceMax = _reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep), max)
ReduceMin = _reduction(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep), min)
ReduceSumSquare = _reduction(
    lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep), lambda x: sum(each * each for each in x)
)
ReduceL2 = _reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep).sqrt(), lambda x: math.hypot(*x))
ReduceProd = _reduction(lambda x, axes, keep: _product(x, axes, keep), math.prod)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def Attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *,
    is_causal: int = 0, scale: float | None = None, q_num_heads: int = 0, kv_num_heads: int = 0,
    softcap: float = 0.0, qk_matmul_output_mode: int = 0, softmax_precision: int = 1,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention of opset 23, on [n, H, S, D] or with the heads inside the last axis."""
    if is_causal or softcap:
        raise TypeError("causal or capped attention")
    flat = q.ndim == 3
    if flat:
        q = q.unflatten(-1, (q_num_heads, -1)).transpose(1, 2)
        k, v = (each.unflatten(-1, (kv_num_heads, -1)).transpose(1, 2) for each in (k, v))
    if q.shape[1] != k.shape[1]:
        raise TypeError("attention with fewer heads of keys than of queries")
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).flatten(2) if flat else y
