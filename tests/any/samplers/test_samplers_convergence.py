"""Order of convergence and exactness on Gaussian data, where the ODE and its solution are known in closed form.

Data N(mu, S^2) per coordinate: x0 given x is mu + alpha S^2 / (alpha^2 S^2 + sigma^2) (x - alpha mu), and the
probability-flow ODE carries x to alpha' mu + sqrt((alpha'^2 S^2 + sigma'^2) / (alpha^2 S^2 + sigma^2)) (x - alpha mu).
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


def denoiser(alpha: float, sigma: float, x: np.ndarray) -> np.ndarray:
    """E[x0 | x]."""
    return MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)


def ode_error(sampler: Sampler, schedule: Schedule, space: str, skip_last: bool) -> float:
    """The distance to the exact solution at the end, or at the last point with noise (``skip_last``)."""
    grid = schedule.grid().in_space(space)
    points = dict(zip(grid.times("flow"), zip(grid.alpha, grid.sigma, strict=True), strict=False))
    table = sampler.table(schedule, prediction.x0(), "flow", space)
    alpha, sigma = grid.alpha[0], grid.sigma[0]
    x = np.random.default_rng(0).standard_normal((5, 3)) * np.hypot(alpha * S, sigma) + alpha * MU
    states = run_table(table, lambda x, t: [denoiser(*points[t], x)], x)
    # Heun's last step is one row, every other sampler's every step is.
    alpha_end, sigma_end = (grid.alpha[-2], grid.sigma[-2]) if skip_last else (1.0, 0.0)
    end = states[-2] if skip_last else states[-1]
    spread = np.hypot(alpha_end * S, sigma_end) / np.hypot(alpha * S, sigma)
    return float(np.abs(end - (alpha_end * MU + spread * (x - alpha * MU))).max())


ORDERS = [
    ("ddim", samplers.ddim(), 1),
    ("euler", samplers.euler(), 1),
    ("flow_euler", samplers.flow_euler(), 1),
    ("heun", samplers.heun(), 2),
    ("dpmpp_2m", samplers.dpmpp_2m(), 2),
    ("dpmpp_2m(heun)", samplers.dpmpp_2m(correction="heun"), 2),
]


@pytest.mark.parametrize(("name", "sampler", "order"), ORDERS, ids=[name for name, _, _ in ORDERS])
@pytest.mark.parametrize("space", ["vp", "kappa", "flow"])
def test_order_of_convergence(name: str, sampler: Sampler, order: int, space: str):
    """On a grid even in log sigma from 10 to 0.1; the step to sigma = 0 is of first order for all and left out."""
    steps = [40, 80, 160, 320]
    errors = [
        ode_error(sampler, schedules.exponential(steps=n + 1, sigma_min=0.1, sigma_max=10.0), space, skip_last=True)
        for n in steps
    ]
    slopes = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(f"{name} in {space}: errors {[f'{e:.1e}' for e in errors]}, slopes {[f'{s:.2f}' for s in slopes]}")
    assert abs(slopes[-1] - order) < 0.1
    assert errors[-1] < 10.0 ** (-1 - order)


@pytest.mark.parametrize(("name", "sampler", "order"), ORDERS, ids=[name for name, _, _ in ORDERS])
def test_whole_schedules_converge_to_the_exact_solution(name: str, sampler: Sampler, order: int):
    for make, space in ((schedules.karras, "kappa"), (schedules.linear, "vp"), (schedules.flow, "flow")):
        if make is schedules.flow and sampler.needs_finite_kappa:
            continue
        coarse, fine = (ode_error(sampler, make(steps=n), space, skip_last=False) for n in (40, 200))
        assert fine < coarse
        assert fine < 0.02


def test_flow_with_one_point_mass_is_exact_in_one_step():
    """The path of a single point is straight: one Euler step from pure noise ends on it."""
    table = samplers.flow_euler().table(schedules.flow(steps=1), prediction.flow(), "flow", "flow")
    x = np.random.default_rng(0).standard_normal((4, 3))
    end = run_table(table, lambda x, t: [(x - MU) / t], x)[-1]
    np.testing.assert_allclose(end, np.broadcast_to(MU, end.shape), atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_variance_of_the_stochastic_sampler_is_right(eta: float):
    """Fine DDIM(eta) steps keep the marginal law: the end has the data's mean and standard deviation."""
    schedule = schedules.exponential(steps=300, sigma_min=0.01, sigma_max=20.0)
    table = samplers.ddim(eta).table(schedule, prediction.x0(), "sigma", "kappa")
    mean, variance = MU, S**2 + 20.0**2
    for i, sigma in enumerate(table.values("sigma")):
        a, b, c = (m.item() for m in table.matrices(i))
        # x' = a x + b D(x) + c z with D affine: mean and variance follow exactly, without sampling.
        gain = S**2 / (S**2 + sigma**2)
        mean = (a + b * gain) * mean + b * (1 - gain) * MU
        variance = (a + b * gain) ** 2 * variance + c**2
    np.testing.assert_allclose(mean, MU, atol=1e-3)
    np.testing.assert_allclose(np.sqrt(variance), S, rtol=0.03)


def test_multistep_consistency_is_the_closed_form():
    """The exact consistency function of the Gaussian ODE, through the network F behind it, jump by jump.

    f(x, k) = mu + (x - mu) sqrt((S^2 + k0^2) / (S^2 + k^2)) carries x at k to the boundary k0 of the same trajectory.
    """
    k0 = 0.05
    schedule = schedules.karras(steps=5, sigma_min=0.3, sigma_max=20.0)
    pred = prediction.consistency(sigma_data=0.5, sigma_min=k0)
    table = samplers.consistency().table(schedule, pred, "sigma", "kappa")

    def f(x: np.ndarray, k: float) -> np.ndarray:
        return MU + (x - MU) * np.sqrt((S**2 + k0**2) / (S**2 + k**2))

    def raw(x_in: np.ndarray, k: float) -> list[np.ndarray]:
        """The network F behind f = c_skip x + c_out F."""
        x = x_in * np.sqrt(k**2 + 0.25)
        c_skip = 0.25 / ((k - k0) ** 2 + 0.25)
        c_out = (k - k0) * 0.5 / np.sqrt(k**2 + 0.25)
        return [(f(x, k) - c_skip * x) / c_out]

    rng = np.random.default_rng(8)
    kappa = schedule.grid().kappa
    x, noise = 20.0 * rng.standard_normal((4, 3)), rng.standard_normal((5, 4, 3))
    states = run_table(table, raw, x, noise)
    expected = x
    for i in range(5):
        expected = f(expected, kappa[i]) + np.sqrt(max(kappa[i + 1] ** 2 - k0**2, 0.0)) * noise[i]
        np.testing.assert_allclose(states[i + 1], expected, rtol=1e-9, atol=1e-9)
