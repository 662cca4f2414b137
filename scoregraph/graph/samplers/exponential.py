"""Exponential integrators in half the log signal-to-noise ratio, lambda = ln(alpha/sigma) = -ln kappa.

The probability-flow ODE and the SDEs beside it are solved exactly but for one integral over an estimate f (x0 or eps)::

    I = rate * int_0^h e^(-rate (h - s)) f(lambda + s) ds,      h = lambda' - lambda

(Lu et al. 2022, equation 3.7; rate is 1 for x0, -1 for eps, 1 + eta for x0 of an SDE). A multistep method replaces f by
the polynomial through its last values, so I = sum_j w_j f_j where the weights reproduce the *moments* of the kernel:
``sum_j w_j s_j^q = M_q``, with s_j = lambda_j - lambda. DPM-Solver, DEIS, UniPC and SA-Solver differ in f, in
rate, in which values they use, and in how they simplify the moments of low orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, expm1, factorial, inf, isfinite

import numpy as np
from numpy.typing import NDArray

from scoregraph.graph.schedules import Grid

FEW_STEPS = 15
"""Below this many steps the solvers here end with lower orders by default (Lu et al. 2022, DPM-Solver++)."""


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^((1-s) z) s^(k-1) / (k-1)! ds for k >= 1 (Hochbruck and Ostermann 2010, equation 2.10).

    phi_1(z) = (e^z - 1)/z and phi_k(z) = (phi_(k-1)(z) - 1/(k-1)!)/z; relative error below 1e-13 for k <= 5.
    """
    if abs(z) < 2.0:  # where the recursion cancels: its Taylor series, the terms of which fall from the start
        return sum(z**n / factorial(n + k) for n in range(30))
    if k == 1:
        return expm1(z) / z
    return (phi(k - 1, z) - 1.0 / factorial(k - 1)) / z


def moments(h: float, rate: float, count: int) -> list[float]:
    """M_q = rate int_0^h e^(-rate (h - s)) s^q ds = q! rate h^(q+1) phi_(q+1)(-rate h) for q < ``count``.

    An infinite h (from a point without signal, or to one without noise) has only M_0, which is 1 for rate > 0.
    """
    if h == inf:
        assert count == 1
        assert rate > 0.0
        return [1.0]
    return [factorial(q) * rate * h ** (q + 1) * phi(q + 1, -rate * h) for q in range(count)]


def decay(h: float, rate: float) -> float:
    """e^(-rate h), which is 1 for a rate of 0 whatever h is."""
    return exp(-rate * h) if rate else 1.0


def weights(offsets: Sequence[float], wanted: Sequence[float]) -> NDArray[np.float64]:
    """w with sum_j w_j offsets_j^q = wanted_q, for as many distinct offsets as wanted moments; float64."""
    scale = max(map(abs, offsets)) or 1.0  # powers of numbers of order one
    powers = np.vander(np.array(offsets) / scale, increasing=True).T
    solved = np.linalg.solve(powers, np.array(wanted) / scale ** np.arange(len(offsets)))
    return np.asarray(solved, dtype=np.float64)


def lam(grid: Grid, i: int) -> float:
    """lambda at point ``i`` of a grid: -inf without signal, inf without noise."""
    return grid.point(i).lam


def step_length(grid: Grid, i: int) -> float:
    """h of step ``i``: infinite from a point without signal and to one without noise."""
    return lam(grid, i + 1) - lam(grid, i)


def order_of(grid: Grid, i: int, order: int) -> int:
    """The order that step ``i`` can have, at most ``order``: that of ``reach``, or 1 to where lambda is infinite."""
    return reach(grid, i, order) if isfinite(lam(grid, i + 1)) else 1


def reach(grid: Grid, i: int, order: int) -> int:
    """How many of the points i, i-1, … a polynomial of at most ``order`` nodes can use; at least 1, the point itself.

    A point without signal, where lambda is infinite, says nothing of slopes; neither does one visited twice.
    """
    used = 1
    while used < min(order, i + 1) and isfinite(lam(grid, i)):
        new, last = lam(grid, i - used), lam(grid, i - used + 1)
        if not isfinite(new) or new == last:
            break
        used += 1
    return used
