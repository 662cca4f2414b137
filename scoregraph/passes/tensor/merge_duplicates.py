"""Compute equal things once: calls with equal operands, constants with equal contents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node
from torch.nn import Parameter
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor.calls import value_of
from scoregraph.passes.tensor.normalize_expressions import attribute
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class MergeDuplicates(TensorPass):
    """``silu(emb) … silu(emb)`` in every block → one ``silu(emb)``. Parameters stay apart, whatever they hold."""

    name: ClassVar[str] = "merge-duplicates"

    @override
    def match(self, node: Node) -> Match | Miss | None:
        twins = _equal_constants(node) if node.op == "get_attr" else _equal_calls(node)
        first = next((twin for twin in twins if twin < node), None)
        return None if first is None else Match("constant" if node.op == "get_attr" else "call", lambda graph: first)


def _equal_calls(node: Node) -> Iterator[Node]:
    """Other calls of the same function on the same operands; a call without operands is a constant's business."""
    if not node.all_input_nodes or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", []):
        return
    # An operand with the fewest users is the shortest list to look through.
    operand = min(node.all_input_nodes, key=lambda each: len(each.users))
    for other in operand.users:
        alike = other is not node and other.op == "call_function" and other.target == node.target
        if alike and other.args == node.args and other.kwargs == node.kwargs:
            yield other


def _equal_constants(node: Node) -> Iterator[Node]:
    module, value = node.graph.owning_module, value_of(node)
    assert module is not None
    mine = attribute(module, str(node.target))
    if isinstance(mine, Parameter) or value is None:
        return
    for other in node.graph.find_nodes(op="get_attr"):
        theirs = attribute(module, str(other.target))
        same_type = other is not node and theirs.shape == mine.shape and theirs.dtype == mine.dtype
        if same_type and not isinstance(theirs, Parameter) and torch.equal(mine, theirs):
            yield other
