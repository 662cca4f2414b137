"""Energies: functions whose gradient steers a sample. A gradient is added to a prediction in its eps form,

    eps' = eps + sigma * scale * grad E,

which is what adding ``-scale * grad E`` to the score means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.spec import Spec

WRT = ("x", "x0")


@dataclass(frozen=True)
class Energy(Spec):
    """Family of energies. ``wrt`` is what the gradient is taken in: the state x, or the clean sample x0 it implies."""

    family: ClassVar[str] = "energy"
    scale: float
    wrt: str = "x"

    def __post_init__(self) -> None:
        options.real(self, "scale")
        options.choice(self, "wrt", WRT)


@dataclass(frozen=True)
class Classifier(Energy):
    """E = -log p(label | x) of a classifier of noisy samples (Dhariwal and Nichol 2021)."""

    name: ClassVar[str] = "classifier"


@dataclass(frozen=True)
class Measurement(Energy):
    """E = |y - A(x0)|^2 / 2 for a measurement y; ``normalize`` divides the scale by |y - A(x0)| (DPS, Chung 2023)."""

    name: ClassVar[str] = "measurement"
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        options.flag(self, "normalize")


classifier = Classifier
measurement = Measurement
