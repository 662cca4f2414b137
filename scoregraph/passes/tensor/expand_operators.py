"""Write operators that have no kernel in terms of those that do, before anything is fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import (
    expand_convolutions,
    expand_layouts,
    expand_lookups,
    expand_masks,
    expand_resampling,
)
from scoregraph.passes.tensor.calls import arguments, aten, call, shape_of, target_of
from scoregraph.passes.tensor.rewrite import Match, Rule, TensorPass


def _softmax(node: Node) -> Match | None:
    """The kernel works on the last dimension."""
    x: Any = arguments(node)["self"]
    rank = len(shape_of(x))
    dim: int = arguments(node)["dim"] % rank
    if dim == rank - 1:
        return None

    def build(graph: Graph) -> Node:
        turned = call(graph, aten.transpose.int, x, dim, rank - 1)
        return call(graph, aten.transpose.int, call(graph, target_of(node), turned, rank - 1), dim, rank - 1)

    return Match("softmax", build)


RULES: dict[Any, Rule] = {
    **expand_convolutions.RULES,
    **expand_layouts.RULES,
    **expand_lookups.RULES,
    **expand_masks.RULES,
    **expand_resampling.RULES,
    aten.softmax.int: _softmax,
}


@dataclass(frozen=True)
class ExpandOperators(TensorPass):
    """``pixel_shuffle(x, 2)`` → ``reshape(permute(reshape(x)))``; ``conv2d(x, w, groups=2)`` → two and ``cat``."""

    name: ClassVar[str] = "expand-operators"
    charged: ClassVar[bool] = False

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if node.op != "call_function":
            return None
        rule = RULES.get(node.target)
        return None if rule is None else rule(node)
