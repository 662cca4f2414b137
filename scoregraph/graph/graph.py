"""The graph: named outputs over interned nodes, and the user's lines that made them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scoregraph.errors import Location
from scoregraph.graph.analysis import topological
from scoregraph.graph.node import Interned, Node, field_kinds
from scoregraph.graph.nodes import Emit, Input
from scoregraph.graph.values import NetRef


@dataclass(frozen=True, eq=False, repr=False)
class Graph(metaclass=Interned):
    """A whole sampling program: what it computes (``outputs``) and where it was written (``places``).

    Frozen and interned: two graphs with the same name, nodes and places are one object, so ``parse(str(g)) is g``.
    """

    name: str
    outputs: tuple[tuple[str, Node], ...]
    places: tuple[tuple[Node, Location], ...] = ()

    def __post_init__(self) -> None:
        known = dict(self.places)
        object.__setattr__(self, "places", tuple((node, known[node]) for node in self.nodes if node in known))

    def key(self) -> tuple[object, ...]:
        """What makes two graphs one."""
        return Graph, self.name, self.outputs, self.places

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph, (self.name, self.outputs, self.places)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, loop bodies included, each after its operands."""
        return topological(node for _, node in self.outputs)

    @cached_property
    def _places(self) -> dict[Node, Location]:
        return dict(self.places)

    def place(self, node: Node) -> Location | None:
        """The user's line that made a node; after a rewrite, the line of the node it replaced."""
        return self._places.get(node)

    def output(self, name: str) -> Node:
        """The node behind an output."""
        return dict(self.outputs)[name]

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The values the caller gives, sorted by name."""
        found = [node for node in self.nodes if isinstance(node, Input)]
        return tuple(sorted(found, key=lambda node: node.name))

    @cached_property
    def emits(self) -> tuple[Emit, ...]:
        """The values that loops record, once per step, beside the outputs."""
        return tuple(node for node in self.nodes if isinstance(node, Emit))

    @cached_property
    def nets(self) -> tuple[NetRef, ...]:
        """The networks in the order in which they are first needed."""
        held = (
            getattr(node, name)
            for node in self.nodes
            for name, kind in field_kinds(type(node)).items()
            if "net" in kind
        )
        return tuple(dict.fromkeys(net for net in held if net is not None))

    @cached_property
    def _text(self) -> str:
        from scoregraph.graph.printer import print_graph

        return print_graph(self)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<graph {self.name}: {len(self.nodes)} nodes -> {', '.join(name for name, _ in self.outputs)}>"

    def to_json(self) -> str:
        """The versioned JSON form (``scoregraph.graph.json_form``)."""
        from scoregraph.graph.json_form import to_json

        return to_json(self)

    def to_mermaid(self) -> str:
        """A Mermaid flowchart (``scoregraph.graph.viz``)."""
        from scoregraph.graph.viz import mermaid

        return mermaid(self)

    def to_dot(self) -> str:
        """A Graphviz digraph (``scoregraph.graph.viz``)."""
        from scoregraph.graph.viz import dot

        return dot(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/vnd.mermaid": self.to_mermaid()}
