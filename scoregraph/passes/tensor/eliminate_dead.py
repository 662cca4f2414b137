"""Drop what no output depends on, and the assertions that capture left behind."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.tensor.rewrite import drop_dead


@dataclass(frozen=True)
class EliminateDead:
    """``assert_dtype(x); y = f(x); return x`` → ``return x``. Weights that nobody reads go with their readers."""

    name: ClassVar[str] = "eliminate-dead"

    def run(self, module: GraphModule, fuel: Fuel | None = None) -> PassResult[GraphModule]:
        """Erase dead nodes; costs no fuel, since it changes no number."""
        if not any(_is_dead(node) for node in module.graph.nodes):
            return PassResult(module)
        graph = copy.deepcopy(module.graph)
        erased = drop_dead(graph, [node for node in graph.nodes if _is_dead(node)])
        # Made from the graph as it is now, so that only what it still reads is taken over.
        return PassResult(GraphModule(module, graph), len(erased), {"node": len(erased)})


def _is_dead(node: Node) -> bool:
    """Whether nobody uses ``node``; an assertion is such a node, as it returns nothing."""
    return not node.users and node.op in ("call_function", "get_attr")
