"""Small captures and the checks every tensor pass must stand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from scoregraph.passes.base import Fuel, Pass, PassResult
from scoregraph.passes.tensor.pipeline import PIPELINE

Forward = Callable[..., Tensor]


class Lambda(nn.Module):
    """A module from parts and a function of (parts, x)."""

    def __init__(self, function: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.parts, x)


class Lambda2(Lambda):
    """The same of (parts, x, y)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self.parts, x, y)


def capture(module: nn.Module, *example: Tensor) -> GraphModule:
    """Export with a dynamic batch (which is the first dimension of every input) and keep composite operators."""
    batch = Dim("B", max=63)
    with torch.no_grad():
        exported = torch.export.export(
            module.eval(), example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False
        )
    return exported.run_decompositions({}).module(check_guards=False)


def before(wanted: Pass[GraphModule], module: GraphModule) -> GraphModule:
    """What ``wanted`` sees in the pipeline: the program after all passes in front of its first place."""
    for each in PIPELINE:
        if each == wanted:
            return module
        module = each.run(module).module
    raise AssertionError(f"{wanted.name} is not in the pipeline")


def largest_difference(a: GraphModule, b: nn.Module, *inputs: Tensor) -> float:
    with torch.no_grad():
        x, y = a(*inputs), b(*inputs)
    assert x.shape == y.shape
    assert x.dtype == y.dtype
    return float((x - y).abs().max())


def run_and_check(wanted: Pass[GraphModule], module: GraphModule, *inputs: Tensor) -> PassResult[GraphModule]:
    """Run a pass; its program must compute the same at batch 1 and all, leave its argument alone, and be final."""
    text = str(module.graph)
    result = wanted.run(module)
    assert str(module.graph) == text, "the pass changed its argument"
    for n in (1, len(inputs[0])):
        assert largest_difference(result.module, module, *(each[:n] for each in inputs)) <= 1e-12
    again = wanted.run(result.module, Fuel())
    assert again.rewrites == 0, "a second run found more to do"
    assert result.rewrites == sum(result.counters.values())
    return result
