"""What networks say, and what guidance, conversions, corrections and energies make of it; one tensor per branch.

Everything is computed as it is defined: a prediction is taken apart into x0 and eps, changed there, and put together
again; gradients are autograd's, through the torch modules themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from scoregraph.backends.reference import textbook
from scoregraph.backends.reference.elementwise import evaluate
from scoregraph.backends.reference.frame import spread
from scoregraph.backends.reference.moments import Interpreter, Moment, Scope
from scoregraph.backends.reference.vectors import Vector
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.corrections import Correction
from scoregraph.graph.energies import Energy, Measurement
from scoregraph.graph.expression import Expr, constant, operand, trace
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.mixture import At
from scoregraph.graph.prediction import Prediction


def moment_of(run: Interpreter, node: n.Node, scope: Scope) -> Moment:
    """The moment at which the networks behind ``node`` are called; the loop's own for those without a time."""
    for given in node.operands:
        if isinstance(given.type, v.Time):
            return run.value(given, scope)
    for given in node.operands:
        if isinstance(given.type, v.Pred):
            return moment_of(run, given, scope)
    if scope.loop is None:
        raise run.refusal(node, "it stands outside of loops, where there is no noise level")
    return run.value(n.StepTime(scope.loop), scope)


def score(run: Interpreter, node: n.Score, scope: Scope) -> list[Tensor]:
    """The answers of a network, without what it says of its variance."""
    channels = node.x.type.shape[0] if isinstance(node.x.type, v.Latent) else 0
    return [answer[:, :channels] for answer in answers(run, node, scope)]


