"""Recognise SiLU where a network spells it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import operands_of, orders, pointwise, shared
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FuseSilu(TensorPass):
    """``x * sigmoid(x)`` → ``silu(x)``."""

    name: ClassVar[str] = "fuse-silu"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        for x, gate in orders(node, "mul"):
            if isinstance(x, Node) and isinstance(gate, Node) and operands_of(gate, "sigmoid") == (x,):
                if reason := shared(gate):
                    return Miss(f"the sigmoid is {reason}")
                return Match("silu", lambda graph, x=x: pointwise(graph, "silu", x, like=node))
        return None
