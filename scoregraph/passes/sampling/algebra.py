"""The algebra of a sampling step: every prediction as a mix of the step's sources.

Sources are what a step's kernel reads: the registers, the answers of all networks and gradients, the noise, and the
values of its elementwise program. Guidance, changes of parameterization and energies are sums of answers with weights,
so whatever the user has nested comes out as one mix; only corrections are not, and stand outermost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.energies import Energy
from scoregraph.graph.expression import given, where
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.mixture import At, Form, Mix, Recorder
from scoregraph.graph.prediction import X0, Prediction
from scoregraph.graph.table import StepTable
from scoregraph.passes.sampling.fold_tables import scale_column


class NotAffineError(Exception):
    """A prediction that is no mix of answers; its text says why."""


@dataclass(frozen=True)
class Sources:
    """What a step reads, in order: registers, answers (a learned variance last), the noise, elementwise values."""

    registers: tuple[str, ...]
    leaves: tuple[tuple[n.Node, int], ...]
    learned: bool
    outputs: int

    @property
    def answers(self) -> int:
        """K."""
        return len(self.leaves) + self.learned

    @property
    def noise(self) -> int:
        """The number of z."""
        return len(self.registers) + self.answers

    @property
    def count(self) -> int:
        """How many there are."""
        return self.noise + 1 + self.outputs

    def register(self, name: str) -> int:
        """The number of a register."""
        return self.registers.index(name)

    def answer(self, leaf: n.Node, branch: int = 0) -> int:
        """The number of one branch's answer."""
        return len(self.registers) + self.leaves.index((leaf, branch))

    def output(self, i: int) -> int:
        """The number of an elementwise value."""
        return self.noise + 1 + i


def leaves(pred: n.Node) -> list[n.Node]:
    """The scores and gradients that a prediction is made of, each once, in order."""
    if isinstance(pred, n.Score | n.Divergence):
        return [pred]
    if isinstance(pred, n.EnergyGrad):  # one that is taken at a clean sample needs the answers that imply it
        return [*(leaves(pred.pred) if pred.pred is not None and joint_score(pred) is None else []), pred]
    operands: tuple[n.Node, ...]
    match pred:
        case n.FusedScore():
            operands = (*pred.preds, *pred.grads)
        case n.Convert() | n.Correct():
            operands = (pred.pred,)
        case _:
            raise NotAffineError(f"a {pred.op} is not a prediction that can be folded into a step")
    return list(dict.fromkeys(leaf for operand in operands for leaf in leaves(operand)))


def fusions(pred: n.Node) -> list[n.FusedScore]:
    """All fusions in a prediction, outermost first."""
    below = (
        [fusion for operand in pred.operands for fusion in fusions(operand)] if isinstance(pred.type, v.Pred) else []
    )
    return [pred, *below] if isinstance(pred, n.FusedScore) else below


def is_linear(rule: Guidance) -> bool:
    """Whether a rule is no more than its weights."""
    return type(rule).combine is Guidance.combine


