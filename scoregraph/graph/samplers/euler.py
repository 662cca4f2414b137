"""Euler and Heun steps of the probability-flow ODE: in kappa = sigma/alpha (EDM), and on the straight path (flows).

With X = x / alpha the ODE is dX/dkappa = eps; with x_f = x / (alpha + sigma) and sigma_f = sigma / (alpha + sigma) it
is dx_f/dsigma_f = eps - x0. Both are steps of the same curve in other variables, so each works in every space: the
state is scaled on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers.base import MicroStep, Sampler, basis, estimates
from scoregraph.graph.schedules import Grid


@dataclass(frozen=True)
class Euler(Sampler):
    """X' = X + (kappa' - kappa) eps, where eps = (X - x0) / kappa (Karras et al. 2022, algorithm 1 without line 6)."""

    name: ClassVar[str] = "euler"
    needs_finite_kappa: ClassVar[bool] = True

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """One call per step."""
        x, m, _ = basis(self.registers)
        alpha, kappa = grid.alpha, grid.kappa
        for i in range(grid.steps):
            _, slope = estimates(prediction, alpha[i], grid.sigma[i], x, m)
            yield MicroStep(i, i, (alpha[i + 1] * (x / alpha[i] + (kappa[i + 1] - kappa[i]) * slope),))


@dataclass(frozen=True)
class Heun(Sampler):
    """X' = X + (kappa' - kappa) (eps + eps') / 2, where eps' is taken at Euler's X' (Karras et al. 2022, algorithm 1).

    Second order; two network calls per step, but one in the last, which ends at kappa = 0. The register ``half`` is
    X + (kappa' - kappa) eps / 2.
    """

    name: ClassVar[str] = "heun"
    registers: ClassVar[tuple[str, ...]] = ("x", "half")
    needs_finite_kappa: ClassVar[bool] = True

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """Euler's step, then its correction from the half step."""
        x, half, m, _ = basis(self.registers)
        alpha, sigma, kappa = grid.alpha, grid.sigma, grid.kappa
        for i in range(grid.steps):
            step = kappa[i + 1] - kappa[i]
            _, slope = estimates(prediction, alpha[i], sigma[i], x, m)
            middle = x / alpha[i] + step / 2 * slope
            last = kappa[i + 1] == 0.0
            yield MicroStep(i, i, (alpha[i + 1] * (middle + step / 2 * slope), 0 * half if last else middle))
            if not last:
                _, slope = estimates(prediction, alpha[i + 1], sigma[i + 1], x, m)
                yield MicroStep(i, i + 1, (alpha[i + 1] * (half + step / 2 * slope), 0 * half))


@dataclass(frozen=True)
class FlowEuler(Sampler):
    """x_f' = x_f + (sigma_f' - sigma_f) u, with u = eps - x0 (Liu et al. 2023, rectified flow). Finite at alpha = 0."""

    name: ClassVar[str] = "flow_euler"

    def micro_steps(self, grid: Grid, prediction: Prediction) -> Iterator[MicroStep]:
        """One call per step."""
        x, m, _ = basis(self.registers)
        scale = [alpha + sigma for alpha, sigma in zip(grid.alpha, grid.sigma, strict=True)]
        flow = [sigma / n for sigma, n in zip(grid.sigma, scale, strict=True)]
        for i in range(grid.steps):
            x0, eps = estimates(prediction, grid.alpha[i], grid.sigma[i], x, m)
            yield MicroStep(i, i, (scale[i + 1] * (x / scale[i] + (flow[i + 1] - flow[i]) * (eps - x0)),))
