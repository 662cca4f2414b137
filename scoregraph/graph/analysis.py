"""Questions about a graph: order, users, loops, what is invariant. Nothing here changes a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from scoregraph.graph.nodes import Inpaint, Loop, LoopVar, Node, SamplerStep, Score, StepTime, While

if TYPE_CHECKING:
    from scoregraph.graph.graph import Graph


def topological(roots: Iterable[Node]) -> tuple[Node, ...]:
    """Everything ``roots`` depend on, loop bodies included, each node once and after its operands."""
    order: dict[Node, None] = {}
    pending = [(root, False) for root in reversed(tuple(roots))]
    while pending:
        node, operands_done = pending.pop()
        if operands_done:
            order[node] = None
        elif node not in order:
            pending.append((node, True))
            pending.extend((operand, False) for operand in reversed(node.operands) if operand not in order)
    return tuple(order)


def users(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """Who reads each node, in topological order; a loop reads what its body returns. Outputs are not users."""
    found: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        for operand in dict.fromkeys(node.operands):
            found[operand].append(node)
    return {node: tuple(readers) for node, readers in found.items()}


def loops(graph: Graph) -> dict[str, Loop | While]:
    """Every loop by its name, inner loops before outer ones."""
    return {node.name: node for node in graph.nodes if isinstance(node, Loop | While)}


def roots_of_body(loop: Loop | While) -> tuple[Node, ...]:
    """What is computed in every step: the results, the condition of a while, the emitted values."""
    active = (loop.active,) if isinstance(loop, While) else ()
    return (*loop.results, *active, *loop.emits)


def body(loop: Loop | While) -> tuple[Node, ...]:
    """The nodes inside a loop: those that depend on its variables or its time, in topological order, with the bodies
    of inner loops."""
    return tuple(node for node in topological(roots_of_body(loop)) if loop.name in node.free)


def invariants(loop: Loop | While) -> tuple[Node, ...]:
    """What the body reads although it is the same in every step: computed once, before the loop."""
    inside = set(body(loop))
    read = (operand for node in body(loop) for operand in node.operands)
    return tuple(dict.fromkeys(node for node in (*read, *roots_of_body(loop)) if node not in inside))


def depends_on_time_only(node: Node) -> bool:
    """Whether a node of a body changes with the step but not with the carried values, so that it can be tabulated."""
    found = topological([node])
    return any(isinstance(n, StepTime) for n in found) and not any(isinstance(n, LoopVar) for n in found)


def enclosing(graph: Graph) -> dict[str, frozenset[str]]:
    """The loops around each loop, by name."""
    around: dict[str, frozenset[str]] = {}
    for node in reversed(graph.nodes):  # a loop comes after the loops of its body, so outer loops come first here
        if isinstance(node, Loop | While):
            around[node.name] = node.free.union(*(around.get(outer, frozenset[str]()) for outer in node.free))
    return around


def scopes(graph: Graph) -> dict[Node, str | None]:
    """The innermost loop in whose body each node stands; None outside all loops."""
    around = enclosing(graph)

    def depth(loop: str) -> tuple[int, str]:
        return len(around.get(loop, ())), loop

    return {node: max(node.free, key=depth) if node.free else None for node in graph.nodes}


def step_of(loop: Loop | While) -> SamplerStep:
    """The step that moves the state of a loop: the first of its results, or what that puts known parts into."""
    first = moved_by(loop.results[0])
    assert first is not None, "the rules of the stage 'built' hold"
    return first


def moved_by(result: Node) -> SamplerStep | None:
    """The step behind a result of a loop."""
    while isinstance(result, Inpaint):
        result = result.state
    return result if isinstance(result, SamplerStep) else None


def scores(graph: Graph) -> tuple[Score, ...]:
    """All evaluations of networks, in topological order."""
    return tuple(node for node in graph.nodes if isinstance(node, Score))


def to_networkx(graph: Graph) -> Any:
    """A ``networkx.DiGraph`` of the nodes, numbered as the text form numbers them, with op, type and place."""
    import networkx as nx

    from scoregraph.graph.printer import numbering

    number = numbering(graph)
    view = cast(Any, nx.DiGraph(name=graph.name))  # pyright: ignore[reportUnknownMemberType]
    for node, n in number.items():
        view.add_node(n, op=node.op, type=str(node.type), place=str(graph.place(node) or ""))
    view.add_edges_from((number[operand], n) for node, n in number.items() for operand in node.operands)
    return view
