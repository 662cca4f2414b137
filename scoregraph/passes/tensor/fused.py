"""The operations that tensor passes fuse into, one function per kernel of docs/plan-format.md, in plain torch.

After the tensor passes a program holds calls of these functions and the ATen operators that need no fusion (matmul,
softmax, pooling, resizing, embedding, reductions, views, copies). A call names all operands: the keyword arguments of
a node are the roles and attributes of the plan's call, absent roles are None (``pointwise`` takes its operands by
position). Because they are ordinary functions a rewritten program still runs in torch, in float32 and in float64,
which is how every rewrite is checked.

Shapes: n is the batch, M the product of the leading dims of ``linear``'s x.
"""

# torch's broadcast_shapes is not annotated.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Instruction = tuple[str | int | float, ...]
Program = tuple[Instruction, ...]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": functional.relu,
    "erf": torch.erf,
    "floor": torch.floor,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "min": torch.minimum,
    "max": torch.maximum,
    "less": lambda a, b: torch.lt(a, b).to(a.dtype),
}
ACTIVATIONS = ("none", "silu", "gelu_tanh", "gelu_erf", "relu", "tanh", "sigmoid", "quick_gelu")
"""What ``act`` may be; all but ``none`` and ``quick_gelu`` are pointwise instructions of the same name."""


def _activate(y: Tensor, act: str) -> Tensor:
    if act == "quick_gelu":
        return y * torch.sigmoid(1.702 * y)
    return y if act == "none" else UNARY[act](y)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    act: str = "none",
) -> Tensor:
    """``residual + gate * act(x wᵀ + bias)``: x [.., K], w [N, K], residual [.., N].

    gate [G, N]: row m of the M rows uses row m / (M/G).
    """
    y = _activate(functional.linear(x, w, bias), act)
    if gate is not None:
        y = (y.reshape(gate.shape[0], -1, gate.shape[1]) * gate[:, None]).reshape(y.shape)
    return y if residual is None else residual + y


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    emb: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    up: Sequence[int] = (1, 1),
    act: str = "none",
) -> Tensor:
    """``residual + act(conv(x, w) + bias + emb)``: x [n, I, H, W], w [O, I, kh, kw], emb [n, O].

    Every pixel of x is repeated up[0] x up[1] times, then padding (top, left, bottom, right) is added.
    """
    top, left, bottom, right = padding
    if tuple(up) != (1, 1):
        x = x.repeat_interleave(up[0], dim=2).repeat_interleave(up[1], dim=3)
    if (top, left) == (bottom, right):
        y = functional.conv2d(x, w, bias, stride=tuple(stride), padding=(top, left))
    else:
        y = functional.conv2d(functional.pad(x, (left, right, top, bottom)), w, bias, stride=tuple(stride))
    if emb is not None:
        y = y + emb[:, :, None, None]
    y = _activate(y, act)
    return y if residual is None else residual + y


def group_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    groups: int = 1,
    eps: float = 1e-5,
    act: str = "none",
) -> Tensor:
    """``act(norm(x) * weight + bias)``, with scale and shift [n, C] ``act((…) * (1 + scale) + shift)``; x [n, C, …]."""
    y = functional.group_norm(x, groups, weight, bias, eps)
    if scale is not None and shift is not None:
        over_space = (..., *(None,) * (x.ndim - 2))
        y = y * (1 + scale[over_space]) + shift[over_space]
    return _activate(y, act)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
) -> Tensor:
    """As ``group_norm``, over the last dim D; scale and shift [G, D], row m uses row m / (M/G)."""
    y = functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)
    return _activate(_modulated(y, scale, shift), act)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dim, scale and shift [G, D] as in ``layer_norm``."""
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return _modulated(y if weight is None else y * weight, scale, shift)


def _modulated(y: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """``y * (1 + scale) + shift`` by rows: scale and shift [G, D], row m of y [.., D] uses row m / (M/G)."""
    if scale is None or shift is None:
        return y
    rows = y.reshape(scale.shape[0], -1, scale.shape[1])
    return (rows * (1 + scale[:, None]) + shift[:, None]).reshape(y.shape)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """``softmax(scale * q kᵀ + mask) v``: q [n, H, S, D], k and v [n, H, T, D], mask broadcast to [n, H, S, T]."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), v)


def pointwise(program: Program, *operands: Tensor) -> Tensor:
    """The value of an expression program on broadcast operands.

    Values are numbered: the operands first, then one per instruction, the last being the result. ``("const", v)``,
    ``(unary, i)``, ``(binary, i, j)`` and ``("where", c, a, b)``, a where c is not 0, else b, are the instructions.
    Truth is 1 and 0. Integer operands enter as float32.
    """
    dtype = functools.reduce(
        torch.promote_types, (x.dtype for x in operands if x.dtype.is_floating_point), torch.float32
    )
    values = [x.to(dtype) for x in operands]
    for op, *args in program:
        if op == "const":
            values.append(torch.tensor(args[0], dtype=dtype, device=operands[0].device))
        elif op in UNARY:
            values.append(UNARY[str(op)](values[int(args[0])]))
        elif op == "where":
            condition, a, b = (values[int(place)] for place in args)
            values.append(torch.where(condition != 0, a, b))
        else:
            values.append(BINARY[str(op)](values[int(args[0])], values[int(args[1])]))
    return values[-1].expand(torch.broadcast_shapes(*(x.shape for x in operands)))


OPERATIONS: frozenset[Callable[..., Tensor]] = frozenset(
    {linear, conv2d, group_norm, layer_norm, rms_norm, attention, pointwise}
)
"""Every fused function; its name is its plan call."""
