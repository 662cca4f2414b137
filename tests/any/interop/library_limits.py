"""Where diffusers has NaN or stops, each run on both sides: ours is finite, or refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scheduler_zoo import scheduler_class

from scoregraph.errors import ScoregraphError
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.interop.probing import network

SHAPE = (1, 3, 4, 4)


@dataclass(frozen=True)
class Outcome:
    """What happened on both sides."""

    case: str
    theirs: str
    ours: str
    reason: str

    @property
    def ours_is_sound(self) -> bool:
        """Finite, or refused with a code of ours."""
        return self.ours == "finite" or self.ours.startswith("refused (SG")


@dataclass(frozen=True)
class Limit:
    """A case: a scheduler that fails, and ours on the same points.

    Attributes:
        expected: what the library does: "NaN" or "stops".
        schedule: ours; built when asked, for a schedule may be what is refused.
    """

    case: str
    expected: str
    scheduler: str
    config: dict[str, Any]
    steps: int
    sampler: Sampler
    schedule: Callable[[], Schedule]
    reason: str
    prediction: Prediction = field(default_factory=prediction.eps)
    space: str = "vp"

    def outcome(self) -> Outcome:
        """Run both."""
        return Outcome(self.case, self.theirs(), self.ours(), self.reason)

    def theirs(self) -> str:
        """ "finite", "NaN", or "stops" with the exception."""
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                scheduler = scheduler_class(self.scheduler)(**self.config)
                scheduler.set_timesteps(self.steps)
                x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
                for t in scheduler.timesteps:
                    x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                    x = scheduler.step(network(x_in.double(), float(t)), t, x).prev_sample.double()
            except (IndexError, ValueError, UnboundLocalError, RuntimeError) as error:
                return f"stops ({type(error).__name__})"
        return "finite" if bool(torch.isfinite(x).all()) else "NaN"

    def ours(self) -> str:
        """ "finite", "NaN", or "refused" with the code."""
        try:
            table = self.sampler.table(self.schedule(), self.prediction, "none", self.space)
        except ScoregraphError as error:
            return f"refused ({error.code})"
        rng = np.random.default_rng(0)
        held = [table.init_scale * rng.standard_normal(SHAPE), *(np.zeros(SHAPE) for _ in table.registers[1:])]
        for i, (t, c_in) in enumerate(zip(table.values("t"), table.values("c_in"), strict=True)):
            a, b, c = table.matrices(i)
            m, z = network(torch.from_numpy(c_in * held[0]), t).numpy(), rng.standard_normal(SHAPE)
            held = [sum(a[j, k] * r for k, r in enumerate(held)) + b[j, 0] * m + c[j] * z for j in range(len(held))]
        return "finite" if bool(np.isfinite(held[0]).all()) else "NaN"


def _sd(steps: int, **options: Any) -> Callable[[], Schedule]:
    return lambda: schedules.linear(steps=steps, **options)


LIMITS = [
    Limit(
        "Karras sigmas, end sigma_min, Heun correction, N = 20",
        "NaN",
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_type": "heun"},
        20,
        samplers.dpm_solver(correction="heun"),
        _sd(20, sigmas="karras", final="sigma_min"),
        "the last sigma is there twice, h = 0; the weights are evaluated as limits, and the step does nothing",
    ),
    Limit(
        "UniPC, bh1, end zero",
        "NaN",
        "UniPCMultistepScheduler",
        {"solver_type": "bh1"},
        20,
        samplers.unipc(solver="bh1"),
        _sd(20),
        "h is infinite; the last step is of first order in the form that needs no h",
    ),
    Limit(
        "DDPM, fixed_large_log",
        "NaN",
        "DDPMScheduler",
        {"clip_sample": False, "variance_type": "fixed_large_log"},
        20,
        samplers.ddpm(variance="fixed_large_log"),
        _sd(20),
        "it takes the square root of a logarithm; ours is the variance of fixed_large",
    ),
    Limit(
        "zero-SNR betas with an eps network",
        "NaN",
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        20,
        samplers.ddim(),
        _sd(20, zero_snr=True, spacing="trailing"),
        "eps says nothing about x0 at alpha = 0: a v, x0 or flow network is needed",
    ),
    Limit(
        "ancestral Euler, cosine betas, N = 4",
        "NaN",
        "EulerAncestralDiscreteScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        4,
        samplers.euler_ancestral(),
        lambda: schedules.cosine(steps=4, spacing="linspace"),
        "sqrt(k'^2 - k_up^2) cancels below 0; ours is k'^2/k",
    ),
    *(
        Limit(
            f"ancestral KDPM2, cosine betas, N = {steps}",
            "NaN",
            "KDPM2AncestralDiscreteScheduler",
            {"beta_schedule": "squaredcos_cap_v2"},
            steps,
            samplers.kdpm2_ancestral(),
            lambda steps=steps: schedules.cosine(steps=steps, spacing="linspace"),
            "as above",
        )
        for steps in (4,)
    ),
    Limit(
        "flow with shift_terminal, N = 1",
        "stops",
        "FlowMatchEulerDiscreteScheduler",
        {"shift_terminal": 0.1},
        1,
        samplers.flow_euler(),
        lambda: schedules.flow(steps=1, terminal=0.1),
        "it stretches a grid of one point by 0/0; one point has nothing to stretch",
        prediction.flow(),
        "flow",
    ),
    Limit(
        "DPM-Solver (eps), end zero",
        "stops",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver"},
        20,
        samplers.dpm_solver(algorithm="dpmsolver"),
        _sd(20),
        "ln(alpha/sigma) is infinite at the end; the last step is the estimate x0",
    ),
    Limit(
        "SDE-DPM-Solver++ 3M of EDM",
        "stops",
        "EDMDPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        20,
        samplers.dpm_solver(order=3, algorithm="sde-dpmsolver++"),
        lambda: schedules.karras(steps=20),
        "it has no such branch; ours is the multistep solver of the other schedules",
        prediction.edm(),
        "kappa",
    ),
    Limit(
        "PNDM with Runge-Kutta start, N = 3",
        "stops",
        "PNDMScheduler",
        {},
        3,
        samplers.pndm(),
        _sd(3),
        "three steps are three Runge-Kutta steps",
    ),
]
