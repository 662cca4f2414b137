"""Quantized and bf16 values (docs/plan-format.md, Formats) in torch: the oracle of the kernels that read or write them.

Grids are computed in float32, one rounding an operation, as the page says, whatever the precision of the program.
Sums of integers are exact: they are taken in float64, whose 53 bits hold every sum that a plan may form (32 bits).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.backends.reference.frame import Frame, Roles

TOP = {"u8": 255, "u7": 127}
"""A: the largest number of each quantized type; the smallest is 0."""

QUAD = 4
"""Channels of an image that are stored side by side."""


def dynamic_grid(groups: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The grid of every row of ``groups`` float32 [R, n], measured on it: [R, 2] of (scale, zero), and inv [R]."""
    lo, hi = groups.amin(dim=1).clamp(max=0.0), groups.amax(dim=1).clamp(min=0.0)
    span = hi - lo
    inv = top / span
    empty, broken = torch.isinf(inv), ~torch.isfinite(span)
    inv = torch.where(empty | broken, 0.0, inv)
    zero = torch.where(empty | broken, 0.0, torch.round(-lo * inv))
    scale = torch.where(empty, 0.0, torch.where(broken, torch.nan, span / top))
    return torch.stack([scale, zero], dim=1), inv


def quantized(
    x: Tensor, top: int, rows: int, grid: Tensor | None, spanned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x on its grid.

    Args:
        x: any shape; it is split evenly over the grid's rows.
        top: A, the largest number.
        rows: R, the grid's rows.
        grid: static, [R, 2]; None measures it.
        spanned: what it is measured on, split like x, which is the default.

    Returns:
        Whole numbers 0 … A in the shape of x, uint8, and the grid float32 [R, 2].
    """
    groups = x.to(torch.float32).reshape(rows, -1)
    if grid is None:
        grid, inv = dynamic_grid(groups if spanned is None else spanned.to(torch.float32).reshape(rows, -1), top)
    else:
        grid = grid.to(torch.float32)
        inv = torch.where(grid[:, 0] == 0.0, 0.0, 1.0 / grid[:, 0])
    moved = torch.round(groups * inv[:, None]) + grid[:, 1:]
    return moved.nan_to_num(0.0).clamp(0, top).to(torch.uint8).reshape(x.shape), grid


def quads(image: Tensor) -> Tensor:
    """[n, C, H, W] as it is stored, [n, ceil(C/4), H, W, 4]; channels beyond C are 0."""
    padded = functional.pad(image, (0, 0, 0, 0, 0, -image.shape[1] % QUAD))
    return padded.unflatten(1, (-1, QUAD)).movedim(2, -1)


def from_quads(stored: Tensor, channels: int) -> Tensor:
    """The way back: the first ``channels`` channels."""
    return stored.movedim(-1, 2).flatten(1, 2)[:, :channels]


def encode(y: Tensor, ins: Roles, frame: Frame, spanned: Tensor | None = None) -> Tensor | dict[str, Tensor]:
    """A result in the format of the buffer it goes to: as it is, bf16, or quantized, with the grid if it is dynamic.

    The operand ``smooth`` [C] multiplies the channels of an image, or the columns of rows, before they are quantized.

    Args:
        y: the result.
        ins: operands, of which ``smooth`` and ``ygrid`` matter here.
        frame: where it goes.
        spanned: [n, C, …], what a dynamic grid of an image y covers instead of y itself.
    """
    dtype = frame.dtypes.get("y", "f32")
    assert dtype in TOP or "smooth" not in ins, f"{frame.site}: y is {dtype}; smooth belongs to a quantized result"
    if dtype == "bf16":
        return y.to(torch.float32).to(torch.bfloat16)
    if dtype not in TOP:
        return y
    static = ins.get("ygrid")
    rows = frame.shape("ygrid")[0] if static is None else static.shape[0]
    is_image = y.dim() == 4 and len(frame.shape("y")) == 5
    spanned = None if spanned is None else _smoothed(spanned, ins, is_image)
    q, grid = quantized(_smoothed(y, ins, is_image), TOP[dtype], rows, static, spanned)
    if is_image:
        q = quads(q)
    return {"y": q} if static is not None else {"y": q, "ygrid": grid}


def _smoothed(y: Tensor, ins: Roles, is_image: bool) -> Tensor:
    """y float32, times the factors of its channels: the second dimension of an image, the last one of rows."""
    y = y.to(torch.float32)
    if "smooth" not in ins:
        return y
    smooth = ins["smooth"].to(torch.float32)
    return y * (smooth.reshape(-1, *[1] * (y.dim() - 2)) if is_image else smooth)


def quantize(ins: Roles, attrs: object, frame: Frame) -> Tensor | dict[str, Tensor]:
    """x in the format of y."""
    return encode(ins["x"], ins, frame)


def centred(q: Tensor, grid: Tensor) -> Tensor:
    """q - zero of a matrix or an image, exact, in float64."""
    rows = q.to(torch.float64).reshape(grid.shape[0], -1)
    return (rows - grid[:, 1:]).reshape(q.shape)


def spread_scale(grid: Tensor, rows: int) -> Tensor:
    """The scales [R] as one for each of ``rows`` rows."""
    return grid[:, 0].repeat_interleave(rows // grid.shape[0])


def integer_product(ins: Roles, dtype: torch.dtype) -> Tensor:
    """x wᵀ [M, N] of a quantized x and integer weights, exact but for the scales, as the page writes it."""
    w, wscale, wsum, grid = ins["w"], ins["wscale"], ins["wsum"], ins["grid"]
    x = ins["x"].reshape(-1, w.shape[1]).to(torch.float64)
    zero = grid[:, 1].repeat_interleave(x.shape[0] // grid.shape[0]).to(torch.float64)
    scale = spread_scale(grid, x.shape[0]).to(dtype)
    width = w.shape[1] // wscale.shape[1]
    y = torch.zeros(x.shape[0], w.shape[0], dtype=dtype)
    for g in range(wscale.shape[1]):
        inputs = slice(g * width, (g + 1) * width)
        sums = x[:, inputs] @ w[:, inputs].to(torch.float64).T - zero[:, None] * wsum[:, g].to(torch.float64)
        y = y + sums.to(dtype) * (scale[:, None] * wscale[:, g].to(dtype))
    return y


def integer_image(ins: Roles) -> Tensor:
    """A quantized image less its zeros, so that padding is 0: exact whole numbers, float64 [n, I, H, W]."""
    return centred(from_quads(ins["x"], ins["w"].shape[1]), ins["grid"])


def symmetric(x: Tensor) -> tuple[Tensor, Tensor]:
    """x over its last dimension on -127 … 127: whole numbers, and their scales with that dimension kept."""
    scale = x.abs().amax(dim=-1, keepdim=True) / 127.0
    return torch.where(scale > 0.0, torch.round(x / scale), 0.0), scale


def attention_i8(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """softmax(scale * q kᵀ + mask) v with 8-bit operands; k's mean over the tokens moves a query's logits alike."""
    q, q_scale = symmetric(q)
    k, k_scale = symmetric(k - k.mean(dim=-2, keepdim=True))
    v, v_scale = symmetric(v.transpose(-1, -2))
    logits = scale * (q @ k.transpose(-1, -2)) * (q_scale * k_scale.transpose(-1, -2))
    if mask is not None:
        logits = logits + mask
    top = logits.amax(dim=-1, keepdim=True)
    p = torch.round(255.0 * torch.exp(logits - top))
    return (p @ v.transpose(-1, -2)) * v_scale.transpose(-1, -2) / p.sum(dim=-1, keepdim=True)


def attention_bf16(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The same with operands of bf16; the weights of the average are rounded before they are summed."""
    q, k, v = (bf16(x) for x in (q, k, v))
    logits = scale * (q @ k.transpose(-1, -2))
    if mask is not None:
        logits = logits + mask
    p = bf16(torch.exp(logits - logits.amax(dim=-1, keepdim=True)))
    return (p @ v) / p.sum(dim=-1, keepdim=True)


def bf16(x: Tensor) -> Tensor:
    """x rounded to bf16, in its own type."""
    return x.to(torch.float32).to(torch.bfloat16).to(x.dtype)
