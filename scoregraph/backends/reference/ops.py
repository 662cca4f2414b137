"""Every kernel call of docs/plan-format.md as a plain torch function: operands by role in, results by role out.

Sizes follow that page: n counts samples times branches, M is the product of the leading dimensions. All arithmetic is
in the precision of the operands, float32 or float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.backends.reference.noise import normals
from scoregraph.errors import IndexOutOfRange

Roles = Mapping[str, Tensor]
Attrs = Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """What a call sees besides its operands.

    ``shapes`` are those of its outs; ``tables`` the step tables by id, ``row`` the current one (None outside loops);
    ``seeds`` int64 [B] the samples' noise keys; ``site`` where the call came from.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tables: Mapping[int, Tensor]
    row: int | None
    seeds: Tensor
    dtype: torch.dtype
    site: str

    def entry(self, attrs: Attrs, column: int, ahead: int = 0) -> float:
        """table[row + ahead, column]; the row is the loop's unless the attrs fix one."""
        row = attrs.get("row")
        row = self.row if row is None else row
        assert row is not None, f"{self.site}: a call outside of loops reads a table without a row"
        return float(self.tables[attrs["table"]][row + ahead, column])


Op = Callable[[Roles, Attrs, Frame], Tensor | dict[str, Tensor]]

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": torch.sqrt,
    "rsqrt": lambda x: 1.0 / torch.sqrt(x),
    "reciprocal": torch.reciprocal,
    "square": lambda x: x * x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": torch.relu,
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
}


def _act(y: Tensor, attrs: Attrs) -> Tensor:
    name = attrs.get("act", "none")
    return y if name == "none" else UNARY[name](y)


def _rows(per_group: Tensor, m: int) -> Tensor:
    """[G, D] spread over M rows: row m uses row ``m / (M/G)``."""
    return per_group.repeat_interleave(m // per_group.shape[0], dim=0)


# --- Sampling -----------------------------------------------------------------------------------


def noise(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x[s, e] = scale * normal(seed_s, e, micro, site), in float32."""
    shape = frame.shapes["x"]
    count = torch.Size(shape[1:]).numel()
    z = normals(frame.seeds, attrs["site"], attrs["micro"], count)
    return (z * attrs["scale"]).reshape(shape).to(frame.dtype)


def fill(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """A constant."""
    return torch.full(frame.shapes["x"], attrs["value"], dtype=frame.dtype)


def step_time(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """table[row, column] everywhere."""
    return torch.full(frame.shapes["t"], frame.entry(attrs, attrs["column"]), dtype=frame.dtype)


def step_input(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """xin[b*K + j] = table[row, column] * x[b]."""
    x = ins["x"]
    branches = frame.shapes["xin"][0] // x.shape[0]
    return (frame.entry(attrs, attrs["column"]) * x).repeat_interleave(branches, dim=0)


def _numbered(roles: Roles, prefix: str) -> list[Tensor]:
    """The tensors of roles r0, r1, … in order."""
    count = sum(1 for role in roles if role.startswith(prefix))
    return [roles[f"{prefix}{i}"] for i in range(count)]


def sampler_step(ins: Roles, attrs: Attrs, frame: Frame) -> dict[str, Tensor]:
    """new_j = sum_l A[j,l] r_l + sum_k B[j,k] m_k + C[j] z, in that order; terms with coefficient 0 are not read."""
    registers = _numbered(ins, "r")
    batch = registers[0].shape[0]
    answers: list[Tensor] = []
    for p in _numbered(ins, "p"):
        branches = p.reshape(batch, -1, *registers[0].shape[1:])
        answers += branches.unbind(dim=1)
    r, k = len(registers), len(answers)
    z: Tensor | None = None
    new: list[Tensor] = []
    for j in range(r):
        terms = [(frame.entry(attrs, attrs["a"] + j * r + i), registers[i]) for i in range(r)]
        terms += [(frame.entry(attrs, attrs["b"] + j * k + i), answers[i]) for i in range(k)]
        c = frame.entry(attrs, attrs["c"] + j)
        if c != 0.0:
            if z is None:
                assert frame.row is not None
                z = normals(frame.seeds, attrs["site"], frame.row, registers[0][0].numel())
                z = z.reshape(registers[0].shape).to(frame.dtype)
            terms.append((c, z))
        total: Tensor | None = None
        for coefficient, value in terms:
            if coefficient != 0.0:
                total = coefficient * value if total is None else total + coefficient * value
        new.append(torch.zeros_like(registers[0]) if total is None else total)
    results = {f"r{j}": value for j, value in enumerate(new)}
    last = frame.row == frame.tables[attrs["table"]].shape[0] - 1
    if "xin" in frame.shapes and attrs["cin"] >= 0 and not last:
        branches_in = frame.shapes["xin"][0] // batch
        results["xin"] = (frame.entry(attrs, attrs["cin"], ahead=1) * new[0]).repeat_interleave(branches_in, dim=0)
    return results


# --- Elementwise --------------------------------------------------------------------------------


def pointwise(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """The last value of the expression program; every instruction adds one to the operands."""
    values = [x.to(frame.dtype) for x in _numbered(ins, "x")]
    for name, *arguments in attrs["program"]:
        if name == "const":
            values.append(torch.full(frame.shapes["y"], arguments[0], dtype=frame.dtype))
        elif name in UNARY:
            values.append(UNARY[name](values[arguments[0]]))
        else:
            values.append(BINARY[name](values[arguments[0]], values[arguments[1]]))
    return values[-1]


def copy(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x as it is."""
    return ins["x"].clone()


# --- Products -----------------------------------------------------------------------------------


def linear(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """y = residual + gate * act(x w^T + bias)."""
    shape = frame.shapes["y"]
    w = ins["w"]
    y = ins["x"].reshape(-1, w.shape[1]) @ w.T
    if "bias" in ins:
        y = y + ins["bias"]
    y = _act(y, attrs)
    if "gate" in ins:
        y = _rows(ins["gate"], y.shape[0]) * y
    if "residual" in ins:
        y = ins["residual"].reshape(y.shape) + y
    return y.reshape(shape)


def matmul(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """scale * x y."""
    return attrs["scale"] * (ins["x"] @ ins["y"])


def conv2d(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """y = residual + act(conv(x, w) + bias + emb)."""
    y = functional.conv2d(ins["x"], ins["w"], stride=attrs["stride"], padding=attrs["padding"])
    if "bias" in ins:
        y = y + ins["bias"][None, :, None, None]
    if "emb" in ins:
        y = y + ins["emb"][:, :, None, None]
    y = _act(y, attrs)
    return ins["residual"] + y if "residual" in ins else y


def attention(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """softmax(scale * q k^T + mask) v."""
    logits = attrs["scale"] * (ins["q"] @ ins["k"].transpose(-1, -2))
    if "mask" in ins:
        logits = logits + ins["mask"]
    return torch.softmax(logits, dim=-1) @ ins["v"]


# --- Norms and reductions -----------------------------------------------------------------------


def group_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
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
    return _act(y.reshape(x.shape), attrs)


def layer_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
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
    return _act(y.reshape(ins["x"].shape), attrs)


def rms_norm(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""
    x = ins["x"]
    y = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + attrs["eps"])
    return y * ins["weight"] if "weight" in ins else y


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


OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        noise,
        fill,
        step_time,
        step_input,
        sampler_step,
        pointwise,
        copy,
        linear,
        matmul,
        conv2d,
        attention,
        group_norm,
        layer_norm,
        rms_norm,
        softmax,
        avg_pool2d,
        max_pool2d,
        upsample_nearest,
        embedding,
        reduce,
    )
}
