"""Rewriting what exporters took apart: constants, products with weights, group and layer norms, GELU, attention.

A graph that went through ONNX has lost its large operators: a group norm is an instance norm between two reshapes,
times a weight, plus a bias. Each function here finds one such form around a step. They match structure and *measured*
shapes: a graph is evaluated at two batch sizes before, so that a size is known, or known to grow with the batch.
Whether all of it is right is not left to them: the importer evaluates the graph before and after, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scoregraph.models.onnx.graph import OnnxGraph, Step, apply
from scoregraph.models.onnx.values import Value

Shapes = dict[str, tuple[tuple[int, ...], ...]]
"""The shape of every value at each of the batch sizes that were tried."""


def fold_constants(graph: OnnxGraph) -> OnnxGraph:
    """Compute the steps that depend on no input."""
    constants = dict(graph.constants)
    steps: list[Step] = []
    folded = OnnxGraph(graph.name, graph.inputs, graph.outputs, constants, steps)
    unit = torch.ones(())
    for step in graph.steps:
        if not all(name is None or name in constants for name in step.inputs):
            steps.append(step)
            continue
        operands = [None if name is None else folded.constant(step, i) for i, name in enumerate(step.inputs)]
        for name, value in zip(step.outputs, apply(step, operands, unit, graph.name), strict=False):
            constants[name] = _array(value)
    return folded


def _array(value: Value) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.contiguous().numpy()
    first = value[0] if isinstance(value, tuple) and value else value
    kind = np.bool_ if isinstance(first, bool) else np.float32 if isinstance(first, float) else np.int64
    return np.asarray(value, kind)


@dataclass
class _Web:
    """A graph with its edges: who makes a value and who reads it."""

    graph: OnnxGraph
    shapes: Shapes

    def __post_init__(self) -> None:
        self.makers = {name: step for step in self.graph.steps for name in step.outputs}
        self.readers: dict[str, list[Step]] = {}
        for step in self.graph.steps:
            for name in step.inputs:
                if name is not None:
                    self.readers.setdefault(name, []).append(step)

    def maker(self, name: str | None, operator: str) -> Step | None:
        """The step that makes a value, if it is of that operator."""
        step = self.makers.get(name or "")
        return step if step is not None and step.operator == operator else None

    def reader(self, name: str, *operators: str) -> Step | None:
        """The only step that reads a value, if it is one of those operators and the value is no output."""
        found = self.readers.get(name, [])
        if name in self.graph.outputs or len(found) != 1 or found[0].operator not in operators:
            return None
        return found[0]

    def array(self, name: str | None) -> np.ndarray | None:
        """A constant."""
        return self.graph.constants.get(name or "")

    def number(self, name: str | None) -> float | None:
        """A constant of one element."""
        array = self.array(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def other(self, step: Step, name: str) -> str | None:
        """The other operand of a binary step, None if both are the same."""
        rest = [each for each in step.inputs if each != name]
        return rest[0] if len(rest) == 1 and len(step.inputs) == 2 else None

    def keep(self, name: str, array: np.ndarray) -> str:
        """Add a constant; returns its name."""
        while name in self.graph.constants or name in self.makers:
            name += "_"
        self.graph.constants[name] = array
        return name

    def replace(self, old: Step, new: Step) -> None:
        """Put a step in the place of another one, whose output it makes; what only fed that one dies later."""
        index = next(i for i, step in enumerate(self.graph.steps) if step is old)
        self.graph.steps[index] = new
        self.__post_init__()


def _linear(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """``x W (+ b)`` with constant W [K, N], b [N]."""
    weight = web.array(step.inputs[1]) if step.operator == "MatMul" else None
    if weight is None or weight.ndim != 2 or step.inputs[0] in web.graph.constants:
        return None
    last, bias = step, None
    if (add := web.reader(step.outputs[0], "Add")) is not None:
        other = web.other(add, step.outputs[0])
        array = web.array(other)
        if array is not None and array.shape == (weight.shape[1],):
            last, bias = add, other
    turned = web.keep(f"{step.inputs[1]}_transposed", np.ascontiguousarray(weight.T))
    inputs = [step.inputs[0], turned, *([bias] if bias else [])]
    return last, Step("Linear", inputs, last.outputs, name=step.name)


def _group_norm(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """Reshape to [n, groups, rest], InstanceNormalization by 1 and 0, Reshape back, Mul, Add."""
    if step.operator != "InstanceNormalization":
        return None
    scale, shift = web.array(step.inputs[1]), web.array(step.inputs[2])
    split = web.maker(step.inputs[0], "Reshape")
    back = web.reader(step.outputs[0], "Reshape")
    if split is None or back is None or scale is None or shift is None or (scale != 1).any() or shift.any():
        return None
    source, grouped = split.inputs[0] or "", web.shapes[split.outputs[0]]
    shapes = web.shapes[source]
    whole = web.shapes[back.outputs[0]] == shapes and all(len(each) >= 3 for each in shapes)
    if not whole or any(g[0] != x[0] for g, x in zip(grouped, shapes, strict=True)):
        return None
    channels, groups = shapes[0][1], grouped[0][1]
    last: Step = back
    parameters: list[np.ndarray] = []
    for operator, neutral in (("Mul", 1.0), ("Add", 0.0)):
        reader = web.reader(last.outputs[0], operator)
        array = web.array(web.other(reader, last.outputs[0])) if reader is not None else None
        if reader is None or array is None or not _per_channel(array, channels, len(shapes[0])):
            parameters.append(np.full(channels, neutral, np.float32))
        else:
            parameters.append(np.broadcast_to(array.reshape(-1), (channels,)).copy())
            last = reader
    names = [web.keep(f"{step.outputs[0]}_{role}", array) for role, array in zip("wb", parameters, strict=True)]
    attributes = {"num_groups": groups, "epsilon": step.attributes.get("epsilon", 1e-5)}
    return last, Step("GroupNormalization", [source, *names], last.outputs, attributes, step.name)


def _per_channel(array: np.ndarray, channels: int, rank: int) -> bool:
    """Whether a constant [C, 1, …] or [1, C, 1, …] or a single number goes along the channels of an image."""
    spatial = (1,) * (rank - 2)
    return array.shape in ((channels, *spatial), (1, channels, *spatial)) or array.size == 1


def _layer_norm(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """``(x - mean) / sqrt(mean((x - mean)²) + eps)``, times a weight, plus a bias: before opset 17."""
    if step.operator != "Div" or (centred := web.maker(step.inputs[0], "Sub")) is None:
        return None
    root = web.maker(step.inputs[1], "Sqrt")
    raised = web.maker(root.inputs[0], "Add") if root else None
    variance = next((m for name in raised.inputs if (m := web.maker(name, "ReduceMean"))), None) if raised else None
    mean = web.maker(centred.inputs[1], "ReduceMean")
    if raised is None or variance is None or mean is None or mean.inputs[0] != centred.inputs[0]:
        return None
    epsilon = web.number(web.other(raised, variance.outputs[0]))
    square = web.makers.get(variance.inputs[0] or "")
    squared = square is not None and (
        (square.operator == "Mul" and square.inputs == [centred.outputs[0]] * 2)
        or (square.operator == "Pow" and _same(web, square.inputs[0], centred) and web.number(square.inputs[1]) == 2)
    )
    source = centred.inputs[0] or ""
    rank = len(web.shapes[source][0])
    if not squared or epsilon is None or any(_axes(web, each) not in ([-1], [rank - 1]) for each in (mean, variance)):
        return None
    width = web.shapes[source][0][-1]
    last, parameters = step, []
    for operator, neutral in (("Mul", 1.0), ("Add", 0.0)):
        reader = web.reader(last.outputs[0], operator)
        other = web.other(reader, last.outputs[0]) if reader is not None else None
        array = web.array(other)
        if reader is None or other is None or array is None or array.shape != (width,):
            parameters.append(web.keep(f"{step.outputs[0]}_{operator}", np.full(width, neutral, np.float32)))
        else:
            parameters.append(other)
            last = reader
    return last, Step("LayerNormalization", [source, *parameters], last.outputs, {"epsilon": epsilon}, step.name)


def _same(web: _Web, name: str | None, step: Step) -> bool:
    """Whether a value is a step's, or that of another subtraction of the same operands, as old exporters write it."""
    maker = web.maker(name, step.operator)
    return maker is not None and maker.inputs == step.inputs


