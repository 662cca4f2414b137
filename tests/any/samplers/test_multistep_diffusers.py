"""The multistep and exponential-integrator samplers against diffusers, coefficient by coefficient.

Every case runs on the scheduler's own points with 1 to 20 steps, all parameterizations and spacings it has. Once with the
scheduler as it is, in float32, and once with its coefficients in float64 (``precise``), where what remains is rounding
of the states.
"""

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from against_diffusers import Errors, compare, points_of, scheduler_of

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*deprecated:FutureWarning"),
]

COUNTS = (1, 2, 3, 4, 14, 15, 20)
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": prediction.eps(),
    "v_prediction": prediction.v(),
    "sample": prediction.x0(),
}
SPACINGS = ("linspace", "leading", "trailing")

Case = tuple[str, Sampler, dict[str, Any]]


def dpm_solver(order: int, algorithm: str, correction: str, **options: Any) -> Case:
    end = "zero" if algorithm.endswith("++") else "sigma_min"
    sampler = samplers.dpm_solver(order, algorithm, correction, third="diffusers", **options)
    names = {"algorithm_type": algorithm, "solver_order": order, "solver_type": correction, "final_sigmas_type": end}
    return "DPMSolverMultistepScheduler", sampler, {**names, **options}


def single(order: int, algorithm: str, correction: str, **options: Any) -> Case:
    end = "zero" if algorithm.endswith("++") else "sigma_min"
    sampler = samplers.dpm_solver_single(order, algorithm, correction, third="diffusers", **options)
    names = {"algorithm_type": algorithm, "solver_order": order, "solver_type": correction, "final_sigmas_type": end}
    return "DPMSolverSinglestepScheduler", sampler, {**names, **options}


def unipc(order: int, solver: str, predict: str, end: str = "sigma_min", **options: Any) -> Case:
    names = {"solver_order": order, "solver_type": solver, "predict_x0": predict == "x0", "final_sigmas_type": end}
    theirs = {"disable_corrector": list(options["uncorrected"])} if "uncorrected" in options else options
    return "UniPCMultistepScheduler", samplers.unipc(order, solver, predict, **options), {**names, **theirs}


def sa_solver(predictor: int, corrector: int, predict: str, tau: float, **options: Any) -> Case:
    names = {
        "predictor_order": predictor,
        "corrector_order": corrector,
        "algorithm_type": "data_prediction" if predict == "x0" else "noise_prediction",
        "tau_func": lambda t: torch.tensor(tau, dtype=torch.float64),
    }
    sampler = samplers.sa_solver(predictor, corrector, tau, predict=predict, **options)
    return "SASolverScheduler", sampler, {**names, **options}


