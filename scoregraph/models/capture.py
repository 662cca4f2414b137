"""Capture: a torch module becomes a tensor program, an ``fx.GraphModule`` over ATen operators with a symbolic batch.

The module is exported in float64, so that what was captured can be compared with what was given to ten digits, and
is turned to float32 only after that proof (a module of ``LARGE`` size is taken as it is, in float32). ``capture``
refuses what ``torch.export`` narrows or specialises in silence:

* the batch. Every condition on the batch size that tracing met is tried on small sizes and on those around the numbers
  it names, up to ``LARGEST_BATCH``; a size that takes another branch is traced too, and must give the same program.
  Size 1, which tracing always excludes, is proved by value.
* the samples. A sample's answer must not depend on its neighbours.
* the state. A module that draws random numbers or writes its buffers is not a function of its inputs.

How a module is traced is a parameter: ``exported`` is for modules as users write them, ``gradients.differentiated`` for
those that differentiate others. Everything else holds for both.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from scoregraph.errors import (
    CaptureFailed,
    CaptureMismatch,
    DataDependentFlow,
    ImpureModule,
    MixedSamples,
    NarrowBatch,
    WrongExample,
)
from scoregraph.models import cleanup, trace_errors
from scoregraph.models.functional import functionalized

LARGEST_BATCH = 4096
TRACED_BATCH = 3
PROVED_BATCHES = (1, 2)
TOLERANCE = 1e-10
"""The largest error allowed between module and program in float64, relative to the largest magnitude of the output."""
LARGE = 200_000_000
"""From so many parameters on, a module is traced and proved in float32: its copy in float64 would not fit beside it."""
LARGE_TOLERANCE = 1e-4
"""The largest error allowed then: two orders of additions of a deep network in float32."""

_VARIANTS = 8


@dataclass(frozen=True)
class CaptureReport:
    """What capture met, did and proved."""

    name: str
    seconds: float
    batch: tuple[int, int | None]
    """The batch sizes that the program serves; None is no bound."""
    traced: tuple[int, ...]
    """The batch sizes that were traced because the module asks for its batch size; all gave one program."""
    conditions: tuple[str, ...]
    """The conditions on the batch size that the module's code holds, with their source lines."""
    proved: dict[int, float]
    """The relative error between module and program, by batch size."""
    precision: str
    """The arithmetic in which it was measured: float64, or float32 for a large module."""
    operators: dict[str, int]
    dropped: dict[str, int]
    """Nodes without effect that were taken out, by operator."""
    folded: int
    """Constants computed at capture from operators that depend on no input."""

    def __str__(self) -> str:
        high = "any" if self.batch[1] is None else self.batch[1]
        lines = [
            f"{self.name}: {sum(self.operators.values())} calls of {len(self.operators)} operators, "
            f"{self.seconds:.1f} s",
            f"  batch {self.batch[0]} to {high}, traced at {', '.join(map(str, self.traced))}",
            *(f"  asks for its batch size: {condition}" for condition in self.conditions),
            f"  error in {self.precision}: "
            + ", ".join(f"{error:.1e} at batch {n}" for n, error in self.proved.items()),
            f"  {sum(self.dropped.values())} nodes without effect dropped, {self.folded} constants folded",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Trace:
    """One trace: its cleaned graph in float64, the batch it was traced at and the conditions it holds under."""

    module: fx.GraphModule
    batch: int
    guards: tuple[trace_errors.Guard, ...]
    dropped: Counter[str]

    def covers(self, batch: int) -> bool:
        """Whether the traced branch is the one taken at this batch size."""
        return all(guard.holds(batch) for guard in self.guards)


Tracer = Callable[[nn.Module, Sequence[Tensor], str], Trace]
"""Traces a float64 module on example inputs of one batch size; the string names it in errors."""


@dataclass(frozen=True, eq=False)
class TensorProgram:
    """A captured module: ``module(*inputs)`` gives one tensor (derivatives may give a tuple); every input and output
    starts with the batch.

    Floats are float32 throughout (``copy.deepcopy(module).double()`` gives the same program in float64), parameters
    and folded constants are ``get_attr`` nodes, and ``node.meta["val"]`` holds shapes over one symbolic batch.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    report: CaptureReport

    def __call__(self, *inputs: Tensor) -> Any:
        """The module's answer to inputs in the order of ``inputs``."""
        with torch.no_grad():
            return self.module(*inputs)


def capture(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    name: str = "module",
    prove_at: Sequence[int] = PROVED_BATCHES,
    trace: Tracer | None = None,
) -> TensorProgram:
    """The tensor program of ``module(*example_inputs)``, proved equal to it in float64 at the batches ``prove_at``.

    Examples are tensors with the batch in front (any size, one size for all); integers stay integers. The module
    is not changed. Its output may be a tensor, a tuple (its first tensor), or a dataclass or mapping (``sample``,
    else the first tensor). ``trace`` is ``exported`` unless given; another tracer keeps every tensor of a tuple.

    Raises ``WrongExample``, ``CaptureFailed``, ``DataDependentFlow``, ``NarrowBatch``, ``MixedSamples``,
    ``ImpureModule`` and ``CaptureMismatch``.
    """
    start = time.perf_counter()
    _check_examples(example_inputs, name)
    large = sum(parameter.numel() for parameter in module.parameters()) >= LARGE
    dtype, tolerance = (torch.float32, LARGE_TOLERANCE) if large else (torch.float64, TOLERANCE)
    twin = module.eval() if large else _double_twin(module)
    originals = dict(zip(map(Tensor.data_ptr, twin.parameters()), module.parameters(), strict=True))
    compared = _first if trace is None else _all

    def examples_of(batch: int) -> list[Tensor]:
        return [batched(value, batch, dtype) for value in example_inputs]

    answers = _answers(twin, examples_of, prove_at, name, compared, tolerance)
    if trace is None:
        trace = exported
        if not all(isinstance(answer, Tensor) for answer in answers.values()):
            twin = _FirstTensor(twin)
    first = trace(twin, examples_of(TRACED_BATCH), name)
    variants = [first, *_other_variants(trace, twin, examples_of, first, name)]
    graph = first.module
    folded = cleanup.fold_constants(graph)
    proved = _prove(graph, examples_of, answers, name, compared, tolerance)
    del twin, answers
    cleanup.to_single_precision(graph, originals)

    operators = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    report = CaptureReport(
        name=name,
        seconds=time.perf_counter() - start,
        batch=(1, trace_errors.upper_bound(variant.guards for variant in variants)),
        traced=tuple(variant.batch for variant in variants),
        conditions=tuple(dict.fromkeys(str(guard) for variant in variants for guard in variant.guards)),
        proved=proved,
        precision="float32" if large else "float64",
        operators=dict(operators.most_common()),
        dropped=dict(first.dropped),
        folded=folded,
    )
    inputs = tuple(node.name for node in graph.graph.nodes if node.op == "placeholder")
    return TensorProgram(graph, inputs, report)


def exported(module: nn.Module, examples: Sequence[Tensor], name: str) -> Trace:
    """Export at one batch size, clean, and read off what was assumed about the batch."""
    shapes = _dynamic_shapes(module, len(examples), torch.export.Dim.DYNAMIC)
    try:
        program = _export(module, examples, shapes)
    except Exception as error:
        raise explained(error, module, examples, name) from None
    with quiet(), torch.no_grad():
        functional = functionalized(program)
        written = functional.graph_signature.buffers_to_mutate
        if written:
            raise ImpureModule(name=name, problem=f"writes its buffer {next(iter(written.values()))!r}", where=None)
        graph = functional.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return cleaned(graph, examples[0].shape[0], name)


def cleaned(graph: fx.GraphModule, batch: int, name: str) -> Trace:
    """What was traced at ``batch``, without nodes that have no effect; raises ``ImpureModule`` if it is random."""
    for node in graph.graph.nodes:
        if cleanup.draws_random(node):
            line = trace_errors.source_line(node)
            raise ImpureModule(name=name, problem=f"draws random numbers ({node.target})", where=line)
    dropped = cleanup.drop_no_ops(graph)
    values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    batches = [value.shape[0] for value in values if not isinstance(value.shape[0], int)]
    assert batches, "a batch that does not stay symbolic is an error of the trace"
    symbols = {symbol for size in batches for symbol in size.node.expr.free_symbols}
    guards = trace_errors.batch_guards(batches[0].node.shape_env, symbols)
    return Trace(graph, batch, guards, dropped)


def _export(module: nn.Module, examples: Sequence[Tensor], shapes: Any) -> torch.export.ExportedProgram:
    with quiet(), torch.no_grad():
        return torch.export.export(module, tuple(examples), dynamic_shapes=shapes, strict=False)


def _other_variants(trace: Tracer, module: nn.Module, examples_of: Examples, first: Trace, name: str) -> list[Trace]:
    """Trace the batch sizes up to ``LARGEST_BATCH`` that take another branch; each must give the first program.

    Raises ``NarrowBatch``.
    """
    variants = [first]
    expected = cleanup.signature(first.module)
    while True:
        sizes = trace_errors.telling_batches((guard for v in variants for guard in v.guards), LARGEST_BATCH)
        uncovered = next((n for n in sizes if not any(v.covers(n) for v in variants)), None)
        if uncovered is None:
            return variants[1:]
        broken = next(guard for guard in first.guards if not guard.holds(uncovered))
        if len(variants) == _VARIANTS:
            raise NarrowBatch(name=name, condition=broken.text, batch=uncovered, where=broken.place)
        other = trace(module, examples_of(uncovered), name)
        if cleanup.signature(other.module) != expected or not other.covers(uncovered):
            raise NarrowBatch(name=name, condition=broken.text, batch=uncovered, where=broken.place)
        variants.append(other)


def _answers(
    twin: nn.Module,
    examples_of: Examples,
    batches: Sequence[int],
    name: str,
    compared: Compared,
    tolerance: float,
) -> dict[int, object]:
    """What the module itself answers to the first ``n`` of the same samples, by n, largest first.

    Raises ``CaptureFailed`` where the module does not run, ``MixedSamples`` where a sample's neighbours matter.
    """
    sizes = sorted(batches, reverse=True)
    widest = examples_of(sizes[0])
    answers: dict[int, object] = {}
    try:
        with torch.no_grad(), quiet():
            for batch in sizes:
                answers[batch] = twin(*(value[:batch] for value in widest))
    except Exception as error:
        raise CaptureFailed(name=name, problem=trace_errors.summary(error), where=trace_errors.place(error)) from None
    together = compared(answers[sizes[0]])
    for batch, answer in answers.items():
        apart = _error(compared(answer), [value[:batch] for value in together])
        if not apart <= tolerance:
            raise MixedSamples(name=name, batch=batch, error=f"{apart:.1e}")
    return answers


def _prove(
    graph: fx.GraphModule,
    examples_of: Examples,
    answers: dict[int, object],
    name: str,
    compared: Compared,
    tolerance: float,
) -> dict[int, float]:
    """The relative error of the program to the module's ``answers``, by batch. Raises ``CaptureMismatch``."""
    widest = examples_of(max(answers))
    errors: dict[int, float] = {}
    for batch, answer in sorted(answers.items()):
        with torch.no_grad(), quiet():
            got = graph(*(value[:batch] for value in widest))
        errors[batch] = _error(compared(got), compared(answer))
        if not errors[batch] <= tolerance:
            raise CaptureMismatch(name=name, batch=batch, error=f"{errors[batch]:.1e}", tolerance=f"{tolerance:.0e}")
    return errors


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over largest magnitude; infinite where the shapes differ, nan where a value is."""
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


Examples = Callable[[int], list[Tensor]]
"""Example inputs of a batch size."""
Compared = Callable[[Any], list[Tensor]]
"""The tensors of an answer that are compared."""


def _first(answer: Any) -> list[Tensor]:
    return [first_tensor(answer)]


def _all(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


def _error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of several tensors; nan where one is."""
    errors = [relative_error(a, b) for a, b in zip(got, expected, strict=True)]
    return next((error for error in errors if math.isnan(error)), max(errors))


def batched(value: Tensor, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """``batch`` rows like those of ``value``, floats as ``dtype``: its rows in turn, floats varied by up to 5 %.

    Rows differ, so a program that mixes up samples shows; bounds such as positive noise levels are kept.
    """
    rows = torch.arange(batch) % value.shape[0]
    chosen = value.detach()[rows]
    if not value.is_floating_point():
        return chosen
    generator = torch.Generator().manual_seed(0)
    chosen = chosen.double()
    if value.ndim > 1 and not chosen.any():
        return torch.randn(chosen.shape, generator=generator, dtype=torch.float64).to(dtype)
    return (chosen * (1 + 0.05 * torch.rand(chosen.shape, generator=generator, dtype=torch.float64))).to(dtype)


def first_tensor(output: Any) -> Tensor:
    """A module's answer: a tensor, or of a dataclass or mapping ``sample``, or the first tensor there is."""
    if isinstance(output, Tensor):
        return output
    if isinstance(sample := getattr(output, "sample", None), Tensor):
        return sample
    values = output.values() if isinstance(output, Mapping) else output
    for value in values if isinstance(values, Iterable) else ():
        if isinstance(value, Tensor):
            return value
    raise TypeError(f"the answer is a {type(output).__name__} without a tensor")


class _FirstTensor(nn.Module):
    """A module with one tensor as its answer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return first_tensor(self.module(*inputs))


def _double_twin(module: nn.Module) -> nn.Module:
    """A float64 copy in eval mode; the module given stays as it is."""
    twin = copy.deepcopy(module).eval().double()
    return twin.requires_grad_(False)


def _check_examples(examples: Sequence[Tensor], name: str) -> None:
    """Every example is a tensor that starts with the same batch. Raises ``WrongExample``."""
    for position, value in enumerate(examples):
        if not isinstance(value, Tensor):
            raise WrongExample(name=name, problem=f"input {position} is a {type(value).__name__}, not a tensor")
        if value.ndim == 0 or value.shape[0] == 0:
            raise WrongExample(
                name=name, problem=f"input {position} of shape {list(value.shape)} has no batch in front"
            )
    sizes = {value.shape[0] for value in examples}
    if len(sizes) != 1:
        shapes = ", ".join(str(list(value.shape)) for value in examples)
        raise WrongExample(name=name, problem=f"the inputs have different batches: {shapes}" if sizes else "no inputs")


def _dynamic_shapes(module: nn.Module, count: int, batch: object) -> tuple[object, ...]:
    """The first dimension of every input is the batch, in the nesting of the module's signature."""
    specs: list[object] = [{0: batch} for _ in range(count)]
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and count > len(named):
        return (*specs[: len(named)], tuple(specs[len(named) :]))
    return tuple(specs)


def explained(error: Exception, module: nn.Module, examples: Sequence[Tensor], name: str) -> Exception:
    """The error of ours that says what a failed trace means."""
    if isinstance(error, (GuardOnDataDependentSymNode, DataDependentOutputException)):
        return DataDependentFlow(name=name, where=trace_errors.place(error))
    if "specialized it to be a constant" in str(error):
        return NarrowBatch(
            name=name,
            condition=f"B = {examples[0].shape[0]}",
            batch=examples[0].shape[0] + 1,
            where=_specialising_line(module, examples),
        )
    operator = trace_errors.operator(error)
    problem = trace_errors.summary(error) + (f" (in {operator})" if operator else "")
    return CaptureFailed(name=name, problem=problem, where=trace_errors.place(error))


def _specialising_line(module: nn.Module, examples: Sequence[Tensor]) -> str | None:
    """The line that fixes the batch, found by a second export that is allowed to."""
    try:
        exported = _export(module, examples, _dynamic_shapes(module, len(examples), torch.export.Dim.AUTO))
        value = next(node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder")
        guards = value.fake_mode.shape_env.guards
    except Exception:  # The line is a courtesy: without it the first error still stands.
        return None
    size = examples[0].shape[0]
    fixing = [guard for guard in guards if guard.expr.func.__name__ == "Eq" and size in guard.expr.args]
    return trace_errors.frame_place(fixing[0].sloc) if fixing else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's tracer prints and warns about what we report ourselves."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
