"""Pictures of a graph: Mermaid for documents and notebooks, DOT for Graphviz. A loop is a box around its body."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scoregraph.graph.analysis import scopes
from scoregraph.graph.graph import Graph
from scoregraph.graph.node import Node, field_kinds
from scoregraph.graph.nodes import (
    Condition,
    Constant,
    Correct,
    Divergence,
    Emit,
    Energy,
    EnergyGrad,
    FusedScore,
    HeadDecode,
    Input,
    Loop,
    LoopVar,
    SamplerStep,
    Score,
    While,
    Within,
)
from scoregraph.graph.printer import numbering
from scoregraph.graph.values import NetRef

SHAPES: dict[type[Node], str] = {
    Input: "stadium",
    Constant: "stadium",
    Score: "hexagon",
    HeadDecode: "hexagon",
    Divergence: "hexagon",
    LoopVar: "circle",
    Emit: "flag",
}
"""The outline of a kind of node; the others are boxes."""

MERMAID = {
    "box": '["{}"]',
    "stadium": '(["{}"])',
    "hexagon": '{{{{"{}"}}}}',
    "circle": '(("{}"))',
    "flag": '>"{}"]',
}
DOT = {"box": "box", "stadium": "oval", "hexagon": "hexagon", "circle": "circle", "flag": "cds"}


def label(node: Node) -> tuple[str, str]:
    """What a node does, and the type of its value."""
    match node:
        case Input(name=name):
            what = name
        case Constant(value=value):
            what = f"{value:g}"
        case FusedScore(guidance=rule) | SamplerStep(rule=rule) | Correct(rule=rule):
            what = f"{rule.name}\n{_options(rule.options())}".rstrip()
        case EnergyGrad(energy=rule, net=net) | Energy(energy=rule, net=net):
            of = "gradient of " if isinstance(node, EnergyGrad) else ""
            what = f"{of}{rule.name}{f' by {net.name}' if net else ''}\n{_options(rule.options())}".rstrip()
        case Within(limit=limit):
            what = f"at most {limit:g}"
        case Loop(name=name, schedule=schedule):
            what = f"{name}: {schedule.name}\n{_options(schedule.options())}"
        case While(name=name, max_iters=limit, schedule=schedule):
            over = f"{schedule.name}, " if schedule is not None else ""
            what = f"{name}: {over}at most {limit} times"
        case Condition(net=net, values=()) if net.conds:
            what = f"{net.name} without condition"
        case HeadDecode(net=net, head=head):
            what = f"{net.name}.{head}"
        case _:
            nets = (getattr(node, name) for name, kind in field_kinds(type(node)).items() if kind.startswith("net"))
            what = " ".join([node.op, *(net.name for net in nets if isinstance(net, NetRef))])
    return what, str(node.type)


def mermaid(graph: Graph) -> str:
    """A Mermaid flowchart, top to bottom."""
    number = numbering(graph)
    lines = ["flowchart TD"]

    def draw(node: Node, indent: str) -> str:
        text = "<br/>".join(_mermaid_text(part) for part in (*label(node)[0].split("\n"), label(node)[1]))
        return f"{indent}n{number[node]}{MERMAID[SHAPES.get(type(node), 'box')].format(text)}"

    def box(loop: Loop | While, indent: str) -> tuple[str, str]:
        title = _mermaid_text(label(loop)[0].replace("\n", " "))
        return f'{indent}subgraph body{number[loop]}["{title}"]', f"{indent}end"

    lines += _draw_scopes(graph, draw, box)
    lines += [f"  n{a} {'-.->' if again else '-->'} n{b}" for a, b, again in _edges(graph)]
    for index, (name, node) in enumerate(graph.outputs):
        lines += [f'  out{index}(["{_mermaid_text(name)}"])', f"  n{number[node]} --> out{index}"]
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """A Graphviz digraph, top to bottom."""
    number = numbering(graph)
    lines = [f"digraph {_dot_text(graph.name)} {{", '  node [fontname="sans-serif", fontsize=10]; rankdir=TB']

    def draw(node: Node, indent: str) -> str:
        text = _dot_text("\n".join(label(node)))
        return f"{indent}n{number[node]} [label={text}, shape={DOT[SHAPES.get(type(node), 'box')]}]"

    def box(loop: Loop | While, indent: str) -> tuple[str, str]:
        title = _dot_text(label(loop)[0].replace("\n", " "))
        return f"{indent}subgraph cluster_{number[loop]} {{\n{indent}  label={title}; style=rounded", f"{indent}}}"

    lines += _draw_scopes(graph, draw, box)
    lines += [f"  n{a} -> n{b}{' [style=dashed]' if again else ''}" for a, b, again in _edges(graph)]
    for index, (name, node) in enumerate(graph.outputs):
        lines += [f"  out{index} [label={_dot_text(name)}, shape=oval]", f"  n{number[node]} -> out{index}"]
    return "\n".join([*lines, "}"]) + "\n"


def _draw_scopes(
    graph: Graph, draw: Callable[[Node, str], str], box: Callable[[Loop | While, str], tuple[str, str]]
) -> list[str]:
    """All nodes; the body of a loop in a box, followed by the loop itself, which stands for what leaves it."""
    scope = scopes(graph)

    def inside(name: str | None, indent: str) -> list[str]:
        lines: list[str] = []
        for node in graph.nodes:
            if scope[node] != name:
                continue
            if isinstance(node, Loop | While):
                opening, closing = box(node, indent)
                lines += [opening, *inside(node.name, indent + "  "), closing]
            lines.append(draw(node, indent))
        return lines

    return inside(None, "  ")


def _edges(graph: Graph) -> list[tuple[int, int, bool]]:
    """(from, to, whether it is the way back to a loop's variable at the next step)."""
    number = numbering(graph)
    edges: list[tuple[int, int, bool]] = []
    variables = {(node.loop, node.index): node for node in graph.nodes if isinstance(node, LoopVar)}
    for node in graph.nodes:
        if not isinstance(node, Loop | While):
            edges += [(number[operand], number[node], False) for operand in node.operands]
            continue
        for index, (start, result) in enumerate(zip(node.init, node.results, strict=True)):
            variable = variables.get((node.name, index))
            if variable is None:
                edges.append((number[start], number[node], False))
            else:
                edges.append((number[start], number[variable], False))
                if result is not variable:
                    edges.append((number[result], number[variable], True))
            edges.append((number[result], number[node], False))
        others = (node.active,) if isinstance(node, While) else ()
        edges += [(number[other], number[node], False) for other in (*others, *node.emits)]
    return list(dict.fromkeys(edges))


def _options(options: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items() if value is not None)


def _mermaid_text(text: str) -> str:
    return "".join(c if c.isalnum() or c in " ._-+=(),:/" else f"#{ord(c)};" for c in text)


def _dot_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
