"""How a pipeline's loop drives a scheduler: what it passes to ``step``, and what it tells the network.

Most schedulers are driven alike: for t in ``timesteps``, the network sees ``scale_model_input(x, t)`` and t, and
``step(m, t, x)`` gives the next x. The others get a subclass here, written after the pipeline that ships with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoregraph.interop.randomness import BrownianPath

Scheduler = Any
"""An object with the interface of a diffusers scheduler; nothing here imports that library."""


@dataclass(frozen=True)
class Call:
    """One micro-step: ``t`` goes to the scheduler, ``time`` to the network; ``network`` False only adds noise."""

    index: int
    t: Any
    time: float
    network: bool = True


class Driver:
    """The common loop. ``arguments`` are further arguments of ``step`` (eta, s_churn, …), the same in every call.

    Attributes:
        rank: the number of dimensions that the scheduler wants a sample to have.
    """

    rank: ClassVar[int] = 4

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = dict(arguments)

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """The names of the arguments that ``step`` may be given besides those of every call."""
        own = {"model_output", "timestep", "sample", "return_dict", "generator", "variance_noise"}
        return set(inspect.signature(scheduler.step).parameters) - own

    def calls(self, scheduler: Scheduler) -> list[Call]:
        """All micro-steps, in order."""
        return [Call(i, t, float(t)) for i, t in enumerate(scheduler.timesteps)]

    def prepare(self, scheduler: Scheduler) -> None:
        """What happens between ``set_timesteps`` and the first call.

        The beginning is said: where a timestep is there twice, schedulers that look it up begin with the second.
        """
        if hasattr(scheduler, "set_begin_index") and scheduler.begin_index is None:
            scheduler.set_begin_index(0)

    def init_scale(self, scheduler: Scheduler) -> float:
        """The standard deviation of the noise that the loop starts from."""
        return float(getattr(scheduler, "init_noise_sigma", 1.0))

    def scale(self, scheduler: Scheduler, x: Tensor, call: Call) -> Tensor:
        """The network's input."""
        return scheduler.scale_model_input(x, call.t) if hasattr(scheduler, "scale_model_input") else x

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """The next state."""
        return _first(scheduler.step(m, call.t, x, **self.arguments))

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float] | None:
        """(alpha, sigma) where the call stands, by the scheduler's own noising; None if it does not say."""
        clean, noise = torch.eye(2, dtype=torch.float64).reshape(2, 1, *[1] * (self.rank - 2), 2)
        t = torch.as_tensor(call.t).reshape(1)
        try:
            if hasattr(scheduler, "add_noise"):
                noised = scheduler.add_noise(clean, noise, t)
            else:
                noised = scheduler.scale_noise(clean, t, noise)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return None
        alpha, sigma = noised.double().flatten().tolist()
        return alpha, sigma


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.prev_sample


class Ipndm(Driver):
    """It has no ``add_noise``; its alphas and betas are alpha and sigma."""

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """From the scheduler's arrays."""
        return float(scheduler.alphas[call.index]), float(scheduler.betas[call.index])


class ConsistencyDecoder(Driver):
    """It has no ``add_noise``; its arrays are indexed by the timestep."""

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """From the scheduler's arrays."""
        return float(scheduler.sqrt_alphas_cumprod[call.t]), float(scheduler.sqrt_one_minus_alphas_cumprod[call.t])


