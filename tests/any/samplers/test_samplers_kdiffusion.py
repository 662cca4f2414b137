"""Samplers as k-diffusion publishes them, restated here in float64 on a denoiser D(x, sigma), against our tables.

They differ from those of diffusers where noise is added before the network's call (churn), and in eta and s_noise.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import exp, inf, log, sqrt

import numpy as np
import pytest
from machine import FakeNetwork, relative_error, run_table

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler

Denoiser = Callable[[np.ndarray, float], np.ndarray]
BATCH, WIDTH = 2, 6


def ancestral_levels(k: float, k_next: float, eta: float) -> tuple[float, float]:
    """(k_down, k_up)."""
    up = min(k_next, eta * sqrt(k_next**2 * (k**2 - k_next**2) / k**2))
    return sqrt(k_next**2 - up**2), up


class Reference:
    """The walks. ``draw`` gives the next normal."""

    def __init__(self, denoise: Denoiser, kappa: tuple[float, ...], draw: Iterator[np.ndarray]) -> None:
        self.denoise, self.kappa, self.draw = denoise, kappa, draw

    def slope(self, x: np.ndarray, k: float) -> np.ndarray:
        return (x - self.denoise(x, k)) / k

    def churn(self, x: np.ndarray, k: float, s_churn=0.0, s_tmin=0.0, s_tmax=inf, s_noise=1.0):
        gamma = min(s_churn / (len(self.kappa) - 1), sqrt(2) - 1) if s_tmin <= k <= s_tmax else 0.0
        hot = k * (1 + gamma)
        if gamma > 0:
            x = x + next(self.draw) * s_noise * sqrt(hot**2 - k**2)
        return x, hot

    def euler(self, x: np.ndarray, **churn: float) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            x, hot = self.churn(x, k, **churn)
            x = x + self.slope(x, hot) * (k_next - hot)
        return x

    def heun(self, x: np.ndarray, **churn: float) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            x, hot = self.churn(x, k, **churn)
            d, dt = self.slope(x, hot), k_next - hot
            if k_next > 0:
                d = (d + self.slope(x + d * dt, k_next)) / 2
            x = x + d * dt
        return x

    def dpm_2(self, x: np.ndarray, **churn: float) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            x, hot = self.churn(x, k, **churn)
            d = self.slope(x, hot)
            if k_next > 0:
                middle = exp((log(hot) + log(k_next)) / 2)
                d = self.slope(x + d * (middle - hot), middle)
            x = x + d * (k_next - hot)
        return x

    def euler_ancestral(self, x: np.ndarray, eta=1.0, s_noise=1.0) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            down, up = ancestral_levels(k, k_next, eta)
            x = x + self.slope(x, k) * (down - k)
            if up * s_noise > 0:
                x = x + next(self.draw) * s_noise * up
        return x

    def dpm_2_ancestral(self, x: np.ndarray, eta=1.0, s_noise=1.0) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            down, up = ancestral_levels(k, k_next, eta)
            d = self.slope(x, k)
            if down == 0:
                x = x + d * (down - k)
                continue
            middle = exp((log(k) + log(down)) / 2)
            x = x + self.slope(x + d * (middle - k), middle) * (down - k)
            if up * s_noise > 0:
                x = x + next(self.draw) * s_noise * up
        return x

    def dpmpp_2s_ancestral(self, x: np.ndarray, eta=1.0, s_noise=1.0) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            down, up = ancestral_levels(k, k_next, eta)
            d = self.denoise(x, k)
            if down == 0:
                x = x + (x - d) / k * (down - k)
            else:
                h = log(k) - log(down)
                middle = exp(log(k) - h / 2)
                half = middle / k * x - np.expm1(-h / 2) * d
                x = down / k * x - np.expm1(-h) * self.denoise(half, middle)
            if k_next > 0 and up * s_noise > 0:
                x = x + next(self.draw) * s_noise * up
        return x

    def dpmpp_sde(self, x: np.ndarray, eta=1.0, s_noise=1.0, r=0.5) -> np.ndarray:
        for k, k_next in pairwise(self.kappa):
            d = self.denoise(x, k)
            if k_next == 0:
                x = x + (x - d) / k * (k_next - k)
                continue
            h = log(k) - log(k_next)
            middle = exp(log(k) - r * h)
            # The path of a Brownian motion in kappa, from k to the middle and on to k_next.
            quiet = eta * s_noise == 0
            first = 0.0 if quiet else sqrt(k - middle) * next(self.draw)
            second = 0.0 if quiet else sqrt(middle - k_next) * next(self.draw)
            down, up = ancestral_levels(k, middle, eta)
            half = down / k * x - np.expm1(log(down) - log(k)) * d + first / sqrt(k - middle) * s_noise * up
            d2 = self.denoise(half, middle)
            down, up = ancestral_levels(k, k_next, eta)
            mixed = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * d2
            x = down / k * x - np.expm1(log(down) - log(k)) * mixed
            x = x + (first + second) / sqrt(k - k_next) * s_noise * up
        return x


CHURN = {"s_churn": 8.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.003}
CASES: list[tuple[str, Sampler, dict[str, float]]] = [
    ("euler", samplers.euler(), {}),
    ("euler", samplers.euler(**CHURN), CHURN),
    ("euler", samplers.euler(s_churn=1e3), {"s_churn": 1e3}),
    ("heun", samplers.heun(), {}),
    ("heun", samplers.heun(**CHURN), CHURN),
    ("dpm_2", samplers.kdpm2(), {}),
    ("dpm_2", samplers.kdpm2(**CHURN), CHURN),
    *[
        (name, make(eta, s_noise), {"eta": eta, "s_noise": s_noise})
        for name, make in (
            ("euler_ancestral", samplers.euler_ancestral),
            ("dpm_2_ancestral", samplers.kdpm2_ancestral),
            ("dpmpp_2s_ancestral", samplers.dpmpp_2s_ancestral),
            ("dpmpp_sde", samplers.dpmpp_sde),
        )
        for eta, s_noise in ((1.0, 1.0), (0.4, 1.01), (0.0, 1.0), (1.0, 0.0))
    ],
    ("euler_ancestral", samplers.euler_ancestral(1.5), {"eta": 1.5}),
    ("dpm_2_ancestral", samplers.kdpm2_ancestral(1.5), {"eta": 1.5}),
    ("dpmpp_2s_ancestral", samplers.dpmpp_2s_ancestral(1.5), {"eta": 1.5}),
    ("dpmpp_sde", samplers.dpmpp_sde(r=0.7), {"r": 0.7}),
]


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("pred", [prediction.edm(), prediction.eps()], ids=["edm", "eps"])
@pytest.mark.parametrize(("name", "sampler", "arguments"), CASES, ids=[str(case[1]) for case in CASES])
def test_tables_are_k_diffusion(name: str, sampler: Sampler, arguments: dict[str, float], pred: Prediction, steps: int):
    schedule = schedules.karras(steps=steps, sigma_min=0.03, sigma_max=30.0)
    table = sampler.table(schedule, pred, "sigma", "kappa")
    net, rng = FakeNetwork(WIDTH, time_scale=0.05), np.random.default_rng(2)
    x = table.init_scale * rng.standard_normal((BATCH, WIDTH))
    noise = rng.standard_normal((len(table.rows), BATCH, WIDTH))
    ours = run_table(table, lambda x, t: [net(x, t, 0)], x, noise)[-1]

    def denoise(x: np.ndarray, k: float) -> np.ndarray:
        p, q = pred.to_x0(1.0, k)
        return p * x + q * net(pred.c_in(1.0, k) * x, k, 0)

    draws = [noise[i] for i in range(len(table.rows)) if table.row(i).c.any()]
    left = iter(draws)
    theirs = getattr(Reference(denoise, schedule.grid().kappa, left), name)(x, **arguments)
    assert next(left, None) is None, "the table draws more noise than the sampler"
    assert relative_error(ours, theirs) < 1e-11


def test_churn_makes_rows_without_a_call():
    """k-diffusion's noise comes before the call, so that the network is asked at the higher level."""
    schedule = schedules.karras(steps=3, sigma_min=1.0, sigma_max=9.0)
    table = samplers.heun(s_churn=0.6, s_tmin=2.0).table(schedule, prediction.edm(), "sigma", "kappa")
    kappa = schedule.grid().kappa
    assert table.values("calls") == (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)  # the last level is below s_tmin
    assert table.steps == (0, 0, 0, 1, 1, 1, 2)
    asked = [t for t, called in zip(table.values("t"), table.values("calls"), strict=True) if called]
    assert asked == pytest.approx([1.2 * kappa[0], kappa[1], 1.2 * kappa[1], kappa[2], kappa[2]])
    quiet = samplers.heun(s_churn=0.6, s_tmin=10.0).table(schedule, prediction.edm(), "sigma", "kappa")
    assert quiet == samplers.heun().table(schedule, prediction.edm(), "sigma", "kappa")


@pytest.mark.parametrize("space", ["vp", "flow"])
@pytest.mark.parametrize(("name", "sampler", "arguments"), CASES[:8], ids=[str(case[1]) for case in CASES[:8]])
def test_spaces_are_a_change_of_variables(name: str, sampler: Sampler, arguments: dict[str, float], space: str):
    """What is done at levels between the grid's points is scaled like them."""
    del name, arguments
    schedule = schedules.karras(steps=5, sigma_min=0.03, sigma_max=30.0)
    net, rng = FakeNetwork(WIDTH, time_scale=0.05), np.random.default_rng(2)
    start, noise = rng.standard_normal((BATCH, WIDTH)), rng.standard_normal((15, BATCH, WIDTH))
    ends = []
    for kind in ("kappa", space):
        table = sampler.table(schedule, prediction.edm(), "sigma", kind)
        first = schedule.grid().in_space(kind).alpha[0]
        ends.append(run_table(table, lambda x, t: [net(x, t, 0)], 30.0 * first * start, noise)[-1])
    assert relative_error(ends[1], ends[0]) < 1e-11
