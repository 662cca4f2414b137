"""What of a folded graph a plan's calls depend on: everything but the numbers in its tables and the user's lines.

Two graphs of equal structure differ in steps, noise levels, guidance scales, solver options of the same shape: their
plans differ in tables alone, so a plan made for one serves the other once its tables are replaced.
"""

from __future__ import annotations

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import field_kinds
from scoregraph.graph.table import StepTable
from scoregraph.passes.sampling.drop_dead_branches import variant_keys


def structure(graph: Graph) -> str:
    """A text that is equal for two folded graphs exactly if one plan, up to tables, serves both."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    lines = [graph.name, *(repr(net) for net in graph.nets)]
    for node in graph.nodes:
        parts: list[str] = []
        for name, kind in field_kinds(type(node)).items():
            value = getattr(node, name)
            if kind == "nodes":
                parts.append(str([number[operand] for operand in value]))
            elif kind in ("node", "node?"):
                parts.append(str(None if value is None else number[value]))
            elif not _in_table(node, name):
                parts.append(repr(value))
        if isinstance(node, n.SamplerStep) and node.table is not None:
            parts.append(_shape(node, node.table))
        lines.append(f"{node.op} {' '.join(parts)}")
    lines += [f"{name} = {number[node]}" for name, node in graph.outputs]
    return "\n".join(lines)


def _shape(step: n.SamplerStep, table: StepTable) -> str:
    """What a plan's calls depend on in a table: its columns, the answers that its variants read."""
    variants = list(variant_keys(table)) if "live" in table.columns else []
    # Records have room for every step, and a noise bank for every row that draws.
    room = f"{table.steps[-1] + 1} steps" if "called" in table.columns else ""
    return f"{table.registers} {table.columns} {variants} {room}"


def _in_table(node: n.Node, field: str) -> bool:
    """Whether a field's value has gone into a table completely."""
    if isinstance(node, n.SamplerStep):
        return node.table is not None and field in ("rule", "table")
    if isinstance(node, n.Loop):
        return field == "schedule" and all(
            isinstance(step, n.SamplerStep) and step.table is not None for step in node.results
        )
    return False
