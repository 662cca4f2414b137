"""Lookups by index, of which the plan has one kernel (``embedding``): the rest are views or products with one-hot rows.

A row of the identity times a matrix is exactly a row of the matrix: all other terms are 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import (
    Size,
    arguments,
    aten,
    call,
    constant,
    constant_value,
    is_call,
    same_sizes,
    shape_of,
    value_of,
)
from scoregraph.passes.tensor.rewrite import Match, Rule

RUNS = 32
"""The most slices that one lookup by constant indices may become."""


def _index(node: Node) -> Match | Miss:
    given = arguments(node)
    x: Node = given["self"]
    indices: list[Node | None] = given["indices"]
    used = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(used) == 1 and (places := constant_value(used[0][1])) is not None and places.ndim == 1:
        return _rows(x, used[0][0], places)
    if all(index is not None for index in indices):
        chosen = [index for index in indices if index is not None]
        if (axes := _own_axes(x, chosen)) is not None:
            return Match("index of everything", lambda graph: _spread(graph, x, axes, len(shape_of(node))))
        if len(chosen) == 2 and is_call(chosen[1], *_EXTREMES) and same_sizes(shape_of(chosen[0]), shape_of(x)[:1]):
            if _counts(chosen[0], shape_of(x)[0]):
                return _picked(x, chosen[1])
            return Miss("its rows are not the samples in order")
    return Miss("indices that are neither constant nor the place of an extreme")


def _rows(x: Node, dim: int, places: Tensor) -> Match | Miss:
    """Constant places of one dimension, as slices put together."""
    size = shape_of(x)[dim]
    if not isinstance(size, int):
        return Miss("samples are picked from the batch")
    runs: list[list[int]] = []
    for place in map(int, places):
        if runs and runs[-1][1] == place % size:
            runs[-1][1] += 1
        else:
            runs.append([place % size, place % size + 1])
    if len(runs) > RUNS:
        return Miss(f"{len(runs)} separate places")

    def build(graph: Graph) -> Node:
        parts = [call(graph, aten.slice.Tensor, x, dim, start, end) for start, end in runs]
        return parts[0] if len(parts) == 1 else call(graph, aten.cat.default, parts, dim)

    return Match("index by constants", build)


def _own_axes(x: Node, indices: list[Node]) -> list[int] | None:
    """The result's axis of each index, if every one counts through its dimension of ``x`` along an axis of its own.

    Masks are written like that: ``mask[batch, keys]`` with batch [n, 1, 1, 1] and keys [T] is mask as [n, 1, 1, T].
    """
    rank = max(len(shape_of(index)) for index in indices)
    axes: list[int] = []
    for dim, index in enumerate(indices):
        shape = shape_of(index)
        long = [axis for axis, size in enumerate(shape) if not (isinstance(size, int) and size == 1)]
        if len(long) != 1 or not _counts(index, shape_of(x)[dim]):
            return None
        axes.append(long[0] + rank - len(shape))
    return axes if axes == sorted(set(axes)) else None


def _counts(index: Node, size: Size) -> bool:
    """Whether ``index`` holds 0 … size-1 in order."""
    known = constant_value(index)
    if known is not None:
        return isinstance(size, int) and torch.equal(known.flatten(), torch.arange(size))
    while is_call(index, aten.unsqueeze.default, aten.reshape.default, aten.view.default):
        index = index.all_input_nodes[0]
    return is_call(index, aten.arange.default) and same_sizes(shape_of(index), (size,))


def _spread(graph: Graph, x: Node, axes: list[int], rank: int) -> Node:
    """``x`` with its dimensions at ``axes`` of ``rank``, and size 1 elsewhere."""
    behind = len(shape_of(x)) - len(axes)
    for axis in range(rank - behind):
        if axis not in axes:
            x = call(graph, aten.unsqueeze.default, x, axis)
    return x


def _picked(x: Node, extreme: Node) -> Match | Miss:
    """``x[arange(n), argmax(y, -1)]``: of each sample the row that is largest elsewhere."""
    obstacle = _no_one_hot(extreme)
    if obstacle or len(shape_of(extreme)) != 1:
        return Miss(obstacle or "an extreme for more than the sample")
    rest = shape_of(x)[2:]

    def build(graph: Graph) -> Node:
        rows = call(graph, aten.flatten.using_ints, x, 2, -1) if len(rest) > 1 else x
        rows = rows if rest else call(graph, aten.unsqueeze.default, x, -1)
        chosen = call(graph, aten.unsqueeze.default, _one_hot(graph, extreme, x), 1)
        made = call(graph, aten.select.int, call(graph, aten.matmul.default, chosen, rows), 1, 0)
        return made if len(rest) == 1 else call(graph, aten.reshape.default, made, [-1, *rest])

    return Match("row of an extreme", build)


def _embedding(node: Node) -> Match | Miss | None:
    """``embedding(w, argmin(cdist(x, w)))``, the lookup of vector quantization: one-hot rows times w."""
    given = arguments(node)
    w, index = given["weight"], given["indices"]
    if not is_call(index, *_EXTREMES):
        return None
    if obstacle := _no_one_hot(index):
        return Miss(obstacle)

    def build(graph: Graph) -> Node:
        columns = call(graph, aten.permute.default, w, [1, 0])
        return call(graph, aten.linear.default, _one_hot(graph, index, w), columns, like=node)

    return Match("row of an extreme", build)


_EXTREMES = (aten.argmax.default, aten.argmin.default)


def _no_one_hot(extreme: Node) -> str | None:
    given = arguments(extreme)
    x = given["self"]
    if given["dim"] is None or given["dim"] % len(shape_of(x)) != len(shape_of(x)) - 1 or given["keepdim"]:
        return "an extreme that is not over the last dimension"
    if not isinstance(shape_of(x)[-1], int):
        return "an extreme over the batch"
    if is_call(x, aten.cdist.default) and _codes(x) is None:
        return "distances to no constant vectors"
    return None


def _one_hot(graph: Graph, extreme: Node, rows: Node) -> Node:
    """1 at the first largest (or smallest) entry of the last dimension and 0 elsewhere, in the type of ``rows``."""
    values: Node = arguments(extreme)["self"]
    largest = is_call(extreme, aten.argmax.default)
    if is_call(values, aten.cdist.default):
        values, largest = _nearness(graph, values), not largest
    while is_call(values, aten._to_copy.default, aten.to.dtype):
        values = values.all_input_nodes[0]  # to other integers, or of truths
    given = value_of(values)
    assert given is not None
    if not given.is_floating_point():
        values = call(graph, aten._to_copy.default, values, dtype=torch.float32)
    count: Any = shape_of(values)[-1]
    best = call(graph, aten.amax.default if largest else aten.amin.default, values, [-1], True)
    hit = call(graph, aten.ge.Tensor if largest else aten.le.Tensor, values, best)
    places = constant(graph, torch.arange(count, dtype=torch.float32), extreme)
    first = call(graph, aten.amin.default, call(graph, aten.where.ScalarOther, hit, places, float(count)), [-1], True)
    kind = value_of(rows)
    assert kind is not None
    ones = constant(graph, torch.ones(count, dtype=kind.dtype), extreme)
    return call(graph, aten.where.ScalarOther, call(graph, aten.eq.Tensor, places, first), ones, 0.0)


def _codes(distances: Node) -> Tensor | None:
    """The constant vectors [V, D] of ``cdist(x, vectors)`` in the Euclidean norm."""
    given = arguments(distances)
    codes = constant_value(given["x2"])
    return codes if codes is not None and codes.ndim == 2 and given["p"] == 2 else None


def _nearness(graph: Graph, distances: Node) -> Node:
    """x·w - |w|²/2, which is largest where the distance of x to w is smallest."""
    given = arguments(distances)
    codes = _codes(distances)
    assert codes is not None
    half = constant(graph, -0.5 * codes.detach().double().square().sum(1).to(codes.dtype), distances)
    return call(graph, aten.linear.default, given["x1"], given["x2"], half)


RULES: dict[Any, Rule] = {
    aten.index.Tensor: _index,
    aten.embedding.default: _embedding,
}
