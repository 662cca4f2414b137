"""Merge chains of elementwise operators, so that one pass over memory computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, Node
from typing_extensions import override

from scoregraph.passes.base import Miss
from scoregraph.passes.tensor import fused
from scoregraph.passes.tensor.calls import call, is_call, same_sizes, shared, shown, value_of
from scoregraph.passes.tensor.rewrite import Match, TensorPass


@dataclass(frozen=True)
class FusePointwise(TensorPass):
    """``sin(exp(a) * b)`` → ``pointwise((exp 0) (mul 2 1) (sin 3), a, b)``.

    A smaller expression that is broadcast stays apart: merged, it would be computed again for every element.
    """

    name: ClassVar[str] = "fuse-pointwise"
    operands: int = 8
    """The most operands a kernel takes."""

    @override
    def match(self, node: Node) -> Match | Miss | None:
        if not is_call(node, fused.pointwise):
            return None
        missed: Miss | None = None
        for inner in node.all_input_nodes:
            if not is_call(inner, fused.pointwise):
                continue
            reason = self._obstacle(node, inner)
            if reason is None:
                return Match("merged", lambda graph, inner=inner: merged(graph, node, inner))
            missed = missed or Miss(f"{inner.name}: {reason}")
        return missed

    def _obstacle(self, outer: Node, inner: Node) -> str | None:
        if reason := shared(inner):
            return reason
        x, y = value_of(outer), value_of(inner)
        assert x is not None
        assert y is not None
        if x.dtype != y.dtype:
            return f"{y.dtype} inside {x.dtype}"
        is_cast = not inner.args[0]  # computes nothing, so nothing is computed again
        if not is_cast and not same_sizes(x.shape, y.shape):
            return f"broadcast shape {shown(y.shape)}"
        together = {*outer.all_input_nodes, *inner.all_input_nodes} - {inner}
        return None if len(together) <= self.operands else f"needs {len(together)} operands"


def merged(graph: Graph, outer: Node, inner: Node) -> Node:
    """One expression for ``outer`` with its operand ``inner`` written out, each operand once."""
    operands: list[Node] = []
    for node in (*inner.all_input_nodes, *outer.all_input_nodes):
        if node is not inner and node not in operands:
            operands.append(node)
    program: list[tuple[Any, ...]] = []

    def append(source: Node, known: dict[Node, int]) -> int:
        """Renumber the instructions of ``source`` into ``program``; returns the place of its value."""
        given: Any = source.args[1:]
        places = [known[operand] for operand in given]
        instructions: Any = source.args[0]
        for op, *args in instructions:
            moved: list[Any] = args if op == "const" else [places[place] for place in args]
            program.append((op, *moved))
            places.append(len(operands) + len(program) - 1)
        return places[-1]

    known = {operand: place for place, operand in enumerate(operands)}
    known[inner] = append(inner, known)
    append(outer, known)
    return call(graph, fused.pointwise, tuple(program), *operands, like=outer)
