"""Orders of convergence of the multistep solvers, and the law that their noise produces, on Gaussian data.

For data N(mu, S^2) the estimate of x0 is affine, the probability-flow ODE has a closed solution, and the mean and the
covariance of all registers follow from row to row without sampling.
"""

import itertools

import numpy as np
import pytest
from machine import run_table

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

MU = np.array([0.5, -1.0, 2.0])
S = np.array([0.3, 1.0, 0.6])
HIGH, LOW = 10.0, 0.1


def gain(kappa: float) -> np.ndarray:
    """E[x0 | x] = mu + gain (x - mu) in kappa space."""
    return S**2 / (S**2 + kappa**2)


def even(steps: int) -> Schedule:
    """Even steps in lambda, and one more that is not looked at."""
    kappa = np.geomspace(HIGH, LOW, steps + 1)
    return schedules.custom(sigmas=(*kappa.tolist(), LOW / 2), space="kappa")


def eased(steps: int) -> Schedule:
    """The same with two short steps before it, h^2 and h^1.5 long, whose lower order then does not show."""
    h = np.log(HIGH / LOW) / steps
    start = HIGH * np.exp([h**2 + h**1.5, h**1.5])
    return schedules.custom(sigmas=(*start.tolist(), *even(steps).grid().sigma), space="kappa")


def ode_error(sampler: Sampler, schedule: Schedule) -> float:
    """The distance to the exact solution at LOW, the last point but one."""
    table = sampler.table(schedule, prediction.x0(), "sigma", "kappa")
    grid = schedule.grid()
    x = MU + np.random.default_rng(0).standard_normal((5, 3)) * np.hypot(S, grid.sigma[0])
    states = run_table(table, lambda x, k: [MU + gain(k) * (x - MU)], x)
    at_low = table.steps.index(grid.steps - 1)
    exact = MU + np.hypot(S, LOW) / np.hypot(S, grid.sigma[0]) * (x - MU)
    return float(np.abs(states[at_low] - exact).max())


ORDERS: list[tuple[Sampler, float]] = [
    (samplers.dpm_solver(1, "dpmsolver"), 1),
    (samplers.dpm_solver(2, "dpmsolver"), 2),
    (samplers.dpm_solver(2, "dpmsolver", "heun"), 2),
    (samplers.dpm_solver(3, "dpmsolver"), 2),  # as published: see Rule
    (samplers.dpm_solver(3, "dpmsolver", third="taylor"), 3),
    (samplers.dpmpp_2m(), 2),
    (samplers.dpmpp_3m(), 2),
    (samplers.dpmpp_3m(third="taylor"), 3),
    (samplers.dpmpp_3m_sde(0.0), 2),
    (samplers.dpm_solver_single(2), 2),
    (samplers.dpm_solver_single(2, "dpmsolver", "heun"), 2),
    (samplers.dpm_solver_single(3), 3),
    (samplers.dpm_solver_single(3, "dpmsolver", "heun"), 3),
    (samplers.unipc(1, corrector=False), 1),
    (samplers.unipc(2, corrector=False, lower_order_final=False), 2),
    (samplers.unipc(3, corrector=False, lower_order_final=False), 3),
    (samplers.unipc(1, lower_order_final=False), 2),
    (samplers.unipc(2, lower_order_final=False), 3),
    (samplers.unipc(2, "bh1", "eps", lower_order_final=False), 3),
    (samplers.unipc(3, lower_order_final=False), 4),
    (samplers.deis(1), 1),
    (samplers.deis(2), 2),
    (samplers.deis(3), 3),
    (samplers.deis(4), 4),
    (samplers.sa_solver(1, 0, 0.0), 1),
    (samplers.sa_solver(2, 0, 0.0, lower_order_final=False), 2),
    (samplers.sa_solver(3, 0, 0.0, lower_order_final=False), 3),
    (samplers.sa_solver(2, 3, 0.0, lower_order_final=False), 3),
    (samplers.sa_solver(2, 2, 0.0, predict="eps", lower_order_final=False), 2),
    (samplers.lms(1), 1),
    (samplers.lms(2), 2),
    (samplers.lms(3), 3),
    (samplers.lms(4), 4),
    # Their weights are those of even steps in kappa, which these are not.
    (samplers.ipndm(), 2),
    (samplers.pndm(), 2),
    (samplers.pndm(skip_prk=True), 2),
    (samplers.pndm(skip_prk=True, average="eps"), 2),
]


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=[str(sampler) for sampler, _ in ORDERS])
def test_order_of_convergence(sampler: Sampler, order: float):
    grid = even if sampler.name in ("dpm_solver_single", "pndm", "ipndm") else eased
    errors = [ode_error(sampler, grid(n)) for n in (60, 120, 240)]
    slopes = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(f"{sampler}: errors {[f'{e:.1e}' for e in errors]}, orders {[f'{s:.2f}' for s in slopes]}")
    assert abs(slopes[-1] - order) < 0.25


