"""Energies: a torch module that answers one number per sample becomes an energy that a graph can name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scoregraph.errors import CaptureFailed, WrongEnergy, WrongExample, here
from scoregraph.graph.values import CondInput, DType, Latent, NetRef, Space, TimeConvention
from scoregraph.models import trace_errors
from scoregraph.models.network import example_times, example_values, fingerprint

if TYPE_CHECKING:
    from scoregraph.models.capture import TensorProgram


@dataclass(frozen=True, eq=False)
class EnergyNetwork:
    """An energy with its weights: ``energy(x, t, *values) -> [n]``, x [n, *shape], t [n], values [n, …], float32."""

    ref: NetRef
    energy: nn.Module

    @property
    def latent(self) -> Latent:
        """The type of what the energy is a function of."""
        assert isinstance(self.ref.latent, Latent), "an energy reads a latent"
        return self.ref.latent

    def example(self, batch: int = 3) -> tuple[Tensor, ...]:
        """Example inputs: unit noise, times over the range of the convention, values within their bounds."""
        x = torch.randn(batch, *self.latent.shape, generator=torch.Generator().manual_seed(0))
        return (x, example_times(self.ref.time, batch), *example_values(self.ref.conds, batch))

    def capture(self) -> dict[str, TensorProgram]:
        """The energy itself, as part ``energy``."""
        return {"energy": self.capture_part("energy")}

    def capture_part(self, part: str, energies: Mapping[str, EnergyNetwork] | None = None) -> TensorProgram:
        """One part: ``energy`` (x, t, *values) -> [n]; ``energy.grad``, dE/dx [n, *shape] of the same inputs; and
        ``energy.root.grad``, that of sqrt(2 E)."""
        from scoregraph.models.capture import capture  # the tracer takes a second to import
        from scoregraph.models.gradients import EnergyGradient, differentiated

        modules = {
            "energy": self.energy,
            "energy.grad": EnergyGradient(self.energy),
            "energy.root.grad": EnergyGradient(self.energy, rooted=True),
        }
        # The energy itself is recorded like its gradients: losses such as cross entropy then become covered operators.
        return capture(modules[part], self.example(), name=f"{self.ref.name}.{part}", trace=differentiated)


class _Timeless(nn.Module):
    """A module that takes no time, called with one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        """``module(x, *values)``."""
        return self.module(x, *values)


def energy(
    module: nn.Module,
    example: Sequence[Tensor],
    *,
    values: Mapping[str, Mapping[str, float]] | Iterable[str] = (),
    time: TimeConvention = "none",
    name: str | None = None,
    space: Space = "vp",
) -> EnergyNetwork:
    """An energy around a torch module E(x, *values) -> [n], or E(x, t, *values) -> [n] with a ``time``.

    Samples move to where E is small; ``sg.energies`` says how. ``example`` are arguments of ``module.forward`` in
    order, with the batch in front. ``values`` names those behind x and t and may bound them, ``{"label": {"low": 0,
    "high": 9}}``. ``time`` is what the module calls time; by default it takes none, as an energy of clean samples
    does. ``space`` is the scaling of the state x, or, for an energy of clean samples, that of the network it guides.

    Raises ``WrongExample``, ``WrongEnergy`` and ``CaptureFailed``.
    """
    name = name or type(module).__name__
    bounds: dict[str, Mapping[str, float]] = (
        dict(values) if isinstance(values, Mapping) else {value: {} for value in values}
    )
    expected = ("x", *(() if time == "none" else ("t",)), *bounds)
    if len(example) != len(expected):
        problem = f"{len(example)} example inputs for {', '.join(expected)}"
        raise WrongExample(name=name, problem=problem, where=here())
    x = example[0]
    if x.ndim < 2 or not x.is_floating_point():
        problem = f"the state is {x.dtype} of shape {list(x.shape)}, expected floats [batch, channels, ...]"
        raise WrongExample(name=name, problem=problem, where=here())
    module.eval()
    answer = _answer(module, example, name)
    if not isinstance(answer, Tensor) or list(answer.shape) != [x.shape[0]]:
        shown = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise WrongEnergy(name=name, answer=shown, batch=x.shape[0], where=here())
    given = example[len(expected) - len(bounds) :]
    ref = NetRef(
        name=name,
        fingerprint=fingerprint(module),
        latent=Latent(space, tuple(x.shape[1:])),
        time=time,
        conds=tuple(_value(key, value, bounds[key]) for key, value in zip(bounds, given, strict=True)),
        energy=True,
    )
    return EnergyNetwork(ref, _Timeless(module) if time == "none" else module)


def _answer(module: nn.Module, example: Sequence[Tensor], name: str) -> Any:
    try:
        with torch.no_grad():
            return module(*example)
    except Exception as error:
        raise CaptureFailed(name=name, problem=trace_errors.summary(error), where=trace_errors.place(error)) from None


def _value(name: str, example: Tensor, bounds: Mapping[str, float]) -> CondInput:
    dtype: DType = "f32" if example.is_floating_point() else "i64"
    return CondInput(name, tuple(example.shape[1:]), dtype, bounds.get("low"), bounds.get("high"))
