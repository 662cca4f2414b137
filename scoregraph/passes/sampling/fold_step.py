"""Everything around a sampler step becomes numbers and formulas of the step: one pass over memory per network call.

    m = fuse cfg(3) [mc, mu];  step with rows (A, B, C)   ──▶   step [mc, mu] with rows (A, B·[3, -2], C)

Guidance, changes of parameterization and gradients fold into the table's sums; rules whose weights depend on the
sample become a program per sample; a correction of x0, a learned variance and a mask become an elementwise program;
what a loop emits becomes registers and per-sample values beside the state. Exact in real arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import nodes as n
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.table import StepTable
from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.sampling.algebra import NotAffineError
from scoregraph.passes.sampling.machine import Machine
from scoregraph.passes.sampling.observations import Observations


@dataclass(frozen=True)
class FoldStep:
    """Sampler steps with a table that read one prediction read the networks' answers instead."""

    name: ClassVar[str] = "fold-step"

    def run(self, module: Graph, fuel: Fuel | None = None) -> PassResult[Graph]:
        """Counters: answers, emitted values, steps with programs. Costs no fuel: lowering reads folded tables."""
        misses: list[Miss] = []
        counters = {"answers": 0, "emits": 0, "programs": 0}

        def rule(node: n.Node) -> n.Node | None:
            if not isinstance(node, n.Loop):
                return None
            results, emits = list(node.results), list(node.emits)
            for i, result in enumerate(node.results):
                inpaint = result if isinstance(result, n.Inpaint) else None
                step = inpaint.state if inpaint is not None else result
                if not isinstance(step, n.SamplerStep) or step.table is None or step.formula is not None:
                    continue
                if not isinstance(step.rule, Sampler) or _is_folded(step.table):
                    continue
                seen = Observations.of(step, result, node.emits)
                machine = Machine(step, inpaint, seen)
                try:
                    folded = machine.fold()
                except NotAffineError as reason:
                    misses.append(Miss(str(reason), str(step.rule)))
                    continue
                results[i] = folded
                counters["answers"] += machine.sources.answers
                counters["programs"] += folded.formula is not None
                shown = seen.seen(machine.sources)
                for at, emit in enumerate(node.emits):
                    assert isinstance(emit, n.Emit)
                    if emit.name in shown:
                        emits[at] = n.Emit(emit.name, n.Observe(folded, *shown[emit.name]))
                        counters["emits"] += 1
            if results == list(node.results):
                return None
            return n.Loop(node.name, node.schedule, node.init, tuple(results), tuple(emits))

        graph, count = rewrite(module, rule)
        return PassResult(graph, count, {name: c for name, c in counters.items() if c}, tuple(misses))


def _is_folded(table: StepTable) -> bool:
    """Whether a step with this table reads answers already."""
    return "live" in table.columns
