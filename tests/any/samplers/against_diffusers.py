"""Our samplers beside the schedulers of diffusers: the same network, the same noise, open loop and closed loop.

``compare(scheduler, sampler, schedule, prediction)`` runs both. *Open loop*: in every row ours starts from the state
that diffusers has reached, so the error is that of one step. *Closed loop*: ours walks on its own, and the error is
that of the end. The scheduler is one whose ``set_timesteps`` has been called. Guidance is on (a scale of 3, folded into
our table), the network is smooth and not linear, all its arithmetic float64.

``points_of(scheduler)`` is the schedule that the scheduler follows, to the last bit of its float32 numbers: what is
then compared is the sampler alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from machine import FakeNetwork, Machine, relative_error

from scoregraph.graph import guidance, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

SCALE, BATCH, WIDTH = 3.0, 3, 24


@dataclass(frozen=True)
class Errors:
    """The largest difference over the largest value: of the worst single step, and at the end of the whole loop."""

    open_loop: float
    closed_loop: float


@contextmanager
def injected(scheduler: Any, noise: Callable[[], torch.Tensor]) -> Iterator[None]:
    """While it lasts, what the scheduler's module draws is ``noise()``."""
    module = sys.modules[type(scheduler).__module__]
    drawn = getattr(module, "randn_tensor", None)
    if drawn is None:
        yield
        return
    drawing: Any = module
    drawing.randn_tensor = lambda *_, **__: noise()
    try:
        yield
    finally:
        drawing.randn_tensor = drawn


def compare(
    scheduler: Any,
    sampler: Sampler,
    schedule: Schedule,
    prediction: Prediction,
    *,
    time: str = "timestep",
    space: str = "vp",
    carried: str | None = None,
    arguments: dict[str, Any] | None = None,
) -> Errors:
    """Both errors of our sampler (float64) to the scheduler (float32 in part).

    ``space`` is that of our latent, ``carried`` that of the scheduler's state where it is another one: diffusers'
    Euler, Heun and LMS carry x / alpha ("kappa") for networks of vp space. ``arguments`` go to every call of ``step``.
    """
    table = sampler.table(schedule, prediction, time, space)
    learned = sampler.learns_variance
    if not learned:
        table = table.fold_guidance(guidance.cfg(SCALE).table_weights(table))
    rng = np.random.default_rng(1)
    net = FakeNetwork(WIDTH, time_scale=1.0 / max(1.0, float(scheduler.timesteps.abs().max())))
    start = table.init_scale * rng.standard_normal((BATCH, WIDTH))
    noise = rng.standard_normal((len(table.rows), BATCH, WIDTH))
    calls = [bool(value) for value in table.values("calls")]
    assert sum(calls) == len(scheduler.timesteps), "the number of network calls differs"
    # The factor from our state to the scheduler's, before every row and at the end.
    ends = schedule.grid().in_space(space)
    alphas = np.append(table.values("alpha"), ends.alpha[-1])
    sigmas = np.append(table.values("sigma"), ends.sigma[-1])
    carry = {"kappa": alphas, "flow": alphas + sigmas, "vp": np.hypot(alphas, sigmas)}
    factors = 1.0 / carry[carried] if carried not in (None, space) else np.ones(len(alphas))

    def answers(x_in: np.ndarray, t: float) -> list[np.ndarray]:
        """One answer per branch; or the prediction, and what the network says of its variance (in -1 … 1)."""
        return [net(x_in, t, 0), np.tanh(net(x_in, t, 1))] if learned else net.branches(x_in, t)

    def whole(x_in: np.ndarray, t: float) -> np.ndarray:
        """What a pipeline hands to the scheduler."""
        both = answers(x_in, t)
        return np.concatenate(both, axis=1) if learned else both[1] + SCALE * (both[0] - both[1])

    theirs = [start * factors[0]]
    # Row i makes the state number i + 1 of the list.
    with injected(scheduler, lambda: torch.from_numpy(noise[len(theirs) - 1])):
        steps = iter(scheduler.timesteps)
        for called in calls:
            if not called:
                theirs.append(theirs[-1])
                continue
            t, sample = next(steps), torch.from_numpy(theirs[-1])
            scale = getattr(scheduler, "scale_model_input", lambda x, _: x)
            m = torch.from_numpy(whole(scale(sample, t).double().numpy(), float(t)))
            theirs.append(scheduler.step(m, t, sample, **(arguments or {})).prev_sample.double().numpy())

    alone, led = Machine(table, answers, start), Machine(table, answers, start)
    worst = 0.0
    for i in range(len(calls)):
        alone.step(noise[i])
        if calls[i]:
            led.state = theirs[i] / factors[i]
        led.step(noise[i])
        if i + 1 == len(calls) or calls[i + 1]:
            error = relative_error(led.state * factors[i + 1], theirs[i + 1])
            worst = max(worst, error) if np.isfinite(error) else np.inf
    return Errors(worst, relative_error(alone.state * factors[-1], theirs[-1]))


def scheduler_of(name: str, steps: int, precise: bool = False, **options: Any) -> Any:
    """A scheduler of diffusers with Stable Diffusion's betas unless told otherwise, ready for ``steps`` steps.

    ``precise``: its coefficients are computed in float64, from the same float32 noise levels. So the difference to ours
    is not the rounding of its differences of logarithms.
    """
    known = getattr(diffusers, name)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    taken = known.__init__.__wrapped__.__code__.co_varnames if hasattr(known.__init__, "__wrapped__") else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = known(**{**{key: value for key, value in betas.items() if key in taken}, **options})
        scheduler.set_timesteps(steps)
    if precise:
        for key in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one", "alphas", "betas"):
            value = getattr(scheduler, key, None)
            if isinstance(value, torch.Tensor):
                setattr(scheduler, key, value.double())
    return scheduler


def points_of(scheduler: Any) -> Schedule:
    """The points a scheduler of diffusers visits, from its own numbers, with the timesteps it tells the network."""
    timesteps = tuple(scheduler.timesteps.double().tolist())
    if type(scheduler).__name__ == "IPNDMScheduler":
        alphas, sigmas = (tuple(values.double().tolist()) for values in (scheduler.alphas, scheduler.betas))
        return schedules.custom(alphas=alphas, sigmas=sigmas, timesteps=timesteps)
    levels = getattr(scheduler, "sigmas", None)
    if levels is None:
        last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0)).double()
        squares = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps.long()].double(), last.reshape(1)]).numpy()
        alpha, sigma = np.sqrt(squares), np.sqrt(1.0 - squares)
    elif scheduler.config.get("use_flow_sigmas"):
        sigma = levels.double().numpy()
        alpha = 1.0 - sigma
    else:
        kappa = levels.double().numpy()
        alpha = 1.0 / np.hypot(1.0, kappa)
        sigma = kappa * alpha
    space = "flow" if scheduler.config.get("use_flow_sigmas") else "vp"
    return schedules.custom(
        alphas=tuple(alpha.tolist()), sigmas=tuple(sigma.tolist()), timesteps=timesteps, space=space
    )
