"""``from_diffusers``: any scheduler whose step is linear becomes a table (docs/importing-schedulers.md)."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import hypot, sqrt
from typing import Any

import numpy as np
import torch

from scoregraph.errors import CannotImport, UnknownName, here
from scoregraph.graph.samplers.tabulated import Tabulated
from scoregraph.graph.schedules import Schedule, custom
from scoregraph.interop.driving import Driver, Scheduler, driver_of
from scoregraph.interop.probing import NotLinearError, ProbedRun, ProbedStep, network, probe
from scoregraph.interop.randomness import OtherRandomnessError
from scoregraph.interop.registers import Machine, allocate

TOLERANCE = 1e-5
"""The largest relative difference, after the whole loop, between the scheduler and the table made of it."""

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


@dataclass(frozen=True)
class ImportReport:
    """What probing found.

    Attributes:
        scheduler: the class that was read.
        error: the largest difference of the table to the scheduler after the loop, relative to the largest value.
        calls: network calls; ``rows`` counts the rows that only add noise as well.
        registers: what is carried from row to row, the state first.
        patterns: how many different sets of non-zero coefficients the rows have.
        draws: which of the normals that the scheduler draws in its steps the table uses: (step, number in the step).
    """

    scheduler: str
    error: float
    calls: int
    rows: int
    registers: tuple[str, ...]
    patterns: int
    draws: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        held = " ".join(self.registers)
        return (
            f"{self.scheduler}: {self.calls} calls, {self.rows} rows of {self.patterns} patterns, registers {held}; "
            f"replays with a relative error of {self.error:.1e}"
        )


@dataclass(frozen=True)
class Imported:
    """A scheduler as a sampler and a schedule of ours, both plain specs, and how well they replay it::

    imported = sg.samplers.from_diffusers(scheduler, 20)
    with g.loop(imported.schedule, g.noise(net)) as step:
        step.advance(imported.sampler, g.score(net, step, cond))
    """

    sampler: Tabulated
    schedule: Schedule
    report: ImportReport


def from_diffusers(scheduler: Scheduler, steps: int | None = None, **arguments: Any) -> Imported:
    """Read a scheduler by probing a copy of it with unit vectors; raises ``CannotImport`` if its step is not linear.

    ``arguments`` go to ``set_timesteps`` (mu, sigmas, …) or to every ``step`` (eta, s_churn, …), wherever the name
    belongs. Without ``steps`` the scheduler is taken as it stands, ``set_timesteps`` having been called.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy is driven with unit vectors: what it warns of concerns nobody
        return _from_diffusers(scheduler, steps, arguments)


def _from_diffusers(scheduler: Scheduler, steps: int | None, arguments: dict[str, Any]) -> Imported:
    name = type(scheduler).__name__
    driver = driver_of(scheduler)
    _refuse_other_interfaces(scheduler, driver)
    scheduler = copy.deepcopy(scheduler)
    setting = set(inspect.signature(scheduler.set_timesteps).parameters) - {"num_inference_steps", "device", "kwargs"}
    stepping = driver.takes(scheduler)
    for argument in arguments:
        if argument not in setting | stepping:
            raise UnknownName(kind=f"argument of {name}", name=argument, known=setting | stepping, where=here())
    for_step = driver({key: value for key, value in arguments.items() if key in stepping})
    for_setting = {key: value for key, value in arguments.items() if key in setting}
    if steps is not None:
        try:
            scheduler.set_timesteps(num_inference_steps=steps, **for_setting)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise CannotImport(
                scheduler=name,
                reason=f"set_timesteps({steps}) raises {_said(error)}",
                cure="give other steps, or the arguments of set_timesteps that it asks for",
                where=here(),
            ) from error
    try:
        return _import(scheduler, for_step)
    except NotLinearError as error:
        culprits = _culprits(scheduler, for_step, steps, for_setting)
        if culprits:
            flags = ", ".join(f"{key}={value!r}" for key, value in culprits.items())
            now = ", ".join(f"{key}={scheduler.config[key]!r}" for key in culprits)
            reason, cure = f"with {now}, {error}", f"make the scheduler with {flags}"
        else:
            reason, cure = f"its step is not linear: {error}", "write it as a sampler of its own (docs/samplers.md)"
        raise CannotImport(scheduler=name, reason=reason, cure=cure, where=here()) from error


