"""Guided branches of one network become one call with a larger batch.

a = score net x t [c];  b = score net x t [u];  fuse cfg a b   ──▶   ab = score net x t [c, u];  fuse cfg ab
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class BatchBranches:
    """Neighbouring scores of a fusion that share network, state and time are merged; their order is kept."""

    name: ClassVar[str] = "batch-branches"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: network calls per step saved."""
        fuel = fuel or Fuel()
        misses: list[Miss] = []
        saved = 0

        def rule(node: n.Node) -> n.Node | None:
            nonlocal saved
            if not isinstance(node, n.FusedScore):
                return None
            merged: list[n.Node] = []
            for pred in node.preds:
                last = merged[-1] if merged else None
                if isinstance(last, n.Score) and isinstance(pred, n.Score):
                    reason = _difference(last, pred)
                    if reason:
                        misses.append(Miss(reason, f"score of {pred.net.name}"))
                    elif fuel.spend():
                        merged[-1] = n.Score(last.net, last.x, last.time, last.conds + pred.conds)
                        saved += 1
                        continue
                merged.append(pred)
            if len(merged) == len(node.preds):
                return None
            return n.FusedScore(node.guidance, tuple(merged), node.grads, node.scale)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {"network_calls_saved": saved}, tuple(misses))


def _difference(a: n.Score, b: n.Score) -> str | None:
    if a.net != b.net:
        return f"its network differs from {a.net.name}"
    if a.x is not b.x:
        return "its state differs"
    return "its time differs" if a.time is not b.time else None