class DdimInverse(Driver):
    """From the sample to noise: the state stands one stride before the timestep that the network is told."""

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """From the scheduler's arrays."""
        before = int(call.t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        squared = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.initial_alpha_cumprod
        return float(squared) ** 0.5, float(1.0 - squared) ** 0.5


class FlowSigmas(Driver):
    """No ``add_noise``; its sigmas are those of a flow."""

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """alpha = 1 - sigma."""
        sigma = float(scheduler.sigmas[call.index])
        return 1.0 - sigma, sigma


class Wuerstchen(Driver):
    """One more timestep than calls, and a time per sample."""

    def calls(self, scheduler: Scheduler) -> list[Call]:
        """All timesteps but the last."""
        return [Call(i, t, float(t)) for i, t in enumerate(scheduler.timesteps[:-1])]

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """``timestep`` is [B]."""
        return _first(scheduler.step(m, call.t.expand(len(x)), x, **self.arguments))


class Scm(Driver):
    """One more timestep than calls; x = cos(t) x0 + sin(t) sigma_data z."""

    def calls(self, scheduler: Scheduler) -> list[Call]:
        """All timesteps but the last."""
        return [Call(i, t, float(t)) for i, t in enumerate(scheduler.timesteps[:-1])]

    def init_scale(self, scheduler: Scheduler) -> float:
        """The pipeline multiplies its noise by sigma_data."""
        return float(scheduler.config.sigma_data)

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """On the unit circle, for data of unit variance."""
        t = torch.as_tensor(call.time, dtype=torch.float64)
        return max(float(torch.cos(t)), 0.0), float(torch.sin(t))  # the first angle is pi/2 to rounding


class CogVideoXDpm(Driver):
    """The pipeline carries x0 of the call before, and says its timestep."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Without what the pipeline carries."""
        return super().takes(scheduler) - {"old_pred_original_sample", "timestep_back"}

    def prepare(self, scheduler: Scheduler) -> None:
        """x0 is kept as an attribute, where probing finds it."""
        super().prepare(scheduler)
        scheduler.old_pred_original_sample = None

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """``step`` returns x and x0."""
        before = scheduler.timesteps[call.index - 1] if call.index else None
        old = scheduler.old_pred_original_sample
        x, scheduler.old_pred_original_sample = scheduler.step(
            m, old, call.t, before, x, return_dict=False, **self.arguments
        )
        return x


class UnClip(Driver):
    """The pipeline says where the step ends; ``step`` alone would go to t - 1."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Without where the step ends."""
        return super().takes(scheduler) - {"prev_timestep"}

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """To the next timestep; the last step goes to t - 1."""
        later = scheduler.timesteps[call.index + 1 :]
        return _first(scheduler.step(m, call.t, x, prev_timestep=later[0] if len(later) else None, **self.arguments))


class Helios(FlowSigmas):
    """Samples of five dimensions [B, C, T, H, W]."""

    rank: ClassVar[int] = 5


class HeliosDmd(Helios):
    """Distilled steps: x0, then new noise of the level of the next call, both from the pipeline's own grid."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Nothing."""
        return set()

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """The noise is drawn by the pipeline."""
        grid = {"dmd_sigmas": scheduler.sigmas, "dmd_timesteps": scheduler.timesteps}
        noise = torch.randn(x.shape, dtype=x.dtype)
        return _first(
            scheduler.step(
                m,
                call.t,
                x,
                cur_sampling_step=call.index,
                dmd_noisy_tensor=noise,
                all_timesteps=scheduler.timesteps,
                **grid,
            )
        )


class RfProteina(Driver):
    """Three dimensions [B, tokens, D], and a mask of the tokens that move: all of them here."""

    rank: ClassVar[int] = 3

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Without the mask."""
        return super().takes(scheduler) - {"emit_mask"}

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """Every token moves."""
        return _first(scheduler.step(m, call.t, x, torch.ones(x.shape[:2], dtype=torch.bool), **self.arguments))


class DpmSde(Driver):
    """Its noise is that of a Brownian path."""

    def prepare(self, scheduler: Scheduler) -> None:
        """A path of ours, before the scheduler makes its own."""
        super().prepare(scheduler)
        scheduler.noise_sampler = BrownianPath()

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """The path is told the shape of the sample."""
        scheduler.noise_sampler.shape = x.shape
        return super().step(scheduler, m, call, x)


class ScoreSdeVe(Driver):
    """Predictor and corrector steps, each with a network call, told sigma; the sample is the last mean."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Nothing."""
        return set()

    def prepare(self, scheduler: Scheduler) -> None:
        """Its sigmas are set apart from its timesteps."""
        scheduler.set_sigmas(len(scheduler.timesteps))

    def calls(self, scheduler: Scheduler) -> list[Call]:
        """``correct_steps`` corrections, then a prediction."""
        rounds = int(scheduler.config.correct_steps) + 1
        return [
            Call(i * rounds + j, t, float(scheduler.sigmas[i]), True)
            for i, t in enumerate(scheduler.timesteps)
            for j in range(rounds)
        ]

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """A correction, or the prediction."""
        rounds = int(scheduler.config.correct_steps) + 1
        if call.index % rounds < rounds - 1:
            return _first(scheduler.step_correct(m, x))
        output = scheduler.step_pred(m, call.t, x)
        last = call.index == rounds * len(scheduler.timesteps) - 1
        return output.prev_sample_mean if last else output.prev_sample

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """alpha = 1; the network's time is sigma."""
        return 1.0, call.time


class ScoreSdeVp(Driver):
    """Euler-Maruyama steps of the VP equation; the sample is the last mean."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Nothing."""
        return set()

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """``step_pred`` returns x and its mean."""
        x, mean = scheduler.step_pred(m, x, call.t)
        return mean if call.index == len(scheduler.timesteps) - 1 else x

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """Song et al. 2021, equation 33."""
        c, t = scheduler.config, torch.as_tensor(call.time, dtype=torch.float64)
        log_alpha = -0.25 * t**2 * (c.beta_max - c.beta_min) - 0.5 * t * c.beta_min
        return float(log_alpha.exp()), float((-torch.expm1(2.0 * log_alpha)).sqrt())


class KarrasVe(Driver):
    """Noise before the network, then Euler's step and its correction; the network is told sigma."""

    @classmethod
    def takes(cls, scheduler: Scheduler) -> set[str]:
        """Nothing."""
        return set()

    def calls(self, scheduler: Scheduler) -> list[Call]:
        """Three a step: noise, Euler, correction (not in the last step)."""
        calls: list[Call] = []
        for index, (t, sigma, after) in enumerate(self._levels(scheduler)):
            churned = float(self._churned(scheduler, sigma))
            calls.append(Call(index, (0, t), float(sigma), False))
            calls.append(Call(index, (1, t), churned))
            if after:
                calls.append(Call(index, (2, t), float(after)))
        return calls

    @staticmethod
    def _levels(scheduler: Scheduler) -> list[tuple[int, Any, Any]]:
        """(t, sigma, next sigma), the schedule being indexed by t."""
        return [(int(t), scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0) for t in scheduler.timesteps]

    @staticmethod
    def _churned(scheduler: Scheduler, sigma: Any) -> Any:
        """The level after the noise."""
        with torch.random.fork_rng(devices=[]):
            return scheduler.add_noise_to_input(torch.zeros(1), sigma)[1]

    def step(self, scheduler: Scheduler, m: Tensor, call: Call, x: Tensor) -> Tensor:
        """What the correction needs is kept as attributes, where probing finds it."""
        phase, _ = call.t
        _, sigma, after = self._levels(scheduler)[call.index]
        if phase == 0:
            scheduler.sample_hat, scheduler.sigma_hat = scheduler.add_noise_to_input(x, sigma)
            return scheduler.sample_hat
        if phase == 1:
            output = scheduler.step(m, scheduler.sigma_hat, after, x)
            scheduler.derivative = output.derivative
            return output.prev_sample
        output = scheduler.step_correct(m, scheduler.sigma_hat, after, scheduler.sample_hat, x, scheduler.derivative)
        return output.prev_sample

    def level(self, scheduler: Scheduler, call: Call) -> tuple[float, float]:
        """alpha = 1; the network's time is sigma."""
        return 1.0, call.time


_DRIVERS: dict[str, type[Driver]] = {
    "CogVideoXDPMScheduler": CogVideoXDpm,
    "ConsistencyDecoderScheduler": ConsistencyDecoder,
    "CosineDPMSolverMultistepScheduler": DpmSde,
    "DPMSolverSDEScheduler": DpmSde,
    "DDPMWuerstchenScheduler": Wuerstchen,
    "DDIMInverseScheduler": DdimInverse,
    "HeliosScheduler": Helios,
    "HeliosDMDScheduler": HeliosDmd,
    "IPNDMScheduler": Ipndm,
    "KarrasVeScheduler": KarrasVe,
    "LTXEulerAncestralRFScheduler": FlowSigmas,
    "RFD4ProteinaScheduler": RfProteina,
    "SCMScheduler": Scm,
    "ScoreSdeVeScheduler": ScoreSdeVe,
    "ScoreSdeVpScheduler": ScoreSdeVp,
    "UnCLIPScheduler": UnClip,
}


def driver_of(scheduler: Scheduler) -> type[Driver]:
    """How a scheduler of this class (or of a class derived from a known one) is driven."""
    for ancestor in type(scheduler).__mro__:
        if ancestor.__name__ in _DRIVERS:
            return _DRIVERS[ancestor.__name__]
    return Driver
