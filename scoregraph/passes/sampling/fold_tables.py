"""Evaluate schedule and sampler at compile time: every step becomes a row of numbers in float64.

step dpmpp_2m() on karras(steps=12)   ──▶   step dpmpp_2m() with a table of 12 rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.graph import Graph
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class FoldTables:
    """Continuous sampler steps without a table get theirs; its conventions are those of the network they follow."""

    name: ClassVar[str] = "fold-tables"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: micro-steps, the number of network calls per branch. Costs no fuel: lowering reads tables."""
        misses: list[Miss] = []
        rows = 0

        def rule(node: n.Node) -> n.Node | None:
            nonlocal rows
            if not isinstance(node, n.Loop):
                return None
            results: list[n.Node] = []
            for step in node.results:
                folded = step
                if isinstance(step, n.SamplerStep) and step.table is None:
                    reason = _refusal(step, node)
                    if reason:
                        misses.append(Miss(reason, f"{node.name}: {step.rule}"))
                    else:
                        folded = _fold(step, node)
                        rows += len(folded.table.rows) if folded.table else 0
                results.append(folded)
            if all(a is b for a, b in zip(results, node.results, strict=True)):
                return None
            return n.Loop(node.name, node.schedule, node.init, tuple(results), node.emits)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {"micro_steps": rows}, tuple(misses))


def _networks(pred: n.Node) -> list[n.Score]:
    """The scores that a prediction is made of."""
    if isinstance(pred, n.Score):
        return [pred]
    return [score for operand in pred.operands for score in _networks(operand)]


def _refusal(step: n.SamplerStep, loop: n.Loop) -> str | None:
    if not isinstance(step.rule, Sampler):
        return "a select rule has no table"
    if not isinstance(loop.schedule, Schedule):
        return f"{loop.schedule} is not a schedule of noise levels"
    conventions = {score.net.time for pred in step.preds for score in _networks(pred)}
    if len(conventions) != 1:
        return f"its networks read time as {' and '.join(sorted(conventions)) or 'nothing'}, a row has one time"
    return None


def _fold(step: n.SamplerStep, loop: n.Loop) -> n.SamplerStep:
    assert isinstance(step.rule, Sampler)
    assert isinstance(loop.schedule, Schedule)
    net = _networks(step.preds[0])[0].net
    assert isinstance(net.prediction, Prediction)
    assert isinstance(net.latent, v.Latent), "only continuous networks have samplers"
    table = step.rule.table(loop.schedule, net.prediction, net.time, net.latent.space)
    return n.SamplerStep(step.rule, step.state, step.preds, step.time, step.site, table)
