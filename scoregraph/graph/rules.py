"""Typing rules of the nodes: what may be combined with what. Each raises its own error, without a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from scoregraph.errors import (
    BadOption,
    BranchCount,
    ContinuousInDiscrete,
    DiscreteInContinuous,
    MissingCondition,
    MixedPredictions,
    NoLearnedVariance,
    NoUnconditionalBranch,
    ShapeMismatch,
    SpaceMismatch,
    UnknownName,
    WrongOperand,
    WrongSpec,
)
from scoregraph.graph.prediction import Eps
from scoregraph.graph.spec import Spec
from scoregraph.graph.values import (
    Array,
    Carry,
    Cond,
    Decoded,
    Grad,
    Hidden,
    Latent,
    Logits,
    Mask,
    NetRef,
    Noise,
    Pred,
    Scalar,
    Start,
    Time,
    Tokens,
    ValueType,
    shape_text,
)

T = TypeVar("T", bound=ValueType)

FAMILY_HELP = {
    "schedule": "schedules are in sg.schedules: g.loop(sg.schedules.karras(steps=12), x)",
    "sampler": "samplers are in sg.samplers: step.advance(sg.samplers.ddim(), pred)",
    "guidance": "guidance rules are in sg.guidance: g.fuse(sg.guidance.cfg(1.5), cond, uncond)",
    "prediction": "predictions are in sg.predictions: g.convert(pred, step, sg.predictions.x0())",
    "select": "select rules are in sg.select",
    "cache": "cache policies are specs of the family 'cache'",
    "energy": "energies are in sg.energies: g.energy(sg.energies.classifier(2.0), step, label, net=classifier)",
    "correction": "corrections are in sg.corrections: g.correct(sg.corrections.clamp(), pred, step)",
    "formula": "a formula is made by a pass, from a rule",
}


def expect(operand: str, got: ValueType, *types: type[T]) -> T:
    """``got`` as one of ``types``."""
    if not isinstance(got, types):
        raise WrongOperand(operand=operand, expected=" or ".join(t.__name__ for t in types), got=got)
    return got


def family(spec: object, families: Sequence[str]) -> None:
    """A spec stands where its family belongs."""
    if not isinstance(spec, Spec) or spec.family not in families:
        got = f"the {spec.family} {spec}" if isinstance(spec, Spec) else repr(spec)
        raise WrongSpec(expected=" or ".join(families), got=got, help=FAMILY_HELP[families[0]])
    for option, value in spec.options().items():
        if not is_plain(value):
            raise BadOption(spec=spec.name, option=option, value=repr(value), got=type(value).__name__)


def is_plain(value: object) -> bool:
    """Whether an option prints and parses back: a number, a text, None, or a tuple of such."""
    if isinstance(value, tuple):
        return all(is_plain(item) for item in cast("tuple[object, ...]", value))
    return value is None or type(value) in (bool, int, float, str)


def same_latent(operand: str, expected: Latent, got: Latent) -> None:
    """Two latents are of one space and one shape."""
    if expected.space != got.space:
        raise SpaceMismatch(operand=operand, expected=expected.space, got=got.space)
    same_shape(operand, expected.shape, got.shape)


def same_shape(operand: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
    """Two shapes are one."""
    if expected != got:
        raise ShapeMismatch(operand=operand, expected=shape_text(expected), got=shape_text(got))


def same_state(operand: str, expected: Latent | Tokens, got: ValueType) -> None:
    """A value is a state of the kind ``expected``."""
    if isinstance(expected, Latent):
        same_latent(operand, expected, expect(operand, got, Latent))
    else:
        tokens = expect(operand, got, Tokens)
        same_shape(operand, (expected.length, expected.vocab), (tokens.length, tokens.vocab))


def condition(net: NetRef, values: Sequence[ValueType]) -> Cond:
    """No values mean the unconditional branch; otherwise one per condition of the network, in its order."""
    if not values:
        for cond in net.conds:
            if cond.null is None:
                raise NoUnconditionalBranch(net=net.name, cond=cond.name)
        return Cond(net.name)
    if len(values) < len(net.conds):
        raise MissingCondition(net=net.name, missing=net.conds[len(values)].name)
    if len(values) > len(net.conds):
        known = [cond.name for cond in net.conds]
        raise UnknownName(kind=f"condition of {net.name}", name=f"number {len(known) + 1}", known=known)
    for cond, value in zip(net.conds, values, strict=True):
        array = expect(f"condition {cond.name!r} of {net.name}", value, Array)
        same_shape(f"condition {cond.name!r} of {net.name}", cond.shape, array.shape)
        if array.dtype != cond.dtype:
            raise WrongOperand(operand=f"condition {cond.name!r} of {net.name}", expected=cond.type, got=array)
    return Cond(net.name)


def score(net: NetRef, x: ValueType, time: ValueType | None, conds: Sequence[ValueType]) -> Pred | Logits | Hidden:
    """A network reads a state of its own kind, the time unless it has none, and one condition per branch."""
    if net.energy:
        raise WrongOperand(operand="the network of a score", expected="one that predicts", got=f"the energy {net.name}")
    same_state(f"x of {net.name}", net.latent, x)
    if time is not None:
        expect(f"time of {net.name}", time, Time)
    elif net.time != "none":
        raise WrongOperand(operand=f"time of {net.name}", expected="Time", got="nothing")
    if not conds:
        raise MissingCondition(net=net.name, missing=net.conds[0].name if net.conds else "its branch")
    for cond in conds:
        if expect(f"condition of {net.name}", cond, Cond).net != net.name:
            raise WrongOperand(operand=f"condition of {net.name}", expected=Cond(net.name), got=cond)
    return net.answer(len(conds))


def fuse(
    guidance: Spec, preds: Sequence[ValueType], grads: Sequence[ValueType], scale: ValueType | None
) -> Pred | Logits | Hidden:
    """All branches say the same kind of thing; their number is what the rule weighs; gradients are of their latent."""
    answers = [expect(f"branch {i} of {guidance}", pred, Pred, Logits, Hidden) for i, pred in enumerate(preds)]
    expected: object = getattr(guidance, "branches", len(answers))
    got = sum(answer.branches for answer in answers)
    if expected != got or not answers:
        raise BranchCount(rule=guidance, expected=expected, got=got)
    first, *others = (single(answer) for answer in answers)
    for other in others:
        if other != first:
            raise MixedPredictions(guidance=guidance, first=first, other=other)
    for grad in grads:
        gradient = expect("gradient", grad, Grad)
        if not isinstance(first, Pred):
            raise WrongOperand(operand="a branch that gradients are added to", expected="a Pred", got=first)
        same_latent("gradient", first.latent, gradient.latent)
    if scale is not None:
        expect(f"scale of {guidance}", scale, Scalar)
        if not hasattr(guidance, "scale") or not getattr(guidance, "is_linear", True):
            rule = "the rule of a scale that is given from outside"
            raise WrongOperand(operand=rule, expected="linear in its scale, such as cfg", got=guidance)
    return first


def single(answer: Pred | Logits | Hidden) -> Pred | Logits | Hidden:
    """The answer of one branch."""
    if isinstance(answer, Pred):
        return Pred(answer.prediction, answer.latent)
    if isinstance(answer, Logits):
        return Logits(answer.length, answer.vocab)
    return Hidden(answer.length, answer.width)


def step(rule: Spec, state: ValueType, preds: Sequence[ValueType], branches: int) -> Latent | Tokens:
    """A sampler moves a latent by predictions of it, a select rule moves tokens by logits: by ``branches`` of them.

    A step that several answers move is a folded one, whose table knows what each of them means: any parameterization,
    or a gradient.
    """
    if rule.family == "sampler":
        if isinstance(state, Tokens):
            raise DiscreteInContinuous(sampler=rule, got=state)
        moved = expect(f"state of {rule}", state, Latent)
    else:
        if isinstance(state, Latent):
            raise ContinuousInDiscrete(rule=rule, got=state)
        moved = expect(f"state of {rule}", state, Tokens)
    answers = [_step_answer(rule, moved, pred) for pred in preds if branches == 1 or not isinstance(pred, Grad)]
    got = sum(answer.branches for answer in answers) + len(preds) - len(answers)
    if got != branches:
        raise BranchCount(rule=rule, expected=branches, got=got)
    return moved


def says_variance(rule: Spec, nets: Sequence[NetRef]) -> None:
    """A sampler with a learned variance reads it from the first network."""
    if not nets or not nets[0].variance:
        raise NoLearnedVariance(sampler=rule, net=nets[0].name if nets else "the network")


def _step_answer(rule: Spec, state: Latent | Tokens, answer: ValueType) -> Pred | Logits:
    operand = f"prediction for {rule}"
    if isinstance(state, Latent):
        if isinstance(answer, Logits | Hidden):
            raise DiscreteInContinuous(sampler=rule, got=answer)
        pred = expect(operand, answer, Pred)
        same_latent(operand, state, pred.latent)
        return pred
    if isinstance(answer, Pred):
        raise ContinuousInDiscrete(rule=rule, got=answer)
    logits = expect(operand, answer, Logits)
    same_shape(operand, (state.length, state.vocab), (logits.length, logits.vocab))
    return logits


def convert(to: Spec, pred: ValueType, x: ValueType, time: ValueType) -> Pred:
    """A prediction of x in another parameterization."""
    source = expect("prediction to convert", pred, Pred)
    same_latent("latent of the conversion", source.latent, expect("latent of the conversion", x, Latent))
    expect("time of the conversion", time, Time)
    return Pred(to, source.latent, source.branches)


def correct(rule: Spec, pred: ValueType, x: ValueType, time: ValueType) -> Pred:
    """A prediction of x stays what it is when the clean sample in it is corrected."""
    corrected = expect(f"prediction for {rule}", pred, Pred)
    same_latent(f"latent of {rule}", corrected.latent, expect(f"latent of {rule}", x, Latent))
    expect(f"time of {rule}", time, Time)
    return corrected


def clean_sample(operand: str, latent: Latent, got: ValueType) -> None:
    """A clean sample of a latent's kind: a latent, or the raw numbers of one."""
    found = expect(operand, got, Latent, Array)
    if isinstance(found, Latent):
        same_latent(operand, latent, found)
    else:
        floats(operand, found)
        same_shape(operand, latent.shape, found.shape)


