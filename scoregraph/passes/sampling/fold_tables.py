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
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class FoldTables:
    """Continuous sampler steps without a table get theirs; its conventions are those of the network they follow."""

    name: ClassVar[str] = "fold-tables"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: micro-steps, the number of network calls per branch. Costs no fuel: lowering reads tables."""
        schedules = {loop.name: loop.schedule for loop in module.nodes if isinstance(loop, n.Loop)}
        misses: list[Miss] = []
        rows = 0

        def rule(node: n.Node) -> n.Node | None:
            nonlocal rows
            if not isinstance(node, n.SamplerStep) or node.table is not None:
                return None
            schedule = schedules.get(node.time.loop) if isinstance(node.time, n.StepTime) else None
            reason = _refusal(node, schedule)
            if reason:
                misses.append(Miss(reason, str(node.rule)))
                return None
            table = _table(node, schedule)
            rows += len(table.rows)
            return n.SamplerStep(node.rule, node.state, node.preds, node.time, node.site, table)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {"micro_steps": rows}, tuple(misses))


def _networks(pred: n.Node) -> list[n.Score]:
    """The scores that a prediction is made of."""
    if isinstance(pred, n.Score):
        return [pred]
    return [score for operand in pred.operands for score in _networks(operand)]


def _refusal(step: n.SamplerStep, schedule: Spec | None) -> str | None:
    if not isinstance(step.rule, Sampler):
        return "a select rule has no table"
    if not isinstance(schedule, Schedule):
        return f"{schedule} is not a schedule of noise levels"
    conventions = {score.net.time for pred in step.preds for score in _networks(pred)}
    if len(conventions) != 1:
        return f"its networks read time as {' and '.join(sorted(conventions)) or 'nothing'}, a row has one time"
    return None


def _table(step: n.SamplerStep, schedule: Spec | None) -> StepTable:
    assert isinstance(step.rule, Sampler)
    assert isinstance(schedule, Schedule)
    net = _networks(step.preds[0])[0].net
    assert isinstance(net.latent, v.Latent), "only continuous networks have samplers"
    assert isinstance(net.prediction, Prediction)
    return step.rule.table(schedule, net.prediction, net.time, net.latent.space)
