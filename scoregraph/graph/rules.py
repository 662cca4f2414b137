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
    NoUnconditionalBranch,
    ShapeMismatch,
    SpaceMismatch,
    UnknownName,
    WrongOperand,
    WrongSpec,
)
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
    "energy": "energies are specs of the family 'energy'",
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
    """All branches say the same kind of thing; their number is what the rule weighs; gradients come on top of eps."""
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
        if not isinstance(first, Pred) or first.prediction.name not in ("eps", "score"):
            raise WrongOperand(operand="a branch that gradients are added to", expected="an eps or a score", got=first)
        same_latent("gradient", first.latent, gradient.latent)
    if scale is not None:
        expect(f"scale of {guidance}", scale, Scalar)
    return first


def single(answer: Pred | Logits | Hidden) -> Pred | Logits | Hidden:
    """The answer of one branch."""
    if isinstance(answer, Pred):
        return Pred(answer.prediction, answer.latent)
    if isinstance(answer, Logits):
        return Logits(answer.length, answer.vocab)
    return Hidden(answer.length, answer.width)


def step(rule: Spec, state: ValueType, preds: Sequence[ValueType], branches: int) -> Latent | Tokens:
    """A sampler moves a latent by predictions of it, a select rule moves tokens by logits: by ``branches`` of them."""
    if rule.family == "sampler":
        if isinstance(state, Tokens):
            raise DiscreteInContinuous(sampler=rule, got=state)
        moved = expect(f"state of {rule}", state, Latent)
    else:
        if isinstance(state, Latent):
            raise ContinuousInDiscrete(rule=rule, got=state)
        moved = expect(f"state of {rule}", state, Tokens)
    answers = [_step_answer(rule, moved, pred) for pred in preds]
    got = sum(answer.branches for answer in answers)
    if got != branches:
        raise BranchCount(rule=rule, expected=branches, got=got)
    for answer in answers[1:]:
        if single(answer) != single(answers[0]):
            raise MixedPredictions(guidance=rule, first=single(answers[0]), other=single(answer))
    return moved


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


def carried(init: ValueType) -> ValueType:
    """The type of a loop's variable that starts with ``init``: noise becomes a latent at the first noise level."""
    return init.latent if isinstance(init, Noise) else init


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
