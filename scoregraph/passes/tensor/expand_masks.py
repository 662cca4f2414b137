"""Masks of attention as numbers that are added to the scores: 0 where a query may look, -1e30 where it may not.

Beside a score of any size -1e30 is nothing but itself, and the exponential of the difference is exactly 0. A query that
may look nowhere averages everything; torch answers 0 or nan there, depending on its version.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import arguments, aten, call, constant, constant_value, is_call, shape_of, value_of
from scoregraph.passes.tensor.expand_layouts import repeated
from scoregraph.passes.tensor.rewrite import Match, Rule

HIDDEN = -1e30


def _attention(node: Node) -> Match | Miss | None:
    given = arguments(node)
    q, k, v, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    if given["enable_gqa"]:
        return _grouped_queries(node)
    truth = None if mask is None else value_of(mask)
    if mask is not None and truth is not None and truth.dtype == torch.bool:
        mask = _unexpanded(mask)
        known = constant_value(mask)
        if known is not None and bool(known.all()):
            return Match("empty mask", lambda graph: _with_mask(graph, node, q, k, v, None))
        return Match("boolean mask", lambda graph: _with_mask(graph, node, q, k, v, _shown(graph, mask, q)))
    if not given["is_causal"]:
        return None
    rows, columns = shape_of(q)[-2], shape_of(k)[-2]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return Miss("a causal mask of symbolic size")
    future = torch.ones(rows, columns, dtype=torch.bool).tril().logical_not()
    values = torch.zeros(rows, columns, dtype=_dtype(q)).masked_fill(future, HIDDEN)
    return Match("causal mask", lambda graph: _with_mask(graph, node, q, k, v, constant(graph, values, node)))


def _unexpanded(mask: Node) -> Node:
    """A mask without the dimensions that are only repeated: attention broadcasts it."""
    while is_call(mask, aten.expand.default):
        mask = mask.all_input_nodes[0]
    return mask


def _shown(graph: Graph, mask: Node, q: Node) -> Node:
    """0 where ``mask`` is true, else ``HIDDEN``, in the type of the queries."""
    return call(graph, aten.where.ScalarOther, mask, constant(graph, torch.zeros((), dtype=_dtype(q)), q), HIDDEN)


def _dtype(node: Node) -> torch.dtype:
    value = value_of(node)
    assert value is not None
    return value.dtype


def _with_mask(graph: Graph, node: Node, q: Node, k: Node, v: Node, mask: Node | None) -> Node:
    scale = arguments(node)["scale"]
    return call(graph, aten.scaled_dot_product_attention.default, q, k, v, mask, scale=scale, like=node)


def _grouped_queries(node: Node) -> Match | Miss:
    """Several heads of queries share one of keys and values, which is repeated for them."""
    given = arguments(node)
    heads, shared = shape_of(given["query"])[-3], shape_of(given["key"])[-3]
    if not isinstance(heads, int) or not isinstance(shared, int):
        return Miss("heads of symbolic number")

    def build(graph: Graph) -> Node:
        at = len(shape_of(given["key"])) - 3
        k, v = (repeated(graph, given[role], at, at + 1, heads // shared) for role in ("key", "value"))
        options: dict[str, Any] = {"is_causal": given["is_causal"], "scale": given["scale"]}
        return call(
            graph, aten.scaled_dot_product_attention.default, given["query"], k, v, given["attn_mask"], **options,
            like=node,
        )  # fmt: skip

    return Match("grouped queries", build)


RULES: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: _attention}