def _axes(web: _Web, step: Step) -> list[int]:
    given = web.array(step.inputs[1]) if len(step.inputs) > 1 else step.attributes.get("axes")
    return [] if given is None or not step.attributes.get("keepdims", 1) else [int(axis) for axis in given]


def _transposed_keys(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """[n, H, S, D] → [n H, S, D] → [n H, D, S] → [n, H, D, S] swaps two axes, and needs no reshape for it."""
    if step.operator != "Transpose" or step.attributes.get("perm") != [0, 2, 1]:
        return None
    merge, split = web.maker(step.inputs[0], "Reshape"), web.reader(step.outputs[0], "Reshape")
    if merge is None or split is None:
        return None
    source = merge.inputs[0] or ""
    before, after, merged = (web.shapes[name] for name in (source, split.outputs[0], merge.outputs[0]))
    for x, y, m in zip(before, after, merged, strict=True):
        if len(x) < 3 or y != (*x[:-2], x[-1], x[-2]) or m[1:] != x[-2:]:
            return None
    rank = len(before[0])
    order = [*range(rank - 2), rank - 1, rank - 2]
    return split, Step("Transpose", [source], split.outputs, {"perm": order}, step.name)


def _plain_number(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """An operand [1] or [1, 1, …] of arithmetic is a number, which passes move where a tensor has to stay."""
    if step.operator not in ("Add", "Sub", "Mul", "Div", "Pow"):
        return None
    for place, name in enumerate(step.inputs):
        array, other = web.array(name), step.inputs[1 - place] or ""
        if array is None or array.size != 1 or array.ndim == 0 or array.dtype.kind != "f" or other not in web.shapes:
            continue
        if array.ndim <= len(web.shapes[other][0]):
            inputs = list(step.inputs)
            inputs[place] = web.keep(f"{name}_number", array.reshape(()))
            return step, Step(step.operator, inputs, step.outputs, step.attributes, step.name)
    return None


def _number_after_reshape(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """``reshape(s q)`` in front of a product of matrices is ``s reshape(q)``, whose s the product takes in."""
    if step.operator != "Reshape" or web.reader(step.outputs[0], "MatMul", "Einsum") is None:
        return None
    product = web.maker(step.inputs[0], "Mul")
    if product is None or web.reader(product.outputs[0], "Reshape") is not step:
        return None
    number = next((name for name in product.inputs if web.number(name) is not None), None)
    source = None if number is None else web.other(product, number)
    if source is None:
        return None
    shaped = f"{step.outputs[0]}_unscaled"
    before = Step("Reshape", [source, step.inputs[1]], [shaped], step.attributes, step.name)
    web.graph.steps.insert(next(i for i, each in enumerate(web.graph.steps) if each is step), before)
    web.shapes[shaped] = web.shapes[step.outputs[0]]
    return step, Step("Mul", [shaped, number], step.outputs, name=product.name)


def _softmax_with_nan(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """``Where(IsNaN(softmax), 0, softmax)``, which exporters write for rows that are masked whole, is the softmax.

    A query that may attend to nothing is then NaN instead of 0: loud, where the graph's answer is only quiet.
    """
    if step.operator != "Where" or web.number(step.inputs[1]) != 0:
        return None
    softmax, test = web.maker(step.inputs[2], "Softmax"), web.maker(step.inputs[0], "IsNaN")
    if softmax is None or test is None or test.inputs[0] != softmax.outputs[0]:
        return None
    return step, Step("Identity", [softmax.outputs[0]], step.outputs, name=step.name)


_SCALAR = ("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Erf", "Tanh", "Reciprocal")
_POINTS = torch.linspace(-6.0, 6.0, 193, dtype=torch.float64)


def _gelu(web: _Web, step: Step) -> tuple[Step, Step] | None:
    """GELU in whatever order of products: recognised by its values, as a function of one of the values before it."""
    if step.operator not in ("Erf", "Tanh"):
        return None
    approximate = "none" if step.operator == "Erf" else "tanh"
    expected = functional.gelu(_POINTS, approximate=approximate)
    for source in _ancestors(web, step):
        for name, value in _functions_of(web, source).items():
            if value.shape == expected.shape and float((value - expected).abs().max()) < 2e-6:
                last = web.makers[name]
                return last, Step("Gelu", [source], last.outputs, {"approximate": approximate}, step.name)
    return None


def _ancestors(web: _Web, step: Step) -> list[str]:
    """The values that a step is computed from by a few operations with numbers, the nearest first."""
    found: list[str] = []
    waiting = [name for name in step.inputs if name is not None]
    while waiting and len(found) < 8:
        name = waiting.pop(0)
        if name in found or name in web.graph.constants:
            continue
        found.append(name)
        maker = web.makers.get(name)
        if maker is not None and maker.operator in _SCALAR:
            waiting += [each for each in maker.inputs if each is not None]
    return found


def _functions_of(web: _Web, source: str) -> dict[str, Tensor]:
    """The values that depend on ``source`` and numbers alone, for ``_POINTS`` in its place."""
    values: dict[str, Value] = {source: _POINTS}
    waiting = list(web.readers.get(source, []))
    while waiting and len(values) < 24:
        step = waiting.pop(0)
        if step.operator not in _SCALAR or step.outputs[0] in values:
            continue
        operands = [values.get(name or "", web.number(name)) for name in step.inputs]
        if any(operand is None for operand in operands):
            continue  # of another value too, or of one that comes later and asks again
        (values[step.outputs[0]],) = apply(step, operands, _POINTS, web.graph.name)
        waiting += web.readers.get(step.outputs[0], [])
    del values[source]
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


_PATTERNS: tuple[Callable[[_Web, Step], tuple[Step, Step] | None], ...] = (
    _plain_number,
    _group_norm,
    _layer_norm,
    _gelu,
    _transposed_keys,
    _number_after_reshape,
    _softmax_with_nan,
    _linear,
)


def simplify(graph: OnnxGraph, shapes: Shapes) -> dict[str, int]:
    """Apply every pattern in place and drop what nobody reads any more; returns how often each one applied."""
    counts: dict[str, int] = {}
    for pattern in _PATTERNS:
        web = _Web(graph, shapes)
        for step in list(graph.steps):
            if web.makers[step.outputs[0]] is not step:
                continue  # another rewrite of this pattern has taken its place
            found = pattern(web, step)
            if found is not None:
                web.replace(*found)
                kind = pattern.__name__.removeprefix("_")
                counts[kind] = counts.get(kind, 0) + 1
        drop_unread(graph)  # a dead step still counts as a reader
    return counts


def drop_unread(graph: OnnxGraph) -> None:
    """Drop the steps and constants that no output needs."""
    needed = set(graph.outputs)
    kept: list[Step] = []
    for step in reversed(graph.steps):
        if needed.intersection(step.outputs):
            kept.append(step)
            needed.update(name for name in step.inputs if name is not None)
    graph.steps[:] = kept[::-1]
    for name in graph.constants.keys() - needed:
        del graph.constants[name]
