"""Gradients of energies and likelihoods, compiled for the CPU, against autograd in float64 and a known density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from energy_cases import MODULES, energy, oracle
from test_likelihoods import SPREAD, density, network, run, samples

import scoregraph as sg


@pytest.mark.parametrize("name", MODULES)
def test_energies_and_their_gradients(name):
    net = energy(name)
    plan = sg.compile(net, use_cache=False)
    inputs = net.example(5)
    named = dict(zip(("x", "t", *(cond.name for cond in net.ref.conds)), inputs, strict=True))
    made = plan.run(**{key: value.numpy() for key, value in named.items()})
    for got, expected in zip((made["energy"], made["grad"]), oracle(net, *inputs), strict=True):
        assert got.shape == expected.shape
        error = float((torch.from_numpy(got) - expected).abs().max() / expected.abs().max())
        assert error < 1e-5
    alone = plan.run(**{key: value[3:4].numpy() for key, value in named.items()})
    np.testing.assert_array_equal(alone["grad"], made["grad"][3:4])


@pytest.mark.parametrize("probed", [False, True])
def test_likelihoods_are_those_of_the_reference(probed):
    schedule = sg.schedules.karras(steps=24, sigma_min=0.01, sigma_max=80.0)
    likelihood = sg.likelihood(network("kappa"), schedule, probed=probed)
    at = samples(16)
    native, reference = (run(likelihood, at, device, seed=3) for device in ("cpu", "reference"))
    np.testing.assert_allclose(native, reference, atol=2e-4)


def test_the_likelihood_of_a_mixture_within_one_percent():
    at = samples(512)
    schedule = sg.schedules.karras(steps=120, sigma_min=0.002, sigma_max=80.0)
    exact = density(at, SPREAD)
    got = run(sg.likelihood(network("kappa"), schedule), at, "cpu")
    assert abs(got.mean() - exact.mean()) <= 0.01 * abs(exact.mean())
