"""A loop over a schedule as calls: per row of its table, the networks' answers, then one fused sampler step.

    step_input ─▶ network calls ─▶ (gram, quantile ─▶ scalars) ─▶ sampler_step, which prepares the next input ─▶ record

Rows that read different answers are variants of the same body: their calls stand side by side, each for its rows only.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoregraph.graph import nodes as n
from scoregraph.passes.lower.answers import Answers
from scoregraph.passes.lower.mover import Mover, Outside, drawing_rows
from scoregraph.passes.lower.records import Records
from scoregraph.passes.lower.step import StepCall
from scoregraph.passes.plan.replace_tables import table_name
from scoregraph.plan.draft import Value


@dataclass
class LoopLowering:
    """Lowers one loop; ``run`` gives the values that leave it."""

    outside: Outside
    loop: n.Loop

    def run(self) -> tuple[list[Value], dict[str, Value]]:
        """The carried values after the loop, and what it emitted by name."""
        drafter = self.outside.drafter
        carried = [self._mover(i) for i in range(len(self.loop.results))]
        movers = [mover for mover in carried if isinstance(mover, Mover)]
        records = Records.of(self.outside, self.loop, movers)
        answers = Answers(self.outside, self.loop, movers)
        for mover in movers:
            answers.prepare(mover)
        first = movers[0]
        variant = first.column("variant") if "variant" in first.table.columns else None
        drafter.begin(self.loop.name, first.number, variant)
        records.fill(before=True)
        # Steps that read a divergence come first: what the network says there need not be asked again.
        order = sorted(movers, key=lambda m: not any(isinstance(leaf, n.Divergence) for leaf in m.step.preds))
        # All networks look at the states as they were before the row, so no state moves before all have answered.
        for mover, said in [(mover, answers.of(mover)) for mover in order]:
            for kind, known in said:
                StepCall(self.outside, self.loop.name, mover, kind, *answers.operands(mover, kind.live, known)).lower()
        records.fill(before=False)
        drafter.begin(f"after-{self.loop.name}")
        left = [mover.registers[0] if isinstance(mover, Mover) else mover for mover in carried]
        return left, records.rooms()

    def _mover(self, index: int) -> Mover | Value:
        """The step that moves a carried value; the value itself if nothing does."""
        result, init = self.loop.results[index], self.loop.init[index]
        if isinstance(result, n.LoopVar) and result.index == index:
            return self.outside.value(init)
        if not isinstance(result, n.SamplerStep) or result.table is None or "live" not in result.table.columns:
            reason = "the loop does not end in one continuous sampler step whose prediction could be folded into it"
            raise self.outside.refuse(result, reason, "the stage fold-step says what was in the way: plan.stages")
        table = result.table
        if self.outside.bank_input is not None and result.site in self.outside.draws:
            first, drawing = self.outside.draws[result.site], drawing_rows(result)
            draws = [first + sum(drawing[:i]) if drawn else 0 for i, drawn in enumerate(drawing)]
            table = table.with_report(draw=draws)
        number = self.outside.drafter.table(table_name(self.loop, index), table.columns, table.float32())
        x = self.outside.start(init, table, number)
        memory = [self.outside.filled(x.shape, 0.0, "f32", name) for name in table.registers[1:]]
        return Mover(result, table, number, [x, *memory])