def floats(operand: str, array: Array) -> None:
    """Raw numbers that a sampler can compute with."""
    if array.dtype != "f32":
        raise WrongOperand(operand=operand, expected=Array("f32", array.shape), got=array)


def renoise(x: ValueType, noise: ValueType) -> Start:
    """A clean sample and noise of one latent."""
    latent = expect("noise of the start", noise, Noise).latent
    clean_sample("clean sample of the start", latent, x)
    return Start(latent)


def inpaint(state: ValueType, known: ValueType, mask: ValueType, noise: ValueType, time: ValueType) -> Latent:
    """Known parts are of the state's latent; the mask has its rank, and each of its sizes is the latent's, or 1."""
    latent = expect("state of the inpainting", state, Latent)
    clean_sample("known part of the inpainting", latent, known)
    same_latent("noise of the inpainting", latent, expect("noise of the inpainting", noise, Noise).latent)
    expect("time of the inpainting", time, Time)
    array = expect("mask of the inpainting", mask, Array)
    floats("mask of the inpainting", array)
    sizes = zip(array.shape, latent.shape, strict=False)
    if len(array.shape) != len(latent.shape) or any(size not in (1, full) for size, full in sizes):
        same_shape("mask of the inpainting (or 1 for a size)", latent.shape, array.shape)
    return latent


