"""Log-likelihoods of distributions whose density is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.likelihoods import Likelihood

WEIGHTS = np.array([0.5, 0.3, 0.2])
CENTRES = np.array([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]])
SPREAD = 0.3


class Mixture(nn.Module):
    """E[x0 | x] for x = alpha x0 + sigma eps and x0 from a mixture of Gaussians in the plane, kappa = sigma / alpha."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.register_buffer("centres", torch.tensor(CENTRES, dtype=torch.float32))
        self.register_buffer("log_weights", torch.tensor(np.log(WEIGHTS), dtype=torch.float32))
        self.scaled = scaled

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` [n, 2], and the noise level kappa [n]; ``scaled`` when x is in vp space."""
        kappa = sigma[:, None]
        if self.scaled:
            x = x * (1 + kappa * kappa).sqrt()
        total = kappa * kappa + SPREAD**2
        offsets = x[:, None, :] - self.centres
        weights = torch.softmax(self.log_weights - (offsets * offsets).sum(-1) / (2 * total), -1)
        nearest = torch.matmul(weights, self.centres)
        return nearest + (SPREAD**2 / total) * (x - nearest)


def density(at: np.ndarray, spread: float) -> np.ndarray:
    """log p of the mixture whose components have that standard deviation: [B, 2] to [B]."""
    squared = ((at[:, None] - CENTRES) ** 2).sum(-1)
    return np.log((WEIGHTS * np.exp(-squared / (2 * spread**2)) / (2 * math.pi * spread**2)).sum(1))


def network(space: str) -> sg.models.Network:
    example = {"x": torch.randn(3, 2), "sigma": torch.tensor([5.0, 1.0, 0.1])}
    return sg.models.from_module(
        Mixture(space == "vp"), example, prediction="x0", space=space, convention="sigma", name="mixture"
    )


def samples(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return CENTRES[rng.choice(3, size=count, p=WEIGHTS)] + SPREAD * rng.standard_normal((count, 2))


def run(likelihood: Likelihood, at: np.ndarray, device: str = "reference", **options) -> np.ndarray:
    plan = sg.compile(likelihood.graph, device=device, use_cache=False)
    return likelihood.log_prob(plan.run(**likelihood.inputs(at), **options))


@pytest.mark.parametrize("space", ["kappa", "vp"])
def test_a_mixture_of_gaussians_within_one_percent(space):
    at = samples(48)
    schedule = sg.schedules.karras(steps=120, sigma_min=0.002, sigma_max=80.0)
    likelihood = sg.likelihood(network(space), schedule)
    exact = density(at, SPREAD)
    got = run(likelihood, at)
    assert got.dtype == np.float64
    assert abs(got.mean() - exact.mean()) <= 0.01 * abs(exact.mean())
    # One by one the error is that of Heun's method, here some thousandths of a nat.
    assert np.abs(got - exact).max() < 0.03


def test_the_error_is_of_second_order():
    at = samples(32)
    exact = density(at, math.hypot(SPREAD, 0.05))  # the density at the smallest noise, which is not small here
    errors = []
    for steps in (24, 48):
        schedule = sg.schedules.karras(steps=steps, sigma_min=0.05, sigma_max=80.0)
        errors.append(np.abs(run(sg.likelihood(network("kappa"), schedule), at) - exact).mean())
    assert 3.2 < errors[0] / errors[1] < 5.2


def test_probes_estimate_the_divergence_without_bias():
    at = np.repeat(samples(4), 64, axis=0)
    schedule = sg.schedules.karras(steps=32, sigma_min=0.02, sigma_max=80.0)
    exact = run(sg.likelihood(network("kappa"), schedule), at)
    estimates = run(sg.likelihood(network("kappa"), schedule, probed=True), at, seed=5)
    apart = (estimates - exact).reshape(4, 64)
    assert apart.std(axis=1).min() > 0.0
    assert np.all(np.abs(apart.mean(axis=1)) < 4 * apart.std(axis=1) / 8)


def test_conditions_are_inputs_or_left_out():
    class Shifted(nn.Module):
        def forward(self, x, sigma, centre):
            return centre + (x - centre) / (1 + sigma[:, None] ** 2)

    example = {"x": torch.randn(2, 2), "sigma": torch.rand(2), "centre": torch.randn(2, 2)}
    net = sg.models.from_module(
        Shifted(), example, prediction="x0", space="kappa", conds={"centre": {"null": 0.0}}, name="shifted"
    )
    schedule = sg.schedules.karras(steps=100, sigma_min=0.002, sigma_max=80.0)
    at, centre = np.array([[0.5, -1.0], [2.0, 0.1]]), np.array([[0.0, 0.0], [2.0, 0.5]])

    def normal(offset: np.ndarray) -> np.ndarray:
        return -0.5 * (offset**2).sum(1) - math.log(2 * math.pi)

    given = sg.likelihood(net, schedule)
    plan = sg.compile(given.graph, device="reference", use_cache=False)
    got = given.log_prob(plan.run(**given.inputs(at, centre=centre.astype(np.float32))))
    np.testing.assert_allclose(got, normal(at - centre), atol=0.02)
    np.testing.assert_allclose(run(sg.likelihood(net, schedule, unconditional=True), at), normal(at), atol=0.02)
