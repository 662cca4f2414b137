"""Guided branches of one network become one call with a larger batch.

a = score net x t [c];  b = score net x t [u];  step [a, b]   ──▶   ab = score net x t [c, u];  step [ab]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.formula import Formula
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.table import Row, StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult


@dataclass(frozen=True)
class BatchBranches:
    """Scores that a folded step reads and that share network, state and time are merged; answers keep their numbers.

    A merged call reads the weights once. It is never dearer: a row of the batch costs what it costs alone.
    """

    name: ClassVar[str] = "batch-branches"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: network calls per step saved."""
        fuel = fuel or Fuel()
        misses: list[Miss] = []
        saved = 0

        def rule(node: n.Node) -> n.Node | None:
            nonlocal saved
            if not isinstance(node, n.SamplerStep) or node.table is None:
                return None
            groups: list[list[int]] = []
            for i, pred in enumerate(node.preds):
                found = next((group for group in groups if _same_call(node.preds[group[0]], pred)), None)
                if found is not None and fuel.spend():
                    found.append(i)
                    saved += 1
                    continue
                if groups and isinstance(pred, n.Score) and found is None:
                    misses.append(Miss(_difference(node.preds, groups, pred), f"score of {pred.net.name}"))
                groups.append([i])
            if len(groups) == len(node.preds):
                return None
            return _merge(node, groups)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {"network_calls_saved": saved}, tuple(misses))


def _same_call(a: n.Node, b: n.Node) -> bool:
    return isinstance(a, n.Score) and isinstance(b, n.Score) and a.net == b.net and a.x is b.x and a.time is b.time


def _difference(preds: Sequence[n.Node], groups: Sequence[Sequence[int]], pred: n.Score) -> str:
    other = preds[groups[-1][0]]
    if not isinstance(other, n.Score):
        return f"it stands behind a {other.op}"
    if pred.net != other.net:
        return f"its network differs from {other.net.name}"
    return "its state differs" if pred.x is not other.x else "its time differs"


def answers_of(pred: n.Node) -> int:
    """How many answers a step reads of one of its operands."""
    return pred.type.branches if isinstance(pred.type, v.Pred) else 1


def _merge(step: n.SamplerStep, groups: Sequence[Sequence[int]]) -> n.SamplerStep:
    assert step.table is not None
    starts = [0, *accumulate(map(answers_of, step.preds))]
    order: list[int] = []
    preds: list[n.Node] = []
    for group in groups:
        members = [step.preds[i] for i in group]
        order += [starts[i] + k for i in group for k in range(answers_of(step.preds[i]))]
        first = members[0]
        if isinstance(first, n.Score) and len(members) > 1:
            conds = tuple(cond for member in members if isinstance(member, n.Score) for cond in member.conds)
            preds.append(n.Score(first.net, first.x, first.time, conds))
        else:
            preds.append(first)
    order += range(len(order), step.table.branches)  # a learned variance stays last
    assert step.formula is None or isinstance(step.formula, Formula)
    table, formula = reorder_answers(step.table, step.formula, order)
    return replace_step(step, tuple(preds), table, formula)


def replace_step(
    step: n.SamplerStep, preds: tuple[n.Node, ...], table: StepTable, formula: n.Formula | None
) -> n.SamplerStep:
    """The same step over other answers."""
    return n.SamplerStep(step.rule, step.state, preds, step.time, step.site, table, formula, step.extras)


def reorder_answers(
    table: StepTable, formula: Formula | None, order: Sequence[int]
) -> tuple[StepTable, Formula | None]:
    """The same machine where answer number i is what was answer number ``order[i]``."""
    if list(order) == list(range(table.branches)):
        return table, formula
    r, k = len(table.registers), table.branches
    behind = [*range(r), *(r + old for old in order)]
    rows: list[Row] = []
    for i in range(len(table.rows)):
        row = table.row(i)
        rows.append(Row(row.a, row.b[:, list(order)], row.c, row.e[:, behind], row.h, row.f[:, behind]))
    live = [sum((int(mask) >> old & 1) << new for new, old in enumerate(order)) for mask in table.values("live")]
    # The machines of clean samples (columns g0_b0 …) read the same answers.
    report: dict[str, Sequence[float]] = {"live": [float(mask) for mask in live]}
    for name in table.report:
        head, found, number = name.partition("_b")
        if found and head[:1] == "g" and head[1:].isdecimal() and int(number) < k:
            report[name] = table.values(f"{head}_b{order[int(number)]}")
    table = table.with_rows(rows).with_report(**report)
    if formula is None or not formula.coefficients:
        return table, formula
    a, b, c, e = r * r, r * k, r, table.estimates * (r + k)
    old = formula.coefficients
    of_b = [old[a + j * k + answer] for j in range(r) for answer in order]
    of_e = [old[a + b + c + i * (r + k) + source] for i in range(table.estimates) for source in behind]
    coefficients = (*old[:a], *of_b, *old[a + b : a + b + c], *of_e, *old[a + b + c + e :])
    return table, replace(formula, coefficients=coefficients)
