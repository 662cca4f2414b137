"""What the operators of a backward pass become: forward operators, which have kernels.

Most come from torch's own decompositions. Written here are those whose torch form would bring operators without a
kernel (convolutions that are transposed, norms through their variance) and the lookups by label of classifiers, which
are products with rows of the identity. Each is tested against autograd in float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.nn import functional
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

Sizes = Sequence[Any]
"""A shape, whose batch is symbolic."""


def layer_norm(
    x: Tensor, shape: Sizes, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``native_layer_norm``: y, and the mean and 1/std that its derivative reads."""
    axes = list(range(-len(shape), 0))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    rstd = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = centred * rstd
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias), mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sizes,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """``native_layer_norm_backward`` with respect to x."""
    _only_input("native_layer_norm_backward", wanted)
    axes = list(range(-len(shape), 0))
    scaled = grad if weight is None else grad * weight
    return _norm_backward(scaled, (x - mean) * rstd, rstd, axes), None, None


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, channels: int, space: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``native_group_norm``: y [n, C, …], and the mean and 1/std [n, groups] that its derivative reads."""
    rows = x.reshape(n, groups, -1)
    mean = rows.mean(-1, keepdim=True)
    centred = rows - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = (centred * rstd).reshape(x.shape)
    y = y if weight is None else y * _per_channel(weight, x)
    return (y if bias is None else y + _per_channel(bias, x)), mean.squeeze(-1), rstd.squeeze(-1)


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: Any,
    channels: int,
    space: int,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """``native_group_norm_backward`` with respect to x."""
    _only_input("native_group_norm_backward", wanted)
    scaled = (grad if weight is None else grad * _per_channel(weight, x)).reshape(n, groups, -1)
    rstd = rstd.unsqueeze(-1)
    normal = (x.reshape(n, groups, -1) - mean.unsqueeze(-1)) * rstd
    return _norm_backward(scaled, normal, rstd, [-1]).reshape(x.shape), None, None


def _norm_backward(grad: Tensor, normal: Tensor, rstd: Tensor, axes: list[int]) -> Tensor:
    """rstd (g - mean(g) - normal mean(g normal)), the derivative of (x - mean) rstd."""
    along = (grad * normal).mean(axes, keepdim=True)
    return (grad - grad.mean(axes, keepdim=True) - normal * along) * rstd


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *[1] * (x.ndim - 2))


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sizes | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """``convolution_backward`` with respect to x: a convolution of the gradient with the flipped kernel.

    A stride s puts s - 1 zeros between the elements of the gradient; rows of x that no window reached get zeros behind.
    """
    _only_input("convolution_backward", wanted)
    kernel = w.shape[2:]
    if transposed or groups != 1 or any(step != 1 for step in dilation):
        raise ValueError("the gradient of a convolution that is transposed, grouped or dilated")
    if any(p > k - 1 for p, k in zip(padding, kernel, strict=True)):
        raise ValueError("the gradient of a convolution that is padded by its kernel's size or more")
    for axis, (step, k, p) in enumerate(zip(stride, kernel, padding, strict=True), start=2):
        size = int(x.shape[axis]) + 2 * p - k + 1
        if size != grad.shape[axis]:
            spread = [*grad.shape[:axis], size, *grad.shape[axis + 1 :]]
            grad = aten.slice_backward(grad, spread, axis, 0, (int(grad.shape[axis]) - 1) * step + 1, step)
    flipped = w.flip(list(range(2, w.ndim))).transpose(0, 1)
    ones = [1] * len(kernel)
    full = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    return aten.convolution(grad, flipped, None, ones, full, ones, False, [0] * len(kernel), 1), None, None


def avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Every element of a window gets its share. Windows must tile the image."""
    kernel, stride, padding = (_pair(each) for each in (kernel, stride or kernel, padding))
    height, width = (int(size) for size in x.shape[2:])
    if kernel != stride or any(padding) or divisor_override is not None or height % kernel[0] or width % kernel[1]:
        raise ValueError("the gradient of an average pooling whose windows do not tile the image")
    blocks = grad[:, :, :, None, :, None].expand(*grad.shape[:3], kernel[0], grad.shape[3], kernel[1])
    return blocks.reshape(x.shape) / (kernel[0] * kernel[1])


