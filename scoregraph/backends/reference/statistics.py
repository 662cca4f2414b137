"""Calls with one result per sample: inner products, quantiles, small programs in float64, interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

from scoregraph.backends.reference.elementwise import evaluate
from scoregraph.backends.reference.frame import Attrs, Frame, Roles, numbered
from scoregraph.backends.reference.sampling import Machine

TILE = 8192
"""Elements whose products are summed before tiles are added up in order."""


def gram(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Per sample sum v_i v_j, or sum v_i, of linear forms v; products and sums in float64."""
    machine = Machine.of(ins, attrs, frame)
    forms = [machine.form(attrs["f"], i).double().flatten(1) for i in range(attrs["forms"])]
    sums: list[Tensor] = []
    for i, *other in attrs["stats"]:
        products = forms[i] * forms[other[0]] if other else forms[i]
        tiles = [tile.sum(dim=1) for tile in products.split(TILE, dim=1)]
        sums.append(sum(tiles[1:], tiles[0]))
    return torch.stack(sums, dim=1).to(frame.dtype)


def quantile(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """The q-quantile of |e_0| over each sample's elements, linear between order statistics."""
    values = Machine.of(ins, attrs, frame).form(attrs["e"], 0).abs().flatten(1).sort(dim=1).values
    last = values.shape[1] - 1
    position = attrs["q"] * last
    below = int(position)
    low, high = values[:, below], values[:, min(below + 1, last)]
    return (low + (position - below) * (high - low))[:, None]


def scalars(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """y[s, j] = value[results[j]] of one program per sample, in float64."""
    operands = numbered(ins, "x")
    batch = frame.shape("y")[0]

    def everywhere(value: float) -> Tensor:
        return torch.full((batch,), value, dtype=torch.float64)

    def following(column: int) -> Tensor:
        row = frame.following(attrs)
        return everywhere((frame.entries(attrs) if row is None else row)[column])

    leaves = {
        "const": everywhere,
        "in": lambda i, j: operands[i][:, j].double(),
        "row": lambda column: everywhere(frame.entry(attrs, column)),
        "next": following,
    }
    values = evaluate(attrs["program"], [], leaves)
    return torch.stack([values[i] for i in attrs["results"]], dim=1).to(frame.dtype)


def interpolate(ins: Roles, attrs: Attrs, frame: Frame) -> Tensor:
    """Piecewise linear through the points (xs, ys), xs ascending; constant beyond its ends."""
    x, xs, ys = ins["x"], ins["xs"], ins["ys"]
    if len(xs) == 1:
        return ys.expand_as(x)
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    share = ((x - x0) / (x1 - x0)).clamp(0.0, 1.0)
    return y0 + share * (y1 - y0)
