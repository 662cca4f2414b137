"""Fold the gate of an adaptive block into the projection it scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.broadcast import per_row
from scoregraph.passes.tensor.calls import is_call, orders, same_value_type, shape_of, shared, shown, updated
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseGate(TensorPass):
    """``gate * linear(x)`` with gate [n, 1, …, N] → ``linear(x, gate=gate)``."""

    name: ClassVar[str] = "fuse-gate"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for product, gate in orders(node, "mul"):
            if not isinstance(product, Node) or not isinstance(gate, Node) or not is_call(product, fused.linear):
                continue
            if not same_value_type(node, product):
                return Miss(f"broadcast shape {shown(shape_of(product))}")
            read = per_row(gate, product)
            if read is None:
                return Miss(f"broadcast shape {shown(shape_of(gate))}")
            if reason := shared(product):
                return Miss(f"linear is {reason}")
            if product.kwargs["gate"] is not None or product.kwargs["residual"] is not None:
                return Miss("linear has a gate or a residual already")
            return Match("linear+gate", lambda graph, p=product, read=read: updated(graph, p, gate=read(graph)))
        return None
