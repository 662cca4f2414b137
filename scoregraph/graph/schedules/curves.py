"""How noise levels fall from a highest to a lowest one: the curves that every kind of schedule can follow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def karras(high: float, low: float, n: int, rho: float = 7.0) -> Float64:
    """sigma^(1/rho) falls evenly (Karras et al. 2022, equation 5): float64 [n] from ``high`` to ``low``."""
    return np.power(np.linspace(math.pow(high, 1 / rho), math.pow(low, 1 / rho), n), rho)


def exponential(high: float, low: float, n: int) -> Float64:
    """ln sigma falls evenly: lambda = -ln kappa is uniform (Lu et al. 2022 call that the logSNR schedule)."""
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def beta(high: float, low: float, n: int, a: float = 0.6, b: float = 0.6) -> Float64:
    """Quantiles of the beta distribution, dense at both ends (Lee et al. 2024, Beta Sampling is All You Need)."""
    quantiles = [beta_quantile(p, a, b) for p in np.linspace(1.0, 0.0, n).tolist()]
    return low + np.array(quantiles) * (high - low)


CURVES: dict[str, Callable[[float, float, int], Float64]] = {
    "karras": karras,
    "exponential": exponential,
    "lu": exponential,
    "beta": beta,
}
"""(highest, lowest, n) -> n noise levels. ``lu`` is diffusers' name for the exponential curve."""


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x in [0, 1] below which the beta distribution B(a, b) has the probability ``p``, to 1e-15."""
    if p <= 0.0 or p >= 1.0:
        return min(max(p, 0.0), 1.0)
    if p > 0.5:  # the distance to the nearer end is what keeps its digits
        return 1.0 - beta_quantile(1.0 - p, b, a)
    low, high = 0.0, 1.0
    while high - low > 1e-16 * (1.0 + high) and high - low > 1e-15 * high:
        middle = (low + high) / 2 if low > 0.0 or high < 1e-3 else high / 1024
        if beta_probability(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_probability(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), to about 1e-15.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated with Lentz's method, on the side of the mean on
    which that converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_probability(1.0 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 400):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1.0 + term / c, 1.0 / (1.0 + term * d)
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return math.exp(log_front) * fraction / a
