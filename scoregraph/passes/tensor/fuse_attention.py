"""Recognise attention that is spelt as two products around a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import (
    aten,
    call,
    is_call,
    operands_of,
    orders,
    same_sizes,
    shape_of,
    shared,
    shown,
)
from scoregraph.passes.tensor.normalize_operators import attention
from scoregraph.passes.tensor.rewrite import Match, TensorPass
from scoregraph.passes.tensor.simplify_identities import permutation

_SOFTMAX = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class FuseAttention(TensorPass):
    """``matmul(softmax(s * matmul(q, kᵀ) + mask), v)`` → ``attention(q, k, v, mask, scale=s)``.

    Numbers that multiply q or k alone (ADM scales both by D^-1/4) are moved into ``scale``.
    """

    name: ClassVar[str] = "fuse-attention"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if not is_call(node, aten.matmul.default):
            return None
        weights, v = node.args
        if not is_call(weights, *_SOFTMAX):
            return None
        assert isinstance(weights, Node)
        assert isinstance(v, Node)
        softmax, rank = weights, len(shape_of(weights))
        scores: Any = softmax.args[0]
        if rank not in (3, 4):
            return Miss(f"softmax of rank {rank}")
        chain = [softmax]
        mask: Node | None = None
        for left, right in orders(scores, "add"):
            if isinstance(left, Node) and isinstance(right, Node) and _scaled_product(left) is not None:
                chain.append(scores)
                scores, mask = left, right
                break
        product = _scaled_product(scores)
        if product is None:
            return Miss("the softmax is not over a product of matrices")
        scale, matmul = product
        chain += [scores] if scores is matmul else [scores, matmul]
        for each in chain:
            if reason := shared(each):
                return Miss(f"{each.name} is {reason}")
        q: Any = matmul.args[0]
        k: Any = matmul.args[1]
        if not same_sizes(shape_of(q)[:-2], shape_of(k)[:-2]) or not same_sizes(shape_of(q)[:-2], shape_of(v)[:-2]):
            return Miss(f"broadcast shape {shown(shape_of(k))}")
        scale_q, q, turned_q = _without_factor(q)
        scale_k, k, turned_k = _without_factor(k)

        def build(graph: Graph) -> Node:
            queries = transposed(graph, q) if turned_q else q
            keys = k if turned_k else transposed(graph, k)
            return attention(graph, queries, keys, v, mask, scale * scale_q * scale_k)

        return Match("attention", build)


def _factor(node: Node) -> tuple[float, Node] | None:
    """(s, x) if ``node`` is x times or over a number."""
    for x, number in orders(node, "mul"):
        if isinstance(x, Node) and isinstance(number, float):
            return number, x
    x, number = operands_of(node, "div") or (None, None)
    return (1 / number, x) if isinstance(x, Node) and isinstance(number, float) else None


def _scaled_product(node: Node) -> tuple[float, Node] | None:
    """(s, the matmul) if ``node`` is a product of matrices, perhaps times a number."""
    scale, product = _factor(node) or (1.0, node)
    return (scale, product) if is_call(product, aten.matmul.default) else None


def _without_factor(node: Node) -> tuple[float, Node, bool]:
    """(s, x, turned): ``node`` is s x, or s xᵀ in the last two dimensions if ``turned``."""
    order = permutation(node)
    last_two = order is not None and order == [*range(len(order) - 2), len(order) - 1, len(order) - 2]
    if last_two:
        inner: Any = node.args[0]
        scale, x = _factor(inner) or (1.0, inner)
        return scale, x, True
    scale, x = _factor(node) or (1.0, node)
    return scale, x, False


def transposed(graph: Graph, node: Node) -> Node:
    """``node`` with its last two dimensions exchanged."""
    return call(graph, aten.transpose.int, node, -2, -1)
