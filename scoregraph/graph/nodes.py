"""All node kinds of a sampling graph.

A node is frozen, knows the type of its value, and is interned (``scoregraph.graph.node``). The text form, the JSON form
and rewrites follow from the fields, so a new kind of node needs its class only.

Result rules check the operands and raise without a place; whoever knows the user's line adds it (``error.at``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scoregraph.errors import WrongOperand
from scoregraph.graph import rules
from scoregraph.graph import values as v
from scoregraph.graph.node import (
    Correction,
    EnergyTerm,
    Formula,
    Guidance,
    Node,
    Policy,
    Prediction,
    Schedule,
    Select,
    Step,
    types,
)
from scoregraph.graph.values import Latent, NetRef, Tokens, ValueType

if TYPE_CHECKING:
    from scoregraph.graph.table import StepTable

# --- The kinds: what enters ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Input(Node, op="input"):
    """A value the caller gives by name, per sample."""

    name: str
    of: ValueType

    def _result(self) -> ValueType:
        return rules.standalone(f"input {self.name}", self.of)


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Node, op="constant"):
    """A value of which every element is ``value``, the same for every sample: raw, or what a loop carries."""

    value: float
    of: ValueType

    def _result(self) -> ValueType:
        return rules.expect("a constant", self.of, v.Array, Latent, v.Scalar)


@dataclass(frozen=True, eq=False, repr=False)
class Condition(Node, op="condition"):
    """The encoded conditions of a network, one value each in its order; no values: the unconditional branch."""

    net: NetRef
    values: tuple[Node, ...]

    def _result(self) -> v.Cond:
        return rules.condition(self.net, types(self.values))


@dataclass(frozen=True, eq=False, repr=False)
class Noise(Node, op="noise"):
    """Unit normals; ``site`` is the last word of the counter that draws them, so no two sites share numbers."""

    latent: Latent
    site: int

    def _result(self) -> v.Noise:
        return v.Noise(self.latent)


@dataclass(frozen=True, eq=False, repr=False)
class Renoise(Node, op="renoise"):
    """The start of a loop from a clean sample ``x`` (img2img): alpha x + sigma noise, where its schedule starts."""

    x: Node
    noise: Node

    def _result(self) -> v.Start:
        return rules.renoise(self.x.type, self.noise.type)


# --- What moves --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class LoopVar(Node, op="carry"):
    """Value number ``index`` that a loop carries, as it stands at the start of a step."""

    loop: str
    index: int
    of: ValueType

    def _result(self) -> ValueType:
        return rules.standalone(f"value {self.index} of the loop {self.loop}", self.of)

    def _free_loops(self) -> frozenset[str]:
        return frozenset([self.loop])


@dataclass(frozen=True, eq=False, repr=False)
class StepTime(Node, op="time"):
    """The point of its schedule at which a loop stands."""

    loop: str

    def _result(self) -> v.Time:
        return v.Time()

    def _free_loops(self) -> frozenset[str]:
        return frozenset([self.loop])


@dataclass(frozen=True, eq=False, repr=False)
class Score(Node, op="score"):
    """One evaluation of a network for one or more conditions, each of which is a branch."""

    net: NetRef
    x: Node
    time: Node | None
    conds: tuple[Node, ...]

    def _result(self) -> ValueType:
        return rules.score(self.net, self.x.type, self.time and self.time.type, types(self.conds))


@dataclass(frozen=True, eq=False, repr=False)
class Convert(Node, op="convert"):
    """A prediction in another parameterization, for example x0 for a preview."""

    to: Prediction
    pred: Node
    x: Node
    time: Node

    def _result(self) -> v.Pred:
        return rules.convert(self.to, self.pred.type, self.x.type, self.time.type)


@dataclass(frozen=True, eq=False, repr=False)
class Correct(Node, op="correct"):
    """The prediction whose clean sample is what the rule makes of that of ``pred``: x0 := rule(x0)."""

    rule: Correction
    pred: Node
    x: Node
    time: Node

    def _result(self) -> v.Pred:
        return rules.correct(self.rule, self.pred.type, self.x.type, self.time.type)


@dataclass(frozen=True, eq=False, repr=False)
class Divergence(Node, op="divergence"):
    """How fast the probability-flow ODE of a network thins out density at x: -div eps(X), with X = x / alpha.

    It is the prediction by which the same sampler moves log p beside x. Exact (the trace of the Jacobian), or
    Hutchinson's estimate from one ``probe`` of unit normals, whose signs s are used: -s . J s.
    """

    net: NetRef
    x: Node
    time: Node
    cond: Node
    probe: Node | None = None

    def _result(self) -> v.Pred:
        return rules.divergence(self.net, self.x.type, self.time.type, self.cond.type, self.probe and self.probe.type)


@dataclass(frozen=True, eq=False, repr=False)
class EnergyGrad(Node, op="energy_grad"):
    """The gradient of an energy in x, or in the clean sample that ``pred`` implies; ``net`` computes the energy."""

    energy: EnergyTerm
    x: Node
    time: Node
    pred: Node | None = None
    net: NetRef | None = None
    values: tuple[Node, ...] = ()

    def _result(self) -> v.Grad:
        rules.expect("time of the energy", self.time.type, v.Time)
        if self.pred is not None:
            rules.expect("prediction of the energy", self.pred.type, v.Pred)
        elif getattr(self.energy, "wrt", "x") == "x0":
            what = f"pred= of {self.energy}, which is a function of x0,"
            raise WrongOperand(operand=what, expected="a Pred", got="nothing")
        return v.Grad(rules.energy(self.net, self.x.type, types(self.values)))


@dataclass(frozen=True, eq=False, repr=False)
class FusedScore(Node, op="fuse"):
    """All branches and gradients as one prediction, weighted by a guidance rule; ``scale`` replaces the rule's own."""

    guidance: Guidance
    preds: tuple[Node, ...]
    grads: tuple[Node, ...] = ()
    scale: Node | None = None

    def _result(self) -> ValueType:
        return rules.fuse(self.guidance, types(self.preds), types(self.grads), self.scale and self.scale.type)


