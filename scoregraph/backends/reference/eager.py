"""The sampling graph itself, interpreted node by node in torch: what a graph means before any pass has touched it.

Steps without a table follow the papers (``textbook``); steps with one follow it row by row. So a graph before and after
every graph pass can be run and compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scoregraph.backends.reference import textbook
from scoregraph.backends.reference.noise import normals
from scoregraph.backends.reference.textbook import Point, Walk
from scoregraph.errors import MissingInput, UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.graph import Graph
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Grid, Schedule
from scoregraph.graph.table import StepTable

DTYPES = {"i64": torch.int64, "u8": torch.uint8}


class Module(Protocol):
    """A torch module or function."""

    def __call__(self, *args: Tensor) -> Any:
        """Its value."""
        ...


class Network(Protocol):
    """The modules of a network, as ``scoregraph.models.Network`` holds them."""

    @property
    def score(self) -> Module:
        """(x [n, …], t [n], *encoded conditions) -> m [n, …]."""
        ...

    @property
    def encoder(self) -> Module | None:
        """(*raw conditions [B, …]) -> encoded ones; None passes them on."""
        ...

    @property
    def heads(self) -> Mapping[str, Module]:
        """By name, (x [B, …]) -> decoded."""
        ...


def run(
    graph: Graph,
    networks: Mapping[str, Network],
    inputs: Mapping[str, np.ndarray],
    seeds: np.ndarray,
    dtype: torch.dtype = torch.float64,
) -> dict[str, np.ndarray]:
    """The outputs of ``graph`` by name, [B, …]; a value emitted in a loop is [B, steps, …].

    Args:
        graph: any stage of graph passes.
        networks: by the names of the graph's networks; modules are copied to ``dtype``.
        inputs: by name, [B, …].
        seeds: uint64 [B].
        dtype: torch.float64 or torch.float32.

    Raises:
        MissingInput: a value is missing.
        UncoveredNode: a node of discrete sampling, an energy or a cache; they have no interpretation here yet.
    """
    interpreter = _Interpreter(graph, networks, inputs, torch.from_numpy(seeds.view(np.int64).copy()), dtype)
    with torch.no_grad():
        outputs = {name: interpreter.value(node, interpreter.root) for name, node in graph.outputs}
    return {name: value.numpy() for name, value in {**outputs, **interpreter.emitted()}.items()}


@dataclass(frozen=True)
class Moment:
    """Where a network is called: loop step ``step`` at point ``index`` of the grid, or a row of a table.

    A step may call the network at its first point and at its last; a table tells the row's own point.
    """

    grid: Grid
    step: int
    index: int
    table: StepTable | None = None
    row: int = 0

    def time(self, net: v.NetRef) -> float:
        """What the network is told."""
        if self.table is not None:
            return self.table.values("t")[self.row]
        return self.grid.times(net.time)[self.index]

    def point(self, space: str) -> Point:
        """alpha and sigma in the space of a latent."""
        if self.table is not None:
            alpha, sigma = self.table.values("alpha")[self.row], self.table.values("sigma")[self.row]
            norm = {"vp": math.hypot(alpha, sigma), "flow": alpha + sigma, "kappa": alpha}[space]
            return Point(alpha / norm, sigma / norm)
        grid = self.grid.in_space(space)
        return Point(grid.alpha[self.index], grid.sigma[self.index])

    def c_in(self, net: v.NetRef) -> float:
        """The factor on x at the network's input."""
        if self.table is not None:
            return self.table.values("c_in")[self.row]
        assert isinstance(net.latent, v.Latent), "only latents are scaled"
        assert isinstance(net.prediction, Prediction), "a network of latents has a prediction"
        point = self.point(net.latent.space)
        return net.prediction.c_in(point.alpha, point.sigma)


