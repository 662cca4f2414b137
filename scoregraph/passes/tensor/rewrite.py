"""The one loop all tensor passes share: match every node, rewrite while fuel lasts, drop what nobody uses any more.

A pass only says what it looks for. ``match(node)`` inspects a node and changes nothing; it answers

- None: not what this pass is about,
- a ``Miss``: nearly, and why not,
- a ``Match``: what to call the rewrite in the counters, and how to build the value that replaces the node.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn
from torch.fx import Graph, GraphModule, Node

from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True, slots=True)
class Match:
    """A rewrite that applies. ``build`` adds nodes before the matched one and returns the one that replaces it."""

    counter: str
    build: Callable[[Graph], Node]


Rule = Callable[[Node], Match | Miss | None]
"""What to do about the calls of one operator."""


@dataclass(frozen=True)
class TensorPass(ABC):
    """Base of the passes: subclasses set ``name`` and define ``match``."""

    name: ClassVar[str]
    charged: ClassVar[bool] = True
    """Whether rewrites cost fuel. Those that lowering needs do not: a program must compile with no fuel at all."""

    @abstractmethod
    def match(self, node: Node) -> Match | Miss | None:
        """What to do about ``node``, a call or a constant that somebody uses."""

    def run(self, module: GraphModule, fuel: Fuel | None = None) -> PassResult[GraphModule]:
        """Apply ``match`` to every node in order, again to each replacement, until nothing matches.

        A module in which nothing matches is returned as it is.
        """
        fuel = fuel or Fuel()
        found = {node: self.match(node) for node in _candidates(module.graph)}
        if not any(isinstance(each, Match) for each in found.values()) or (self.charged and fuel.left == 0):
            return PassResult(module, misses=_explained(found))
        graph = copy.deepcopy(module.graph)
        constants = graph.owning_module = _same_attributes(module)
        counters: Counter[str] = Counter()
        found.clear()
        erased: set[Node] = set()
        pending = deque(_candidates(graph))
        while pending:
            node = pending.popleft()
            if node in erased:
                continue
            found[node] = match = self.match(node)
            if not isinstance(match, Match) or (self.charged and not fuel.spend()):
                continue
            counters[match.counter] += 1
            with graph.inserting_before(node):
                made = match.build(graph)
            describe(made, like=node)
            node.replace_all_uses_with(made)
            erased |= drop_dead(graph, [node])
            pending.appendleft(made)
        graph.lint()
        misses = _explained({node: each for node, each in found.items() if node not in erased})
        return PassResult(Rewritten(constants, graph), counters.total(), dict(counters), misses)


class Rewritten(GraphModule):
    """A module whose Python code is written when it is first called: most are only looked at by the next pass."""

    def recompile(self) -> Any:
        """Nothing yet; called whenever the graph is set."""

    def forward(self, *args: Any) -> Any:
        """Write the code, which takes this method's place, and run it."""
        super().recompile()
        return type(self).forward(self, *args)


def _candidates(graph: Graph) -> list[Node]:
    """The calls and constants that somebody uses, in order."""
    return [node for node in graph.nodes if node.users and node.op in ("call_function", "get_attr")]


def _explained(found: Mapping[Node, Match | Miss | None]) -> tuple[Miss, ...]:
    return tuple(Miss(each.reason, node.name) for node, each in found.items() if isinstance(each, Miss))


def _same_attributes(module: nn.Module) -> Any:
    """A module with the tensors and submodules of ``module``, on which a pass may register more."""
    made = nn.Module()
    # Registries of parameters, buffers and children are dictionaries; capture also sets tensors as plain attributes.
    for key, value in vars(module).items():
        vars(made)[key] = dict(cast(dict[str, Any], value)) if isinstance(value, dict) else value
    return made


def describe(made: Node, like: Node) -> None:
    """Give a new node the provenance (source line, module path) and value of the node it replaces."""
    for key, value in like.meta.items():
        made.meta.setdefault(key, value)


def drop_dead(graph: Graph, candidates: Iterable[Node]) -> set[Node]:
    """Erase those of ``candidates`` that nobody uses, then what only they used. Returns the erased nodes."""
    erased: set[Node] = set()
    pending = list(candidates)
    while pending:
        node = pending.pop()
        if node in erased or node.users or node.op in ("placeholder", "output"):
            continue
        pending.extend(node.all_input_nodes)
        graph.erase_node(node)
        erased.add(node)
    return erased
