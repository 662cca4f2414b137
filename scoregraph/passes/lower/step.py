"""The fused sampler step of a row: (gram, quantile ─▶ scalars) ─▶ sampler_step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scoregraph.graph import values as v
from scoregraph.graph.formula import Formula
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.mover import Mover, Outside, Variant, numbered, variants_of
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value


@dataclass(frozen=True)
class StepCall:
    """Lowers the step of one variant.

    Attributes:
        name: of the loop, for sites.
        answers: the operands p0, p1, …
        numbers: which of the step's answers they hold.
    """

    outside: Outside
    name: str
    mover: Mover
    kind: Variant
    answers: Mapping[str, Value]
    numbers: Sequence[int]

    @property
    def drafter(self) -> Drafter:
        """The plan in the making."""
        return self.outside.drafter

    @property
    def operands(self) -> dict[str, Value]:
        """Registers and answers."""
        return {**{f"r{i}": register for i, register in enumerate(self.mover.registers)}, **self.answers}

    @property
    def reads(self) -> dict[str, Any]:
        """The attributes of every call that reads the answers."""
        return {"table": self.mover.number, "answers": list(self.numbers), "width": self.mover.table.branches}

    def lower(self) -> None:
        """Append the calls."""
        table, formula, mover = self.mover.table, self.mover.formula, self.mover
        several = len(variants_of(table)) > 1
        with self.drafter.only_in(*([self.kind.number] if several else [])):
            coefficients = None if formula is None else self._per_sample(formula)
            extras = {} if formula is None else self._extras(formula, coefficients)
            bank = self.outside.bank_input if "draw" in table.columns else None
            attrs = {**self.reads, **self._layout(coefficients), "site": mover.step.site}
            attrs["cin"] = mover.column("c_in") if mover.inputs else -1
            if several:
                attrs["variant"] = mover.column("variant")
            if bank is not None:
                attrs["draw"] = mover.column("draw")
            if formula is not None and formula.results:
                attrs |= {
                    "estimates": table.estimates,
                    "program": numbered(formula.elementwise, table),
                    "results": list(formula.results),
                    "draws": formula.draws,
                }
            ins = {**self.operands, **extras, "coef": coefficients, "bank": bank}
            outs = {f"r{i}": register for i, register in enumerate(mover.registers)}
            outs |= {f"xin{number}": x_in for number, x_in in mover.inputs.items()}
            self.drafter.call("sampler_step", ins, outs, attrs, str(mover.step.rule))

    def _layout(self, coefficients: Value | None) -> dict[str, int]:
        """Where the coefficients stand: in the table's row, or in the sample's own."""
        table = self.mover.table
        r, k = len(table.registers), table.branches
        sizes = {"a": r * r, "b": r * k, "c": r, "e": table.estimates * (r + k), "h": r * table.outputs}
        at = 2 if coefficients is None else 0
        layout: dict[str, int] = {}
        for name, size in sizes.items():
            if size:
                layout[name] = at
            at += size
        return layout

    def _per_sample(self, formula: Formula) -> Value | None:
        """Inner products, then the programs per sample: the coefficients of the step, and what it observes."""
        mover, drafter = self.mover, self.drafter
        wanted = formula.coefficients if self.kind.on else ()
        if not wanted and not formula.observations:
            return None
        sources = {"x0": self._gram(formula)}
        scalars = [extra for extra in mover.step.extras if isinstance(extra.type, v.Scalar)]
        sources |= {f"x{1 + i}": shapes.unsqueeze(self.outside.value(x), 1) for i, x in enumerate(scalars)}
        program = numbered(formula.per_sample, mover.table)

        def evaluate(results: Sequence[int], into: Value) -> None:
            attrs = {"table": mover.number, "program": program, "results": list(results)}
            drafter.call("scalars", sources, {"y": into}, attrs, self.name)

        for i, result in enumerate(formula.observations):
            if i not in mover.observed:
                mover.observed[i] = drafter.new((Batch(), 1), name=f"{self.name}.norm{i}")
            evaluate([result], mover.observed[i])
        if not wanted:
            return None
        coefficients = drafter.new((Batch(), len(wanted)), name=f"{self.name}.coef")
        evaluate(wanted, coefficients)
        return coefficients

    def _gram(self, formula: Formula) -> Value:
        """The statistics of the step's forms, [B, n]."""
        sums = self.drafter.new((Batch(), max(len(formula.statistics), 1)), name=f"{self.name}.gram")
        if not formula.statistics:
            self.drafter.call("fill", {}, {"x": sums}, {"value": 0.0}, self.name)
            return sums
        stats = [list(pair) for pair in formula.statistics]
        attrs = {**self.reads, "f": self.mover.column("f0_0"), "forms": self.mover.table.forms, "stats": stats}
        self.drafter.call("gram", self.operands, {"g": sums}, attrs, self.name)
        return sums

    def _extras(self, formula: Formula, coefficients: Value | None) -> dict[str, Value]:
        """The operands of the elementwise program behind the noise: the step's own extras, then quantiles."""
        shape = self.mover.registers[0].shape
        values = [self.outside.value(x) for x in self.mover.step.extras if not isinstance(x.type, v.Scalar)]
        width = len(self.mover.table.registers) + self.mover.table.branches
        for estimate, q in formula.quantiles:
            y = self.drafter.new((Batch(), 1), name=f"{self.name}.quantile")
            attrs = {**self.reads, "e": self._layout(coefficients)["e"] + estimate * width, "q": q}
            self.drafter.call("quantile", {**self.operands, "coef": coefficients}, {"y": y}, attrs, self.name)
            values.append(shapes.squeeze(y, [1]))
        return {f"x{i}": shapes.expand(_aligned(value, len(shape)), shape) for i, value in enumerate(values)}


def _aligned(value: Value, rank: int) -> Value:
    """[B, …] with dimensions of size 1 put in behind the batch until it has ``rank`` of them."""
    while len(value.shape) < rank:
        value = shapes.unsqueeze(value, 1)
    return value
