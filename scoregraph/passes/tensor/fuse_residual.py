"""Add the residual stream where a branch ends: in the epilogue of its last product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import (
    aten,
    call,
    is_call,
    kind,
    operands_of,
    same_value_type,
    shape_of,
    shared,
    shown,
    updated,
)
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseResidual(TensorPass):
    """``x + conv2d(h)`` → ``conv2d(h, residual=x)``; so for ``linear``, gated or not.

    When both sides are products (a learned shortcut) the later one takes the other as its residual. A convolution
    over one dimension is a ``conv2d`` behind a ``select``, and the sum moves in front of the ``select``.
    """

    name: ClassVar[str] = "fuse-residual"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        terms = [term for term in operands_of(node, "add") or () if isinstance(term, Node)]
        if len(terms) != 2:
            return None
        products = sorted((term for term in terms if _product(term) is not None), reverse=True)
        reasons: list[str] = []
        for term in products:
            other = terms[0] if terms[1] is term else terms[1]
            found = _added(node, term, other)
            if isinstance(found, Match):
                return found
            reasons.append(found)
        return Miss(reasons[0]) if reasons else None


def _product(term: Node) -> Node | None:
    """The ``linear`` or ``conv2d`` that ``term`` is, or whose only row ``term`` selects."""
    if is_call(term, fused.linear, fused.conv2d):
        return term
    if is_call(term, aten.select.int) and term.args[1:] == (2, 0):
        source = term.args[0]
        if isinstance(source, Node) and is_call(source, fused.conv2d) and shape_of(source)[2] == 1:
            return source
    return None


def _added(node: Node, term: Node, residual: Node) -> Match | str:
    """The rewrite that adds ``residual`` inside the product of ``term``, or why it does not apply."""
    product = _product(term)
    assert product is not None
    if term is residual:
        return f"{kind(product)} is added to itself"
    if not (same_value_type(node, term) and same_value_type(node, residual)):
        return f"broadcast shape {shown(shape_of(residual))}"
    if reason := shared(term) or shared(product):
        return f"{kind(product)} is {reason}"
    if product.kwargs["residual"] is not None:
        return f"{kind(product)} has a residual already"

    def build(graph: Graph) -> Node:
        if term is product:
            return updated(graph, product, residual=residual)
        made = updated(graph, product, residual=call(graph, aten.unsqueeze.default, residual, 2))
        return call(graph, aten.select.int, made, 2, 0)

    return Match(f"{kind(product)}+residual", build)
