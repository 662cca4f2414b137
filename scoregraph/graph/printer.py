"""Prints the text form of a graph: one node a line. ``scoregraph.graph.text`` reads it back.

Everything follows from the fields of the node kinds. Operands, networks, rules and names are written in their order,
numbers and whatever has a default by name; the type stands behind a colon, the user's line behind ``#``.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from scoregraph.errors import Location
from scoregraph.graph.analysis import scopes
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import Node, field_kinds
from scoregraph.graph.nodes import Loop, While
from scoregraph.graph.table import StepTable
from scoregraph.graph.values import NetRef, word

BODY_FIELDS = ("results", "active", "emits")
"""The fields of a loop that belong to its body, written on the ``yield`` line."""


NET_FLAGS = ("energy", "variance")
"""Properties of a network that are written as a word when they hold."""

TABLE_SIZES = ("estimates", "outputs", "forms")
"""Sizes of a table that are written when they are not 0."""


@cache
def layout(cls: type[Node]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The fields that are written in order, and those that are written by name, with their defaults.

    The field ``of`` is neither: it is the type behind the colon.
    """
    kinds = field_kinds(cls)
    own = [f for f in fields(cls) if f.init and f.name != "of"]
    by_name = {f.name: f.default for f in own if f.default is not MISSING or kinds[f.name] in ("int", "float")}
    return tuple(f.name for f in own if f.name not in by_name), by_name


def numbering(graph: Graph) -> dict[Node, int]:
    """The number of each node in the text form."""
    return {node: n for n, (node, _) in enumerate(in_print_order(graph))}


def in_print_order(graph: Graph) -> list[tuple[Node, int]]:
    """Nodes with their depth of indentation: a loop, then its body."""
    scope = scopes(graph)
    names = {node.name for node in graph.nodes if isinstance(node, Loop | While)}
    inside: dict[str | None, list[Node]] = {}
    for node in graph.nodes:
        # A variable of a loop that is not there is illegal, but must print so that verify can show it.
        inside.setdefault(scope[node] if scope[node] in names else None, []).append(node)
    order: list[tuple[Node, int]] = []
    pending = [(node, 0) for node in reversed(inside.get(None, []))]
    while pending:
        node, depth = pending.pop()
        order.append((node, depth))
        if isinstance(node, Loop | While):
            pending.extend((inner, depth + 1) for inner in reversed(inside.pop(node.name, [])))
    return order


def print_graph(graph: Graph) -> str:
    """The whole text: networks, tables, nodes, outputs."""
    tables = list(dict.fromkeys(t for node in graph.nodes if (t := getattr(node, "table", None)) is not None))
    parts = [[f"graph {word(graph.name)}"]]
    parts += [_net_lines(net) for net in graph.nets]
    parts += [_table_lines(n, table) for n, table in enumerate(tables)]
    parts.append([line for line, _ in node_lines(graph)])
    number = numbering(graph)
    parts.append([f"output {word(name)} = %{number[node]}" for name, node in graph.outputs])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def node_lines(graph: Graph) -> list[tuple[str, Node]]:
    """One line per node, aligned, each with its node; a loop has a second one, ``yield``, at the end of its body."""
    printer = _Printer(graph)
    rows: list[tuple[str, str, str, Node]] = []
    open_loops: list[tuple[Loop | While, int]] = []
    for node, depth in in_print_order(graph):
        while open_loops and open_loops[-1][1] >= depth:
            rows.append(printer.yield_row(*open_loops.pop()))
        rows.append(printer.row(node, depth))
        if isinstance(node, Loop | While):
            open_loops.append((node, depth))
    rows += [printer.yield_row(*opened) for opened in reversed(open_loops)]
    width = max((len(call) for call, *_ in rows if len(call) <= 72), default=0)
    typed = [(f"{call:<{width}} : {kind}" if kind else call, place, node) for call, kind, place, node in rows]
    width = max((len(line) for line, *_ in typed if len(line) <= 112), default=0)
    return [(f"{line:<{width}}  # {place}" if place else line, node) for line, place, node in typed]


class _Printer:
    """Writes nodes as calls, with the numbers of their operands."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.number = numbering(graph)
        tables = (t for node in graph.nodes if (t := getattr(node, "table", None)) is not None)
        self.table = {table: n for n, table in enumerate(dict.fromkeys(tables))}

    def row(self, node: Node, depth: int) -> tuple[str, str, str, Node]:
        """(call, type, place, node), indented."""
        skip = BODY_FIELDS if isinstance(node, Loop | While) else ()
        call = f"{'  ' * depth}%{self.number[node]} = {node.op}({self.arguments(node, skip)})"
        return call, str(node.type), location_text(self.graph.place(node)), node

    def yield_row(self, loop: Loop | While, depth: int) -> tuple[str, str, str, Node]:
        """The end of a body."""
        skip = tuple(name for name in field_kinds(type(loop)) if name not in BODY_FIELDS)
        return f"{'  ' * (depth + 1)}yield({self.arguments(loop, skip)})", "", "", loop

    def arguments(self, node: Node, skip: tuple[str, ...]) -> str:
        """The fields of a node as the arguments of a call."""
        in_order, by_name = layout(type(node))
        shown = [self.value(getattr(node, name)) for name in in_order if name not in skip]
        named = {name: getattr(node, name) for name in by_name if name not in skip}
        shown += [f"{name}={self.value(value)}" for name, value in named.items() if value != by_name[name]]
        return ", ".join(shown)

    def value(self, value: Any) -> str:
        """One argument."""
        match value:
            case None:
                return "none"
            case Node():
                return f"%{self.number[value]}"
            case tuple():
                return "[" + ", ".join(self.value(item) for item in value) + "]"  # pyright: ignore[reportUnknownVariableType]
            case NetRef():
                return word(value.name)
            case StepTable():
                return f"@{self.table[value]}"
            case str():
                return word(value)
            case _:
                return str(value)


def location_text(place: Location | None) -> str:
    """``file:line``, the file quoted when it has blanks or signs in it."""
    if place is None:
        return ""
    plain = not any(c.isspace() or not c.isprintable() or c in "\"'#:" for c in place.file) and place.file
    return f"{place.file if plain else repr(place.file)}:{place.line}"


def _net_lines(net: NetRef) -> list[str]:
    lines = [f"net {word(net.name)} {word(net.fingerprint)}", f"  latent {net.latent}"]
    if net.prediction is not None:
        lines.append(f"  prediction {net.prediction}")
    lines.append(f"  time {net.time}")
    for cond in net.conds:
        bounds = (f" {key}={value!r}" for key in ("low", "high", "null") if (value := getattr(cond, key)) is not None)
        lines.append(f"  cond {word(cond.name)} : {cond.type}" + "".join(bounds))
    lines += [f"  head {word(head.name)} : [{'x'.join(map(str, head.shape))}]" for head in net.heads]
    if net.width is not None:
        lines.append(f"  width {net.width}")
    return lines + [f"  {flag}" for flag in NET_FLAGS if getattr(net, flag)]


def _table_lines(number: int, table: StepTable) -> list[str]:
    head = f"table @{number} registers=[{', '.join(map(word, table.registers))}] branches={table.branches}"
    grid = [table.columns, *(tuple(repr(float(value)) for value in row) for row in table.rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*grid, strict=True)]
    lines = ("  | " + " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in grid)
    sizes = "".join(f" {size}={getattr(table, size)}" for size in TABLE_SIZES if getattr(table, size))
    return [f"{head} init_scale={table.init_scale!r}{sizes}", *lines]