@dataclass(frozen=True, eq=False, repr=False)
class SamplerStep(Node, op="step"):
    """One step of a sampler on latents, or of a select rule on tokens.

    Without a table it takes one prediction and means what the rule means on the loop's schedule. With one, it is, row
    by row, ``R' = A R + B m + C z`` (docs/plan-format.md), where m are all branches of ``preds`` in order, then what a
    network says of its variance, and z is drawn at ``site``. A formula adds what is not linear; it reads ``extras``.
    """

    rule: Step
    state: Node
    preds: tuple[Node, ...]
    time: Node | None
    site: int
    table: StepTable | None = None
    formula: Formula | None = None
    extras: tuple[Node, ...] = ()

    def _result(self) -> Latent | Tokens:
        if self.time is not None:
            rules.expect(f"time of {self.rule}", self.time.type, v.Time)
        learned = bool(getattr(self.rule, "learns_variance", False))
        if learned:
            rules.says_variance(self.rule, [score.net for pred in self.preds for score in scores_of(pred)])
        for pred in self.preds:
            inner = [f.guidance for f in fusions_of(pred) if splits(f)][splits(pred) :]
            if inner:
                raise WrongOperand(
                    operand=f"{inner[0]} below other guidance",
                    expected="the whole prediction of a step",
                    got="a part of it",
                )
        branches = 1 if self.table is None else self.table.branches - learned - any(map(splits, self.preds))
        return rules.step(self.rule, self.state.type, types(self.preds), branches)


@dataclass(frozen=True, eq=False, repr=False)
class Inpaint(Node, op="inpaint"):
    """The state after a step, with the known part put back: mask * state + (1 - mask) * (alpha' known + sigma' noise).

    ``known`` is clean, ``mask`` is 1 where the state is generated and 0 where it is known, and (alpha', sigma') is the
    point at which the step ends.
    """

    state: Node
    known: Node
    mask: Node
    noise: Node
    time: Node

    def _result(self) -> Latent:
        return rules.inpaint(self.state.type, self.known.type, self.mask.type, self.noise.type, self.time.type)


@dataclass(frozen=True, eq=False, repr=False)
class Eligible(Node, op="eligible"):
    """The positions that a select rule may still write: masked ones in the active block."""

    rule: Select
    tokens: Node

    def _result(self) -> v.Mask:
        return v.Mask((rules.expect(f"tokens of {self.rule}", self.tokens.type, Tokens).length,))


@dataclass(frozen=True, eq=False, repr=False)
class Cache(Node, op="cache"):
    """An approximation the user asked for: ``value`` as it was when the policy last refreshed it."""

    policy: Policy
    value: Node

    def _result(self) -> ValueType:
        return self.value.type


# --- Numbers about a sample ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class LogProb(Node, op="log_prob"):
    """log p(x' | x) of a stochastic step: the log-density of what it drew, over all elements of a sample; 0 in a row
    that draws nothing."""

    step: Node

    def _result(self) -> v.Scalar:
        if not isinstance(self.step, SamplerStep) or not isinstance(self.step.type, Latent):
            raise WrongOperand(operand="the step of a log-probability", expected="a step on latents", got=self.step.op)
        return v.Scalar("per-sample")


@dataclass(frozen=True, eq=False, repr=False)
class Observe(Node, op="observe"):
    """What a folded step shows of itself at each turn of its loop; passes make it of what a loop emits.

    ``what`` is ``before`` or ``after`` (the state then), ``register`` (number ``index``, behind the step's first call),
    ``statistic`` (number ``index`` of its formula's observations) or ``log_prob`` (its noise is register ``index``).
    """

    step: Node
    what: str
    index: int

    def _result(self) -> Latent | v.Scalar:
        return rules.observe(self.step.type, self.what)