def variance(run: Interpreter, pred: n.Node, scope: Scope) -> Tensor:
    """What the first branch of the first network says of its variance: as many channels again as its prediction."""
    first = next(found for found in n.scores_of(pred) if isinstance(found, n.Score))
    answer = answers(run, first, scope)[0]
    return answer[:, answer.shape[1] // 2 :]


def answers(run: Interpreter, node: n.Score, scope: Scope) -> list[Tensor]:
    """All that a network says, per branch."""
    net = node.net
    if not isinstance(net.latent, v.Latent):
        raise run.refusal(node, "the reference does not interpret networks of tokens")
    moment = moment_of(run, node, scope)
    x = moment.c_in(net) * run.value(node.x, scope)
    t = torch.full((run.batch,), moment.time(net), dtype=run.dtype)
    network = run.module(run.networks[net.name].score)
    return [network(x, t, *run.value(cond, scope)) for cond in node.conds]


# --- Parameterizations --------------------------------------------------------------------------


def _parts(run: Interpreter, pred: n.Node, x: n.Node, scope: Scope) -> tuple[list[Tensor], Tensor, textbook.Point]:
    """The x0 of every branch of a prediction, the state and the point."""
    kind = pred.type
    assert isinstance(kind, v.Pred)
    state: Tensor = run.value(x, scope)
    point = moment_of(run, pred, scope).point(kind.latent.space)
    return [textbook.clean(kind.prediction, m, state, point) for m in run.value(pred, scope)], state, point


def convert(run: Interpreter, node: n.Convert, scope: Scope) -> list[Tensor]:
    """The same x0 and eps in another parameterization."""
    cleans, x, point = _parts(run, node.pred, node.x, scope)
    return [textbook.answer(node.to, x0, x, point) for x0 in cleans]


def correct(run: Interpreter, node: n.Correct, scope: Scope) -> list[Tensor]:
    """The prediction whose x0 is what the rule makes of it."""
    assert isinstance(node.rule, Correction)
    assert isinstance(node.type, v.Pred)
    cleans, x, point = _parts(run, node.pred, node.x, scope)
    corrected = [corrected_by(node.rule, x0) for x0 in cleans]
    return [textbook.answer(node.type.prediction, x0, x, point) for x0 in corrected]


def corrected_by(rule: Correction, x0: Tensor) -> Tensor:
    """rule(x0), element by element, with the quantiles of |x0| over each sample that it asks for."""
    asked: list[float] = []

    def quantile(q: float) -> Expr:
        asked.append(q)
        return operand(len(asked))

    formula = rule.apply(operand(0), quantile)
    program, (result,) = trace([formula], operands=1 + len(asked))
    quantiles = [torch.quantile(x0.abs().flatten(1), q, dim=1) for q in asked]
    given = [x0, *(spread(q, x0).expand_as(x0) for q in quantiles)]
    return evaluate(program, given, {"const": lambda value: torch.full_like(x0, value)})[result]


# --- Guidance -----------------------------------------------------------------------------------


def fuse(run: Interpreter, node: n.FusedScore, scope: Scope) -> Tensor:
    """All branches as one prediction, then the gradients of energies."""
    rule = node.guidance
    if not isinstance(rule, Guidance):
        raise run.refusal(node, f"{rule} is no guidance rule")
    assert isinstance(node.type, v.Pred)
    branches = [answer for pred in node.preds for answer in run.value(pred, scope)]
    moment = moment_of(run, node, scope)
    point = moment.point(node.type.latent.space)
    where = (moment.step, moment.grid.steps, point.alpha, point.sigma)
    if node.scale is not None:
        scales = run.value(node.scale, scope).tolist()
        rows = [replace(rule, scale=scale).weights(*where) for scale in scales]  # pyright: ignore[reportCallIssue]
    else:
        rows = [rule.weights(*where)]
    weights = [row for row in rows if row is not None]
    if node.scale is not None and len(weights) < len(rows):
        raise run.refusal(node, f"{rule.name} has no scale that could be an input")
    mixed = _weighted(weights, branches) if weights else _combined(node, rule, branches, where, scope)
    for grad in node.grads:
        if not n.moves_mean(grad):
            mixed = _steered(run, node, grad, mixed, point, scope)
    return mixed


def _weighted(rows: list[tuple[float, ...]], branches: list[Tensor]) -> Tensor:
    """sum_k w_k m_k, with one row of weights for all samples or one for each."""
    weights = torch.tensor(rows, dtype=branches[0].dtype)
    total = torch.zeros_like(branches[0])
    for k, answer in enumerate(branches):
        total = total + spread(weights[:, k], answer) * answer
    return total


def _combined(
    node: n.Node, rule: Guidance, branches: list[Tensor], where: tuple[int, int, float, float], scope: Scope
) -> Tensor:
    """What a rule's own arithmetic makes of the branches."""
    numbers: list[Tensor] = []
    before = scope.memory.get(node, {})
    nothing = torch.zeros_like(branches[0])
    at = At(
        alpha=constant(where[2]),
        sigma=constant(where[3]),
        memory=cast(Any, {name: Vector(before.get(name, nothing), numbers) for name in rule.memory()}),
        numbers={name: constant(number) for name, number in rule.numbers(*where).items()},
    )
    made = cast(Vector, rule.combine(cast(Any, tuple(Vector(answer, numbers) for answer in branches)), at))
    scope.remembered[node] = {name: cast(Vector, kept).value for name, kept in at.kept.items()}
    return made.value


# --- Energies -----------------------------------------------------------------------------------


def _steered(
    run: Interpreter, fusion: n.FusedScore, grad: n.Node, m: Tensor, point: textbook.Point, scope: Scope
) -> Tensor:
    """The prediction with eps' = eps + sigma * scale * gradient at the same x."""
    assert isinstance(grad, n.EnergyGrad)
    assert isinstance(grad.energy, Energy)
    assert isinstance(fusion.type, v.Pred)
    prediction = fusion.type.prediction
    assert isinstance(prediction, Prediction)
    x: Tensor = run.value(grad.x, scope)
    x0 = textbook.clean(prediction, m, x, point)
    change = point.sigma * grad.energy.scale * run.value(grad, scope)
    return textbook.answer(prediction, x0 - point.sigma / point.alpha * change, x, point)


def energy_grad(run: Interpreter, node: n.EnergyGrad, scope: Scope) -> Tensor:
    """The gradient, by autograd: in x, in x0, or in x through the network that says x0."""
    energy, x = node.energy, run.value(node.x, scope)
    assert isinstance(energy, Energy)
    time = 0.0 if node.net is None else moment_of(run, node, scope).time(node.net)
    with torch.enable_grad():
        if energy.wrt == "x":
            at = level = x.detach().requires_grad_()
        else:
            assert node.pred is not None, "an energy of clean samples has a prediction"
            at = x.detach().requires_grad_(energy.through)
            (level,), _, _ = _parts(run, node.pred, node.x, scope.with_state(node.x, at))
            if not energy.through:
                at = level = level.detach().requires_grad_()
        value = energy_of(run, node, level, time, scope)
        if energy.rooted:
            value = torch.sqrt(2.0 * value)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return gradient.detach()


def energy_of(run: Interpreter, node: n.EnergyGrad | n.Energy, x: Tensor, time: float, scope: Scope) -> Tensor:
    """E(x, t, values) per sample, without its scale."""
    values = [run.value(value, scope) for value in node.values]
    if node.net is not None:
        t = torch.full((run.batch,), time, dtype=run.dtype)
        return run.module(run.networks[node.net.name].energy)(x, t, *values)
    if not isinstance(node.energy, Measurement) or len(values) != 1:
        raise run.refusal(node, f"{node.energy} has no network that computes it")
    return 0.5 * (values[0] - x).flatten(1).square().sum(dim=1)


# --- Likelihoods --------------------------------------------------------------------------------


def divergence(run: Interpreter, node: n.Divergence, scope: Scope) -> Tensor:
    """-div eps(X) with X = x / alpha, [B, 1]: the trace of the Jacobian, or s . J s with the signs s of the probe."""
    x: Tensor = run.value(node.x, scope)
    point = moment_of(run, node, scope).point(cast(v.Latent, node.net.latent).space)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        seen = scope.with_state(node.x, at)
        (m,) = score(run, n.Score(node.net, node.x, node.time, (node.cond,)), seen)
        x0 = textbook.clean(node.net.prediction, m, at, point)
        eps = ((at - point.alpha * x0) / point.sigma).flatten(1)
        if node.probe is not None:
            probe = torch.where(run.value(node.probe, scope) < 0, -1.0, 1.0).to(run.dtype).flatten(1)
            (product,) = torch.autograd.grad((eps * probe).sum(), at)
            total = (product.flatten(1) * probe).sum(dim=1)
        else:
            total = torch.zeros(run.batch, dtype=run.dtype)
            for e in range(eps.shape[1]):
                (row,) = torch.autograd.grad(eps[:, e].sum(), at, retain_graph=True)
                total = total + row.flatten(1)[:, e]
    return -point.alpha * total.detach()[:, None]