def _said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _refuse_other_interfaces(scheduler: Scheduler, driver: type[Driver]) -> None:
    """Raise for schedulers of tokens, and those whose steps need more than x and the network's answer."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "set_timesteps") or not (hasattr(scheduler, "step") or driver is not Driver):
        reason = "it has no set_timesteps and step"
        raise CannotImport(scheduler=name, reason=reason, cure="pass a diffusers scheduler", where=here())
    if driver is not Driver:
        return
    parameters = inspect.signature(scheduler.step).parameters
    if "LongTensor" in str(parameters["sample"].annotation):
        reason, cure = "its sample is made of tokens", "use the select rules (sg.select) for discrete diffusion"
        raise CannotImport(scheduler=name, reason=reason, cure=cure, where=here())
    own = {"model_output", "timestep", "sample"}
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in own]
    if needed:
        reason = f"its step needs {' and '.join(needed)} besides the network's answer"
        cure = "write it with the nodes of a graph; step.inpaint puts known values back after every step"
        raise CannotImport(scheduler=name, reason=reason, cure=cure, where=here())


def _import(scheduler: Scheduler, driver: Driver) -> Imported:
    """Probe, lay out the registers, and compare; the scheduler is spoiled. Raises ``NotLinearError``."""
    pristine = copy.deepcopy(scheduler)
    try:
        run = probe(scheduler, driver)
    except OtherRandomnessError as error:
        raise NotLinearError(str(error)) from error
    except (ArithmeticError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise NotLinearError(f"it raises {_said(e)}") from e
    machine = allocate(run.steps)
    error = _replay_error(run, machine)
    if not error <= TOLERANCE:
        raise NotLinearError(f"replayed on other data, its results differ by {error:.1e}")
    levels, space = _levels(pristine, run)
    rows = _rows(run.steps, machine, levels)
    network_calls = [step for step in run.steps if step.call.network]
    sampler = Tabulated(
        names=machine.registers,
        rows=rows,
        scale=run.init_scale,
        carried=space,
        time=_time_convention(run.steps, levels),
        answers=_answers(pristine),
    )
    alphas, sigmas = (tuple(values) for values in zip(*levels, strict=True))
    times = tuple(step.call.time for step in run.steps)
    report = ImportReport(
        scheduler=type(scheduler).__name__,
        error=error,
        calls=len(network_calls),
        rows=len(rows),
        registers=machine.registers,
        patterns=len({(r.a != 0).tobytes() + (r.b != 0).tobytes() + (r.c != 0).tobytes() for r in machine.rows}),
        draws=tuple((r.step, r.draw) for r in machine.rows if r.c.any()),
    )
    schedule = custom(alphas=alphas, sigmas=sigmas, timesteps=times, space=space or "vp")
    return Imported(sampler, schedule, report)


def _replay_error(run: ProbedRun, machine: Machine) -> float:
    """The machine on the run's own noise, in float64, against the scheduler's last state."""
    start = run.states[0].numpy()
    held = [start, *(np.zeros_like(start) for _ in machine.registers[1:])]
    for row in machine.rows:
        step = run.steps[row.step]
        m = np.zeros_like(start)
        if row.network:
            m = network(torch.from_numpy(step.c_in * held[0]), step.call.time).numpy()
        drawn = run.draws[row.step]
        z = drawn[row.draw].numpy() if row.c.any() else m
        held = [
            sum((row.a[j, k] * r for k, r in enumerate(held)), row.b[j, 0] * m + row.c[j] * z) for j in range(len(held))
        ]
    expected = run.states[-1].numpy()
    return float(np.abs(held[0] - expected).max() / np.abs(expected).max())


def _levels(scheduler: Scheduler, run: ProbedRun) -> tuple[list[tuple[float, float]], str]:
    """(alpha, sigma) of every step and of the end, and the space that they are in."""
    found = [step.level for step in run.steps]
    if any(level is None for level in found):
        raise NotLinearError("it does not say its noise levels: add_noise or scale_noise fails")
    levels = [level for level in found if level is not None]
    norms = {
        "kappa": [a for a, _ in levels],
        "vp": [hypot(a, s) for a, s in levels],
        "flow": [a + s for a, s in levels],
    }
    space = next((space for space, norm in norms.items() if np.allclose(norm, 1.0, atol=1e-4)), "")
    if space == "kappa" and "sigma_data" not in getattr(scheduler, "config", {}):
        levels = [_seen_level(step, level) for step, level in zip(run.steps, levels, strict=True)]
    return [*levels, _final_level(scheduler, space, len(levels))], space


def _seen_level(step: ProbedStep, level: tuple[float, float]) -> tuple[float, float]:
    """Between the points of a schedule ``add_noise`` names a neighbour, but c_in = 1 / sqrt(1 + kappa^2) is right."""
    if step.c_in in (0.0, 1.0) or abs(step.c_in * hypot(*level) - 1.0) < 1e-4 or step.c_in > 1.0:
        return level
    return 1.0, sqrt(step.c_in**-2 - 1.0)


def _final_level(scheduler: Scheduler, space: str, count: int) -> tuple[float, float]:
    """(alpha, sigma) of the result."""
    sigmas = getattr(scheduler, "sigmas", None)
    squared = getattr(scheduler, "final_alpha_cumprod", None)
    if sigmas is not None and len(sigmas) == count + 1:
        sigma = float(sigmas[-1])
        return {"kappa": (1.0, sigma), "flow": (1.0 - sigma, sigma)}.get(
            space, (1.0 / hypot(1.0, sigma), sigma / hypot(1.0, sigma))
        )
    if squared is not None:
        return sqrt(float(squared)), sqrt(max(1.0 - float(squared), 0.0))
    return 1.0, 0.0


def _time_convention(steps: list[ProbedStep], levels: list[tuple[float, float]]) -> str:
    """What the scheduler's timesteps are, in the conventions of docs/samplers.md."""
    calls = [(s.call.time, a, sigma) for s, (a, sigma) in zip(steps, levels, strict=False) if s.call.network]
    # diffusers truncates the times of some flows to whole numbers.
    if all(abs(t - 1000.0 * s / (a + s)) <= 1.0 for t, a, s in calls) and max(t for t, *_ in calls) > 1.0:
        return "flow1000"
    if all(abs(t - s / (a + s)) <= 1e-4 for t, a, s in calls):
        return "flow"
    if all(a > 0.0 and abs(t - s / a) <= 1e-4 * t for t, a, s in calls):
        return "sigma"
    if all(a > 0.0 and s > 0.0 and abs(t - 0.25 * np.log(s / a)) <= 1e-4 for t, a, s in calls):
        return "c_noise"
    return "timestep"


