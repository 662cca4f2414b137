"""Compute at compile time what depends on no input: frequency tables, reshaped weights."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import shape_of, target_of, value_of
from scoregraph.passes.tensor.normalize_expressions import attribute
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FoldConstants(TensorPass):
    """``exp(mul(arange(0, 64), -0.14))`` → the buffer ``folded_0``."""

    name: ClassVar[str] = "fold-constants"
    charged: ClassVar[bool] = False
    growth: int = 65_536
    """A result may have this many elements more than its operands; larger ones stay computed (an ``expand``)."""

    @override
    def match(self, node: Node) -> Match | Miss | None:
        value = value_of(node)
        if node.op != "call_function" or value is None or torch.Tag.nondeterministic_seeded in _tags(node):
            return None
        source = node.args[0] if node.target is operator.getitem else node
        assert isinstance(source, Node)
        if any(each.op != "get_attr" for each in source.all_input_nodes):
            return None
        if not all(isinstance(size, int) for size in shape_of(node)):
            return None
        given = sum(attribute(_module(each), str(each.target)).numel() for each in source.all_input_nodes)
        if value.numel() > given + self.growth:
            return Miss(f"the result has {value.numel()} elements, its operands {given}")
        return Match("folded", lambda graph: _folded(graph, node))


def _tags(node: Node) -> list[torch.Tag]:
    return getattr(node.target, "tags", [])


def _module(node: Node) -> torch.nn.Module:
    module = node.graph.owning_module
    assert module is not None
    return module


def _evaluated(node: Node) -> Any:
    """The value of ``node``, whose operands are constants (or parts of an operator of constants)."""
    if node.op == "get_attr":
        return attribute(_module(node), str(node.target))
    args, kwargs = map_arg((node.args, node.kwargs), _evaluated)
    return target_of(node)(*args, **kwargs)


def _folded(graph: Graph, node: Node) -> Node:
    module = _module(node)
    index = 0
    while hasattr(module, f"folded_{index}"):
        index += 1
    with torch.no_grad():
        result: Tensor = _evaluated(node)
    module.register_buffer(f"folded_{index}", result.detach().contiguous())
    return graph.get_attr(f"folded_{index}")
