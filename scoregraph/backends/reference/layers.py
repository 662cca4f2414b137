"""The calls of networks: products, norms, pooling and tables of embeddings.

Sizes follow docs/plan-format.md: n counts samples times branches, M is the product of the leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.backends.reference import formats
from scoregraph.backends.reference.elementwise import activate
from scoregraph.backends.reference.frame import Attrs, Frame, Roles
from scoregraph.backends.reference.winograd import filtered
from scoregraph.errors import IndexOutOfRange

LOWEST = {"silu": -1.2784645428, "quick_gelu": -0.7511542555, "gelu_erf": -0.7517915247, "gelu_tanh": -0.7524614221}
"""Where activations that first fall and then rise are smallest; the others only rise."""


def _rows(per_group: Tensor, m: int) -> Tensor:
    """[G, D] spread over M rows: row m uses row ``m / (M/G)``."""
    return per_group.repeat_interleave(m // per_group.shape[0], dim=0)


# --- Products -----------------------------------------------------------------------------------


def linear(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor | dict[str, Tensor]:
    """y = residual + gate * act(x w^T + bias); x and w in any of their formats."""
    shape = frame.shape("y")
    y = _product(ins, frame)
    if "bias" in ins:
        y = y + ins["bias"]
    y = activate(y, attrs)
    if "gate" in ins:
        y = _rows(ins["gate"], y.shape[0]) * y
    if "residual" in ins:
        y = ins["residual"].reshape(y.shape) + y
    return formats.encode(y.reshape(shape), ins, frame)


def _product(ins: Roles, frame: Frame) -> Tensor:
    """x w^T [M, N] in the program's precision."""
    w = ins["w"]
    if "wscale" in ins:
        return formats.integer_product(ins, frame.dtype)
    x = ins["x"].reshape(-1, w.shape[1])
    if w.dtype == torch.bfloat16 and x.dtype != torch.bfloat16:
        x = formats.bf16(x)
    return x.to(frame.dtype) @ w.to(frame.dtype).T