@dataclass
class Algebra:
    """Evaluates predictions at every row of a table.

    Attributes:
        static: rules that depend on the sample give the weights of the rows in which they are off, 0 in the others.
        dynamic: the rows whose numbers depend on the sample, because some rule is on there.
        memories: the names of the registers of what rules remember, by fusion and by the rule's own name.
        scalars: the values the caller gives per sample (runtime scales), in the order in which they were met.
        kept: what the rules' registers become.
    """

    table: StepTable
    sources: Sources
    recorder: Recorder
    static: bool = False
    dynamic: Sequence[bool] = ()
    memories: Mapping[tuple[n.FusedScore, str], str] = field(default_factory=dict[tuple[n.FusedScore, str], str])
    scalars: list[n.Node] = field(default_factory=list[n.Node])
    kept: dict[str, Mix] = field(default_factory=dict[str, Mix])

    def unit(self, source: int) -> Mix:
        """A source by itself."""
        form = np.zeros((self.recorder.rows, self.sources.count))
        form[:, source] = 1.0
        return Mix.of(self.recorder, form)

    def nothing(self) -> Mix:
        """The sum of nothing."""
        return Mix.of(self.recorder, np.zeros((self.recorder.rows, self.sources.count)))

    def of_form(self, form: Form) -> Mix:
        """Numbers over all sources as a mix."""
        return Mix.of(self.recorder, form)

    def branches(self, pred: n.Node) -> list[Mix]:
        """What a prediction says, one mix per branch."""
        match pred:
            case n.Score():
                return [self.unit(self.sources.answer(pred, i)) for i in range(len(pred.conds))]
            case n.Divergence():
                return [self.unit(self.sources.answer(pred))]
            case n.FusedScore():
                return [self._fuse(pred)]
            case n.Convert():
                return [self._convert(pred, mix) for mix in self.branches(pred.pred)]
            case n.Correct():
                raise NotAffineError("a correction is not linear: it may only stand around the whole prediction")
            case _:
                raise NotAffineError(f"a {pred.op} is not a prediction that can be folded into a step")

    def single(self, pred: n.Node) -> Mix:
        """What a prediction of one branch says."""
        found = self.branches(pred)
        if len(found) != 1:
            raise NotAffineError(f"it has {len(found)} branches that no guidance mixes")
        return found[0]

    # --- fusions ---------------------------------------------------------------------------------

    def _fuse(self, fusion: n.FusedScore) -> Mix:
        rule = fusion.guidance
        if not isinstance(rule, Guidance):
            raise NotAffineError(f"{rule} has no weights")
        mixes = [mix for pred in fusion.preds for mix in self.branches(pred)]
        if fusion.scale is not None:
            total = self._scaled(rule, fusion.scale, mixes)
        elif is_linear(rule):
            total = self._weighted(rule.table_weights(self.table), mixes)
        elif self.static:
            off = off_weights(rule, self.table)
            total = self._weighted([row or (0.0,) * len(mixes) for row in off], mixes)
        else:
            total = self._combine(fusion, rule, mixes)
        for grad in fusion.grads:
            assert isinstance(grad, n.EnergyGrad)
            if n.moves_mean(grad):  # the step's, not the prediction's, matter
                continue
            total = total + self.unit(self.sources.answer(grad)) * self._gain(grad, fusion)
        return total

    def _weighted(self, rows: Sequence[Sequence[float]], mixes: Sequence[Mix]) -> Mix:
        total = self.nothing()
        for k, mix in enumerate(mixes):
            total = total + mix * [row[k] for row in rows]
        return total

    def _scaled(self, rule: Guidance, scale: n.Node, mixes: Sequence[Mix]) -> Mix:
        """A rule whose scale every sample has for itself: its weights are linear in the scale."""
        if self.static:
            return self.nothing()
        if not is_linear(rule) or not hasattr(rule, "scale"):
            raise NotAffineError(f"{rule.name} has no scale that could be an input")
        at = [replace(rule, scale=s).table_weights(self.table) for s in (0.0, 1.0, 2.0)]  # pyright: ignore[reportCallIssue]
        for zero, one, two in zip(*at, strict=True):
            if not np.allclose(np.subtract(two, one), np.subtract(one, zero), rtol=0, atol=1e-12):
                raise NotAffineError(f"the weights of {rule.name} are not linear in its scale")
        if scale not in self.scalars:
            self.scalars.append(scale)
        value = given(1 + self.scalars.index(scale), 0)
        total = self.nothing()
        for k, mix in enumerate(mixes):
            base = [row[k] for row in at[0]]
            slope = [one[k] - zero[k] for zero, one in zip(at[0], at[1], strict=True)]
            total = total + mix * base + (mix * slope) * value
        return total

    def _combine(self, fusion: n.FusedScore, rule: Guidance, mixes: Sequence[Mix]) -> Mix:
        steps, alpha, sigma = self.table.steps, self.table.values("alpha"), self.table.values("sigma")
        numbers = [rule.numbers(s, steps[-1] + 1, a, b) for s, a, b in zip(steps, alpha, sigma, strict=True)]
        at = At(
            alpha=self.recorder.parameter(alpha, "alpha"),
            sigma=self.recorder.parameter(sigma, "sigma"),
            memory={name: self.unit(self.sources.register(self.memories[fusion, name])) for name in rule.memory()},
            numbers={name: self.recorder.parameter([row[name] for row in numbers]) for name in numbers[0]},
        )
        result = rule.combine(tuple(mixes), at)
        kept = {name: at.kept.get(name, self.nothing()) for name in rule.memory()}
        off = off_weights(rule, self.table)
        aside = [dynamic and row is not None for dynamic, row in zip(self.dynamic, off, strict=True)]
        if any(aside):  # off, in rows where another rule is on
            nothing = (0.0,) * len(mixes)
            plain = [(row or nothing) if out else nothing for out, row in zip(aside, off, strict=True)]
            result = self._only(result, aside) + self._weighted(plain, mixes)
            for name, mix in kept.items():
                kept[name] = self._only(mix, aside) + at.memory[name] * list(map(float, aside))
        for name, mix in kept.items():
            self.kept[self.memories[fusion, name]] = mix
        return result

    def _only(self, mix: Mix, aside: Sequence[bool]) -> Mix:
        """A mix in the rows that are not ``aside``, and nothing in those."""
        inside = np.array([[not out] for out in aside], dtype=np.float64)
        on = self.recorder.parameter(inside[:, 0].tolist())
        # Chosen, not multiplied: where a rule is off, its quotients may be those of nothing by nothing.
        terms = [(w if w.op == "const" else where(on, w, 0.0), form * inside) for w, form in mix.terms]
        return Mix(self.recorder, tuple(terms))

    # --- parameterizations -----------------------------------------------------------------------

    def _points(self) -> zip[tuple[float, float]]:
        return zip(self.table.values("alpha"), self.table.values("sigma"), strict=True)

    def _convert(self, node: n.Convert, mix: Mix) -> Mix:
        assert isinstance(node.pred.type, v.Pred)
        source, to = node.pred.type.prediction, node.to
        assert isinstance(source, Prediction)
        assert isinstance(to, Prediction)
        return self.converted(mix, source, to)

    def converted(self, mix: Mix, source: Prediction, to: Prediction) -> Mix:
        """An answer in one parameterization as one in another; the better conditioned of two equations is solved."""
        if source == to:
            return mix
        of_x: list[float] = []
        of_m: list[float] = []
        for alpha, sigma in self._points():
            (p, q), (p_eps, q_eps) = source.to_x0(alpha, sigma), source.to_eps(alpha, sigma)
            (p_to, q_to), (p_eps_to, q_eps_to) = to.to_x0(alpha, sigma), to.to_eps(alpha, sigma)
            if abs(q_to) > abs(q_eps_to):
                of_x.append((p - p_to) / q_to)
                of_m.append(q / q_to)
            else:
                of_x.append((p_eps - p_eps_to) / q_eps_to)
                of_m.append(q_eps / q_eps_to)
        return mix * of_m + self.unit(0) * of_x

    def scale_in(self, grad: n.EnergyGrad) -> list[float]:
        """What a gradient is multiplied with to be one in x: through a network it is that in the input, c_in x."""
        score = joint_score(grad)
        return [1.0] * len(self.table.rows) if score is None else list(self._c_in(score))

    def _c_in(self, score: n.Score) -> tuple[float, ...]:
        return self.table.values(scale_column(self.table, score.net))

    def _gain(self, grad: n.EnergyGrad, fusion: n.FusedScore) -> list[float]:
        """What a gradient is multiplied with in a prediction, so that eps changes by sigma * scale * gradient.

        x0 then changes by -(sigma^2 / alpha) * scale * gradient, since x stays.
        """
        assert isinstance(grad.energy, Energy)
        assert isinstance(fusion.type, v.Pred)
        prediction = fusion.type.prediction
        assert isinstance(prediction, Prediction)
        gains: list[float] = []
        inner = self.scale_in(grad)
        for i, (alpha, sigma) in enumerate(self._points()):
            q, q_eps = prediction.to_x0(alpha, sigma)[1], prediction.to_eps(alpha, sigma)[1]
            change = sigma * grad.energy.scale * inner[i]
            gains.append(change / q_eps if abs(q_eps) * alpha >= abs(q) * sigma else -sigma / alpha * change / q)
        return gains

    def clean(self, pred: n.Node) -> Mix:
        """The clean sample that a prediction implies."""
        assert isinstance(pred.type, v.Pred)
        assert isinstance(pred.type.prediction, Prediction)
        return self.converted(self.single(pred), pred.type.prediction, X0())


