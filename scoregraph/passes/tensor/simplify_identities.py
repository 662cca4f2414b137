"""Drop what changes no bit: x * 1, casts to the same dtype, views that undo each other, dropout, detach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import (
    arguments,
    aten,
    call,
    is_call,
    same_value_type,
    shape_of,
    target_of,
    value_of,
)
from scoregraph.passes.tensor.rewrite import Match, TensorPass

_ALIASES = (
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
)
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.type_as.default)
_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_WINDOWS = (*_RESHAPES, aten.expand.default, aten.slice.Tensor)
_NEUTRAL: dict[Callable[..., Any], float] = {
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
    aten.pow.Tensor_Scalar: 1,
}
_FILLED: dict[Callable[..., Any], float] = {
    aten.ones.default: 1,
    aten.ones_like.default: 1,
    aten.zeros.default: 0,
    aten.zeros_like.default: 0,
}


@dataclass(frozen=True)
class SimplifyIdentities(TensorPass):
    """``transpose(transpose(x)) → x``, ``x / 1.0 → x``, ``view(view(x)) → reshape(x)``.

    Every view becomes a ``reshape``: a fused operator may lay its result out otherwise than the one it replaces, and
    ``view`` would refuse that layout where ``reshape`` copies.
    """

    name: ClassVar[str] = "simplify-identities"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if node.op != "call_function" or value_of(node) is None or not node.all_input_nodes:
            return None
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return None
        if self._keeps_value(node, source):
            return Match("identity", lambda graph: source)
        if is_call(node, *_RESHAPES):
            return self._reshape(node, source)
        if is_call(node, aten.select.int, aten.squeeze.dim):
            return self._drop_of_unsqueeze(node, source)
        if is_call(node, aten.slice.Tensor) and is_call(source, aten.cat.default):
            return self._part_of_cat(node, source)
        return self._permutation(node, source)

    def _keeps_value(self, node: Node, source: Node) -> bool:
        if is_call(node, *_ALIASES):
            return True
        if is_call(node, aten.dropout.default):
            return not arguments(node)["train"]
        if not same_value_type(node, source):
            return False
        if is_call(node, *_CASTS, *_WINDOWS):
            # An expand or a slice of equal shape has kept everything; so has a cast to the same dtype.
            return True
        neutral = _NEUTRAL.get(target_of(node))
        return neutral is not None and _is_filled_with(node.args[1], neutral)

    def _reshape(self, node: Node, source: Node) -> Match | None:
        if is_call(source, *_RESHAPES):
            first = source.args[0]
            return Match("reshape of reshape", lambda graph: call(graph, aten.reshape.default, first, node.args[1]))
        if is_call(node, aten.reshape.default):
            return None
        return Match("view to reshape", lambda graph: call(graph, aten.reshape.default, source, node.args[1]))

    def _drop_of_unsqueeze(self, node: Node, source: Node) -> Match | None:
        if not is_call(source, aten.unsqueeze.default):
            return None
        inner: Any = source.args[0]
        rank = len(shape_of(source))
        dropped: Any = node.args[1]
        added: Any = source.args[1]
        return Match("drop of unsqueeze", lambda graph: inner) if dropped % rank == added % rank else None

    def _part_of_cat(self, node: Node, source: Node) -> Match | None:
        window, whole = arguments(node), arguments(source)
        rank = len(shape_of(node))
        axis: int = window["dim"] % rank
        if axis != whole["dim"] % rank or window["step"] != 1:
            return None
        start: int = 0
        parts: list[Node] = whole["tensors"]
        for part in parts:
            size = shape_of(part)[axis]
            if not isinstance(size, int):
                return None
            if start == (window["start"] or 0) and same_value_type(node, part):
                return Match("part of cat", lambda graph, part=part: part)
            start += size
        return None

    def _permutation(self, node: Node, source: Node) -> Match | None:
        outer, inner = permutation(node), permutation(source)
        if outer is None or inner is None:
            return None
        first: Any = source.args[0]
        order = [inner[axis] for axis in outer]

        def build(graph: Graph) -> Node:
            return first if order == sorted(order) else call(graph, aten.permute.default, first, order)

        return Match("permutation of permutation", build)


def permutation(node: Node) -> list[int] | None:
    """Where each dimension of ``node`` comes from in its operand, if ``node`` permutes dimensions."""
    if not is_call(node, aten.permute.default, aten.transpose.int, aten.t.default):
        return None
    rank = len(shape_of(node))
    if is_call(node, aten.permute.default):
        dims: Any = node.args[1]
        return [axis % rank for axis in dims]
    order = list(range(rank))
    named = arguments(node)
    a: int = named.get("dim0", 0)
    b: int = named.get("dim1", rank - 1)
    order[a], order[b] = order[b], order[a]
    return order


def _is_filled_with(operand: object, number: float) -> bool:
    """Whether ``operand`` is ``number``, or a tensor made full of it."""
    if isinstance(operand, Node):
        if is_call(operand, aten.full.default):
            return bool(operand.args[1] == number)
        return operand.op == "call_function" and _FILLED.get(target_of(operand)) == number
    return isinstance(operand, (int, float)) and operand == number