def law_at_the_end(sampler: Sampler, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """The exact mean [3] and standard deviation [3] of the samples, from the covariance of all registers."""
    table = sampler.table(schedule, prediction.x0(), "none", "kappa")
    count = len(table.registers)
    means, covariances = np.zeros((3, count)), np.zeros((3, count, count))
    means[:, 0], covariances[:, 0, 0] = MU, S**2 + schedule.grid().sigma[0] ** 2
    for i, kappa in enumerate(table.values("sigma")):
        a, b, c = table.matrices(i)
        for j, g in enumerate(gain(kappa)):
            step = a.copy()
            step[:, 0] += b[:, 0] * g
            means[j] = step @ means[j] + b[:, 0] * (1 - g) * MU[j]
            covariances[j] = step @ covariances[j] @ step.T + np.outer(c, c)
    return means[:, 0], np.sqrt(covariances[:, 0, 0])


STOCHASTIC: list[tuple[Sampler, float]] = [
    (samplers.ddpm(), 0.04),
    (samplers.dpm_solver(1, "sde-dpmsolver++"), 0.04),
    (samplers.dpm_solver(2, "sde-dpmsolver++"), 0.001),
    (samplers.dpm_solver(2, "sde-dpmsolver++", "heun"), 0.001),
    (samplers.dpm_solver(3, "sde-dpmsolver++", "heun"), 0.001),
    (samplers.dpm_solver(2, "sde-dpmsolver"), 0.001),
    (samplers.dpmpp_2m_sde(0.5), 0.001),
    (samplers.dpmpp_2m_sde(2.0), 0.001),
    (samplers.dpmpp_3m_sde(1.0, third="taylor"), 0.001),
    (samplers.dpm_solver_single(2, "sde-dpmsolver++"), 0.04),
    (samplers.sa_solver(2, 0, 0.7), 0.001),
    (samplers.sa_solver(2, 2, 1.0), 0.001),
    (samplers.sa_solver(3, 3, 1.0, low=0.3, high=5.0), 0.001),
    (samplers.sa_solver(2, 2, 0.6, predict="eps"), 0.001),
]


@pytest.mark.parametrize(("sampler", "tolerance"), STOCHASTIC, ids=[str(sampler) for sampler, _ in STOCHASTIC])
def test_noise_has_the_right_variance(sampler: Sampler, tolerance: float):
    """As many steps as it takes, and the samples have the data's law, whatever the noise."""
    errors = []
    for steps in (100, 200, 400):
        schedule = schedules.exponential(steps=steps, sigma_min=0.001, sigma_max=40.0)
        mean, deviation = law_at_the_end(sampler, schedule)
        np.testing.assert_allclose(mean, MU, atol=1e-6)
        errors.append(np.abs(deviation / S - 1).max())
    print(f"{sampler}: {[f'{e:.1e}' for e in errors]}")
    assert errors[-1] < tolerance
    assert errors[2] < 0.65 * errors[1] < 0.65**2 * errors[0]


def test_the_sign_that_differs_in_diffusers_costs_an_order():
    """Its third-order SDE step has -1/2 for +1/2: the law is off by more than that of second order, and ours is not."""
    schedule = schedules.exponential(steps=100, sigma_min=0.005, sigma_max=40.0)
    errors = {
        third: np.abs(law_at_the_end(samplers.dpmpp_3m_sde(third=third), schedule)[1] / S - 1).max()
        for third in ("published", "taylor", "diffusers")
    }
    print(errors)
    second = np.abs(law_at_the_end(samplers.dpmpp_2m_sde(correction="heun"), schedule)[1] / S - 1).max()
    assert errors["taylor"] < second < errors["diffusers"]
