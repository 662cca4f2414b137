"""Our samplers and the settings of diffusers that mean the same, over parameterizations, spacings, ends and counts.

``cells()`` are the rows of docs/sampler-accuracy.md. A cell makes the scheduler, our sampler and our schedule. The
schedule is ours with the library's float32 roundings (``precision="float32"``); where a scheduler's points cannot be
said so, its own are taken (``theirs``), and the sampler alone is compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scheduler_zoo import scheduler_class

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

COUNTS = (1, 2, 3, 4, 14, 15, 20, 50)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": prediction.eps(),
    "v_prediction": prediction.v(),
    "sample": prediction.x0(),
    "flow_prediction": prediction.flow(),
}
VP = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Pair:
    """One of our samplers, and the scheduler that is the same.

    Attributes:
        points: how the scheduler lays out its points: "ddim", "dpm", "euler", "distilled", "flow" or "edm".
        finals: the values of ``final_sigmas_type`` that it knows; ("",) if it has no such option.
        carried: the space of the scheduler's state where it is not that of the network.
        arguments: of every ``step``.
    """

    sampler: Sampler
    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    points: str = "dpm"
    kinds: tuple[str, ...] = VP
    spacings: tuple[str, ...] = SPACINGS
    finals: tuple[str, ...] = ("",)
    carried: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    counts: tuple[int, ...] = COUNTS


@dataclass(frozen=True)
class Cell:
    """A pair at one parameterization, spacing, end and number of steps."""

    pair: Pair
    kind: str
    spacing: str
    final: str
    steps: int

    def __str__(self) -> str:
        parts = (self.pair.scheduler, str(self.pair.sampler), self.kind, self.spacing, self.final, str(self.steps))
        return " ".join(part for part in parts if part)

    @property
    def prediction(self) -> Prediction:
        """As our network has it."""
        if self.pair.points == "edm":
            return prediction.edm()
        return PREDICTIONS[self.kind]

    @property
    def space(self) -> str:
        """The space of our latent."""
        return {"edm": "kappa", "flow": "flow"}.get(self.pair.points, "vp")

    def make(self) -> Any:
        """The scheduler, its timesteps set."""
        config: dict[str, Any] = dict(self.pair.config)
        if self.pair.points not in ("flow", "edm", "ipndm"):
            config = {**SD, "prediction_type": self.kind, **config}
        if self.spacing:
            config["timestep_spacing"] = self.spacing
        if self.pair.points == "ipndm":
            # Its own first point has no signal, where it takes x0 = 0 for a network that says x0 = -v.
            config["trained_betas"] = np.sin(np.linspace(0.99, 0.0, self.steps + 1) * np.pi / 2).tolist()
        if self.final:
            config["final_sigmas_type"] = self.final
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = scheduler_class(self.pair.scheduler)(**config)
            scheduler.set_timesteps(self.steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or a timestep that is there twice makes it begin with the second
        if not hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input = lambda sample, _: sample
        return scheduler

    def schedule(self, scheduler: Any) -> tuple[Schedule, str]:
        """Our schedule, and whose points it has: "ours", or "theirs" where ours has others."""
        ours = self._ours()
        if ours is not None and _same_points(ours, scheduler):
            return ours, "ours"
        return points_of(scheduler, self.space), "theirs"

    def _ours(self) -> Schedule | None:
        if self.pair.points in ("flow", "edm", "ipndm"):
            return None
        open_end = self.pair.points == "dpm" and self.spacing != "trailing"
        try:
            made = schedules.scaled_linear(
                steps=self.steps,
                spacing="distilled" if self.pair.points == "distilled" else self.spacing or "linspace",
                precision="float32",
                rounding="none" if self.pair.points == "euler" and self.spacing == "linspace" else "auto",
                open_end=open_end,
                final=self.final or ("sigma_min" if self.pair.scheduler == "TCDScheduler" else "zero"),
                offset=int(self.pair.config.get("steps_offset", 0)),
                zero_snr=bool(self.pair.config.get("rescale_betas_zero_snr", False)),
            )
            made.grid()
        except ValueError:
            return None
        return made


def precise(scheduler: Any) -> Any:
    """The scheduler with its own float32 numbers in float64, so that its coefficients are computed in float64."""
    for key, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and key != "timesteps":
            setattr(scheduler, key, value.double())
    return scheduler


def _same_points(ours: Schedule, scheduler: Any) -> bool:
    """Whether the scheduler visits our timesteps and noise levels, to float32."""
    grid = ours.grid()
    levels = getattr(scheduler, "sigmas", None)
    times = np.unique(scheduler.timesteps.double().numpy())
    # The calls between two points are told other times.
    if not np.isin(np.round(grid.timesteps or (), 3), np.round(times, 3)).all():
        return False
    if levels is None:
        return len(times) >= grid.steps
    finite = np.unique(levels.double().numpy())
    return all(np.abs(finite - kappa).min() <= 2e-6 * max(kappa, 1e-3) for kappa in grid.kappa)


def points_of(scheduler: Any, space: str) -> Schedule:
    """The points a scheduler visits, from its own numbers; the calls of one step are one point."""
    times = scheduler.timesteps.double().numpy()
    if type(scheduler).__name__ == "IPNDMScheduler":
        alphas, sigmas = (tuple(v.double().tolist()) for v in (scheduler.alphas, scheduler.betas))
        return schedules.custom(alphas=alphas, sigmas=sigmas, timesteps=tuple(times.tolist()))
    levels = getattr(scheduler, "sigmas", None)
    if levels is None:
        squares = np.append(scheduler.alphas_cumprod.double().numpy()[times.astype(int)], 1.0)
        if hasattr(scheduler, "final_alpha_cumprod"):
            squares[-1] = float(scheduler.final_alpha_cumprod)
        return schedules.custom(
            alphas=tuple(np.sqrt(squares).tolist()), sigmas=tuple(np.sqrt(1.0 - squares).tolist()),
            timesteps=tuple(times.tolist()),
        )  # fmt: skip
    sigma = levels.double().numpy()
    if len(times) > 1 and times[1] == times[2 if len(times) > 2 else 0]:  # two calls a step: every point twice
        times, sigma = np.append(times[0], times[1::2]), np.append(np.append(sigma[0], sigma[1:-1:2]), sigma[-1])
    alpha = {"vp": 1.0 / np.hypot(1.0, sigma), "kappa": np.ones_like(sigma), "flow": 1.0 - sigma}[space]
    if space == "vp":
        sigma = sigma * alpha
    return schedules.custom(
        alphas=tuple(alpha.tolist()), sigmas=tuple(sigma.tolist()), timesteps=tuple(times.tolist()), space=space
    )


# diffusers' SA-Solver is stochastic from timestep 200 to 800.
_TAU = tuple(schedules.scaled_linear(steps=1, precision="float32").kappa_at(t) for t in (199.5, 800.5))
_ENDS = ("zero", "sigma_min")
_DPM = "DPMSolverMultistepScheduler"
_SINGLE = "DPMSolverSinglestepScheduler"
_FLOW = {"kinds": ("flow_prediction",), "spacings": ("",), "points": "flow"}
_FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_EDM = {"kinds": ("edm",), "spacings": ("",), "points": "edm"}
_KAPPA = {"points": "euler", "carried": "kappa"}


def _dpm(order: int, algorithm: str, correction: str = "midpoint", **more: Any) -> Pair:
    """diffusers allows an end without noise for the ++ algorithms alone."""
    third = "diffusers" if algorithm == "sde-dpmsolver++" else "published"
    return Pair(
        samplers.dpm_solver(order=order, algorithm=algorithm, correction=correction, third=third, **more),
        _DPM,
        {"solver_order": order, "algorithm_type": algorithm, "solver_type": correction, **more},
        finals=_ENDS if algorithm.endswith("++") else ("sigma_min",),
    )


def _single(order: int, algorithm: str, correction: str) -> Pair:
    return Pair(
        samplers.dpm_solver_single(
            order=order, algorithm=algorithm, correction=correction, lower_order_final=True,
            third="diffusers" if algorithm == "sde-dpmsolver++" else "taylor",
        ),
        _SINGLE,
        {"solver_order": order, "algorithm_type": algorithm, "solver_type": correction, "lower_order_final": True},
        finals=_ENDS if algorithm.endswith("++") else ("sigma_min",),
        spacings=("",),
    )  # fmt: skip


PAIRS: list[Pair] = [
    *(
        Pair(
            samplers.ddim(eta=eta, prev="stride"), "DDIMScheduler", {"clip_sample": False},
            points="ddim", arguments={"eta": eta},
        )
        for eta in (0.0, 0.5, 1.0)
    ),
    *(
        Pair(samplers.ddpm(variance=variance), "DDPMScheduler", {"clip_sample": False, "variance_type": variance},
             points="ddim")
        for variance in ("fixed_small", "fixed_small_log")
    ),
    # With "trailing" spacing diffusers adds this variance behind the last step too, to a finished sample.
    Pair(samplers.ddpm(variance="fixed_large"), "DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"},
         points="ddim", spacings=("leading", "linspace")),
    Pair(samplers.ddpm(variance="learned_range"), "DDPMScheduler",
         {"clip_sample": False, "variance_type": "learned_range"}, points="ddim", spacings=("leading",)),
    Pair(samplers.ddim(prev="stride"), "DDIMScheduler", {"clip_sample": False, "rescale_betas_zero_snr": True},
         points="ddim", kinds=VP[1:], spacings=("trailing",)),
    Pair(samplers.pndm(prev="stride"), "PNDMScheduler", {"set_alpha_to_one": True}, points="ddim",
         counts=(4, 14, 15, 20, 50), kinds=VP[:2]),
    Pair(samplers.pndm(prev="stride", skip_prk=True), "PNDMScheduler",
         {"set_alpha_to_one": True, "skip_prk_steps": True}, points="ddim", kinds=VP[:2], counts=COUNTS[1:]),
    Pair(samplers.ipndm(), "IPNDMScheduler", points="ipndm", kinds=("v_prediction",), spacings=("",)),
    *(_dpm(order, "dpmsolver++", correction) for order in (1, 2, 3) for correction in ("midpoint", "heun")),
    *(_dpm(order, "dpmsolver", correction) for order in (1, 2, 3) for correction in ("midpoint", "heun")),
    *(_dpm(order, "sde-dpmsolver++", correction) for order in (1, 2, 3) for correction in ("midpoint", "heun")),
    *(_dpm(order, "sde-dpmsolver", correction) for order in (1, 2) for correction in ("midpoint", "heun")),
    _dpm(2, "dpmsolver++", euler_at_final=True),
    _dpm(3, "dpmsolver++", lower_order_final=False),
    *(
        Pair(sampler, name, {f"use_{curve}": True}, spacings=("linspace",), **more)
        for curve in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")
        for sampler, name, more in (
            (samplers.dpmpp_2m(), _DPM, {"finals": _ENDS[:1]}),
            (samplers.unipc(), "UniPCMultistepScheduler", {"finals": _ENDS}),
            (samplers.euler(), "EulerDiscreteScheduler", {"finals": _ENDS, **_KAPPA}),
            (samplers.lms(), "LMSDiscreteScheduler", _KAPPA),
            (samplers.heun(), "HeunDiscreteScheduler", _KAPPA),
        )
    ),
    Pair(samplers.dpmpp_2m(), _DPM, {"use_lu_lambdas": True}, spacings=("linspace",), finals=_ENDS[:1]),
    *(_single(order, algorithm, correction) for order in (1, 2, 3) for algorithm in ("dpmsolver++", "dpmsolver")
      for correction in ("midpoint", "heun")),
    *(_single(order, "sde-dpmsolver++", "midpoint") for order in (1, 2)),
    *(
        Pair(samplers.unipc(order=order, solver=solver), "UniPCMultistepScheduler",
             {"solver_order": order, "solver_type": solver}, finals=_ENDS if solver == "bh2" else ("sigma_min",))
        for order in (1, 2, 3) for solver in ("bh1", "bh2")
    ),
    *(
        Pair(samplers.unipc(order=order, predict="eps"), "UniPCMultistepScheduler",
             {"solver_order": order, "predict_x0": False}, finals=("sigma_min",))
        for order in (1, 2, 3)
    ),
    *(Pair(samplers.deis(order=order), "DEISMultistepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
    *(
        Pair(samplers.sa_solver(predictor=p, corrector=c, low=_TAU[0], high=_TAU[1]), "SASolverScheduler",
             {"predictor_order": p, "corrector_order": c})
        for p, c in ((1, 1), (2, 2), (3, 4))
    ),
    Pair(samplers.lms(), "LMSDiscreteScheduler", **_KAPPA),
    Pair(samplers.euler(), "EulerDiscreteScheduler", finals=_ENDS, **_KAPPA, ),
    Pair(samplers.euler(s_churn=3.0, s_noise=1.01, order="after"), "EulerDiscreteScheduler", kinds=VP[:2],
         arguments={"s_churn": 3.0, "s_noise": 1.01}, **_KAPPA),
    Pair(samplers.euler_ancestral(), "EulerAncestralDiscreteScheduler", kinds=VP[:2], **_KAPPA),
    Pair(samplers.heun(), "HeunDiscreteScheduler", **_KAPPA),
    Pair(samplers.kdpm2(), "KDPM2DiscreteScheduler", kinds=VP[:2], counts=COUNTS[1:], **_KAPPA),
    Pair(samplers.kdpm2_ancestral(), "KDPM2AncestralDiscreteScheduler", kinds=VP[:2], counts=COUNTS[4:], **_KAPPA),
    Pair(samplers.lcm(), "LCMScheduler", points="distilled", spacings=("",)),
    *(Pair(samplers.tcd(eta), "TCDScheduler", points="distilled", spacings=("",), arguments={"eta": eta})
      for eta in (0.0, 0.3, 1.0)),
    *(
        Pair(sampler, name, {"shift": shift, **config}, **_FLOW)
        for shift in (1.0, 3.0)
        for sampler, name, config in (
            (samplers.flow_euler(), "FlowMatchEulerDiscreteScheduler", {}),
            (samplers.flow_stochastic(), "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
            (samplers.flow_heun(), "FlowMatchHeunDiscreteScheduler", {}),
            (samplers.flow_stochastic(), "FlowMatchLCMScheduler", {}),
        )
    ),
    *(Pair(samplers.flow_ancestral(eta), "LTXEulerAncestralRFScheduler", {"eta": eta}, **_FLOW) for eta in (0.5, 1.0)),
    *(
        Pair(sampler, name, {**_FLOW_SIGMAS, **config},
             finals=_ENDS, **_FLOW)
        for sampler, name, config in (
            (samplers.dpm_solver(), _DPM, {}),
            (samplers.dpm_solver(order=3), _DPM, {"solver_order": 3}),
            (samplers.unipc(), "UniPCMultistepScheduler", {}),
        )
    ),
    Pair(samplers.euler(), "EDMEulerScheduler", **_EDM),
    Pair(samplers.euler(), "EDMEulerScheduler", {"sigma_schedule": "exponential"}, **_EDM),
    *(
        Pair(samplers.dpm_solver(order=order, algorithm=algorithm, third="diffusers"), "EDMDPMSolverMultistepScheduler",
             {"solver_order": order, "algorithm_type": algorithm}, **_EDM)
        for algorithm, orders in (("dpmsolver++", (1, 2, 3)), ("sde-dpmsolver++", (1, 2))) for order in orders
    ),
]  # fmt: skip


LIMITED: dict[str, tuple[Pair, str]] = {
    "KDPM2 ancestral, few steps": (
        Pair(samplers.kdpm2_ancestral(), "KDPM2AncestralDiscreteScheduler", kinds=VP[:2], counts=(2, 3, 4), **_KAPPA),
        "diffusers takes k_down = sqrt(k'^2 - k_up^2) in float32, which cancels; ours is k'^2/k",
    ),
    "DDPM fixed_large, trailing": (
        Pair(
            samplers.ddpm(variance="fixed_large"),
            "DDPMScheduler",
            {"clip_sample": False, "variance_type": "fixed_large"},
            points="ddim",
            spacings=("trailing",),
        ),
        "diffusers adds noise behind the last step, to a finished sample; ours does not",
    ),
}
"""Pairs that are not the same where diffusers loses digits or goes another way, and why."""


def cells(counts: tuple[int, ...] = COUNTS, pairs: Sequence[Pair] = PAIRS) -> Iterator[Cell]:
    """Every cell with one of these numbers of steps."""
    for pair in pairs:
        for kind in pair.kinds:
            for spacing in pair.spacings:
                for final in pair.finals:
                    for steps in pair.counts:
                        # A single "linspace" step of diffusers' DDIM and DDPM is timestep 0, the clean sample.
                        alone = steps == 1 and spacing == "linspace" and pair.points == "ddim"
                        if steps in counts and not alone:
                            yield Cell(pair, kind, spacing, final, steps)
