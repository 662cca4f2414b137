"""``function``: any torch module as a plan of its own: a text encoder, the decoder of an autoencoder, a ControlNet."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scoregraph.errors import CaptureFailed, UnknownName, WrongExample, here
from scoregraph.graph.values import CondInput, DType, FunctionRef
from scoregraph.models import trace_errors
from scoregraph.models.network import fingerprint

if TYPE_CHECKING:
    from scoregraph.models.capture import TensorProgram


@dataclass(frozen=True, eq=False)
class Function:
    """A module with its weights: ``module(*inputs)`` answers a tuple of tensors [n, …] in the order of ``ref.outputs``.

    ``examples`` are inputs in the order of ``ref.inputs``.
    """

    ref: FunctionRef
    module: nn.Module
    examples: tuple[Tensor, ...]

    def capture_part(self, part: str = "function", energies: Mapping[str, Any] | None = None) -> TensorProgram:
        """The tensor program, which answers one tensor for each output."""
        from scoregraph.models.capture import capture, exported  # the tracer takes a second to import

        return capture(self.module, self.examples, name=self.ref.name, trace=exported)


class _Named(nn.Module):
    """A module called with tensors in order, that answers the chosen ones of its tensors."""

    def __init__(self, module: nn.Module, example: Mapping[str, Any], method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method
        self.inputs = tuple(key for key, value in example.items() if isinstance(value, Tensor))
        self.truths = tuple(key for key in self.inputs if example[key].dtype == torch.bool)
        self.constants = {key: value for key, value in example.items() if key not in self.inputs}
        self.outputs: tuple[str, ...] = ()

    def named(self, *inputs: Tensor) -> dict[str, Tensor]:
        """All tensors of the answer, by name."""
        values = dict(zip(self.inputs, inputs, strict=True))
        values |= {key: values[key] != 0 for key in self.truths}
        found = list(_tensors(getattr(self.module, self.method)(**values, **self.constants)))
        return {name or ("y" if len(found) == 1 else f"y{i}"): value for i, (name, value) in enumerate(found)}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The chosen tensors."""
        named = self.named(*inputs)
        return tuple(named[name] for name in self.outputs)


def _tensors(answer: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in an answer: a mapping (outputs of transformers are one) names them, a list numbers them."""
    if isinstance(answer, Tensor):
        yield name, answer
    elif isinstance(answer, Mapping):
        for key, value in answer.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(answer, list | tuple):
        for i, value in enumerate(answer):
            yield from _tensors(value, f"{name}.{i}" if name else "")


def function(
    module: nn.Module,
    example_inputs: Mapping[str, Any] | Sequence[Any],
    *,
    outputs: Sequence[str] | None = None,
    method: str = "forward",
    name: str | None = None,
) -> Function:
    """A module by itself, for ``sg.compile``: neither a state nor a time, any number of inputs and outputs::

        encoder = sg.models.function(bert, {"input_ids": ids, "attention_mask": mask})
        sg.compile(encoder).run(input_ids=ids, attention_mask=mask)["last_hidden_state"]

    ``example_inputs`` are arguments of the method, by name or in order: tensors with the batch in front (booleans
    become whole numbers), anything else is a constant. ``outputs`` chooses among the answer's tensors, which have the
    names that a mapping gives them, else ``y`` or ``y0``, ``y1``, …; by default the first. ``method`` is what to call,
    such as ``decode`` of an autoencoder.

    Raises ``WrongExample``, ``CaptureFailed`` and ``UnknownName``.
    """
    name = name or type(module).__name__
    given = _by_name(getattr(module, method), example_inputs)
    module.eval()
    named = _Named(module, given, method)
    examples = tuple(given[key].long() if key in named.truths else given[key] for key in named.inputs)
    if not examples:
        raise WrongExample(name=name, problem="none of the example inputs is a tensor", where=here())
    try:
        with torch.no_grad():
            answers = named.named(*examples)
    except Exception as error:
        raise CaptureFailed(name=name, problem=trace_errors.summary(error), where=trace_errors.place(error)) from None
    for chosen in outputs or ():
        if chosen not in answers:
            raise UnknownName(kind=f"output of {name}", name=chosen, known=answers, where=here())
    named.outputs = tuple(outputs) if outputs else tuple(answers)[:1]
    inputs = tuple(_input(key, value) for key, value in zip(named.inputs, examples, strict=True))
    # The fingerprint covers parameters and structure; what is asked of them is part of the name it goes by.
    asked = f"{method}({', '.join(named.inputs)}; {named.constants})"
    mark = fingerprint(named, text=asked)
    return Function(FunctionRef(name, mark, inputs, named.outputs), named, examples)


def _by_name(called: Any, examples: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    if isinstance(examples, Mapping):
        return dict(examples)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    names = [key for key, parameter in inspect.signature(called).parameters.items() if parameter.kind in kinds]
    return dict(zip(names, examples, strict=False))


def _input(name: str, example: Tensor) -> CondInput:
    dtype: DType = "f32" if example.is_floating_point() else "i64"
    return CondInput(name, tuple(example.shape[1:]), dtype)
