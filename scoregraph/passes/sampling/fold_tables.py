"""Evaluate schedule and sampler at compile time: every step becomes rows of numbers in float64.

step dpmpp_2m() on karras(steps=12)   ──▶   step dpmpp_2m() with a table of 12 rows
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.graph import Graph
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Grid, Point, Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class FoldTables:
    """Continuous sampler steps without a table get theirs; its conventions are those of the networks they follow.

    A table's ``t`` and ``c_in`` are those of the first network. Networks that read time otherwise, or scale their input
    otherwise, get columns of their own: ``t.<convention>``, ``c_in.<parameterization>``.
    """

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


def networks(pred: n.Node) -> Iterator[v.NetRef]:
    """The networks that are evaluated for a prediction, in order, some of them more than once."""
    if isinstance(pred, n.Score | n.EnergyGrad | n.Divergence) and pred.net is not None:
        yield pred.net
    for operand in pred.operands:
        yield from networks(operand)


def _refusal(step: n.SamplerStep, schedule: Spec | None) -> str | None:
    if not isinstance(step.rule, Sampler):
        return "a select rule has no table"
    if step.rule.adaptive:
        return "it chooses its own steps"
    if not isinstance(schedule, Schedule):
        return f"{schedule} is not a schedule of noise levels"
    if not list(networks(step.preds[0])):
        return "no network is evaluated for it"
    scaled: dict[str, Prediction] = {}
    for net in networks(step.preds[0]):
        if net.prediction is not None and scaled.setdefault(net.prediction.name, _of(net)) != net.prediction:
            return f"two of its networks answer {net.prediction.name} with different options"
    return None


def _of(net: v.NetRef) -> Prediction:
    assert isinstance(net.prediction, Prediction)
    return net.prediction


def _table(step: n.SamplerStep, schedule: Spec | None) -> StepTable:
    assert isinstance(step.rule, Sampler)
    assert isinstance(schedule, Schedule)
    latent, pred = step.state.type, step.preds[0]
    assert isinstance(latent, v.Latent), "only continuous networks have samplers"
    assert isinstance(pred.type, v.Pred)
    assert isinstance(pred.type.prediction, Prediction)
    nets = list(networks(pred))
    corrected = isinstance(pred, n.Correct)
    table = step.rule.table(
        schedule, pred.type.prediction, nets[0].time, latent.space, corrected=corrected, split=n.splits(pred)
    )
    grid = schedule.grid().in_space(latent.space)
    points = [Point(a, s) for a, s in zip(table.values("alpha"), table.values("sigma"), strict=True)]
    columns: dict[str, list[float]] = {}
    for net in nets:
        if net.time != nets[0].time:
            columns[f"t.{net.time}"] = [grid.time_at(at, net.time) for at in points]
        if net.prediction not in (None, pred.type.prediction):
            prediction = _of(net)
            columns[f"c_in.{prediction.name}"] = [prediction.c_in(at.alpha, at.sigma) for at in _own(grid, net, points)]
    if isinstance(pred, n.Divergence):
        columns |= _thinning(pred, _own(grid, pred.net, points))
    return table.with_report(**columns)


def _own(grid: Grid, net: v.NetRef, points: Sequence[Point]) -> list[Point]:
    """Points of a grid in the space of a network's own latent."""
    assert isinstance(net.latent, v.Latent)
    own = grid.in_space(net.latent.space)
    return [own.at_kappa(at.kappa) for at in points]


def _thinning(pred: n.Divergence, points: Sequence[Point]) -> dict[str, list[float]]:
    """-div eps(X) with X = x / alpha, as constant + gain * tr(dm / dx_in): eps = p x + q m, x_in = c_in x."""
    prediction = _of(pred.net)
    assert isinstance(pred.net.latent, v.Latent)
    size = math.prod(pred.net.latent.shape)
    columns: dict[str, list[float]] = {"thinning.constant": [], "thinning.gain": []}
    for at in points:
        p, q = prediction.to_eps(at.alpha, at.sigma)
        columns["thinning.constant"].append(-at.alpha * p * size)
        columns["thinning.gain"].append(-at.alpha * q * prediction.c_in(at.alpha, at.sigma))
    return columns


def time_column(table: StepTable, net: v.NetRef) -> str:
    """The column from which a network's time is read."""
    return f"t.{net.time}" if f"t.{net.time}" in table.columns else "t"


def scale_column(table: StepTable, net: v.NetRef) -> str:
    """The column from which the factor on a network's input is read."""
    name = f"c_in.{net.prediction.name}" if net.prediction is not None else ""
    return name if name in table.columns else "c_in"
