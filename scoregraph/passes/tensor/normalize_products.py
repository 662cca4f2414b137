"""Write products of activations as plain ``matmul``: einsums by permuting, ``bmm`` and ``baddbmm`` by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import arguments, aten, call, is_call, pointwise, shape_of
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class NormalizeProducts(TensorPass):
    """``einsum("bct,bcs->bts", q, k)`` → ``matmul(permute(q), k)``; ``einsum("nhw->nwh", x)`` → ``permute(x)``."""

    name: ClassVar[str] = "normalize-products"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if is_call(node, aten.bmm.default):
            return Match("bmm", lambda graph: call(graph, aten.matmul.default, *node.args))
        if is_call(node, aten.baddbmm.default):
            return Match("baddbmm", lambda graph: _baddbmm(graph, node))
        if is_call(node, aten.einsum.default):
            return _einsum(node)
        return None


def _baddbmm(graph: Graph, node: Node) -> Node:
    """``beta * a + alpha * x y``; attention layers use it with beta = 0 for scaled scores."""
    given = arguments(node)
    made = call(graph, aten.matmul.default, given["batch1"], given["batch2"])
    if given["alpha"] != 1:
        made = pointwise(graph, "mul", made, given["alpha"])
    if given["beta"] == 0:
        return made
    added = given["self"] if given["beta"] == 1 else pointwise(graph, "mul", given["self"], given["beta"])
    return pointwise(graph, "add", added, made)


def _einsum(node: Node) -> Match | Miss:
    given = arguments(node)
    equation: str = given["equation"].replace(" ", "")
    operands: list[Node] = given["tensors"]
    before, arrow, after = equation.partition("->")
    terms = before.split(",")
    if not arrow or "." in equation or any(len(set(term)) != len(term) for term in (*terms, after)):
        return Miss(f"einsum {equation!r} has an ellipsis, a diagonal or no explicit result")
    if len(terms) == 1 and sorted(before) == sorted(after):
        return Match("einsum permutation", lambda graph: _permuted(graph, operands[0], before, after))
    if len(terms) != 2:
        return Miss(f"einsum {equation!r} of {len(terms)} operands")
    left, right = terms
    batch = [axis for axis in left if axis in right and axis in after]
    inner = [axis for axis in left if axis in right and axis not in after]
    rows = [axis for axis in left if axis not in right and axis in after]
    columns = [axis for axis in right if axis not in left and axis in after]
    if not len(inner) == len(rows) == len(columns) == 1 or len(batch) + 2 != len(left) or len(left) != len(right):
        return Miss(f"einsum {equation!r} is no batched product of matrices")

    def build(graph: Graph) -> Node:
        x = _permuted(graph, operands[0], left, batch + rows + inner)
        y = _permuted(graph, operands[1], right, batch + inner + columns)
        made = call(graph, aten.matmul.default, x, y)
        return _permuted(graph, made, batch + rows + columns, after)

    return Match("einsum product", build)


def _permuted(graph: Graph, node: Node, before: Any, after: Any) -> Node:
    """``node`` with the axes named ``before`` in the order ``after``."""
    order = [list(before).index(axis) for axis in after]
    return node if order == list(range(len(shape_of(node)))) else call(graph, aten.permute.default, node, order)
