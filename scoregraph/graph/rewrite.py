"""Rewrites a graph from its inputs to its outputs: a rule sees every node once, over operands already rewritten.

before:  fuse(cfg, [score(net, x, t, [c]), score(net, x, t, [u])])
rule:    two scores of one network in a fusion are one score of two branches
after:   fuse(cfg, [score(net, x, t, [c, u])])

What a rule makes gets the user's line of the node it replaces, down to the nodes that have a line of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from scoregraph.errors import Location
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import Node

Rule = Callable[[Node], Node | None]
"""The node to put in place of another, or None to leave it. Rules that must not go on (no fuel left) return None."""


def rewrite(graph: Graph, rule: Rule) -> tuple[Graph, int]:
    """The rewritten graph and how many nodes the rule replaced; the same graph when it replaced none.

    A rule never sees what it made itself, so a rewrite ends. Nodes nothing depends on any more are gone.
    """
    new: dict[Node, Node] = {}
    places = dict(graph.places)
    count = 0
    for node in graph.nodes:
        rebuilt = node.map_operands(new.__getitem__)
        made = rule(rebuilt)
        if made is not None and made is not rebuilt:
            count += 1
        else:
            made = rebuilt
        new[node] = made
        _inherit(places, made, graph.place(node))
    outputs = tuple((name, new[node]) for name, node in graph.outputs)
    return Graph(graph.name, outputs, tuple(places.items())), count


def replace(graph: Graph, old: Node, by: Node) -> Graph:
    """The graph with ``by`` wherever ``old`` stood."""
    return rewrite(graph, lambda node: by if node is old else None)[0]


def _inherit(places: dict[Node, Location], made: Node, place: Location | None) -> None:
    """Give a place to a node and to those below it that are new."""
    if place is None:
        return
    pending = [made]
    while pending:
        node = pending.pop()
        if node not in places:
            places[node] = place
            pending.extend(node.operands)