class RepeatedPixels(TorchFunctionMode):
    """While it is active, nearest upsampling by whole factors repeats pixels. torch would trace a lookup by index."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``function(*args, **kwargs)``."""
        kwargs = kwargs or {}
        if function is not functional.interpolate:
            return function(*args, **kwargs)
        given = inspect.signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        x, size, scale, mode = (given.arguments[key] for key in ("input", "size", "scale_factor", "mode"))
        axes = x.ndim - 2
        before = [int(length) for length in x.shape[2:]]
        if size is None:
            factors = [float(each) for each in (scale if isinstance(scale, Sequence) else [scale] * axes)]
            after = [length * factor for length, factor in zip(before, factors, strict=True)]
        else:
            after = list(size) if isinstance(size, Sequence) else [size] * axes
        if mode != "nearest" or any(new % old for new, old in zip(after, before, strict=True)):
            return function(*args, **kwargs)
        for axis, (new, old) in enumerate(zip(after, before, strict=True), start=2):
            spread = x.unsqueeze(axis + 1).expand(*x.shape[: axis + 1], int(new) // old, *x.shape[axis + 1 :])
            x = spread.flatten(axis, axis + 1)
        return x


def _pair(value: Sequence[int]) -> list[int]:
    return (list(value) * 2)[:2]


def gather(x: Tensor, axis: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """``x[..., index]`` along the last axis: a sum over rows of the identity."""
    return (_rows(x, axis, index) * x.unsqueeze(-2)).sum(-1)


def _rows(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """For every index [.., k] a row of the identity [.., k, V], V the size of the last axis of ``x`` [.., V]."""
    if axis % x.ndim != x.ndim - 1:
        raise ValueError(f"gather along axis {axis} of {x.ndim}, only the last is covered")
    return aten.embedding(torch.eye(int(x.shape[-1]), dtype=x.dtype, device=x.device), index)


def scatter_add(x: Tensor, axis: int, index: Tensor, source: Tensor) -> Tensor:
    """``x`` and, along the last axis, ``source`` [.., k] added at ``index``: what the gradient of ``gather`` does."""
    return x + (_rows(x, axis, index) * source.unsqueeze(-1)).sum(-2)


def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """``nll_loss_forward``: -x[i, target_i] for log-probabilities x [n, V], one number per sample."""
    if weight is not None or reduction != 0:
        raise ValueError("a cross entropy that is weighted, or not reduction='none', which mixes samples")
    return -(_rows(x, 1, target) * x).sum(1), x.new_zeros(())


def nll_loss_backward(
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total: Tensor,
) -> Tensor:
    """The gradient of ``nll_loss``."""
    return -_rows(x, 1, target) * grad.unsqueeze(-1)


def var(
    x: Tensor, axes: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """``var.correction``, around the mean."""
    chosen = list(range(x.ndim)) if not axes else [axis % x.ndim for axis in axes]
    count = 1
    for axis in chosen:
        count = count * x.shape[axis]
    centred = x - x.mean(chosen, keepdim=True)
    return centred.square().sum(chosen, keepdim=keepdim) / (count - (1 if correction is None else correction))


def std(
    x: Tensor, axes: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """``std.correction``."""
    return var(x, axes, correction=correction, keepdim=keepdim).sqrt()


def log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """``log_sigmoid_forward``: min(x, 0) - log(1 + exp(-|x|))."""
    return x.clamp_max(0) - x.abs().neg().exp().log1p(), x.new_zeros(())


def log_sigmoid_backward(grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    """The derivative of log sigmoid(x) is sigmoid(-x)."""
    return grad * x.neg().sigmoid()


def roll(x: Tensor, shifts: Sequence[int], axes: Sequence[int] = ()) -> Tensor:
    """``roll``: both ends of each axis exchanged."""
    if not axes:
        raise ValueError("a roll of the flattened tensor, which mixes samples")
    for shift, axis in zip(shifts, axes, strict=True):
        size = int(x.shape[axis])
        cut = -shift % size
        x = torch.cat([x.narrow(axis, cut, size - cut), x.narrow(axis, 0, cut)], axis) if cut else x
    return x


def masked_fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """``value`` where the mask is set."""
    return torch.where(mask, value, x)


def softmax(x: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    """``_safe_softmax``. Its rows of which all is -inf are not met: no mask is all shut."""
    return torch.softmax(x, axis, dtype)


def _only_input(name: str, wanted: Sequence[bool]) -> None:
    """A derivative is taken in the state, never in the weights."""
    assert list(wanted) == [True, False, False], f"{name} is asked for the gradient of weights"


_TORCH_HAS_THEM = (
    "_log_softmax", "_log_softmax_backward_data", "_softmax_backward_data", "logsumexp", "linalg_vector_norm",
    "sigmoid_backward", "tanh_backward", "silu_backward", "gelu_backward", "threshold_backward", "hardtanh_backward",
    "leaky_relu", "leaky_relu_backward", "elu", "elu_backward", "softplus", "softplus_backward", "mish",
    "mish_backward", "hardswish", "hardswish_backward", "hardsigmoid", "hardsigmoid_backward",
    "mse_loss", "mse_loss_backward", "smooth_l1_loss", "smooth_l1_loss_backward", "huber_loss",
    "huber_loss_backward", "binary_cross_entropy_with_logits", "addcmul", "addcdiv", "hardtanh", "norm",
    "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full", "glu", "glu_backward", "lerp", "dot",
    "_unsafe_view", "unsafe_split",
)  # fmt: skip

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **get_decompositions([getattr(aten, name) for name in _TORCH_HAS_THEM]),
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten.gather.default: gather,
    aten.scatter_add.default: scatter_add,
    aten.nll_loss_forward.default: nll_loss,
    aten.nll_loss_backward.default: nll_loss_backward,
    aten.var.correction: var,
    aten.std.correction: std,
    aten.log_sigmoid_forward.default: log_sigmoid,
    aten.log_sigmoid_backward.default: log_sigmoid_backward,
    aten.roll.default: roll,
    aten.masked_fill.Scalar: masked_fill,
    aten.masked_fill.Tensor: masked_fill,
    aten._safe_softmax.default: softmax,
}
"""By ATen operator, for ``make_fx``."""