CASES: dict[str, Case] = {
    **{
        f"dpm_solver {algorithm} {order} {correction}": dpm_solver(order, algorithm, correction)
        for algorithm, correction in itertools.product(("dpmsolver", "dpmsolver++"), ("midpoint", "heun"))
        for order in (1, 2, 3)
    },
    **{
        f"dpm_solver sde-dpmsolver++ {order} {correction}": dpm_solver(order, "sde-dpmsolver++", correction)
        for order, correction in itertools.product((1, 2, 3), ("midpoint", "heun"))
    },
    "dpm_solver sde-dpmsolver 1": dpm_solver(1, "sde-dpmsolver", "midpoint"),
    "dpm_solver sde-dpmsolver 2 midpoint": dpm_solver(2, "sde-dpmsolver", "midpoint"),
    "dpm_solver sde-dpmsolver 2 heun": dpm_solver(2, "sde-dpmsolver", "heun"),
    "dpm_solver euler_at_final": dpm_solver(3, "dpmsolver", "heun", euler_at_final=True, lower_order_final=False),
    "dpm_solver no lower order": dpm_solver(3, "dpmsolver", "midpoint", lower_order_final=False),
    **{
        f"dpm_solver_single {algorithm} {order} {correction}": single(order, algorithm, correction)
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")
        for order, correction in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun"))
    },
    "dpm_solver_single lower order": single(3, "dpmsolver", "heun", lower_order_final=True),
    **{
        f"unipc {order} {solver} {predict}": unipc(order, solver, predict)
        for order in (1, 2, 3, 4)
        for solver, predict in itertools.product(("bh1", "bh2"), ("x0", "eps"))
    },
    "unipc 2 to zero": unipc(2, "bh2", "x0", end="zero"),
    "unipc 3 uncorrected": unipc(3, "bh2", "x0", uncorrected=(0, 1, 5)),
    "unipc 3 no lower order": unipc(3, "bh1", "x0", lower_order_final=False),
    **{
        f"deis {order}": ("DEISMultistepScheduler", samplers.deis(order), {"solver_order": order})
        for order in (1, 2, 3)
    },
    **{
        f"sa_solver {p} {c} {predict} {tau}": sa_solver(p, c, predict, tau)
        for (p, c), predict, tau in itertools.product(
            ((1, 1), (2, 2), (3, 3), (2, 3), (3, 4)), ("x0", "eps"), (0.0, 0.6)
        )
    },
    "sa_solver 2 2 x0 1": sa_solver(2, 2, "x0", 1.0),
    "sa_solver no lower order": sa_solver(3, 2, "x0", 1.0, lower_order_final=False),
    **{
        f"ddpm {variance}": (
            "DDPMScheduler",
            samplers.ddpm(variance),
            {"variance_type": variance, "clip_sample": False},
        )
        for variance in ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
    },
    "lms": ("LMSDiscreteScheduler", samplers.lms(), {}),
}
# Third differences of float32 logarithms, and the noise of the SDE in eps: diffusers' own rounding is larger there.
ROUGH = ("deis 3", "sa_solver", "single sde-dpmsolver++ 3", "single dpmsolver 3", "unipc 4", "eps")


def worst(case: Case, precise: bool, counts: tuple[int, ...] = COUNTS) -> Errors:
    """The largest errors over numbers of steps, with another parameterization and spacing for each."""
    name, sampler, options = case
    kinds = ("epsilon", "v_prediction") if name == "LMSDiscreteScheduler" else tuple(PREDICTIONS)
    found: list[Errors] = []
    for i, steps in enumerate(counts):
        kind, spacing = kinds[i % len(kinds)], SPACINGS[(i + i // 3) % 3]
        if name == "DDPMScheduler" and spacing == "trailing":
            spacing = "leading"  # trailing ends above timestep 0, where diffusers adds the noise of a clean sample
        spaced = {} if name == "DPMSolverSinglestepScheduler" else {"timestep_spacing": spacing}
        scheduler = scheduler_of(name, steps, precise, prediction_type=kind, **spaced, **options)
        carried = "kappa" if name == "LMSDiscreteScheduler" else None
        found.append(compare(scheduler, sampler, points_of(scheduler), PREDICTIONS[kind], carried=carried))
    return Errors(max(e.open_loop for e in found), max(e.closed_loop for e in found))


@pytest.mark.parametrize("case", CASES)
def test_coefficients_are_those_of_diffusers(case: str):
    errors = worst(CASES[case], precise=True)
    print(f"{case}: {errors}")
    # diffusers casts the state to float32 in its multistep DPM-Solver and nowhere else.
    tolerance = 1e-6 if CASES[case][0] == "DPMSolverMultistepScheduler" else 1e-10
    assert errors.open_loop < tolerance
    assert errors.closed_loop < 10 * tolerance


@pytest.mark.parametrize("case", [case for case in CASES if not any(word in case for word in ROUGH)])
def test_schedulers_as_they_are(case: str):
    errors = worst(CASES[case], precise=False, counts=(2, 4, 15, 20))
    print(f"{case}: {errors}")
    assert errors.open_loop < (2e-6 if " dpmsolver" in case or "sde-dpmsolver " in case or "deis" in case else 1e-6)
    assert errors.closed_loop < 1e-5
