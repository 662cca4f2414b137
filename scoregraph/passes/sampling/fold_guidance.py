"""Guidance becomes numbers in the sampler's table: combination, conversion and step are one pass over memory.

    m = fuse cfg(3) [mc, mu];  step with rows (A, B, C)   ──▶   step [mc, mu] with rows (A, B·[3, -2], C)

Exact in real arithmetic: the step is affine in the guided answer, and that is affine in the branches' (semantics: a
guidance rule's weights sum to one, so conversion commutes with it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.graph import Graph
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.rewrite import rewrite
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class FoldGuidance:
    """A sampler step with a table that reads one fusion reads its branches instead."""

    name: ClassVar[str] = "fold-guidance"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Misses: gradients, a scale that is not known when compiling. Costs no fuel: lowering reads folded tables."""
        misses: list[Miss] = []

        def rule(node: n.Node) -> n.Node | None:
            if not isinstance(node, n.SamplerStep) or node.table is None or len(node.preds) != 1:
                return None
            fusion = node.preds[0]
            if not isinstance(fusion, n.FusedScore):
                return None
            reason = _refusal(fusion)
            if reason:
                misses.append(Miss(reason, str(fusion.guidance)))
                return None
            return _fold(node, fusion)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, misses=tuple(misses))


def _refusal(fusion: n.FusedScore) -> str | None:
    if fusion.grads:
        return "it adds gradients, which are not branches"
    if fusion.scale is not None:
        return "its scale is an input"
    if not isinstance(fusion.guidance, Guidance):
        return "it has no fixed weights"
    return None


def _fold(step: n.SamplerStep, fusion: n.FusedScore) -> n.SamplerStep:
    assert isinstance(fusion.guidance, Guidance)
    assert step.table is not None
    weights = fusion.guidance.table_weights(step.table)
    branches = sum(p.type.branches for p in fusion.preds if isinstance(p.type, (v.Pred, v.Logits)))
    assert all(len(row) == branches for row in weights), "the graph's typing rules agree on the branches"
    return n.SamplerStep(step.rule, step.state, fusion.preds, step.time, step.site, step.table.fold_guidance(weights))
