"""Samplers of one step (or of one step and its correction) against the schedulers of diffusers, noise injected.

The schedule is ours throughout, with the float32 roundings of diffusers (``precision="float32"``); what is left is the
float32 arithmetic of its steps.
"""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from against_diffusers import Errors, compare, diffusers

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction

# diffusers converts tensors to arrays in ways that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 85e-5, "beta_end": 0.012}
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": prediction.eps(),
    "sample": prediction.x0(),
    "v_prediction": prediction.v(),
}
COUNTS = [1, 2, 3, 4, 15]


def agree(errors: Errors, one_step: float = 1e-6) -> None:
    assert errors.open_loop < one_step, errors
    assert errors.closed_loop < 1e-5, errors


def diffuser(name: str, steps: int, **config: Any) -> Any:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


KAPPA = [  # (scheduler, ours, arguments of its step): those that carry x / alpha
    ("EulerDiscreteScheduler", samplers.euler(), {}),
    (
        "EulerDiscreteScheduler",
        samplers.euler(s_churn=3.0, s_noise=1.01, order="after"),
        {"s_churn": 3.0, "s_noise": 1.01},
    ),
    (
        "EulerDiscreteScheduler",
        samplers.euler(s_churn=20.0, s_tmin=0.5, s_tmax=9.0, order="after"),
        {"s_churn": 20.0, "s_tmin": 0.5, "s_tmax": 9.0},
    ),
    ("EulerAncestralDiscreteScheduler", samplers.euler_ancestral(), {}),
    ("HeunDiscreteScheduler", samplers.heun(), {}),
    ("KDPM2DiscreteScheduler", samplers.kdpm2(), {}),
    ("KDPM2AncestralDiscreteScheduler", samplers.kdpm2_ancestral(), {}),
]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("trailing", 0), ("linspace", 0)])
@pytest.mark.parametrize(("name", "sampler", "arguments"), KAPPA, ids=[str(case[1]) for case in KAPPA])
def test_in_kappa(name: str, sampler: Any, arguments: dict[str, float], spacing: str, offset: int, kind: str):
    for steps in COUNTS:
        if steps == 1 and (spacing == "linspace" or "KDPM2" in name):
            continue  # diffusers' single linspace step is timestep 0, ours T - 1; its KDPM2 has no single step
        if steps < 4 and spacing == "linspace" and "KDPM2Ancestral" in name:
            continue  # sqrt(kappa'^2 - k_up^2) cancels in float32 there: 1e-5 to 1e-4 of diffusers' own
        scheduler = diffuser(name, steps, **BETAS, prediction_type=kind, timestep_spacing=spacing, steps_offset=offset)
        schedule = schedules.scaled_linear(
            steps=steps, spacing=spacing, offset=offset, rounding="none" if spacing == "linspace" else "auto",
            precision="float32",
        )  # fmt: skip
        errors = compare(scheduler, sampler, schedule, PREDICTIONS[kind], carried="kappa", arguments=arguments)
        # Large steps from kappa = 14 are differences of large numbers, which diffusers takes in float32.
        agree(errors, one_step=1e-6 if steps > 4 else 3e-6)


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
def test_heun_along_a_curve(curve: str):
    """The curve runs between the first and the last level that the spacing visits, as diffusers has it."""
    scheduler = diffuser("HeunDiscreteScheduler", 12, **BETAS, **{f"use_{curve}_sigmas": True})
    ends = schedules.scaled_linear(steps=2, spacing="linspace", precision="float32").grid().kappa
    schedule = schedules.scaled_linear(
        steps=12, sigmas=curve, sigma_max=ends[0], sigma_min=ends[1], precision="float32"
    )
    agree(compare(scheduler, samplers.heun(), schedule, prediction.eps(), carried="kappa"))


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_the_brownian_path_of_the_sde_solver(steps: int, monkeypatch: pytest.MonkeyPatch):
    """diffusers asks a Brownian tree for the noise of half a step and of the whole; ours keeps half in a register."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))  # its trees are not asked for noise here
    from diffusers.schedulers import scheduling_dpmsolver_sde

    scheduler = scheduling_dpmsolver_sde.DPMSolverSDEScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    schedule = schedules.scaled_linear(steps=steps, offset=1, precision="float32")
    rng = np.random.default_rng(1)
    rng.standard_normal((3, 24))  # what ``compare`` draws first is the start
    noise = torch.from_numpy(rng.standard_normal((2 * steps - 1, 3, 24)))
    calls = iter(range(2 * steps - 1))

    def path(k: torch.Tensor, k_next: torch.Tensor) -> torch.Tensor:
        """The increment of W from k to k_next over sqrt(k - k_next)."""
        i = next(calls)
        if i % 2 == 0:
            path.middle = k_next  # type: ignore[attr-defined]
            return noise[i]
        middle = path.middle  # type: ignore[attr-defined]
        increment = torch.sqrt(k - middle) * noise[i - 1] + torch.sqrt(middle - k_next) * noise[i]
        return increment / torch.sqrt(k - k_next)

    monkeypatch.setattr(scheduler, "noise_sampler", path)
    agree(compare(scheduler, samplers.dpmpp_sde(), schedule, prediction.eps(), carried="kappa"))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm(kind: str, steps: int):
    scheduler = diffuser("LCMScheduler", steps, **BETAS, prediction_type=kind)
    schedule = schedules.scaled_linear(steps=steps, spacing="distilled", precision="float32")
    assert schedule.grid().timesteps == tuple(scheduler.timesteps.tolist())
    agree(compare(scheduler, samplers.lcm(), schedule, PREDICTIONS[kind]))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd(kind: str, steps: int, eta: float):
    scheduler = diffuser("TCDScheduler", steps, **BETAS, prediction_type=kind)
    schedule = schedules.scaled_linear(steps=steps, spacing="distilled", final="sigma_min", precision="float32")
    agree(compare(scheduler, samplers.tcd(eta), schedule, PREDICTIONS[kind], arguments={"eta": eta}))


FLOWS = [
    ("FlowMatchEulerDiscreteScheduler", {}, samplers.flow_euler()),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, samplers.flow_stochastic()),
    ("FlowMatchHeunDiscreteScheduler", {}, samplers.flow_heun()),
    ("FlowMatchLCMScheduler", {}, samplers.flow_stochastic()),
]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "config", "sampler"), FLOWS, ids=[f"{case[0]}{case[1]}" for case in FLOWS])
def test_flows(name: str, config: dict[str, Any], sampler: Any, shift: float):
    for steps in COUNTS:
        scheduler = getattr(diffusers, name)(shift=shift, **config)
        scheduler.scale_model_input = lambda sample, t: sample
        scheduler.set_timesteps(steps)
        # diffusers shifts its sigma_min twice: the last level is that of shift(1/1000), shifted again.
        end = 1.0 / 1000 if shift == 1.0 else shift / 1000 / (1.0 + (shift - 1.0) / 1000)
        schedule = schedules.flow(steps=steps, shift=shift, sigma_min=end)
        agree(compare(scheduler, sampler, schedule, prediction.flow(), time="flow1000", space="flow"))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_ancestral_sampler_of_ltx(eta: float):
    scheduler = diffusers.LTXEulerAncestralRFScheduler(eta=eta)
    for steps in COUNTS:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1).tolist())
        scheduler.timesteps = scheduler.timesteps[:-1]
        schedule = schedules.flow(steps=steps)
        agree(
            compare(scheduler, samplers.flow_ancestral(eta), schedule, prediction.flow(), time="flow1000", space="flow")
        )


class Trimmed:
    """SCMScheduler without the last of its timesteps, at which no network is asked."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.timesteps = scheduler, scheduler.timesteps[:-1]

    def step(self, m: torch.Tensor, t: torch.Tensor, sample: torch.Tensor) -> Any:
        return self.scheduler.step(m, t, sample)


@pytest.mark.parametrize("middle", [1.3, 0.7])
def test_scm_in_two_steps(middle: float, monkeypatch: pytest.MonkeyPatch):
    scheduler = diffusers.SCMScheduler(sigma_data=1.0)
    scheduler.set_timesteps(2, max_timesteps=1.5, intermediate_timesteps=middle)
    schedule = schedules.trigflow(steps=2, start=1.5, middle=middle)
    assert schedule.grid().times("angle") == pytest.approx(scheduler.timesteps[:2].tolist())
    from diffusers.schedulers import scheduling_scm

    rng = np.random.default_rng(1)
    rng.standard_normal((3, 24))
    noise = iter(torch.from_numpy(rng.standard_normal((2, 3, 24))))
    monkeypatch.setattr(scheduling_scm, "randn_tensor", lambda *_, **__: next(noise))
    agree(compare(Trimmed(scheduler), samplers.scm(), schedule, prediction.trigflow(), time="angle"))
