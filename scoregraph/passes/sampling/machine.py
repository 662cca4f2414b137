"""One sampling step, put together: its table, its formula, and what is observed of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.corrections import Correction
from scoregraph.graph.expression import Expr, constant, exp, operand, trace
from scoregraph.graph.formula import Formula
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.mixture import Form, Mix, Recorder
from scoregraph.graph.prediction import X0, Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.table import Row, StepTable
from scoregraph.passes.sampling.algebra import (
    Algebra,
    NotAffineError,
    Sources,
    fusions,
    is_linear,
    joint_score,
    leaves,
    memories,
    off_weights,
)
from scoregraph.passes.sampling.fold_tables import scale_column


@dataclass
class Machine:
    """A step with everything folded into it.

    Attributes:
        step_node: the step as it was: one prediction, a table of its own.
        inpaint: what keeps the state consistent with known values after the step, if anything.
        emits: (name, node) that the loop emits and that this step can say.
    """

    step_node: n.SamplerStep
    inpaint: n.Inpaint | None
    observations: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    emits: dict[str, n.Node] = field(default_factory=dict[str, n.Node])
    norms: list[tuple[str, n.Norm]] = field(default_factory=list[tuple[str, n.Norm]])
    keeps_noise: bool = False

    @classmethod
    def of(cls, step: n.SamplerStep, inpaint: n.Inpaint | None, result: n.Node, emits: Sequence[n.Node]) -> Machine:
        """Fold; raises ``NotAffineError`` for what has no place in a step."""
        machine = cls(step, inpaint)
        for emit in emits:
            assert isinstance(emit, n.Emit)
            machine._claim(emit.name, emit.value, result)
        machine.folded  # noqa: B018  errors belong here
        return machine

    def _claim(self, name: str, value: n.Node, result: n.Node) -> None:
        """Take note of an emitted value if it is one of this step."""
        step = self.step_node
        match value:
            case n.LoopVar() if value is step.state:
                self.observations[name] = ("before", 0)
            case n.Node() if value is result:
                self.observations[name] = ("after", 0)
            case n.LogProb() if value.step in (step, result):
                if self.learned:
                    raise NotAffineError("the log-probability of a step with a learned variance is not recorded yet")
                self.keeps_noise = True
                self.observations[name] = ("log_prob", 0)
            case n.Norm() if self._reads_state(value):
                self.observations[name] = ("statistic", len(self.norms))
                self.norms.append((name, value))
            case n.Node() if isinstance(value.type, v.Pred) and self._reads_state(value):
                self.observations[name] = ("register", 0)  # its number follows when all registers are known
                self.emits[name] = value
            case _:
                pass

    def _reads_state(self, value: n.Node) -> bool:
        """Whether a value is made of answers about this step's state."""
        if value is self.step_node.state:
            return True
        if isinstance(value, n.Score):
            return value.x is self.step_node.state
        return any(self._reads_state(operand) for operand in value.operands)

    # --- what there is ---------------------------------------------------------------------------

    @property
    def table(self) -> StepTable:
        """The sampler's own table."""
        assert self.step_node.table is not None
        return self.step_node.table

    @property
    def rule(self) -> Sampler:
        """The sampler."""
        assert isinstance(self.step_node.rule, Sampler)
        return self.step_node.rule

    @property
    def learned(self) -> bool:
        """Whether the variance is learned."""
        return self.rule.learns_variance

    @property
    def correct(self) -> n.Correct | None:
        """The correction around the whole prediction."""
        pred = self.step_node.preds[0]
        return pred if isinstance(pred, n.Correct) else None

    @property
    def pred(self) -> n.Node:
        """The prediction below the correction."""
        return self.correct.pred if self.correct is not None else self.step_node.preds[0]

    @cached_property
    def sources(self) -> Sources:
        """What the folded step reads."""
        nodes = leaves(self.pred)
        for value in (*self.emits.values(), *(norm for _, norm in self.norms)):
            for part in _predictions(value):
                nodes += [leaf for leaf in leaves(part) if leaf not in nodes]
        for leaf in nodes:
            if isinstance(leaf, n.Score | n.EnergyGrad) and leaf.x is not self.step_node.state:
                raise NotAffineError("a network is evaluated on something else than the state of the step")
        pairs = [(leaf, i) for leaf in nodes for i in range(len(leaf.conds) if isinstance(leaf, n.Score) else 1)]
        registers = [*self.table.registers]
        registers += self.memories.values()
        registers += [f"emit.{name}" for name in self.emits]
        registers += ["emitted.noise"] if self.keeps_noise else []
        outputs = self.table.outputs + (self.inpaint is not None)
        return Sources(tuple(registers), tuple(pairs), self.learned, outputs)

    @cached_property
    def fused(self) -> tuple[n.FusedScore, ...]:
        """All fusions in what the step uses and in what is recorded of it."""
        seen = (self.pred, *self.emits.values(), *(part for _, norm in self.norms for part in norm.operands))
        return tuple(dict.fromkeys(fusion for part in seen for fusion in fusions(part)))

    @cached_property
    def memories(self) -> dict[tuple[n.FusedScore, str], str]:
        """The registers of what rules remember."""
        return memories(self.fused)

    @cached_property
    def dynamic(self) -> list[bool]:
        """The rows in which some rule is on whose weights depend on the sample; all rows, if no rule is ever off.

        Lengths that are recorded are made of the same products, in every row.
        """
        on: list[list[bool]] = [[True] * len(self.table.rows)] if self.norms else []
        for fusion in self.fused:
            rule = fusion.guidance
            if fusion.scale is not None:
                on.append([True] * len(self.table.rows))
            elif isinstance(rule, Guidance) and not is_linear(rule):
                on.append([weights is None for weights in off_weights(rule, self.table)])
        return [any(row) for row in zip(*on, strict=True)] if on else [True] * len(self.table.rows)

    # --- folding -----------------------------------------------------------------------------------

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

        def substituted(of_registers: np.ndarray, of_answers: np.ndarray, rest: dict[int, np.ndarray]) -> Mix:
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
        for name in sources.registers[r:]:
            if name in algebra.kept:
                new[name] = algebra.kept[name]
            elif name == "emitted.noise":
                new[name] = algebra.unit(sources.noise)
            elif name.startswith("emit."):
                new[name] = self._emitted(algebra, self.emits[name.removeprefix("emit.")])
            else:  # a rule that is off keeps what it remembers
                new[name] = algebra.unit(sources.register(name))
        norms = [self._distance(algebra, norm) for _, norm in self.norms]
        return Folded(algebra, new, estimates, norms)

    def _emitted(self, algebra: Algebra, value: n.Node) -> Mix:
        """A prediction as it is recorded."""
        if isinstance(value, n.Convert) and isinstance(value.pred, n.Correct):
            if value.pred is not self.correct or not isinstance(value.to, X0):
                raise NotAffineError("of a corrected prediction only the x0 that the step uses is recorded")
            return algebra.unit(self.sources.output(0)) * self._recorded
        return algebra.single(value) * self._recorded

    def _distance(self, algebra: Algebra, norm: n.Norm) -> Expr:
        """The length of a difference, or of a value."""
        mixes = [algebra.unit(0) if part is self.step_node.state else algebra.single(part) for part in norm.operands]
        return ((mixes[0] - mixes[1] if len(mixes) == 2 else mixes[0]) * self._recorded).norm()

    @cached_property
    def _recorded(self) -> list[float]:
        """1 in rows whose predictions are recorded, 0 in others: those read no answer for it."""
        return [float(slot >= 0) for slot in self._slots()["called"]]

    @cached_property
    def folded(self) -> tuple[StepTable, Formula | None, tuple[n.Node, ...]]:
        """The table, the formula and the extra operands of the folded step."""
        recorder = Recorder(len(self.table.rows), int(np.prod(_latent(self.step_node).shape)))
        made = self._build(recorder, static=False)
        sources = self.sources
        extras: list[n.Node] = list(made.algebra.scalars)
        elementwise, quantiles, reads_noise = self._elementwise(made, recorder, extras)
        linear = all(mix.linear is not None for mix in (*made.new.values(), *made.estimates))
        numbers = made if linear else self._build(Recorder(recorder.rows, recorder.elements), static=True)
        if not linear and self.inpaint is not None:
            self._elementwise(numbers, recorder, [])

        forms = [form[:, : sources.noise] for form in recorder.forms]
        coefficients = [] if linear else _block(made, sources)
        per_sample, found = trace([*coefficients, *made.norms], lift=lambda c: recorder.parameter([c] * recorder.rows))
        program, results = trace(
            elementwise,
            operands=len(made.estimates) + 1 + len(extras) - len(made.algebra.scalars) + len(quantiles),
            lift=lambda c: recorder.parameter([c] * recorder.rows),
        )
        formula = None
        if program or results or per_sample:
            formula = Formula(
                elementwise=program,
                results=results,
                draws=reads_noise,
                statistics=tuple(recorder.statistics),
                quantiles=tuple(quantiles),
                per_sample=per_sample,
                coefficients=found[: len(coefficients)],
                observations=found[len(coefficients) :],
            )
        rows = _rows(numbers, sources, forms)
        report: dict[str, Sequence[float]] = {**self.table.report, **self._slots(), **recorder.parameters}
        gradients = self._gradients(made.algebra)
        report |= gradients
        report["live"] = self._live(made, numbers, forms, gradients)
        if not linear:
            report["on"] = list(map(float, self.dynamic))
        table = StepTable.from_rows(
            sources.registers, self.table.values("t"), self.table.values("c_in"), rows, report, self.table.init_scale
        )
        for name in self.emits:
            self.observations[name] = ("register", sources.register(f"emit.{name}"))
        if self.keeps_noise:
            spot = sources.register("emitted.noise")
            for name, (what, _) in self.observations.items():
                if what == "log_prob":
                    self.observations[name] = (what, spot)
        return table, formula, tuple(extras)

    def _elementwise(
        self, made: Folded, recorder: Recorder, extras: list[n.Node]
    ) -> tuple[list[Expr], list[tuple[int, float]], bool]:
        """The values y of the elementwise program; a mask adds an estimate and takes the state over."""
        table = self.table
        total = len(made.estimates) + (self.inpaint is not None)
        quantiles: list[tuple[int, float]] = []
        masks = 0 if self.inpaint is None else 3

        def quantile(q: float) -> Expr:
            if (0, q) not in quantiles:
                quantiles.append((0, q))
            return operand(total + 1 + masks + quantiles.index((0, q)))

        values: list[Expr] = []
        noise = operand(total)
        if self.correct is not None:
            assert isinstance(self.correct.rule, Correction)
            values.append(self.correct.rule.apply(operand(0), quantile))
        if self.learned:
            values.append(exp(operand(table.estimates - 1)) * noise)
        reads_noise = self.learned
        if self.inpaint is not None:
            state = made.new["x"]
            form = state.terms[0][1] if state.terms and state.terms[0][0].op == "const" else None
            sources = self.sources
            before = operand(len(made.estimates))
            noise_share = _column(form, sources.noise, recorder)
            if noise_share.op != "const" or noise_share.leaf[0] != 0.0:
                reads_noise = True
                before = before + noise_share * noise
            for i, value in enumerate(values):
                before = before + _column(form, sources.output(i), recorder) * value
            mask, known, start = (operand(total + 1 + i) for i in range(3))
            extras += [self.inpaint.mask, self.inpaint.known, self.inpaint.noise]
            alpha = recorder.parameter(table.values("alpha_next"))
            sigma = recorder.parameter(table.values("sigma_next"))
            ends = recorder.parameter([float(slot >= 0) for slot in self._slots()["last"]])
            at_level = alpha * known + sigma * start
            values.append(before + ends * (1.0 - mask) * (at_level - before))
            # The estimate is the linear part of the new state; the state itself is the program's value.
            made.estimates.append(_without(state, sources.noise))
            form_new = np.zeros((recorder.rows, sources.count))
            form_new[:, sources.output(len(values) - 1)] = 1.0
            made.new["x"] = Mix.of(state.recorder, form_new)
        return values, quantiles, reads_noise

    def _gradients(self, algebra: Algebra) -> dict[str, list[float]]:
        """What the gradients of clean samples need, row by row: a machine that makes x0 of [x0, x] and the answers, or
        p and q with x0 = p x_in + q m for one that goes through the network itself."""
        columns: dict[str, list[float]] = {}
        r, width = len(self.sources.registers), self.sources.answers
        for i, grad in enumerate(clean_gradients([leaf for leaf, _ in self.sources.leaves])):
            assert grad.pred is not None
            form = algebra.clean(grad.pred).linear if joint_score(grad) is None else None
            if form is not None:
                a = np.zeros((len(form), 4))
                a[:, 1], a[:, 3] = form[:, 0], 1.0
                b = np.concatenate([form[:, r : r + width], np.zeros((len(form), width))], axis=1)
                numbers = np.concatenate([a, b, np.zeros((len(form), 2))], axis=1)
                names = [f"g{i}_a{j}" for j in range(4)] + [f"g{i}_b{j}" for j in range(2 * width)]
                names += [f"g{i}_c{j}" for j in range(2)]
                columns |= {name: numbers[:, j].tolist() for j, name in enumerate(names)}
                continue
            score = joint_score(grad)
            if score is None:
                raise NotAffineError("the clean sample of a gradient depends on guidance that differs by sample")
            assert isinstance(score.net.prediction, Prediction)
            points = zip(self.table.values("alpha"), self.table.values("sigma"), strict=True)
            pairs = [score.net.prediction.to_x0(alpha, sigma) for alpha, sigma in points]
            scales = self.table.values(scale_column(self.table, score.net))
            columns[f"g{i}_p"] = [p / scale for (p, _), scale in zip(pairs, scales, strict=True)]
            columns[f"g{i}_q"] = [q for _, q in pairs]
        return columns

    def _live(
        self, made: Folded, numbers: Folded, forms: Sequence[np.ndarray], gradients: dict[str, list[float]]
    ) -> list[float]:
        """Which answers a row reads, as a sum of 2^answer; 0 in rows without a network call."""
        sources = self.sources
        used = np.zeros((len(self.table.rows), sources.noise), dtype=bool)
        on = np.array(self.dynamic)
        for folded, rows in ((made, on), (numbers, ~on)):
            for mix in (*folded.new.values(), *folded.estimates):
                for _, form in mix.terms:
                    used[rows] |= form[rows, : sources.noise] != 0.0
        for form in forms:
            used[on] |= form[on] != 0.0
        for i, grad in enumerate(clean_gradients([leaf for leaf, _ in sources.leaves])):
            for k in range(sources.answers):  # what the clean sample is made of
                if f"g{i}_b{k}" in gradients:
                    needed = np.array(gradients[f"g{i}_b{k}"]) != 0.0
                    used[:, len(sources.registers) + k] |= needed & used[:, sources.answer(grad)]
        used[np.array(self.table.values("calls")) == 0.0] = False
        return (used[:, len(sources.registers) :] @ (2.0 ** np.arange(sources.answers))).tolist()

    def _slots(self) -> dict[str, list[float]]:
        """Where in its record a row's values go: before a step, at its first call, after it; -1 for nowhere."""
        if not self.observations and self.inpaint is None:
            return {}
        steps, calls = self.table.steps, self.table.values("calls")
        first = [float(s) if i == 0 or steps[i - 1] != s else -1.0 for i, s in enumerate(steps)]
        last = [float(s) if i + 1 == len(steps) or steps[i + 1] != s else -1.0 for i, s in enumerate(steps)]
        seen: set[int] = set()
        called: list[float] = []
        for step, calling in zip(steps, calls, strict=True):
            called.append(float(step) if calling and step not in seen else -1.0)
            if calling:
                seen.add(step)
        if self.keeps_noise and any(f != last_slot for f, last_slot in zip(first, last, strict=True)):
            raise NotAffineError(f"{self.rule.name} moves in several parts per step, which have no one log-probability")
        return {"first": first, "called": called, "last": last}

    @property
    def formula(self) -> Formula | None:
        """The formula of the folded step."""
        return self.folded[1]

    def step(self) -> n.SamplerStep:
        """The folded step: it reads answers, and everything else is in its table and formula."""
        old = self.step_node
        table, formula, extras = self.folded
        preds = tuple(dict.fromkeys(leaf for leaf, _ in self.sources.leaves))
        return n.SamplerStep(old.rule, old.state, preds, old.time, old.site, table, formula, extras)


