"""A graph as a torch module: its ``forward`` is Python source with one line per node, so errors show the node."""

from __future__ import annotations

import hashlib
import itertools
import keyword
import linecache
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoregraph.models.onnx.graph import OPERATORS, OnnxGraph, Step
from scoregraph.models.onnx.values import tensor


class OnnxModule(nn.Module):
    """An ONNX graph in torch's operators, traced, moved and cast like any module.

    ``forward`` takes the graph's inputs by their names and answers its output, or a tuple of several. ``code`` is the
    source of ``forward``.
    """

    code: str
    unit: Tensor

    def extra_repr(self) -> str:
        """What tells two graphs of the same weights apart."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


def module(graph: OnnxGraph) -> OnnxModule:
    """The module of a graph. Constants that are data become buffers, numbers stand in the source."""
    names = _Names()
    arguments = [names[given.name] for given in graph.inputs]
    built = type("OnnxModule", (OnnxModule,), {"__module__": __name__})()
    buffers: dict[str, str] = {}
    lines = list(_lines(graph, names, built, buffers))
    outputs = [f"tensor({names[name]})" for name in graph.outputs]
    source = "\n    ".join(
        [f"def forward(self, {', '.join(arguments)}):", *lines, f"return {', '.join(outputs)}"]
    )  # fmt: skip
    built.code = source + "\n"
    built.register_buffer("unit", torch.ones(()))
    type(built).forward = _compiled(graph.name, built.code)
    return built.eval()


def _lines(graph: OnnxGraph, names: _Names, built: OnnxModule, buffers: dict[str, str]) -> Iterator[str]:
    """The statements of ``forward``; registers the constants they read."""

    def operand(step: Step, position: int) -> str:
        name = step.inputs[position]
        if name is None or name not in graph.constants:
            return "None" if name is None else names[name]
        value = graph.constant(step, position)
        if not isinstance(value, Tensor):
            return _literal(value)
        if name not in buffers:
            buffers[name] = names[name]
            built.register_buffer(buffers[name], value.contiguous())
        return f"self.{buffers[name]}"

    for step in graph.steps:
        given = [operand(step, position) for position in range(len(step.inputs))]
        given += [f"{key}={_literal(value)}" for key, value in step.keywords().items()]
        given += ["unit=self.unit"] if step.takes_unit else []
        results = ", ".join(names[name] if name else "_" for name in step.outputs)
        if "outputs" in step.keywords():
            results += ","
        yield f"{results} = {step.operator}({', '.join(given)})  # {_comment(step.name)}".rstrip("# ")


def _literal(value: Any) -> str:
    """Python source of a number, a text, a sequence or an array of one of them."""
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return f"float('{value}')"
    if isinstance(value, np.ndarray):
        return f"array({value.tolist()!r})"
    return repr(value)


def _comment(text: str) -> str:
    return re.sub(r"\s+", " ", text)


class _Names:
    """Python's names for the names of ONNX, which may hold any character."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.taken = {
            "self",
            "_",
            "unit",
            "forward",
            "code",
            "array",
            "float",
            *OPERATORS,
            *keyword.kwlist,
            *dir(nn.Module()),
        }

    def __getitem__(self, name: str) -> str:
        if name not in self.known:
            plain = re.sub(r"\W+", "_", name, flags=re.ASCII).lstrip("_") or "value"
            plain = f"v{plain}" if plain[0].isdigit() else plain
            free = (plain + (f"_{turn}" if turn else "") for turn in itertools.count())
            self.known[name] = next(each for each in free if each not in self.taken)
            self.taken.add(self.known[name])
        return self.known[name]


def _compiled(name: str, source: str) -> Callable[..., Any]:
    """The function, with its source where tracebacks look for it: a file of the graph's name that is not on disk."""
    filename = f"{name}.onnx"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {**OPERATORS, "array": np.array, "tensor": tensor}
    exec(compile(source, filename, "exec"), scope)
    return scope["forward"]