OBSERVED = ("before", "after", "register", "statistic", "log_prob")


def observe(step: ValueType, what: str) -> Latent | Scalar:
    """A state or a register of a step is a latent, a statistic one number per sample."""
    moved = expect("the step that is observed", step, Latent)
    if what not in OBSERVED:
        raise UnknownName(kind="observation", name=what, known=OBSERVED)
    return Scalar("per-sample") if what in ("statistic", "log_prob") else moved


def energy(net: NetRef | None, x: ValueType, values: Sequence[ValueType]) -> Latent:
    """An energy reads a latent and raw values: those its network takes, if it has one."""
    latent = expect("x of the energy", x, Latent)
    if net is None:
        for i, value in enumerate(values):
            expect(f"value {i} of the energy", value, Array, Latent, Scalar)
        return latent
    if not net.energy:
        raise WrongOperand(operand="the network of an energy", expected="an energy", got=f"the network {net.name}")
    same_state(f"x of {net.name}", net.latent, latent)
    if len(values) != len(net.conds):
        names = ", ".join(cond.name for cond in net.conds) or "nothing"
        raise WrongOperand(
            operand=f"what {net.name} reads", expected=f"x and {names}", got=f"x and {len(values)} value(s)"
        )
    if values:
        condition(net, values)
    return latent


