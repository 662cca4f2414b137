"""Resizing of images and adaptive pooling as two products with constant matrices, one per direction.

Any resampling that is linear and works by row and by column is ``R x Cᵀ``. The matrices are read off the operator
itself: what it makes of the rows of the identity. Nearest upsampling by whole factors has a kernel and stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import arguments, aten, call, constant, shape_of, target_of, value_of
from scoregraph.passes.tensor.rewrite import Match, Rule


def _resampled(node: Node) -> Match | Miss:
    x: Any = node.args[0]
    if len(shape_of(x)) != 4 or not all(isinstance(size, int) for size in (*shape_of(x)[2:], *shape_of(node)[2:])):
        return Miss("resampling of other than two dimensions, or by a symbolic size")
    return Match("resampling", lambda graph: _product(graph, node, x))


def _nearest(node: Node) -> Match | Miss | None:
    before, after = shape_of(arguments(node)["input" if "input" in arguments(node) else "self"]), shape_of(node)
    sizes = list(zip(before[2:], after[2:], strict=True))
    whole = all(isinstance(a, int) and isinstance(b, int) and b % a == 0 for a, b in sizes)
    return None if whole else _resampled(node)


def _product(graph: Graph, node: Node, x: Node) -> Node:
    height, width = (int(size) for size in shape_of(x)[2:])
    rows = constant(graph, _matrix(node, height, 0), node)
    columns = constant(graph, _matrix(node, width, 1), node)
    across = call(graph, aten.linear.default, x, columns)
    return call(graph, aten.matmul.default, rows, across, like=node)


def _matrix(node: Node, size: int, direction: int) -> Tensor:
    """[out, size]: how one direction is resampled. The other one, of equal entries, changes nothing."""
    basis = torch.eye(size, dtype=torch.float64)[:, None].unsqueeze(3 - direction)
    other: Any = shape_of(node.args[0])[3 - direction]  # pyright: ignore[reportArgumentType]
    basis = basis.expand(*[other if dim == 3 - direction else -1 for dim in range(4)])
    answer: Tensor = target_of(node)(basis, *node.args[1:], **node.kwargs)
    kind = value_of(node)
    assert kind is not None
    return answer.select(3 - direction, 0)[:, 0].t().to(kind.dtype)


RULES: dict[Any, Rule] = {
    **{
        overload: _resampled
        for operator in (
            aten.upsample_bilinear2d,
            aten.upsample_bicubic2d,
            aten._upsample_bilinear2d_aa,
            aten._upsample_bicubic2d_aa,
            aten.adaptive_avg_pool2d,
        )
        for overload in (getattr(operator, name) for name in operator.overloads() if name in ("default", "vec"))
    },
    aten.upsample_nearest2d.vec: _nearest,
    aten.upsample_nearest2d.default: _nearest,
    aten._upsample_nearest_exact2d.vec: _resampled,
    aten._upsample_nearest_exact2d.default: _resampled,
}
