"""One sampling step, put together: everything around it becomes its table and its formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.corrections import Correction
from scoregraph.graph.energies import Energy
from scoregraph.graph.expression import Expr, exp, operand, trace
from scoregraph.graph.formula import Formula
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.mixture import Form, Mix, Recorder
from scoregraph.graph.prediction import X0
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.table import StepTable
from scoregraph.passes.sampling.algebra import (
    Algebra,
    NotAffineError,
    Sources,
    fusions,
    is_linear,
    leaves,
    memories,
    off_weights,
)
from scoregraph.passes.sampling.layout import Folded, gradient_columns, live_answers, without
from scoregraph.passes.sampling.observations import NOISE, Observations, record_slots


@dataclass(frozen=True)
class Elementwise:
    """The elementwise program of a step: its values y, the quantiles it reads, and whether it reads the noise."""

    values: tuple[Expr, ...]
    quantiles: tuple[tuple[int, float], ...]
    reads_noise: bool
    operands: int


@dataclass
class Machine:
    """A step about to be folded; ``fold`` raises ``NotAffineError`` for what has no place in a step.

    Attributes:
        step: as it was: one prediction, a table of its own.
        inpaint: what keeps the state consistent with known values after the step, if anything.
        seen: what the loop emits of it.
    """

    step: n.SamplerStep
    inpaint: n.Inpaint | None
    seen: Observations

    # --- what there is ---------------------------------------------------------------------------

    @property
    def table(self) -> StepTable:
        """The sampler's own table."""
        assert self.step.table is not None
        return self.step.table

    @property
    def rule(self) -> Sampler:
        """The sampler."""
        assert isinstance(self.step.rule, Sampler)
        return self.step.rule

    @property
    def learned(self) -> bool:
        """Whether the variance is learned."""
        return self.rule.learns_variance

    @property
    def correct(self) -> n.Correct | None:
        """The correction around the whole prediction."""
        pred = self.step.preds[0]
        return pred if isinstance(pred, n.Correct) else None

    @property
    def pred(self) -> n.Node:
        """The prediction below the correction."""
        return self.correct.pred if self.correct is not None else self.step.preds[0]

    @cached_property
    def sources(self) -> Sources:
        """What the folded step reads."""
        nodes = leaves(self.pred)
        for part in self.seen.parts():
            nodes += [leaf for leaf in leaves(part) if leaf not in nodes]
        for leaf in nodes:
            if isinstance(leaf, n.Score | n.EnergyGrad) and leaf.x is not self.step.state:
                raise NotAffineError("a network is evaluated on something else than the state of the step")
        pairs = [(leaf, i) for leaf in nodes for i in range(len(leaf.conds) if isinstance(leaf, n.Score) else 1)]
        registers = (*self.table.registers, *self.memories.values(), *self.seen.registers())
        outputs = self.table.outputs + self.learned * len(self.pulls) + (self.inpaint is not None)
        return Sources(registers, tuple(pairs), self.learned, outputs)

    @cached_property
    def fused(self) -> tuple[n.FusedScore, ...]:
        """All fusions in what the step uses and in what is recorded of it."""
        norms = (part for norm in self.seen.norms.values() for part in norm.operands)
        parts = (self.pred, *self.seen.predictions.values(), *norms)
        return tuple(dict.fromkeys(fusion for part in parts for fusion in fusions(part)))

    @cached_property
    def pulls(self) -> list[n.EnergyGrad]:
        """The gradients that move the mean of the step."""
        found = [grad for fusion in self.fused for grad in fusion.grads if n.moves_mean(grad)]
        if found and not (self.learned or self.table.uses_noise):
            raise NotAffineError(f"{self.rule.name} draws no noise, so a gradient does not move its mean")
        if found and not (isinstance(self.pred, n.FusedScore) and set(found) <= set(self.pred.grads)):
            raise NotAffineError("a gradient that moves the mean belongs to the outermost fusion")
        return [grad for grad in found if isinstance(grad, n.EnergyGrad)]

    @cached_property
    def memories(self) -> dict[tuple[n.FusedScore, str], str]:
        """The registers of what rules remember."""
        return memories(self.fused)

    @cached_property
    def dynamic(self) -> list[bool]:
        """The rows in which some rule is on whose weights depend on the sample; all rows, if no rule is ever off.

        Lengths that are recorded are made of the same products, in every row.
        """
        on: list[list[bool]] = [[True] * len(self.table.rows)] if self.seen.norms else []
        for fusion in self.fused:
            rule = fusion.guidance
            if fusion.scale is not None:
                on.append([True] * len(self.table.rows))
            elif isinstance(rule, Guidance) and not is_linear(rule):
                on.append([weights is None for weights in off_weights(rule, self.table)])
        return [any(row) for row in zip(*on, strict=True)] if on else [True] * len(self.table.rows)

    # --- folding -----------------------------------------------------------------------------------

    def fold(self) -> n.SamplerStep:
        """The folded step: it reads answers, and everything else is in its table and formula."""
        self.seen.check(self.table, learned=self.learned, name=self.rule.name)
        latent = self.step.state.type
        assert isinstance(latent, v.Latent)
        recorder = Recorder(len(self.table.rows), int(np.prod(latent.shape)))
        made = self._build(recorder, static=False)
        program = self._elementwise(made, recorder)
        linear, numbers = made.linear, made
        if not linear:
            numbers = self._build(Recorder(recorder.rows, recorder.elements), static=True)
            self._elementwise(numbers, recorder)
        formula = self._formula(made, program, recorder, linear=linear)

        forms = [form[:, : self.sources.noise] for form in recorder.forms]
        gradients = gradient_columns(made.algebra)
        slots = record_slots(self.table) if self.seen or self.inpaint is not None else {}
        report: dict[str, Sequence[float]] = {**self.table.report, **slots, **recorder.parameters, **gradients}
        report["live"] = live_answers(made, numbers, self.dynamic, forms, gradients)
        if not linear:
            report["on"] = list(map(float, self.dynamic))
        table = StepTable.from_rows(
            self.sources.registers,
            self.table.values("t"),
            self.table.values("c_in"),
            numbers.rows(self.sources, forms),
            report,
            self.table.init_scale,
        )
        extras = list(made.algebra.scalars)
        if self.inpaint is not None:
            extras += [self.inpaint.mask, self.inpaint.known, self.inpaint.noise]
        preds = tuple(dict.fromkeys(leaf for leaf, _ in self.sources.leaves))
        old = self.step
        return n.SamplerStep(old.rule, old.state, preds, old.time, old.site, table, formula, tuple(extras))

    def _formula(self, made: Folded, program: Elementwise, recorder: Recorder, *, linear: bool) -> Formula | None:
        """The programs of the step; numbers in them become columns, so that others can take their place."""

        def lift(number: float) -> Expr:
            return recorder.parameter([number] * recorder.rows)

        entries = [] if linear else made.entries(self.sources)
        per_sample, found = trace([*entries, *made.norms], lift=lift)
        elementwise, results = trace(program.values, operands=program.operands, lift=lift)
        if not per_sample and not results:
            return None
        return Formula(
            elementwise=elementwise,
            results=results,
            draws=program.reads_noise,
            statistics=tuple(recorder.statistics),
            quantiles=program.quantiles,
            per_sample=per_sample,
            coefficients=found[: len(entries)],
            observations=found[len(entries) :],
        )

    def _build(self, recorder: Recorder, *, static: bool) -> Folded:
        """All registers and estimates as mixes of the sources."""
        table, sources = self.table, self.sources
        algebra = Algebra(table, sources, recorder, static, self.dynamic, self.memories)
        r, k = len(table.registers), table.branches
        mixes = [algebra.single(self.pred)]
        if k - self.learned == 2:
            mixes.append(algebra.single(_unguided(self.pred)))
        if self.learned:
            mixes.append(algebra.unit(sources.noise - 1))
        rows = [table.row(i) for i in range(len(table.rows))]

        def substituted(of_registers: Form, of_answers: Form, rest: dict[int, Form]) -> Mix:
            """[rows, R] over registers and [rows, K] over the table's own answers, as a mix of the sources."""
            form = np.zeros((len(rows), sources.count))
            form[:, :r] = of_registers
            for source, numbers in rest.items():
                form[:, source] += numbers
            total = algebra.of_form(form)
            for column, mix in enumerate(mixes):
                if of_answers[:, column].any():
                    total = total + mix * of_answers[:, column].tolist()
            return total

        new: dict[str, Mix] = {}
        for j, name in enumerate(table.registers):
            rest = {sources.noise: np.array([row.c[j] for row in rows])}
            rest |= {sources.output(i): np.array([row.h[j, i] for row in rows]) for i in range(table.outputs)}
            new[name] = substituted(np.array([x.a[j] for x in rows]), np.array([x.b[j] for x in rows]), rest)
        estimates = [
            substituted(np.array([x.e[i, :r] for x in rows]), np.array([x.e[i, r:] for x in rows]), {})
            for i in range(table.estimates)
        ]
        self._pull(algebra, new, estimates)
        for name in self.memories.values():  # a rule that is off keeps what it remembers
            new[name] = algebra.kept.get(name, algebra.unit(sources.register(name)))
        recorded = [float(slot >= 0.0) for slot in record_slots(table)["called"]]
        for name, value in self.seen.predictions.items():
            new[f"emit.{name}"] = self._emitted(algebra, value) * recorded
        if self.seen.log_probs:
            new[NOISE] = algebra.unit(sources.noise)
        norms = [(self._distance(algebra, norm) * recorded).norm() for norm in self.seen.norms.values()]
        return Folded(algebra, new, estimates, norms)

    def _pull(self, algebra: Algebra, new: dict[str, Mix], estimates: list[Mix]) -> None:
        """x' -= c^2 * scale * gradient; where the variance is learned, c^2 is an elementwise value."""
        table, sources = self.table, self.sources
        for i, grad in enumerate(self.pulls):
            assert isinstance(grad.energy, Energy)
            rows = [table.row(row) for row in range(len(table.rows))]
            spreads = [row.h[0, table.outputs - 1] if self.learned else row.c[0] for row in rows]
            gains = [-grad.energy.scale * c * c * k for c, k in zip(spreads, algebra.scale_in(grad), strict=True)]
            gradient = algebra.unit(sources.answer(grad))
            if self.learned:
                # In rows without noise nothing reads the gradient, so that its network need not run there.
                estimates.append(gradient * [float(gain != 0.0) for gain in gains])
                new["x"] = new["x"] + algebra.unit(sources.output(table.outputs + i)) * gains
            else:
                new["x"] = new["x"] + gradient * gains

    def _emitted(self, algebra: Algebra, value: n.Node) -> Mix:
        """A prediction as it is recorded."""
        if isinstance(value, n.Convert) and isinstance(value.pred, n.Correct):
            if value.pred is not self.correct or not isinstance(value.to, X0):
                raise NotAffineError("of a corrected prediction only the x0 that the step uses is recorded")
            return algebra.unit(self.sources.output(0))
        return algebra.single(value)

    def _distance(self, algebra: Algebra, norm: n.Norm) -> Mix:
        """The vector whose length is recorded."""
        parts = [algebra.unit(0) if part is self.step.state else algebra.single(part) for part in norm.operands]
        return parts[0] - parts[1] if len(parts) == 2 else parts[0]

    def _elementwise(self, made: Folded, recorder: Recorder) -> Elementwise:
        """What is not linear; a mask adds an estimate and takes the state over, in ``made``."""
        estimates = len(made.estimates) + (self.inpaint is not None)
        extras = 0 if self.inpaint is None else 3
        noise = operand(estimates)
        quantiles: list[tuple[int, float]] = []

        def quantile(q: float) -> Expr:
            if (0, q) not in quantiles:
                quantiles.append((0, q))
            return operand(estimates + 1 + extras + quantiles.index((0, q)))

        values: list[Expr] = []
        if self.correct is not None:
            assert isinstance(self.correct.rule, Correction)
            values.append(self.correct.rule.apply(operand(0), quantile))
        if self.learned:
            spread = operand(self.table.estimates - 1)
            values.append(exp(spread) * noise)
            pulls = range(self.table.estimates, self.table.estimates + len(self.pulls))
            values += [exp(2.0 * spread) * operand(i) for i in pulls]
        reads_noise = self.learned
        if self.inpaint is not None:
            state = _plain(made.new["x"])
            reads_noise |= bool(state[:, self.sources.noise].any())
            values.append(self._masked(made, state, values, recorder))
        return Elementwise(tuple(values), tuple(quantiles), reads_noise, estimates + 1 + extras + len(quantiles))

    def _masked(self, made: Folded, state: Form, values: Sequence[Expr], recorder: Recorder) -> Expr:
        """mask * x' + (1 - mask) * (alpha' known + sigma' noise), in rows that end a step; others leave x' as it is."""
        sources, table, last = self.sources, self.table, len(made.estimates)
        noise, mask, known, start = (operand(last + 1 + i) for i in range(4))
        before = operand(last) + recorder.parameter(state[:, sources.noise].tolist()) * noise
        for i, value in enumerate(values):
            before = before + recorder.parameter(state[:, sources.output(i)].tolist()) * value
        alpha, sigma = (recorder.parameter(table.values(name)) for name in ("alpha_next", "sigma_next"))
        ends = recorder.parameter([float(slot >= 0.0) for slot in record_slots(table)["last"]])
        # The estimate is the linear part of the new state; the state itself is the program's value.
        made.estimates.append(without(made.new["x"], sources.noise))
        made.new["x"] = made.algebra.unit(sources.output(len(values)))
        return before + ends * (1.0 - mask) * (alpha * known + sigma * start - before)


def _plain(mix: Mix) -> Form:
    """The part of a mix whose weights are numbers, [rows, sources]; noise and elementwise values have no others."""
    plain = [form for weight, form in mix.terms if weight.op == "const"]
    return plain[0] if plain else np.zeros_like(mix.terms[0][1])


def _unguided(pred: n.Node) -> n.Node:
    """What says eps when the guided answer says x0 only (CFG++): the unconditional branch, the fusion's last."""
    if not isinstance(pred, n.FusedScore):
        raise NotAffineError("only a fusion has an unguided branch")
    return pred.preds[-1]
