"""Recognise GELU's approximations where a network spells them out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import Operand, is_call, kind, operands_of, orders, pointwise, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseGelu(TensorPass):
    """``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`` → ``gelu_tanh(x)``; ``y * sigmoid(1.702 y)`` with a product y →
    ``linear(…, act="quick_gelu")``, which has no expression of its own."""

    name: ClassVar[str] = "fuse-gelu"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for left, right in orders(node, "mul"):
            if not isinstance(left, Node) or not isinstance(right, Node):
                continue
            if (x := _half(left)) is not None and _is_tanh_factor(right, x):
                return Match("gelu_tanh", lambda graph, x=x: pointwise(graph, "gelu_tanh", x, like=node))
            gate = operands_of(right, "sigmoid")
            if gate is not None and _times(gate[0], 1.702) is left:
                return self._quick(left, gate[0])
        return None

    def _quick(self, x: Node, scaled: Operand) -> Match | Miss:
        if not is_call(x, fused.linear, fused.conv2d):
            return Miss("quick_gelu of no product")
        readers = {user for user in x.users if user is not scaled}
        if len(readers) != 1:
            return Miss(f"{kind(x)} is used by {len(x.users)} nodes")
        if x.kwargs["act"] != "none" or any(x.kwargs.get(role) is not None for role in ("residual", "gate")):
            return Miss(f"{kind(x)} has an epilogue already")
        return Match(f"{kind(x)}+quick_gelu", lambda graph: updated(graph, x, act="quick_gelu"))


def _times(node: Operand, factor: float) -> Node | None:
    """x if ``node`` is x times ``factor``."""
    for x, number in orders(node, "mul"):
        if isinstance(x, Node) and isinstance(number, float) and math.isclose(number, factor, rel_tol=1e-6):
            return x
    return None


def _half(node: Node) -> Node | None:
    return _times(node, 0.5)


def _is_tanh_factor(node: Node, x: Node) -> bool:
    """Whether ``node`` is 1 + tanh(√(2/π) (x + 0.044715 x³))."""
    for one, curve in orders(node, "add"):
        inner = operands_of(curve, "tanh")
        bent = None if one != 1.0 or inner is None else _times(inner[0], math.sqrt(2 / math.pi))
        for term, cube in orders(bent, "add"):
            cubed = _times(cube, 0.044715) if isinstance(cube, Node) else None
            if term is x and cubed is not None and operands_of(cubed, "pow") == (x, 3.0):
                return True
    return False