@dataclass
class Folded:
    """All registers and estimates of a step as mixes of its sources, and the lengths that are observed."""

    algebra: Algebra
    new: dict[str, Mix]
    estimates: list[Mix]
    norms: list[Expr]


def clean_gradients(leaves: Sequence[n.Node]) -> list[n.EnergyGrad]:
    """The gradients among a step's operands that are taken at a clean sample, in order."""
    return [leaf for leaf in leaves if isinstance(leaf, n.EnergyGrad) and leaf.pred is not None]


def _predictions(value: n.Node) -> list[n.Node]:
    """The outermost predictions in an emitted value, below corrections."""
    if isinstance(value, n.Correct):
        return [value.pred]
    if isinstance(value, n.Convert) and isinstance(value.pred, n.Correct):
        return [value.pred.pred]
    if isinstance(value.type, v.Pred):
        return [value]
    return [found for operand in value.operands for found in _predictions(operand)]


def _unguided(pred: n.Node) -> n.Node:
    """What says eps when the guided answer says x0 only (CFG++): the unconditional branch, the fusion's last."""
    if not isinstance(pred, n.FusedScore):
        raise NotAffineError("only a fusion has an unguided branch")
    return pred.preds[-1]


def _latent(step: n.SamplerStep) -> v.Latent:
    assert isinstance(step.state.type, v.Latent)
    return step.state.type


