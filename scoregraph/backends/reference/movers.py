"""Sampler steps that follow a table, row by row in float64: the sampler's own rows, or those that passes have made.

A step whose table is the sampler's own reads one prediction, whatever guidance and corrections stand behind it. One
that passes have folded reads the networks' answers, and its formula does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from scoregraph.backends.reference import predictions
from scoregraph.backends.reference.elementwise import evaluate
from scoregraph.backends.reference.frame import spread
from scoregraph.backends.reference.moments import Interpreter, Moment, Scope
from scoregraph.backends.reference.textbook import Point
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.corrections import Correction
from scoregraph.graph.energies import Energy
from scoregraph.graph.formula import Formula
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Grid, Schedule
from scoregraph.graph.table import Row, StepTable


@dataclass
class Seen:
    """What a step shows of itself: the states around it, and what follows its first network call.

    ``log_prob`` is that of what the step drew, [B].
    """

    before: Tensor
    after: Tensor
    registers: list[Tensor] = field(default_factory=list[Tensor])
    statistics: list[Tensor] = field(default_factory=list[Tensor])
    log_prob: Tensor | float = 0.0


@dataclass
class Mover:
    """One sampler step of a loop, its table and its registers.

    Attributes:
        own: the table is what the sampler says for the step's prediction as it is; else passes have made it.
    """

    run: Interpreter
    step: n.SamplerStep
    table: StepTable
    own: bool
    registers: list[Tensor] = field(default_factory=list[Tensor])

    @classmethod
    def of(cls, run: Interpreter, step: n.SamplerStep, schedule: Schedule) -> Mover:
        """The step's table, or that of its sampler."""
        if step.table is not None:
            return cls(run, step, step.table, own=False)
        assert isinstance(step.rule, Sampler)
        assert isinstance(step.state.type, v.Latent)
        (pred,) = step.preds
        assert isinstance(pred.type, v.Pred)
        assert isinstance(pred.type.prediction, Prediction)
        time = next(n.scores_of(pred)).net.time
        made = step.rule.table(schedule, pred.type.prediction, time, step.state.type.space, split=_splits(pred))
        return cls(run, step, made, own=True)

    @property
    def folded(self) -> bool:
        """Whether the step reads the answers of networks, not one prediction."""
        return "live" in self.table.columns or self.step.formula is not None

    @property
    def learned(self) -> bool:
        """Whether the last answer is what a network says of its variance."""
        return isinstance(self.step.rule, Sampler) and self.step.rule.learns_variance

    def start(self, x: Tensor) -> None:
        """The state, and registers that hold nothing yet."""
        self.registers = [x, *(torch.zeros_like(x) for _ in self.table.registers[1:])]

    def rows(self, step: int) -> list[int]:
        """The rows of a loop step."""
        return [row for row, at in enumerate(self.table.steps) if at == step]

    def calls(self, row: int) -> bool:
        """Whether a row calls networks."""
        return "calls" not in self.table.columns or self.table.values("calls")[row] != 0.0

    def moment(self, grid: Grid, row: int) -> Moment:
        """Where a row's networks are called."""
        assert isinstance(self.step.state.type, v.Latent)
        at = Point(self.table.values("alpha")[row], self.table.values("sigma")[row])
        told = next(n.scores_of(self.step.preds[0])).net if self.own else None
        here = grid.in_space(self.step.state.type.space)
        return Moment(here, self.table.steps[row], at, self.table, row, told)

    def turn(self, row: int, body: Scope, seen: Seen) -> list[Tensor]:
        """What the registers become in a row, at the moment of ``body``."""
        x = self.registers[0]
        assert isinstance(self.step.state.type, v.Latent)
        z = self.run.normals(self.step.state.type, self.step.site, row)
        answers = self._answers(body) if self.calls(row) else [torch.zeros_like(x)] * self.table.branches
        numbers = self.table.row(row)
        sources = torch.stack([*self.registers, *answers])
        entries, outputs, statistics = self._formula(row, numbers, sources, z, body)
        linear = torch.cat([entries.a, entries.b], dim=2)
        new = torch.einsum("sjk,ks...->js...", linear.expand(len(x), -1, -1), sources)
        new = new + torch.einsum("sj,s...->js...", entries.c.expand(len(x), -1), z)
        if outputs:
            new = new + torch.einsum("sji,is...->js...", entries.h.expand(len(x), -1, -1), torch.stack(outputs))
        if self.calls(row) and not self.folded:
            new[0] = new[0] + self._pull(numbers, sources, body)
        if not seen.registers and self.calls(row):
            seen.registers, seen.statistics = list(new), statistics
        seen.log_prob = seen.log_prob + self._log_prob(numbers, outputs, z)
        return list(new)

    # --- answers ---------------------------------------------------------------------------------

    def _answers(self, body: Scope) -> list[Tensor]:
        """The K answers that the table speaks of."""
        found: list[Tensor] = []
        if self.folded:
            for pred in self.step.preds:
                value = self.run.value(pred, body)
                found += value if isinstance(value, list) else [value]
        else:
            (pred,) = self.step.preds
            plain = pred.pred if isinstance(pred, n.Correct) and self._corrects else pred
            found += self.run.value(plain, body)
            if self.table.branches - self.learned == 2:
                found += self.run.value(_unguided(plain), body)
        if self.learned:
            found.append(predictions.variance(self.run, self.step.preds[0], body))
        return found

    def _pull(self, numbers: Row, sources: Tensor, body: Scope) -> Tensor:
        """-c^2 * scale * gradient, of the gradients that move the mean of the step; c is that of the noise in x."""
        (pred,) = self.step.preds
        fusion = pred.pred if isinstance(pred, n.Correct) else pred
        total = torch.zeros_like(sources[0])
        for grad in fusion.grads if isinstance(fusion, n.FusedScore) else ():
            if not n.moves_mean(grad):
                continue
            assert isinstance(grad, n.EnergyGrad)
            assert isinstance(grad.energy, Energy)
            spread = torch.full_like(total, float(numbers.c[0]))
            if self.learned:
                weights = torch.from_numpy(numbers.e[-1]).to(total.dtype)
                spread = float(numbers.h[0, -1]) * torch.exp(torch.einsum("k,ks...->s...", weights, sources))
            total = total - spread**2 * grad.energy.scale * self.run.value(grad, body)
        return total

    @property
    def _corrects(self) -> bool:
        """Whether the table takes a correction between its own linear maps."""
        return not self.folded and self.table.estimates > self.learned

    # --- what is not linear ----------------------------------------------------------------------

    def _formula(
        self, row: int, numbers: Row, sources: Tensor, z: Tensor, body: Scope
    ) -> tuple[Entries, list[Tensor], list[Tensor]]:
        """The coefficients (of all samples, or of each), the elementwise outputs y, and the observed statistics."""
        entries = Entries.of(numbers)
        formula = self.step.formula
        if not isinstance(formula, Formula):
            estimates = [*torch.einsum("sik,ks...->is...", entries.e.expand(len(z), -1, -1), sources)]
            outputs = [predictions.corrected_by(self._rule, estimates[0])] if self._corrects else []
            return entries, [*outputs, *([torch.exp(estimates[-1]) * z] if self.learned else [])], []
        extras = [self.run.value(extra, body) for extra in self.step.extras]
        scalars = [i for i, extra in enumerate(self.step.extras) if isinstance(extra.type, v.Scalar)]
        values = self._per_sample(formula, row, numbers, sources, [extras[i] for i in scalars])
        on = "on" not in self.table.columns or self.table.values("on")[row] != 0.0
        if formula.coefficients and on:
            block = torch.stack([values[i] for i in formula.coefficients], dim=1)
            entries = entries.replaced(block)
        estimates = [*torch.einsum("sik,ks...->is...", entries.e.expand(len(z), -1, -1), sources)]
        elementwise = [extra.expand_as(z) for i, extra in enumerate(extras) if i not in scalars]
        elementwise += [
            spread(torch.quantile(estimates[i].abs().flatten(1), q, dim=1), z).expand_as(z)
            for i, q in formula.quantiles
        ]
        leaves = {
            "const": lambda value: torch.full_like(z, value),
            "row": lambda column: torch.full_like(z, self.table.values(column)[row]),
        }
        made = evaluate(formula.elementwise, [*estimates, z, *elementwise], leaves)
        return entries, [made[i] for i in formula.results], [values[i] for i in formula.observations]

    def _per_sample(
        self, formula: Formula, row: int, numbers: Row, sources: Tensor, scalars: Sequence[Tensor]
    ) -> list[Tensor]:
        """All values [B] of the program per sample."""
        weights = torch.from_numpy(numbers.f).to(sources.dtype)
        forms = torch.einsum("ik,ks...->is...", weights, sources).flatten(2)
        sums = [(forms[i] * forms[j[0]] if j else forms[i]).sum(dim=1) for i, *j in formula.statistics]

        def everywhere(value: float) -> Tensor:
            return torch.full((sources.shape[1],), value, dtype=sources.dtype)

        leaves = {
            "const": everywhere,
            "row": lambda column: everywhere(self.table.values(column)[row]),
            "in": lambda source, i: sums[i] if source == 0 else scalars[source - 1],
        }
        return evaluate(formula.per_sample, [], leaves)

    @property
    def _rule(self) -> Correction:
        (pred,) = self.step.preds
        assert isinstance(pred, n.Correct)
        assert isinstance(pred.rule, Correction)
        return pred.rule

    def _log_prob(self, numbers: Row, outputs: list[Tensor], z: Tensor) -> Tensor | float:
        """log N(x'; mean, std^2) of what the row drew, with the std of each element; 0 where nothing is drawn."""
        std = torch.full_like(z, abs(float(numbers.c[0])))
        if self.learned and outputs and not self.folded:
            # The last output is exp(spread * v) z.
            std = std + abs(float(numbers.h[0, -1])) * (outputs[-1] / z)
        if not bool(std.any()):
            return 0.0
        return (-0.5 * z**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Entries:
    """A row's coefficients for all samples or for each: a [1 or B, R, R], b [1 or B, R, K], and so on."""

    a: Tensor
    b: Tensor
    c: Tensor
    e: Tensor
    h: Tensor

    @classmethod
    def of(cls, row: Row) -> Entries:
        """The table's own numbers."""
        return cls(*(torch.from_numpy(part)[None] for part in (row.a, row.b, row.c, row.e, row.h)))

    def replaced(self, block: Tensor) -> Entries:
        """Those of each sample, [B, n], in the order of the table's columns."""
        parts: list[Tensor] = []
        at = 0
        for part in (self.a, self.b, self.c, self.e, self.h):
            parts.append(block[:, at : at + part.numel()].reshape(len(block), *part.shape[1:]))
            at += part.numel()
        return replace(self, **dict(zip("abceh", parts, strict=True)))


def _splits(pred: n.Node) -> bool:
    """Whether x0 and eps come from different answers (CFG++)."""
    return isinstance(pred, n.FusedScore) and isinstance(pred.guidance, Guidance) and pred.guidance.splits


def _unguided(pred: n.Node) -> n.Node:
    """What says eps in CFG++: the last branch alone."""
    assert isinstance(pred, n.FusedScore)
    return pred.preds[-1]