@dataclass
class Scope:
    """Values that hold while a loop stands at one moment; what does not depend on the loop is kept further out."""

    loop: str | None
    outer: Scope | None
    known: dict[n.Node, Any] = field(default_factory=dict[n.Node, Any])

    def holder(self, node: n.Node) -> Scope:
        """The outermost scope in which the value of ``node`` is fixed."""
        if self.loop is None or self.loop in node.free or self.outer is None:
            return self
        return self.outer.holder(node)


@dataclass
class _Interpreter:
    graph: Graph
    networks: Mapping[str, Network]
    inputs: Mapping[str, np.ndarray]
    seeds: Tensor
    dtype: torch.dtype
    root: Scope = field(default_factory=lambda: Scope(None, None))
    records: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    converted: dict[int, Any] = field(default_factory=dict[int, Any])

    @property
    def batch(self) -> int:
        return len(self.seeds)

    def emitted(self) -> dict[str, Tensor]:
        return {name: torch.stack(values, dim=1) for name, values in self.records.items()}

    def value(self, node: n.Node, scope: Scope) -> Any:
        """The value of a node, computed once where it is fixed: tensors [B, …], one per branch for predictions."""
        holder = scope.holder(node)
        if node not in holder.known:
            holder.known[node] = self._value(node, holder)
        return holder.known[node]

    def _value(self, node: n.Node, scope: Scope) -> Any:
        match node:
            case n.Input():
                return self._input(node)
            case n.Constant():
                kind = DTYPES.get(node.of.dtype, self.dtype) if isinstance(node.of, v.Array) else self.dtype
                shape = node.of.shape if isinstance(node.of, v.Array) else ()
                return torch.full((self.batch, *shape), node.value).to(kind)
            case n.Condition():
                return self._condition(node, scope)
            case n.Noise():
                return self._noise(node.latent, node.site, 0)
            case n.Score():
                return self._score(node, scope)
            case n.FusedScore():
                return [self._fuse(node, scope)]
            case n.Convert():
                return self._convert(node, scope)
            case n.Loop():
                return self._loop(node, scope)
            case n.Get():
                return self.value(node.loop, scope)[node.index]
            case n.HeadDecode(rows=None):
                head = self._module(self.networks[node.net.name].heads[node.head])
                return head(self.value(node.x, scope))
            case n.Emit():
                value = self.value(node.value, scope)
                return value[0] if isinstance(value, list) else value
            case _:
                raise self._refusal(node, f"the reference does not interpret {node.op} nodes")

    def _refusal(self, node: n.Node, reason: str) -> UncoveredNode:
        where = self.graph.place(node)
        return UncoveredNode(
            node=node.op, device="reference", reason=reason, help="leave it out of the graph", where=where
        )

    def _module(self, module: Any) -> Any:
        """A torch module in the interpreter's precision; other callables as they are."""
        if not isinstance(module, nn.Module):
            return module
        if id(module) not in self.converted:
            self.converted[id(module)] = copy.deepcopy(module).to(self.dtype).eval()
        return self.converted[id(module)]

    # --- what enters ---------------------------------------------------------------------------

    def _input(self, node: n.Input) -> Tensor:
        if node.name not in self.inputs:
            raise MissingInput(name=node.name, known=", ".join(given.name for given in self.graph.inputs))
        given = torch.from_numpy(np.asarray(self.inputs[node.name]).copy())
        return given.to(self.dtype) if given.is_floating_point() else given

    def _noise(self, latent: v.Latent, site: int, micro: int) -> Tensor:
        z = normals(self.seeds, site, micro, torch.Size(latent.shape).numel())
        return z.reshape(self.batch, *latent.shape).to(self.dtype)

    def _condition(self, node: n.Condition, scope: Scope) -> tuple[Tensor, ...]:
        """The encoded conditions; without values, those of the null condition."""
        raw: list[Tensor] = []
        for i, cond in enumerate(node.net.conds):
            kind = DTYPES.get(cond.dtype, self.dtype)
            if node.values:
                raw.append(self.value(node.values[i], scope).to(kind))
            else:
                assert cond.null is not None, "the graph's rules refuse a null condition that does not exist"
                raw.append(torch.full((self.batch, *cond.shape), cond.null).to(kind))
        encoder = self.networks[node.net.name].encoder
        encoded = tuple(raw) if encoder is None else self._module(encoder)(*raw)
        return encoded if isinstance(encoded, tuple) else (encoded,)

    # --- predictions: a list of one tensor per branch -------------------------------------------

    def _score(self, node: n.Score, scope: Scope) -> list[Tensor]:
        if not isinstance(node.net.latent, v.Latent):
            raise self._refusal(node, "the reference does not interpret networks of tokens")
        x = self.value(node.x, scope)
        moment = self._moment(node, scope)
        t = torch.full((self.batch,), moment.time(node.net), dtype=self.dtype)
        x = moment.c_in(node.net) * x
        network = self._module(self.networks[node.net.name].score)
        return [network(x, t, *self.value(cond, scope)) for cond in node.conds]

    def _fuse(self, node: n.FusedScore, scope: Scope) -> Tensor:
        if node.grads or not isinstance(node.guidance, Guidance):
            raise self._refusal(node, "the reference does not interpret gradients")
        answers = [answer for pred in node.preds for answer in self.value(pred, scope)]
        moment = self._moment(node, scope)
        point = moment.point("vp")
        where = (moment.step, moment.grid.steps, point.alpha, point.sigma)
        if node.scale is None:
            rows = [node.guidance.weights(*where)]
        else:
            scales = self.value(node.scale, scope).tolist()
            rows = [replace(node.guidance, scale=scale).weights(*where) for scale in scales]
        weights = torch.tensor(rows, dtype=self.dtype)
        mixed = torch.zeros_like(answers[0])
        for k, answer in enumerate(answers):
            mixed = mixed + weights[:, k].reshape(-1, *[1] * (answer.dim() - 1)) * answer
        return mixed

    def _moment(self, node: n.Node, scope: Scope) -> Moment:
        """The moment at which the networks behind ``node`` are called; the loop's own for those without a time."""
        for operand in node.operands:
            if isinstance(operand.type, v.Time):
                return self.value(operand, scope)
        for operand in node.operands:
            if isinstance(operand, n.Score | n.FusedScore | n.Convert):
                return self._moment(operand, scope)
        if scope.loop is None:
            raise self._refusal(node, "it stands outside of loops, where there is no noise level")
        return self.value(n.StepTime(scope.loop), scope)

    def _convert(self, node: n.Convert, scope: Scope) -> list[Tensor]:
        source = node.pred.type
        assert isinstance(source, v.Pred)
        assert isinstance(node.to, Prediction)
        x, moment = self.value(node.x, scope), self.value(node.time, scope)
        point = moment.point(source.latent.space)
        (p, q), (p_eps, q_eps) = node.to.to_x0(point.alpha, point.sigma), node.to.to_eps(point.alpha, point.sigma)
        converted: list[Tensor] = []
        for m in self.value(node.pred, scope):
            x0 = textbook.clean(source.prediction, m, x, point)
            eps = (x - point.alpha * x0) / point.sigma
            # Both equations determine the answer; the one with the larger factor does not divide by a small number.
            converted.append((x0 - p * x) / q if abs(q) > abs(q_eps) else (eps - p_eps * x) / q_eps)
        return converted

    # --- loops ----------------------------------------------------------------------------------

    def _loop(self, node: n.Loop, scope: Scope) -> list[Any]:
        if not isinstance(node.schedule, Schedule):
            raise self._refusal(node, "the reference interprets continuous schedules")
        grid = node.schedule.grid()
        carry = [self._start(node, i, grid, scope) for i in range(len(node.init))]
        memory: dict[int, dict[str, Any]] = {i: {} for i in range(len(node.results))}
        for step in range(grid.steps):
            body = self._body(node, carry, scope, Moment(grid, step, step))
            for emit in node.emits:
                assert isinstance(emit, n.Emit)
                self.records.setdefault(emit.name, []).append(self.value(emit, body))
            moved: list[Any] = []
            for i, result in enumerate(node.results):
                if isinstance(result, n.SamplerStep):
                    moved.append(self._step(node, result, carry, scope, Moment(grid, step, step), memory[i]))
                else:
                    moved.append(self.value(result, body))
            carry = moved
        return carry

    def _start(self, node: n.Loop, i: int, grid: Grid, scope: Scope) -> Any:
        """What a loop begins with; noise is scaled to the first noise level."""
        value = self.value(node.init[i], scope)
        kind = node.init[i].type
        if not isinstance(kind, v.Noise):
            return value
        result = node.results[i]
        if isinstance(result, n.SamplerStep) and result.table is not None:
            return result.table.init_scale * value
        first = Moment(grid, 0, 0).point(kind.latent.space)
        return (1.0 if kind.latent.space == "vp" else first.sigma) * value

    def _body(self, node: n.Loop, carry: list[Any], scope: Scope, moment: Moment) -> Scope:
        """A scope in which the loop's variables have the values of ``carry`` at ``moment``."""
        known: dict[n.Node, Any] = {n.StepTime(node.name): moment}
        for i, value in enumerate(carry):
            known[n.LoopVar(node.name, i, _carried(node.init[i].type))] = value
        return Scope(node.name, scope, known)

    def _step(
        self, loop: n.Loop, step: n.SamplerStep, carry: list[Any], scope: Scope, moment: Moment, memory: dict[str, Any]
    ) -> Tensor:
        if not isinstance(step.rule, Sampler) or not isinstance(step.state, n.LoopVar):
            raise self._refusal(step, "the reference interprets samplers of the loop's own state")
        latent = step.state.type
        assert isinstance(latent, v.Latent)
        at = step.state.index

        def answers(x: Tensor, here: Moment) -> list[Tensor]:
            """The predictions at another state and moment, everything else of the step being as it is."""
            body = self._body(loop, [*carry[:at], x, *carry[at + 1 :]], scope, here)
            return [answer for pred in step.preds for answer in self.value(pred, body)]

        if step.table is not None:
            return self._rows(step, step.table, carry[at], latent, moment, memory, answers)

        there = replace(moment, index=moment.index + 1)
        source = step.preds[0].type
        assert isinstance(source, v.Pred)
        micro = memory.setdefault("micro", [0])

        def denoise(x: Tensor, point: Point) -> Tensor:
            here = moment if point == moment.point(latent.space) else there
            micro[0] += 1
            return textbook.clean(source.prediction, answers(x, here)[0], x, point)

        walk = Walk(
            x=carry[at],
            here=moment.point(latent.space),
            there=there.point(latent.space),
            denoise=denoise,
            # Noise belongs to the network call before it.
            noise=lambda: self._noise(latent, step.site, micro[0] - 1),
            prediction=source.prediction,
            memory=memory,
        )
        return textbook.STEPS[step.rule.name](step.rule, walk)

    def _rows(
        self,
        step: n.SamplerStep,
        table: StepTable,
        x: Tensor,
        latent: v.Latent,
        moment: Moment,
        memory: dict[str, Any],
        answers: Any,
    ) -> Tensor:
        """The rows of one loop step: R' = A R + B m + C z."""
        registers: list[Tensor] = memory.setdefault("registers", [torch.zeros_like(x) for _ in table.registers])
        registers[0] = x
        for row in (row for row, at in enumerate(table.steps) if at == moment.step):
            m = answers(registers[0], replace(moment, table=table, row=row))
            a, b, c = table.matrices(row)
            z = self._noise(latent, step.site, row) if c.any() else torch.zeros_like(x)
            registers[:] = [
                sum(
                    (float(a[j, i]) * registers[i] for i in range(len(registers))),
                    sum((float(b[j, k]) * m[k] for k in range(len(m))), float(c[j]) * z),
                )
                for j in range(len(registers))
            ]
        return registers[0]


def _carried(kind: v.ValueType) -> v.ValueType:
    """The type of a loop variable that starts as ``kind``."""
    return kind.latent if isinstance(kind, v.Noise) else kind