def joint_score(grad: n.EnergyGrad) -> n.Score | None:
    """The score network that a gradient goes back through; None where it does not."""
    if not isinstance(grad.energy, Energy) or not grad.energy.joint:
        return None
    if not isinstance(grad.pred, n.Score) or len(grad.pred.conds) != 1:
        raise NotAffineError("a gradient goes through one network under one condition, not through a fusion")
    return grad.pred


def memories(fused: Sequence[n.FusedScore]) -> dict[tuple[n.FusedScore, str], str]:
    """The names of all rules' registers among those of the step; a rule that stands twice remembers twice."""
    names: dict[tuple[n.FusedScore, str], str] = {}
    for fusion in dict.fromkeys(fused):
        if isinstance(fusion.guidance, Guidance):
            rule = fusion.guidance
            twins = len({other for other, _ in names if other.guidance.name == rule.name})
            names |= {(fusion, name): f"{rule.name}{twins or ''}.{name}" for name in rule.memory()}
    return names


def off_weights(rule: Guidance, table: StepTable) -> list[tuple[float, ...] | None]:
    """The plain weights of a sample-dependent rule in the rows where it is off, None where it is on.

    In a row without a network call there is nothing to weigh, and nothing to remember.
    """
    steps, nothing = table.steps, (0.0,) * rule.branches
    points = zip(steps, table.values("alpha"), table.values("sigma"), table.values("calls"), strict=True)
    return [rule.weights(step, steps[-1] + 1, alpha, sigma) if call else nothing for step, alpha, sigma, call in points]