def _answers(scheduler: Scheduler) -> str:
    """The parameterization that a configuration names."""
    config = getattr(scheduler, "config", {})
    if "sigma_data" in config:
        return ""  # preconditioned: EDM, consistency or trigflow, as the network says
    return PREDICTIONS.get(str(config.get("prediction_type", "")), "")


def _rows(
    steps: list[ProbedStep], machine: Machine, levels: list[tuple[float, float]]
) -> tuple[tuple[float, ...], ...]:
    """t, c_in, A, B, C and the report of every row."""
    rows: list[tuple[float, ...]] = []
    for row in machine.rows:
        step = steps[row.step]
        numbers = np.concatenate([row.a.ravel(), row.b.ravel(), row.c]).tolist()
        report = (float(row.step), *levels[row.step], *levels[row.step + 1], float(row.network))
        rows.append(tuple(number + 0.0 for number in (step.call.time, step.c_in, *numbers, *report)))
    return tuple(rows)


# --- whose fault it is ---


def _culprits(scheduler: Scheduler, driver: Driver, steps: int | None, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest change of configuration, of at most three entries, with which the scheduler is linear."""
    config = dict(getattr(scheduler, "config", {}))
    if steps is None or not config:
        return {}
    changes: dict[str, Any] = {key: False for key, value in config.items() if value is True}
    if str(config.get("variance_type", "")).startswith("learned"):
        changes["variance_type"] = "fixed_small"
    if config.get("correct_steps"):
        changes["correct_steps"] = 0
    known = inspect.signature(type(scheduler).__init__).parameters
    made = {key: value for key, value in config.items() if key in known}

    def is_linear(change: Mapping[str, Any]) -> bool:
        try:
            other = type(scheduler)(**{**made, **change})
            other.set_timesteps(num_inference_steps=steps, **setting)
            _import(other, driver)
        except (NotLinearError, ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        return True

    for size in range(1, min(3, len(changes)) + 1):
        for keys in combinations(changes, size):
            change = {key: changes[key] for key in keys}
            if is_linear(change):
                return change
    return {}
