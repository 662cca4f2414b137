"""Operands that kernels read with a stride of 0: one row per sample, one number per sample and channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node

from scoregraph.passes.tensor.calls import aten, call, is_call, same_sizes, shape_of

Build = Callable[[Graph], Node]


def per_channel(operand: Node, value: Node) -> Build | None:
    """How to read ``operand`` [n, C, 1, …] as [n, C] beside ``value`` [n, C, …]; None if its shape is another."""
    given, whole = shape_of(operand), shape_of(value)
    ones = (1,) * (len(whole) - 2)
    if len(whole) < 3 or not same_sizes(given, (*whole[:2], *ones)):
        return None
    return lambda graph: _without(graph, operand, range(2, len(whole)))


def per_row(operand: Node, value: Node) -> Build | None:
    """How to read ``operand`` as [G, D] rows beside ``value`` [n, …, D]; None if its shape is another.

    [n, 1, …, D] is one row per sample, [1, …, D] and [D] one row for all.
    """
    given, whole = shape_of(operand), shape_of(value)
    if len(given) == 1 and same_sizes(given, whole[-1:]):
        return lambda graph: call(graph, aten.unsqueeze.default, operand, 0)
    between = (1,) * (len(given) - 2)
    leads = [1, whole[0]] if len(given) == len(whole) else [1]
    if len(given) < 2 or not any(same_sizes(given, (lead, *between, whole[-1])) for lead in leads):
        return None
    return lambda graph: _without(graph, operand, range(1, len(given) - 1))


def _without(graph: Graph, node: Node, dims: range) -> Node:
    """``node`` with the dimensions ``dims``, all of size 1, dropped; an ``unsqueeze`` that made one is undone."""
    for dim in reversed(dims):
        if is_call(node, aten.unsqueeze.default):
            inner: Any = node.args[0]
            added: Any = node.args[1]
            if added % len(shape_of(node)) == dim:
                node = inner
                continue
        node = call(graph, aten.select.int, node, dim, 0)
    return node
