"""The multistep solvers of DPM-Solver++ under the names they are known by (Lu et al. 2022b; k-diffusion).

They are ``dpm_solver`` without its habits for few steps: the last step is of first order exactly when it ends without
noise. Fewer options, and k-diffusion's ``eta`` and ``noise``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.samplers.dpm_solver import CORRECTIONS, THIRD, Multistep, Rule


@dataclass(frozen=True)
class Dpmpp2m(Multistep):
    """The multistep solver 2M: x' = (sigma'/sigma) x - alpha' E (D0 + (h/h0) (D0 - D1) / 2).

    D0 and D1 are x0 now and one call before, h and h0 the steps in lambda now and before, E = e^-h - 1. With
    ``correction="heun"`` the weight of (h/h0) (D0 - D1) is alpha' (E/h + 1) instead of the midpoint's -alpha' E / 2.
    Second order with one call per step; the first step, and a last one that ends without noise, are of first order.
    The register ``x0`` holds D1.
    """

    name: ClassVar[str] = "dpmpp_2m"
    correction: str = "midpoint"

    def __post_init__(self) -> None:
        options.choice(self, "correction", CORRECTIONS)

    @property
    def rule(self) -> Rule:
        """The ODE."""
        return Rule(clean=True, correction=self.correction)

    @property
    def highest(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Dpmpp3m(Multistep):
    """The multistep solver 3M: 2M and a second difference. ``third="taylor"`` is of third order, see ``Rule``."""

    name: ClassVar[str] = "dpmpp_3m"
    correction: str = "midpoint"
    third: str = field(default="published", kw_only=True)

    def __post_init__(self) -> None:
        options.choice(self, "correction", CORRECTIONS)
        options.choice(self, "third", THIRD)

    @property
    def rule(self) -> Rule:
        """The ODE."""
        return Rule(clean=True, correction=self.correction, third=self.third)

    @property
    def highest(self) -> int:
        """3."""
        return 3


@dataclass(frozen=True)
class Dpmpp2mSde(Multistep):
    """k-diffusion's 2M SDE: 2M along the SDE with ``eta`` fresh noise; 0 is ``dpmpp_2m``, 1 the reverse diffusion.

    x' = (sigma'/sigma) e^(-eta h) x + alpha' (1 - e^-H) (D0 + (h/h0)(D0 - D1)/2) + noise s z
    with s = sigma' sqrt(1 - e^(-2 eta h)) and H = (1 + eta) h.
    """

    name: ClassVar[str] = "dpmpp_2m_sde"
    eta: float = 1.0
    noise: float = 1.0
    correction: str = "midpoint"

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0)
        options.real(self, "noise", low=0.0)
        options.choice(self, "correction", CORRECTIONS)

    @property
    def rule(self) -> Rule:
        """The SDE in x0."""
        return Rule(True, self.eta, self.correction, noise=self.noise)

    @property
    def highest(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Dpmpp3mSde(Multistep):
    """k-diffusion's 3M SDE; its second step, where two values are known, is of second order ("heun")."""

    name: ClassVar[str] = "dpmpp_3m_sde"
    eta: float = 1.0
    noise: float = 1.0
    third: str = field(default="published", kw_only=True)

    def __post_init__(self) -> None:
        options.real(self, "eta", low=0.0)
        options.real(self, "noise", low=0.0)
        options.choice(self, "third", THIRD)

    @property
    def rule(self) -> Rule:
        """The SDE in x0."""
        return Rule(True, self.eta, "heun", self.third, self.noise)

    @property
    def highest(self) -> int:
        """3."""
        return 3