def _column(form: np.ndarray | None, source: int, recorder: Recorder) -> Expr:
    return constant(0.0) if form is None else recorder.parameter(form[:, source].tolist())


def _without(mix: Mix, first: int) -> Mix:
    """A mix without the sources from number ``first`` on."""
    terms: list[tuple[Expr, Form]] = []
    for weight, form in mix.terms:
        kept = form.copy()
        kept[:, first:] = 0.0
        terms.append((weight, kept))
    return Mix(mix.recorder, tuple(terms))


def _block(made: Folded, sources: Sources) -> list[Expr]:
    """The machine's entries as expressions, in the order of the table's columns."""
    r, stop, new = len(sources.registers), sources.noise, list(made.new.values())
    return [
        *(mix.weight(s) for mix in new for s in range(r)),
        *(mix.weight(s) for mix in new for s in range(r, stop)),
        *(mix.weight(stop) for mix in new),
        *(mix.weight(s) for mix in made.estimates for s in range(stop)),
        *(mix.weight(sources.output(i)) for mix in new for i in range(sources.outputs)),
    ]


def _rows(made: Folded, sources: Sources, forms: Sequence[np.ndarray]) -> list[Row]:
    """The machine's entries as numbers, row by row; all mixes are linear."""
    r, stop = len(sources.registers), sources.noise
    new = np.stack([_numbers(mix) for mix in made.new.values()], axis=1)  # [rows, R, sources]
    estimates = [_numbers(mix)[:, :stop] for mix in made.estimates]
    rows: list[Row] = []
    for i, matrix in enumerate(new):
        e = np.array([form[i] for form in estimates]).reshape(len(estimates), stop)
        f = np.array([form[i] for form in forms]).reshape(len(forms), stop)
        rows.append(Row(matrix[:, :r], matrix[:, r:stop], matrix[:, stop], e, matrix[:, stop + 1 :], f))
    return rows


def _numbers(mix: Mix) -> np.ndarray:
    assert mix.linear is not None, "a table holds numbers"
    return mix.linear