def matmul(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """scale * x y."""
    return attrs["scale"] * (ins["x"] @ ins["y"])


def conv2d(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """y = residual + act(conv(x, w) + bias + emb), x with every pixel repeated ``up`` times."""
    exact = "wscale" in ins
    x, w = (formats.integer_image(ins), ins["w"].to(torch.float64)) if exact else (ins["x"], ins["w"])
    tall, wide = attrs.get("up", (1, 1))
    top, left, bottom, right = _borders(attrs["padding"])
    if "winograd" in attrs:
        y = filtered(x, w, (top, left, bottom, right))
    else:
        x = x.repeat_interleave(tall, dim=2).repeat_interleave(wide, dim=3)
        y = functional.conv2d(functional.pad(x, (left, right, top, bottom)), w, stride=attrs["stride"])
    if exact:
        scale = formats.spread_scale(ins["grid"], x.shape[0]).to(frame.dtype)
        y = y.to(frame.dtype) * (scale[:, None] * ins["wscale"][:, 0].to(frame.dtype))[:, :, None, None]
    if "bias" in ins:
        y = y + ins["bias"][None, :, None, None]
    if "emb" in ins:
        y = y + ins["emb"][:, :, None, None]
    y = activate(y, attrs)
    return ins["residual"] + y if "residual" in ins else y


def _borders(padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Rows and columns of zeros: top, left, bottom, right; two numbers are those of opposite sides alike."""
    top, left, *others = padding
    bottom, right = others or (top, left)
    return top, left, bottom, right


def attention(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """softmax(scale * q k^T + mask) v."""
    q, k, v, mask = ins["q"], ins["k"], ins["v"], ins.get("mask")
    match attrs.get("format", "f32"):
        case "i8":
            return formats.attention_i8(q, k, v, attrs["scale"], mask)
        case "bf16":
            return formats.attention_bf16(q, k, v, attrs["scale"], mask)
        case _:
            logits = attrs["scale"] * (q @ k.transpose(-1, -2))
            logits = logits if mask is None else logits + mask
            return torch.softmax(logits, dim=-1) @ v


def select_row(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x[r] or x[:, r], r the entry of the table's row in ``column``, or the row's own number."""
    column = attrs.get("column")
    row = frame.current(attrs) if column is None else int(frame.entry(attrs, column))
    return ins["x"].select(attrs["axis"], row).clone()


# --- Norms and reductions -----------------------------------------------------------------------


def group_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor | dict[str, Tensor]:
    """act((norm * weight + bias) * (1 + scale) + shift), over the channels of each group and space."""
    x = ins["x"]
    n, channels = x.shape[:2]
    groups = x.reshape(n, attrs["groups"], -1)
    mean = groups.mean(dim=-1, keepdim=True)
    variance = ((groups - mean) ** 2).mean(dim=-1, keepdim=True)
    y = ((groups - mean) / torch.sqrt(variance + attrs["eps"])).reshape(n, channels, -1)
    if "weight" in ins:
        y = y * ins["weight"][None, :, None]
    if "bias" in ins:
        y = y + ins["bias"][None, :, None]
    if "scale" in ins:
        y = y * (1.0 + ins["scale"][:, :, None])
    if "shift" in ins:
        y = y + ins["shift"][:, :, None]
    spanned = activated_interval(y, attrs) if frame.dtypes.get("y") in formats.TOP else None
    return formats.encode(activate(y.reshape(x.shape), attrs), ins, frame, spanned)


def activated_interval(v: Tensor, attrs: Attrs) -> Tensor:
    """What act makes of the interval between the least and the largest of v's last dimension: its extremes, [.., 3]."""
    ends = torch.stack([v.amin(dim=-1), v.amax(dim=-1)], dim=-1)
    lowest = torch.full_like(ends[..., :1], LOWEST.get(attrs.get("act", "none"), 0.0))
    return activate(torch.cat([ends, lowest.clamp(ends[..., :1], ends[..., 1:])], dim=-1), attrs)


def layer_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor | dict[str, Tensor]:
    """act((norm * weight + bias) * (1 + scale) + shift), over the last dimension."""
    x = ins["x"].reshape(-1, ins["x"].shape[-1])
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + attrs["eps"])
    if "weight" in ins:
        y = y * ins["weight"]
    if "bias" in ins:
        y = y + ins["bias"]
    if "scale" in ins:
        y = y * (1.0 + _rows(ins["scale"], y.shape[0]))
    if "shift" in ins:
        y = y + _rows(ins["shift"], y.shape[0])
    return formats.encode(activate(y.reshape(ins["x"].shape), attrs), ins, frame)


def rms_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor | dict[str, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight * (1 + scale) + shift, over the last dimension."""
    x = ins["x"].reshape(-1, ins["x"].shape[-1])
    y = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + attrs["eps"])
    if "weight" in ins:
        y = y * ins["weight"]
    if "scale" in ins:
        y = y * (1.0 + _rows(ins["scale"], y.shape[0]))
    if "shift" in ins:
        y = y + _rows(ins["shift"], y.shape[0])
    return formats.encode(y.reshape(ins["x"].shape), ins, frame)


def softmax(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Over the last dimension."""
    return torch.softmax(ins["x"], dim=-1)


def avg_pool2d(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Means of windows, no padding."""
    return functional.avg_pool2d(ins["x"], tuple(attrs["kernel"]), tuple(attrs["stride"]))


def max_pool2d(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Maxima of windows, no padding."""
    return functional.max_pool2d(ins["x"], tuple(attrs["kernel"]), tuple(attrs["stride"]))


def upsample_nearest(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """[n, C, H, W] to [n, C, fH, fW]."""
    high, wide = attrs["factor"]
    return ins["x"].repeat_interleave(high, dim=2).repeat_interleave(wide, dim=3)


def embedding(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Rows of w; an index out of range is the user's error."""
    index, w = ins["index"], ins["w"]
    bad = index[(index < 0) | (index >= w.shape[0])]
    if bad.numel():
        raise IndexOutOfRange(site=frame.site, index=int(bad[0]), rows=w.shape[0])
    return w[index]


def reduce(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Sum, mean, min or max over trailing axes."""
    axes = tuple(attrs["axes"])
    if not axes:
        return ins["x"].clone()
    kinds = {"sum": torch.sum, "mean": torch.mean, "min": torch.amin, "max": torch.amax}
    return kinds[attrs["kind"]](ins["x"], dim=axes)
