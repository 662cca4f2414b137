"""A function of tensors as a tensor program, and the same function as a plan on the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from scoregraph.backends.reference import Reference
from scoregraph.passes.base import run_passes
from scoregraph.passes.lower.program import lower_program
from scoregraph.passes.plan.pipeline import plan_passes
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec
from scoregraph.plan.text import plan_text

aten = torch.ops.aten


def fused(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
    """One node that calls a fused operation, while a function is traced."""
    tracer = next(a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)).tracer
    return tracer.create_proxy("call_function", function, args, kwargs)


class _Program(nn.Module):
    def __init__(self, function: Callable[..., Any], weights: Sequence[Tensor], arity: int) -> None:
        super().__init__()
        for i, weight in enumerate(weights):
            self.register_buffer(f"w{i}", weight)
        self.function, self.weights, self.arity = function, len(weights), arity

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs[: self.arity], *(getattr(self, f"w{i}") for i in range(self.weights)))


def program(function: Callable[..., Any], arity: int = 1, weights: Sequence[Tensor] = ()) -> fx.GraphModule:
    """``function(*inputs, *weights)`` of ATen operators, as a graph."""
    root = _Program(function, weights, arity)
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    inputs = [fx.Proxy(graph.placeholder(f"x{i}"), tracer) for i in range(arity)]
    held = [fx.Proxy(graph.get_attr(f"w{i}"), tracer) for i in range(len(weights))]
    graph.output(fx.node.map_aggregate(function(*inputs, *held), lambda p: p.node if isinstance(p, fx.Proxy) else p))
    return fx.GraphModule(root, graph)


def lower(module: fx.GraphModule, shapes: Sequence[Sequence[int]], dtypes: Sequence[str] | None = None) -> Draft:
    """The draft plan of a tensor program with inputs ``x0``, ``x1`` … [B, *shape] and outputs ``y0``, ``y1`` …."""
    drafter = Drafter("program", "reference")
    drafter.begin("once")
    values = []
    for i, shape in enumerate(shapes):
        value = drafter.new((Batch(), *shape), (dtypes or ["f32"] * len(shapes))[i], f"x{i}")
        drafter.inputs.append(InputSpec(name=f"x{i}", buffer=int(value.storage[1:])))
        values.append(value)
    for i, made in enumerate(lower_program(drafter, module, values, "net")):
        whole = drafter.dense(drafter.as_buffer(made), f"y{i}")
        drafter.outputs.append(OutputSpec(name=f"y{i}", buffer=int(drafter.ref(whole)[1:])))
    return drafter.build()


def check(
    function: Callable[..., Any],
    *shapes: Sequence[int],
    weights: Sequence[Tensor] = (),
    tolerance: float = 1e-12,
    integers: int | None = None,
) -> list[str]:
    """Function and plan agree in float64 at batches 1, 2 and 3, also in shared memory. Returns the plan's ops.

    ``integers``: the last input is int64 below this number.
    """
    module = program(function, len(shapes), weights)
    dtypes = ["f32"] * len(shapes)
    if integers is not None:
        dtypes[-1] = "i64"
    draft = lower(module, shapes, dtypes)
    planned, _ = run_passes(plan_passes("reference"), draft, show=lambda d: plan_text(d.plan))
    generator = torch.Generator().manual_seed(len(shapes))
    for batch in (1, 2, 3):
        inputs = [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        if integers is not None:
            inputs[-1] = torch.randint(0, integers, (batch, *shapes[-1]), generator=generator)
        with torch.no_grad():
            expected = module.double()(*inputs)
        expected = expected if isinstance(expected, tuple | list) else [expected]
        for each, memory in ((draft, False), (planned, True)):
            plan, constants = files.lay_out(each.plan, each.arrays)
            given = {f"x{i}": value.numpy() for i, value in enumerate(inputs)}
            backend = Reference("float64", planned=memory)
            made = backend.compile(plan, constants).run(given, np.arange(batch, dtype=np.uint64))
            for i, value in enumerate(expected):
                got = torch.from_numpy(made[f"y{i}"])
                assert got.shape == value.shape, f"{tuple(got.shape)}, torch has {tuple(value.shape)}"
                error = float((got - value).abs().max()) if value.numel() else 0.0
                assert error <= tolerance * max(1.0, float(value.abs().max())), f"batch {batch}: {error}"
    return [call.op for segment in draft.plan.segments for call in segment.calls]
