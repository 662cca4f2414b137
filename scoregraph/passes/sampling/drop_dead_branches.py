"""Rows that read only some answers get a variant of their own, in which only those networks and branches run.

step [c, u], weights [1, 0] in 12 of 20 rows   ──▶   the same table with the column variant: 0 for [c], 1 for [c, u]

An answer is dead in a row exactly if the row multiplies it with 0 everywhere, which guidance does at its neutral value
and nowhere near it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.table import StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.sampling.batch_branches import replace_step


@dataclass(frozen=True)
class DropDeadBranches:
    """Folded steps whose rows read different answers say so in the column ``variant``."""

    name: ClassVar[str] = "drop-dead-branches"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: evaluations of branches over all rows, and how many of them were saved."""
        fuel = fuel or Fuel()
        misses: list[Miss] = []
        evaluations = saved = 0
        crowded = {
            step
            for loop in module.nodes
            if isinstance(loop, n.Loop)
            for steps in [[step for step in loop.results if isinstance(step, n.SamplerStep)]]
            if len(steps) > 1
            for step in steps
        }

        def rule(node: n.Node) -> n.Node | None:
            nonlocal evaluations, saved
            if not isinstance(node, n.SamplerStep) or node.table is None or "live" not in node.table.columns:
                return None
            if "variant" in node.table.columns:
                return None
            table = node.table
            live = [int(mask).bit_count() for mask in table.values("live")]
            keys = variant_keys(table)
            every = len(table.rows) * table.branches
            if len(keys) == 1 and live[0] == table.branches:
                evaluations += every
                return None
            if node in crowded:
                misses.append(Miss("the loop moves several states", str(node.rule)))
                return None
            if not fuel.spend():
                return None
            evaluations += sum(live)
            saved += every - sum(live)
            order = {key: i for i, key in enumerate(keys)}
            column = [float(order[key]) for key in _keys(table)]
            return replace_step(node, node.preds, table.with_report(variant=column), node.formula)

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {"answers_read": evaluations, "answers_saved": saved}, tuple(misses))


def _keys(table: StepTable) -> list[tuple[int, int]]:
    on = table.values("on") if "on" in table.columns else (0.0,) * len(table.rows)
    return [(int(mask), int(flag)) for mask, flag in zip(table.values("live"), on, strict=True)]


def variant_keys(table: StepTable) -> dict[tuple[int, int], None]:
    """(live answers as a sum of 2^answer, whether per-sample coefficients are used) of every variant, in order."""
    return dict.fromkeys(_keys(table))
