"""``from_module``: any torch module that denoises becomes a ``Network``, by naming the roles of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scoregraph.errors import CaptureFailed, UnclearRole, WrongAnswer, WrongExample, here
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.spec import Spec
from scoregraph.graph.values import CondInput, DType, Latent, Space, TimeConvention
from scoregraph.models import trace_errors
from scoregraph.models.capture import first_tensor
from scoregraph.models.network import Network, network

Half = Literal["first", "second"]

# The names that diffusers, guided-diffusion, DiT and k-diffusion give to the two arguments every score network has.
_STATE_NAMES = ("hidden_states", "sample", "x", "x_t", "xt", "noisy", "latents", "input")
_TIME_NAMES = ("timestep", "timesteps", "time", "t", "sigma", "sigmas", "noise_level", "c_noise")


class Adapter(nn.Module):
    """A module called the way a ``Network`` calls its score: ``forward(x, t, *conditions) -> m``.

    ``arguments`` names the module's arguments for x, t and the conditions, in order; ``constants`` are passed as they
    are. The time comes as float and is rounded to ``time_dtype`` where the module needs integers.
    """

    def __init__(
        self,
        module: nn.Module,
        arguments: Sequence[str],
        constants: Mapping[str, Any],
        time_dtype: torch.dtype | None,
        half: Half | None,
    ) -> None:
        super().__init__()
        self.module = module
        self.arguments = tuple(arguments)
        self.constants = dict(constants)
        self.time_dtype = time_dtype
        self.keep = half

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        """``x`` [n, C, …], ``t`` [n] and the conditions [n, …] to [n, C, …]."""
        if self.time_dtype is not None:
            t = t.round().to(self.time_dtype)
        values = dict(zip(self.arguments, (x, t, *conditions), strict=True))
        answer = first_tensor(self.module(**values, **self.constants))
        if self.keep is None:
            return answer
        return answer.chunk(2, dim=1)[0 if self.keep == "first" else 1]


def from_module(
    module: nn.Module,
    example_inputs: Mapping[str, Any] | Sequence[Any],
    *,
    prediction: Prediction | str,
    x: str | None = None,
    time: str | None = None,
    conds: Mapping[str, Mapping[str, float]] | Iterable[str] | None = None,
    name: str | None = None,
    space: Space | None = None,
    convention: TimeConvention | None = None,
    half: Half | None = None,
    variance: bool = False,
) -> Network:
    """A ``Network`` around a torch module, which is used as it is and not copied.

    ``example_inputs`` are arguments of ``module.forward``, by name or in order: tensors with the batch in front, and
    anything else as a constant. One is the state and one the time, by their names or as ``x`` and ``time`` say; all
    other tensors are conditions. ``conds`` bounds them, ``{"class_labels": {"low": 0, "high": 999, "null": 1000}}``;
    without ``null`` the network has no unconditional branch.

    ``prediction`` says what the network answers: ``sg.predictions.eps()`` or just ``"eps"``. ``space`` is the scaling
    of the state (by default that of the prediction: flow, kappa for EDM and consistency, else vp) and ``convention``
    what the network calls time (flow for ``flow``, c_noise for EDM, sigma for an argument of that name, else timestep).
    A network that also answers a variance has twice the channels: ``half`` picks the prediction's; ``variance`` keeps
    both, the prediction first, for samplers that read it (``ddpm("learned_range")``).

    Raises ``WrongExample``, ``UnclearRole``, ``WrongAnswer``, ``CaptureFailed`` and ``UnknownName``.
    """
    name = name or type(module).__name__
    if isinstance(prediction, str):
        prediction = Prediction.parse("prediction", prediction, here())
    given = _by_name(module, example_inputs, name)
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    constants = {key: value for key, value in given.items() if key not in tensors}
    if "return_dict" in inspect.signature(module.forward).parameters:
        constants.setdefault("return_dict", False)

    x = _role(name, "x", x, _STATE_NAMES, tensors)
    time = _role(name, "time", time, _TIME_NAMES, tensors)
    bounds = _bounds(name, conds, [key for key in tensors if key not in (x, time)], tensors)
    state = tensors[x]
    if state.ndim < 2 or not state.is_floating_point():
        problem = (
            f"the state {x!r} is {state.dtype} of shape {list(state.shape)}, expected floats [batch, channels, ...]"
        )
        raise WrongExample(name=name, problem=problem, where=here())
    tensors[time] = tensors[time].expand(state.shape[0]) if tensors[time].ndim == 0 else tensors[time]
    uneven = [key for key, value in tensors.items() if value.ndim == 0 or value.shape[0] != state.shape[0]]
    if uneven:
        problem = (
            f"{uneven[0]!r} of shape {list(tensors[uneven[0]].shape)} has not the batch of {x!r}, {state.shape[0]}"
        )
        raise WrongExample(name=name, problem=problem, where=here())

    module.eval()
    arguments = (x, time, *bounds)
    inputs = [state, tensors[time], *(tensors[key] for key in bounds)]
    score = Adapter(module, arguments, constants, _time_dtype(module, arguments, constants, inputs, name), half)
    _check_answer(score, inputs, name, times=1 + variance)
    return network(
        name,
        score,
        latent=Latent(space or _space(prediction), tuple(state.shape[1:])),
        prediction=prediction,
        time=convention or _convention(prediction, time),
        conds=[_condition(key, tensors[key], bounds[key]) for key in bounds],
        variance=variance,
    )


def _by_name(module: nn.Module, examples: Mapping[str, Any] | Sequence[Any], name: str) -> dict[str, Any]:
    """The example inputs by the names of ``forward``'s arguments."""
    parameters = inspect.signature(module.forward).parameters
    known = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not isinstance(examples, Mapping):
        if len(examples) > len(known):
            problem = f"{len(examples)} example inputs for {len(known)} named arguments"
            raise UnclearRole(name=name, problem=problem, arguments=", ".join(known), where=here())
        return dict(zip(known, examples, strict=False))
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    strangers = [key for key in examples if key not in known]
    if strangers and not open_ended:
        problem = f"forward has no argument {strangers[0]!r}"
        raise UnclearRole(name=name, problem=problem, arguments=", ".join(known), where=here())
    return dict(examples)


