"""Legality as data: which rules hold at which stage of compilation.

Types are checked when a node is made, so no rule here repeats them; these are the rules of whole graphs. Every arrow of
the compiler checks the stage it claims to have reached::

    verify(graph, "built")     what the builder and the parser return
    verify(graph, "tabled")    every step on latents is a table of numbers
    verify(graph, "folded")    guidance is part of the tables
    verify(graph, "batched")   a network is called once per step for all its branches
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scoregraph.errors import IllegalAtStage
from scoregraph.graph.analysis import body, loops, moved_by, roots_of_body, topological
from scoregraph.graph.graph import Graph
from scoregraph.graph.nodes import (
    Emit,
    FusedScore,
    Input,
    Loop,
    LoopVar,
    Node,
    Noise,
    SamplerStep,
    Score,
    StepTime,
    Unfinished,
    While,
    scores_of,
)
from scoregraph.graph.printer import node_lines
from scoregraph.graph.rules import carried
from scoregraph.graph.values import Carry, Cond, Latent, Time

Complaint = tuple[Node | None, str]
"""A node that breaks a rule (None: the graph itself), and what is wrong with it."""


@dataclass(frozen=True)
class Rule:
    """A rule of whole graphs, by a name that says what holds."""

    name: str
    broken: Callable[[Graph], Iterator[Complaint]]


def _outputs(graph: Graph) -> Iterator[Complaint]:
    if not graph.outputs:
        yield None, "the graph has no output"
    for name, node in graph.outputs:
        if isinstance(node.type, Cond | Time | Carry):
            yield node, f"output {name!r} is a {node.type}, which is no value a caller could use"


def _names(graph: Graph) -> Iterator[Complaint]:
    named = [("output", name, node) for name, node in graph.outputs]
    named += [("output", node.name, node) for node in graph.nodes if isinstance(node, Emit)]
    named += [("input", node.name, node) for node in graph.nodes if isinstance(node, Input)]
    named += [("loop", node.name, node) for node in graph.nodes if isinstance(node, Loop | While)]
    seen: set[tuple[str, str]] = set()
    for kind, name, node in named:
        if (kind, name) in seen:
            yield node, f"two {kind}s are named {name!r}"
        seen.add((kind, name))
    nets = {net.name: net for net in reversed(graph.nets)}
    for net in graph.nets:
        if nets[net.name] != net:
            yield None, f"two networks are named {net.name!r}"


def _sites(graph: Graph) -> Iterator[Complaint]:
    seen: dict[int, Node] = {}
    for node in graph.nodes:
        if isinstance(node, Noise | SamplerStep):
            if node.site in seen:
                yield node, f"it draws the same random numbers as another node (site {node.site})"
            if not 0 <= node.site < 2**32:
                yield node, f"the site {node.site} is not a 32-bit word"
            seen[node.site] = node


def _scopes(graph: Graph) -> Iterator[Complaint]:
    for _, node in graph.outputs:
        if node.free:
            yield node, f"it belongs to the body of the loop {min(node.free)!r} and is used outside"
    for node in graph.nodes:
        if isinstance(node, Loop | While) and any(node.name in start.free for start in node.init):
            yield node, "it starts from a value of its own body"


def _carries(graph: Graph) -> Iterator[Complaint]:
    for loop in loops(graph).values():
        types = [carried(start.type) for start in loop.init]
        for node in topological(roots_of_body(loop)):
            if isinstance(node, LoopVar) and node.loop == loop.name:
                if not 0 <= node.index < len(types):
                    yield node, f"the loop {loop.name!r} carries {len(types)} value(s)"
                elif node.of != types[node.index]:
                    yield node, f"the loop {loop.name!r} carries a {types[node.index]} there"
        if isinstance(loop, While) and loop.schedule is None and StepTime(loop.name) in body(loop):
            yield loop, "a while has no schedule, so no time"


def _steps(graph: Graph) -> Iterator[Complaint]:
    for loop in loops(graph).values():
        if moved_by(loop.results[0]) is None:
            yield loop, "its state does not move: the first result is not a step"
        if not all(isinstance(node, Emit) for node in loop.emits):
            yield loop, "it emits a value without a name"
    for node in graph.nodes:
        if isinstance(node, SamplerStep):
            around = {loop for loop in node.free if loop in loops(graph)}
            if not around:
                yield node, "it is outside all loops, so it has no schedule"
            elif isinstance(node.state.type, Latent) and not isinstance(node.time, StepTime):
                yield node, "a step on latents needs the time of its loop"


def _adaptive(graph: Graph) -> Iterator[Complaint]:
    timed = {name for name, loop in loops(graph).items() if isinstance(loop, While) and loop.schedule is not None}
    for node in graph.nodes:
        if isinstance(node, SamplerStep) and isinstance(node.time, StepTime) and isinstance(node.state.type, Latent):
            if is_adaptive(node) and node.time.loop not in timed:
                yield node, "its sampler chooses its own steps, so it belongs into a while over a schedule"
            if not is_adaptive(node) and node.time.loop in timed:
                yield node, "a while over a schedule needs a sampler that chooses its own steps"
        if isinstance(node, Unfinished) and isinstance(node.time, StepTime) and node.time.loop not in timed:
            yield node, "every step of a loop comes to its end at once"


def is_adaptive(step: SamplerStep) -> bool:
    """Whether the sampler of a step chooses its own steps; such a step has no table."""
    return bool(getattr(step.rule, "adaptive", False))


def _emits(graph: Graph) -> Iterator[Complaint]:
    recorded = {emit for loop in loops(graph).values() for emit in loop.emits}
    for node in graph.nodes:
        if isinstance(node, Emit) and node not in recorded:
            yield node, "only a loop records an emitted value"


def _one_time(graph: Graph) -> Iterator[Complaint]:
    for node in graph.nodes:
        if isinstance(node, FusedScore | SamplerStep):
            times = {score.time for pred in node.preds for score in scores_of(pred)}
            if len(times - {None}) > 1:
                yield node, "its branches were scored at different times"


def _tabled(graph: Graph) -> Iterator[Complaint]:
    rows: dict[Node, int] = {}
    for node in graph.nodes:
        if not isinstance(node, SamplerStep) or not isinstance(node.state.type, Latent):
            continue
        if node.table is None:
            if not is_adaptive(node):
                yield node, "it has no table"
        elif node.time is not None and rows.setdefault(node.time, len(node.table.rows)) != len(node.table.rows):
            yield node, f"its table has {len(node.table.rows)} rows, another of the same loop {rows[node.time]}"


def _folded(graph: Graph) -> Iterator[Complaint]:
    for node in graph.nodes:
        if isinstance(node, SamplerStep) and isinstance(node.state.type, Latent):
            for pred in node.preds:
                if isinstance(pred, FusedScore) and not pred.grads and pred.scale is None:
                    yield pred, "its weights are not folded into the table of the step"


def _batched(graph: Graph) -> Iterator[Complaint]:
    seen: dict[tuple[object, ...], Node] = {}
    for node in graph.nodes:
        if isinstance(node, Score):
            call = (node.net, node.x, node.time)
            if call in seen:
                yield node, "another score calls the same network on the same latent"
            seen[call] = node


BUILT = (
    Rule("there is something to compute", _outputs),
    Rule("names are unique", _names),
    Rule("no two sites draw the same noise", _sites),
    Rule("values stay in their loops", _scopes),
    Rule("loops carry what they say", _carries),
    Rule("every loop moves its state", _steps),
    Rule("samplers that choose their steps have their own loops", _adaptive),
    Rule("what is emitted is recorded", _emits),
    Rule("branches meet at one time", _one_time),
)
TABLED = (*BUILT, Rule("steps are tables", _tabled))
FOLDED = (*TABLED, Rule("guidance is in the tables", _folded))
BATCHED = (*FOLDED, Rule("one call per network and step", _batched))

STAGES: dict[str, tuple[Rule, ...]] = {"built": BUILT, "tabled": TABLED, "folded": FOLDED, "batched": BATCHED}
"""The rules of each stage, in the order in which the compiler reaches them."""


def verify(graph: Graph, stage: str = "built") -> None:
    """Raise ``IllegalAtStage`` for the first rule of the stage that the graph breaks, with the node in its context."""
    for rule in STAGES[stage]:
        for node, complaint in rule.broken(graph):
            raise IllegalAtStage(
                stage=stage,
                rule=rule.name,
                complaint=complaint,
                context=context(graph, node),
                where=graph.place(node) if node is not None else None,
            )


def context(graph: Graph, node: Node | None, around: int = 2) -> str:
    """The lines of the text form near a node, with a marker under the node itself."""
    rows = node_lines(graph)
    at = next((i for i, (_, shown) in enumerate(rows) if shown is node), None)
    if at is None:
        return f"  {graph!r}"
    lines: list[str] = []
    for i in range(max(0, at - around), min(len(rows), at + around + 1)):
        text = rows[i][0]
        lines.append("  " + text)
        if i == at:
            indent = len(text) - len(text.lstrip())
            lines.append("  " + " " * indent + "^" * len(text.strip()))
    return "\n".join(lines)