@dataclass(frozen=True, eq=False, repr=False)
class Norm(Node, op="norm"):
    """The Euclidean length of ``a``, or of ``a - b``, over all elements of a sample."""

    a: Node
    b: Node | None = None

    def _result(self) -> v.Scalar:
        return rules.norm(self.a.type, self.b and self.b.type)


@dataclass(frozen=True, eq=False, repr=False)
class Energy(Node, op="energy"):
    """The value of an energy at a clean sample, times its scale: a validator. A network is asked at time 0."""

    energy: EnergyTerm
    x: Node
    net: NetRef | None = None
    values: tuple[Node, ...] = ()

    def _result(self) -> v.Scalar:
        return rules.judged(self.net, self.x.type, types(self.values))


@dataclass(frozen=True, eq=False, repr=False)
class Within(Node, op="within"):
    """Whether a number about a sample is at most ``limit``."""

    value: Node
    limit: float

    def _result(self) -> v.Mask:
        return rules.within(self.value.type)


@dataclass(frozen=True, eq=False, repr=False)
class Unfinished(Node, op="unfinished"):
    """Whether a sample has not yet reached the end of its schedule, in a loop whose sampler chooses its own steps."""

    time: Node

    def _result(self) -> v.Mask:
        rules.expect("time of the loop", self.time.type, v.Time)
        return v.Mask(())


# --- Loops and what leaves ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Loop(Node, op="loop"):
    """A pass over a schedule. ``results`` and ``emits`` are its body, in terms of its LoopVars and its StepTime."""

    name: str
    schedule: Schedule
    init: tuple[Node, ...]
    results: tuple[Node, ...]
    emits: tuple[Node, ...] = ()

    def _result(self) -> v.Carry:
        return rules.loop(self.name, types(self.init), types(self.results))

    def _free_loops(self) -> frozenset[str]:
        return super()._free_loops() - {self.name}


@dataclass(frozen=True, eq=False, repr=False)
class While(Node, op="while"):
    """A loop that goes on while ``active`` holds anywhere at the start of a step, for at most ``max_iters`` steps.

    With a schedule, its sampler chooses its own steps between the ends of the schedule, for every sample by itself.
    """

    name: str
    max_iters: int
    init: tuple[Node, ...]
    results: tuple[Node, ...]
    active: Node
    emits: tuple[Node, ...] = ()
    schedule: Schedule | None = None

    def _result(self) -> v.Carry:
        rules.expect(f"condition of the loop {self.name}", self.active.type, v.Mask)
        return rules.loop(self.name, types(self.init), types(self.results))

    def _free_loops(self) -> frozenset[str]:
        return super()._free_loops() - {self.name}


@dataclass(frozen=True, eq=False, repr=False)
class Get(Node, op="get"):
    """Value number ``index`` of those that leave a loop."""

    loop: Node
    index: int

    def _result(self) -> ValueType:
        return rules.item(self.loop.type, self.index)


@dataclass(frozen=True, eq=False, repr=False)
class HeadDecode(Node, op="decode"):
    """A head of a network, applied to a state or to hidden features; ``rows`` limits it to some positions."""

    net: NetRef
    head: str
    x: Node
    rows: Node | None = None

    def _result(self) -> ValueType:
        return rules.decode(self.net, self.head, self.x.type, self.rows and self.rows.type)


@dataclass(frozen=True, eq=False, repr=False)
class Emit(Node, op="emit"):
    """An intermediate value as a named output; inside a loop, one per step."""

    name: str
    value: Node

    def _result(self) -> ValueType:
        return rules.emitted(self.name, self.value.type)


# --- Questions about predictions ----------------------------------------------------------------


def scores_of(pred: Node) -> Iterator[Score | Divergence]:
    """The evaluations of networks behind a prediction: through guidance, conversions, corrections and caches."""
    match pred:
        case Score() | Divergence():
            yield pred
        case FusedScore(preds=preds):
            for branch in preds:
                yield from scores_of(branch)
        case Convert(pred=inner) | Correct(pred=inner) | Cache(value=inner) | HeadDecode(x=inner):
            yield from scores_of(inner)
        case _:
            return


def moves_mean(grad: Node) -> bool:
    """Whether a gradient moves the mean of the step instead of the prediction."""
    return isinstance(grad, EnergyGrad) and getattr(grad.energy, "form", "eps") == "mean"


def fusions_of(pred: Node) -> Iterator[FusedScore]:
    """The fusions in a prediction, outermost first."""
    match pred:
        case FusedScore(preds=preds):
            yield pred
            for branch in preds:
                yield from fusions_of(branch)
        case Convert(pred=inner) | Correct(pred=inner) | Cache(value=inner):
            yield from fusions_of(inner)
        case _:
            return


def splits(pred: Node) -> bool:
    """Whether eps is to come from an answer of its own: the last branch of the outermost fusion (CFG++)."""
    while isinstance(pred, Correct):
        pred = pred.pred
    return isinstance(pred, FusedScore) and bool(getattr(pred.guidance, "splits", False))