def _role(name: str, role: str, chosen: str | None, usual: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """The argument in that role: the one chosen, else the one with a usual name."""
    shown = ", ".join(tensors)
    if chosen is not None:
        if chosen not in tensors:
            problem = f"{role}={chosen!r} is not a tensor among the example inputs"
            raise UnclearRole(name=name, problem=problem, arguments=shown, where=here())
        return chosen
    found = [key for key in usual if key in tensors]
    if len(found) != 1:
        problem = f"{'none' if not found else 'more than one'} of the arguments looks like {role}"
        raise UnclearRole(name=name, problem=problem, arguments=shown, where=here())
    return found[0]


def _bounds(
    name: str,
    conds: Mapping[str, Mapping[str, float]] | Iterable[str] | None,
    rest: Sequence[str],
    tensors: Mapping[str, Tensor],
) -> dict[str, Mapping[str, float]]:
    """The conditions with their bounds: those named, which must be all the tensors without another role."""
    if conds is None:
        return {key: {} for key in rest}
    named: dict[str, Mapping[str, float]] = dict(conds) if isinstance(conds, Mapping) else {key: {} for key in conds}
    for key in [*named, *rest]:
        if key not in named or key not in rest:
            problem = f"{key!r} is not a condition" if key in named else f"the tensor {key!r} has no role"
            raise UnclearRole(name=name, problem=problem, arguments=", ".join(tensors), where=here())
    return named


def _condition(name: str, example: Tensor, bounds: Mapping[str, float]) -> CondInput:
    dtype: DType = "f32" if example.is_floating_point() else "i64"
    return CondInput(name, tuple(example.shape[1:]), dtype, bounds.get("low"), bounds.get("high"), bounds.get("null"))


def _time_dtype(
    module: nn.Module, arguments: Sequence[str], constants: Mapping[str, Any], inputs: Sequence[Tensor], name: str
) -> torch.dtype | None:
    """None where the module takes a float time, else the integer dtype of the example.

    A plan's times are floats. Most networks that are called with integers embed them as floats at once and give the
    same answer to both; only one that looks them up in a table does not.
    """
    dtype = inputs[1].dtype
    if dtype.is_floating_point:
        return None

    def answer(time: Tensor) -> Tensor:
        values = dict(zip(arguments, (inputs[0], time, *inputs[2:]), strict=True))
        with torch.no_grad():
            return first_tensor(module(**values, **constants))

    try:
        expected = answer(inputs[1])
    except Exception as error:
        raise CaptureFailed(name=name, problem=trace_errors.summary(error), where=trace_errors.place(error)) from None
    try:
        same = torch.equal(answer(inputs[1].float()), expected)
    except (RuntimeError, TypeError, IndexError):
        same = False
    return None if same else dtype


def _check_answer(score: Adapter, inputs: Sequence[Tensor], name: str, times: int) -> None:
    """The answer must have the shape of the state, with ``times`` its channels. Raises ``WrongAnswer``."""
    try:
        with torch.no_grad():
            answer = score(inputs[0], inputs[1].float(), *inputs[2:])
    except Exception as error:
        raise CaptureFailed(name=name, problem=trace_errors.summary(error), where=trace_errors.place(error)) from None
    state, got = list(inputs[0].shape[1:]), list(answer.shape[1:])
    expected = [times * state[0], *state[1:]]
    if got == expected:
        return
    double = got == [2 * state[0], *state[1:]] and score.keep is None
    cure = (
        'give half="first" if the other half is a learned variance, or variance=True to use it'
        if double
        else "wrap the module so that it answers in the shape of its state"
    )
    raise WrongAnswer(name=name, answer=got, state=expected, help=cure, where=here())


def _space(prediction: Spec) -> Space:
    if prediction.name in ("edm", "consistency"):
        return "kappa"
    return "flow" if prediction.name == "flow" else "vp"


def _convention(prediction: Spec, argument: str) -> TimeConvention:
    if prediction.name in ("edm", "consistency"):
        return "c_noise"
    if prediction.name == "trigflow":
        return "angle"
    if argument in ("sigma", "sigmas"):
        return "sigma"
    return "flow" if prediction.name == "flow" else "timestep"
