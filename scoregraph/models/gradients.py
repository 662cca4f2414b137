"""Derivatives of networks as tensor programs: modules that differentiate other modules, and how those are traced.

``torch.export`` does not see through autograd, ``make_fx`` does: it records what autograd runs, forward and backward,
as ATen operators over a symbolic batch. What it recorded goes the way of every other capture: cleaned, proved in
float64 against autograd itself, turned to float32. Operators of a backward pass that no kernel covers are written in
terms of those that one does (``backward.DECOMPOSITIONS``).

All derivatives are reverse-mode products v^T J, so one set of rules serves gradients of energies, gradients through a
score network, and divergences. Samples are independent (``capture`` has made sure), so the gradient of a sum over the
batch is the gradient of each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoregraph.errors import ImpureModule
from scoregraph.models import cleanup, trace_errors
from scoregraph.models.backward import DECOMPOSITIONS, RepeatedPixels
from scoregraph.models.capture import Trace, cleaned, explained, quiet


class EnergyGradient(nn.Module):
    """dE/dx of ``energy(x, t, *values) -> [n]``, or with ``rooted`` that of sqrt(2 E)."""

    def __init__(self, energy: nn.Module, *, rooted: bool = False) -> None:
        super().__init__()
        self.energy = energy
        self.rooted = rooted

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        """``x`` [n, *shape], ``t`` [n] and the values [n, …] to [n, *shape]."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = _level(self.energy(x, t, *values), rooted=self.rooted)
        return _product(value, x, torch.ones(x.shape[0], dtype=x.dtype, device=x.device))


class JointEnergyGradient(nn.Module):
    """d E(x0(x)) / dx with x0 = p x + q m(x): the gradient of an energy through a score network.

    ``conditions`` is how many of the inputs behind t are the score network's.
    """

    def __init__(self, score: nn.Module, energy: nn.Module, conditions: int, *, rooted: bool = False) -> None:
        super().__init__()
        self.score, self.energy = score, energy
        self.conditions, self.rooted = conditions, rooted

    def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        """``x`` [n, *shape] at the network's input, ``t`` [n], its conditions, the energy's time [n] and values, then p
        and q [n]; to the gradient in that x [n, *shape]."""
        encoded = rest[: self.conditions]
        energy_time, *values, p, q = rest[self.conditions :]
        p, q = (each.reshape(-1, *[1] * (x.ndim - 1)) for each in (p, q))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = p * x + q * _answer(self.score, x, t, *encoded)
            value = _level(self.energy(x0, energy_time, *values), rooted=self.rooted)
        return _product(value, x, torch.ones(x.shape[0], dtype=x.dtype, device=x.device))


class Divergence(nn.Module):
    """The answer m of a score network and the trace of its Jacobian dm/dx, exactly.

    Every sample is repeated D times, D the size of x, and row i asks for row i of the Jacobian: D evaluations and D
    backward passes, in one batch.
    """

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, t: Tensor, *encoded: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` [n, *shape], ``t`` [n] and the conditions to m [n, *shape] and the trace [n]."""
        n, shape = x.shape[0], x.shape[1:]
        size = math.prod(shape)

        def repeated(value: Tensor) -> Tensor:
            whole = value.unsqueeze(1).expand(n, size, *value.shape[1:])
            return whole.reshape(n * size, *value.shape[1:])

        identity = torch.eye(size, dtype=x.dtype, device=x.device)
        basis = identity.reshape(1, size, *shape).expand(n, size, *shape).reshape(n * size, *shape)
        with torch.enable_grad():
            rows = repeated(x).detach().requires_grad_()
            m = _answer(self.score, rows, repeated(t), *map(repeated, encoded))
        jacobian = _product(m, rows, basis).reshape(n, size, size)
        return m.detach().reshape(n, size, *shape)[:, 0], (jacobian * identity).sum((1, 2))


class ProbedDivergence(nn.Module):
    """The answer m of a score network and Hutchinson's estimate s^T (dm/dx) s of the trace of its Jacobian.

    s are the signs of the probe. Any s with E[s s^T] = 1 is unbiased, and signs have the least variance: none from the
    diagonal (Hutchinson 1990; Grathwohl et al. 2019, FFJORD).
    """

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` [n, *shape], ``t`` [n], the conditions, the probe [n, *shape] to m [n, *shape] and the estimate [n]."""
        *encoded, probe = rest
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            m = _answer(self.score, x, t, *encoded)
        signs = torch.where(probe < 0, -1.0, 1.0).to(x.dtype)
        return m.detach(), (_product(m, x, signs) * signs).flatten(1).sum(1)


def _answer(score: nn.Module, x: Tensor, t: Tensor, *encoded: Tensor) -> Tensor:
    """The prediction, without the variance that some networks answer in more channels."""
    return score(x, t, *encoded)[:, : x.shape[1]]


def _level(energy: Tensor, *, rooted: bool) -> Tensor:
    return (2 * energy).sqrt() if rooted else energy


def _product(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T dy/dx."""
    (gradient,) = torch.autograd.grad(y, x, v)
    return gradient.detach()


def differentiated(module: nn.Module, examples: Sequence[Tensor], name: str) -> Trace:
    """Trace a module that differentiates, at one batch size; a ``Tracer`` for ``capture``."""
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    inputs = [
        mode.from_tensor(
            value,
            # Equal sizes share a symbol under DUCK, so all inputs have one batch.
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DUCK, *[DimDynamic.STATIC] * (value.ndim - 1)]
            ),
            source=ConstantSource(f"input{i}"),
        )
        for i, value in enumerate(examples)
    ]

    def traced(function: Callable[..., Any], **options: Any) -> fx.GraphModule:
        return make_fx(
            function, tracing_mode="symbolic", _allow_non_fake_inputs=True, record_stack_traces=True, **options
        )(*inputs)

    try:
        # The mathematical form of attention is made of operators whose derivatives are covered.
        with quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), RepeatedPixels():
            graph = traced(module, decomposition_table=DECOMPOSITIONS)
            _refuse_written_constants(graph, name)
            if any(_is_mutable(node) for node in graph.graph.nodes):
                graph = traced(torch.func.functionalize(graph, remove="mutations"), decomposition_table=DECOMPOSITIONS)
    except ImpureModule:
        raise
    except Exception as error:
        raise explained(error, module, examples, name) from None
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # what export notes and make_fx does not
            node.meta["val"] = mode.from_tensor(cleanup.attribute(graph, str(node.target)), static_shapes=True)
    return cleaned(graph, examples[0].shape[0], name)


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _refuse_written_constants(graph: fx.GraphModule, name: str) -> None:
    """Raises ``ImpureModule`` where a parameter or buffer is written."""
    for node in graph.graph.nodes:
        written = node.args[0] if node.args else None
        if _is_mutable(node) and isinstance(written, fx.Node) and written.op == "get_attr":
            line = trace_errors.source_line(node)
            raise ImpureModule(name=name, problem=f"writes its buffer ({node.target})", where=line)