def judged(net: NetRef | None, x: ValueType, values: Sequence[ValueType]) -> Scalar:
    """An energy of a finished sample; a network that reads time is told that of a clean sample, 0."""
    energy(net, x, values)
    if net is not None and net.time == "c_noise":
        raise WrongOperand(
            operand=f"the time of {net.name}", expected="a number at sigma = 0", got="c_noise, which is -infinity there"
        )
    return Scalar("per-sample")


def norm(a: ValueType, b: ValueType | None) -> Scalar:
    """The length of one value, or of the difference of two of one shape."""
    shape = _vector("value of a norm", a)
    if b is not None:
        same_shape("second value of a norm", shape, _vector("second value of a norm", b))
    return Scalar("per-sample")


def _vector(operand: str, value: ValueType) -> tuple[int, ...]:
    found = expect(operand, value, Latent, Pred, Grad, Noise, Array)
    if isinstance(found, Pred) and found.branches > 1:
        raise WrongOperand(operand=operand, expected="a Pred of one branch", got=found)
    return found.shape if isinstance(found, Latent | Array) else found.latent.shape


def divergence(net: NetRef, x: ValueType, time: ValueType, cond: ValueType, probe: ValueType | None) -> Pred:
    """How a network's flow stretches volume, as the prediction that moves a log-density: one number, in kappa space."""
    pred = expect(f"answer of {net.name}", score(net, x, time if net.time != "none" else None, [cond]), Pred)
    expect("time of the divergence", time, Time)
    if probe is not None:
        same_latent("probe of the divergence", pred.latent, expect("probe of the divergence", probe, Noise).latent)
    return Pred(Eps(), Latent("kappa", (1,)))


def within(value: ValueType) -> Mask:
    """One yes or no per sample."""
    expect("value to compare with a limit", value, Scalar)
    return Mask(())


def decode(net: NetRef, head: str, x: ValueType, rows: ValueType | None) -> Decoded | Logits:
    """A head makes its shape of a state of its network; the head of a token network makes logits of hidden features."""
    found = net.head(head)
    if found is None:
        raise UnknownName(kind=f"head of {net.name}", name=head, known=[h.name for h in net.heads])
    if rows is not None:
        expect(f"rows of {net.name}.{head}", rows, Mask)
    if isinstance(x, Hidden) and isinstance(net.latent, Tokens):
        same_shape(f"input of {net.name}.{head}", (net.latent.length, net.width or 0), (x.length, x.width))
        return Logits(net.latent.length, net.latent.vocab, x.branches)
    same_state(f"input of {net.name}.{head}", net.latent, x)
    return Decoded(found.shape)


def standalone(name: str, of: ValueType) -> ValueType:
    """A type that an input or a loop's variable can have: not a bundle, and not the time of another loop."""
    if isinstance(of, Carry | Time):
        raise WrongOperand(operand=name, expected="a value of its own", got=of)
    return of


def emitted(name: str, value: ValueType) -> ValueType:
    """What a loop can record: a value that means something to the caller."""
    if isinstance(value, Carry | Time | Cond):
        raise WrongOperand(operand=f"emitted value {name!r}", expected="a value a caller could use", got=value)
    return value


def carried(init: ValueType) -> ValueType:
    """The type of a loop's variable that starts with ``init``: noise, alone or on a clean sample, becomes a latent."""
    return init.latent if isinstance(init, Noise | Start) else init


def loop(name: str, init: Sequence[ValueType], results: Sequence[ValueType]) -> Carry:
    """What a loop carries keeps its type from one step to the next."""
    if len(init) != len(results) or not init:
        raise WrongOperand(operand=f"results of the loop {name}", expected=f"{len(init)} values", got=len(results))
    for index, (start, result) in enumerate(zip(init, results, strict=True)):
        standalone(f"value {index} of the loop {name}", start)
        if carried(start) != result:
            raise WrongOperand(operand=f"result {index} of the loop {name}", expected=carried(start), got=result)
    return Carry(tuple(results))


def item(values: ValueType, index: int) -> ValueType:
    """One of the values that leave a loop."""
    items = expect("a loop", values, Carry).items
    if not 0 <= index < len(items):
        raise UnknownName(kind="result of the loop", name=str(index), known=[str(i) for i in range(len(items))])
    return items[index]
