"""The multistep and exponential-integrator samplers against diffusers, coefficient by coefficient.

Every case runs on the scheduler's own points with 1 to 20 steps, all parameterizations and spacings it has. Once with
the scheduler as it is, in float32, and once with its coefficients in float64 (``precise``), where what remains is the
rounding of the states.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from against_diffusers import BATCH, WIDTH, Errors, compare, points_of, scheduler_of
from machine import FakeNetwork, relative_error, run_table

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
        for (p, c), predict, tau in itertools.product(((1, 1), (2, 2), (2, 3), (3, 4)), ("x0", "eps"), (0.0, 0.6))
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


# --- Samplers on a table of timesteps ------------------------------------------------------------


def table_of(steps: int, spacing: str, final: str, **options: Any) -> Schedule:
    """Stable Diffusion's betas in diffusers' float32."""
    return schedules.scaled_linear(steps=steps, spacing=spacing, final=final, precision="float32", **options)


def steps_of(spacing: str) -> tuple[int, ...]:
    # A linspace of one point is the noisy end here, and timestep 0 in diffusers.
    return COUNTS[1:] if spacing == "linspace" else COUNTS


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("eta", "end"), [(0.0, "zero"), (0.0, "sigma_min"), (0.7, "zero"), (1.0, "sigma_min")])
def test_ddim_strides_as_in_diffusers(spacing: str, eta: float, end: str):
    for steps, (kind, pred) in itertools.product(steps_of(spacing), PREDICTIONS.items()):
        options = {"prediction_type": kind, "timestep_spacing": spacing, "set_alpha_to_one": end == "zero"}
        scheduler = scheduler_of("DDIMScheduler", steps, clip_sample=False, **options)
        errors = compare(
            scheduler, samplers.ddim(eta, prev="stride"), table_of(steps, spacing, end), pred, arguments={"eta": eta}
        )
        assert errors.open_loop < 1e-6, (steps, kind)
        assert errors.closed_loop < 1e-5, (steps, kind)


def test_ddim_strides_only_differ_where_spacing_is_uneven():
    for spacing, steps, same in (("leading", 13, True), ("trailing", 20, False), ("linspace", 20, False)):
        grid = table_of(steps, spacing, "zero")
        tables = [
            samplers.ddim(prev=prev).table(grid, prediction.eps(), "timestep", "vp") for prev in ("grid", "stride")
        ]
        gap = np.abs(np.array(tables[0].rows)[:-1] - np.array(tables[1].rows)[:-1]).max()
        assert (gap < 1e-9) == same or spacing == "trailing", (spacing, gap)
        # 20 divides 1000: only the last step of trailing, from timestep 49, is another one.
        ends = np.abs(np.array(tables[0].rows)[-1] - np.array(tables[1].rows)[-1]).max()
        assert ends < 1e-9 or spacing == "trailing"


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_plms(spacing: str, kind: str):
    for steps in steps_of(spacing):
        scheduler = scheduler_of(
            "PNDMScheduler", steps, skip_prk_steps=True, prediction_type=kind, timestep_spacing=spacing
        )
        sampler = samplers.pndm(skip_prk=True, prev="stride")
        errors = compare(scheduler, sampler, table_of(steps, spacing, "sigma_min"), PREDICTIONS[kind])
        assert errors.open_loop < 1e-6, steps
        assert errors.closed_loop < 1e-5, steps


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_pndm_with_its_runge_kutta_start(spacing: str, kind: str):
    for steps in (4, 5, 14, 20):  # diffusers needs 4
        scheduler = scheduler_of("PNDMScheduler", steps, prediction_type=kind, timestep_spacing=spacing)
        errors = compare(
            scheduler, samplers.pndm(prev="stride"), table_of(steps, spacing, "sigma_min"), PREDICTIONS[kind]
        )
        assert errors.open_loop < 1e-6, steps
        assert errors.closed_loop < 1e-5, steps


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20])
def test_ipndm(steps: int):
    # Its own schedule starts without signal, where it takes x0 = 0 for a network that says x0 = -v.
    betas = torch.sin(torch.linspace(0.99, 0.0, steps + 1) * torch.pi / 2)
    scheduler = scheduler_of("IPNDMScheduler", steps, trained_betas=betas.tolist())
    errors = compare(scheduler, samplers.ipndm(), points_of(scheduler), prediction.v())
    assert errors.open_loop < 1e-6
    assert errors.closed_loop < 1e-5


FLOWS: dict[str, tuple[str, Sampler, dict[str, Any]]] = {
    "dpm_solver": ("DPMSolverMultistepScheduler", samplers.dpm_solver(3), {"solver_order": 3}),
    "dpm_solver sde": (
        "DPMSolverMultistepScheduler",
        samplers.dpm_solver(2, "sde-dpmsolver++"),
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "dpm_solver_single": ("DPMSolverSinglestepScheduler", samplers.dpm_solver_single(2), {}),
    "unipc": ("UniPCMultistepScheduler", samplers.unipc(3), {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", samplers.deis(2), {}),
    "sa_solver": (
        "SASolverScheduler",
        samplers.sa_solver(2, 2, 0.5),
        {"tau_func": lambda t: torch.tensor(0.5, dtype=torch.float64)},
    ),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(name: str, shift: float):
    scheduled, sampler, options = FLOWS[name]
    for steps in (2, 4, 15, 20):
        scheduler = scheduler_of(
            scheduled, steps, True, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **options
        )
        errors = compare(scheduler, sampler, points_of(scheduler), prediction.flow(), space="flow")
        assert errors.open_loop < 1e-6, steps
        assert errors.closed_loop < 1e-5, steps


# --- Where diffusers has NaN ---------------------------------------------------------------------


def test_unipc_bh1_to_zero_is_finite():
    """inf * 0 in diffusers' last step. The rows before it do not depend on the end, and are tested above."""
    for steps in COUNTS:
        scheduler = scheduler_of("UniPCMultistepScheduler", steps, solver_type="bh1", final_sigmas_type="zero")
        table = samplers.unipc(2, "bh1").table(points_of(scheduler), prediction.eps(), "timestep", "vp")
        last = samplers.ddim().table(points_of(scheduler), prediction.eps(), "timestep", "vp")
        assert table.values("b0_0")[-1] == pytest.approx(last.values("b0_0")[-1])
        errors = compare(scheduler, samplers.unipc(2, "bh1"), points_of(scheduler), prediction.eps())
        assert errors.open_loop == np.inf  # theirs; a table of ours is always finite


def test_ddpm_fixed_large_log_is_fixed_large():
    grid = table_of(20, "leading", "zero")
    large, log = (
        samplers.ddpm(variance).table(grid, prediction.eps(), "timestep", "vp")
        for variance in ("fixed_large", "fixed_large_log")
    )
    assert large.rows == log.rows
    scheduler = scheduler_of("DDPMScheduler", 20, variance_type="fixed_large_log", clip_sample=False)
    assert (
        compare(scheduler, samplers.ddpm("fixed_large_log"), points_of(scheduler), prediction.eps()).open_loop == np.inf
    )


TWICE = [
    *(samplers.dpm_solver(order, correction=c) for order, c in itertools.product((2, 3), ("midpoint", "heun"))),
    samplers.dpmpp_2m("heun"),
    samplers.deis(3),
    samplers.lms(),
    samplers.unipc(3, corrector=False),
    samplers.sa_solver(3, 0),
    samplers.unipc(3),
    samplers.sa_solver(3, 3),
    samplers.dpm_solver_single(3, correction="heun"),
]


@pytest.mark.parametrize("sampler", TWICE, ids=str)
def test_a_noise_level_visited_twice(sampler: Sampler):
    """Karras sigmas with final sigma_min repeat the last one, h = 0: 0/0 in diffusers' heun. Here nothing happens."""
    levels = schedules.karras(steps=20, sigma_max=14.0, sigma_min=0.03).grid().kappa[:-1]
    for again in (20, 2):
        walked = np.array([*levels[:again], *levels[again - 1 :]])
        alphas = 1.0 / np.hypot(1.0, walked)
        twice = schedules.custom(alphas=tuple(alphas.tolist()), sigmas=tuple((alphas * walked).tolist()))
        table = sampler.table(twice, prediction.v(), "none", "vp")  # every number of a table is finite
        a, b, c = table.matrices(again - 1)
        if "start" not in table.registers:  # no state of before, that is
            np.testing.assert_allclose(a[0], np.eye(len(a))[0], atol=1e-12)
            np.testing.assert_allclose([b[0, 0], c[0]], 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(("order", "predict"), [(1, "x0"), (2, "x0"), (3, "x0"), (2, "eps")])
def test_starts_without_signal_are_the_limit(steps: int, order: int, predict: str):
    """From alpha = 0, where lambda is infinite: the limit of ever less signal. diffusers starts a little later."""
    kappa = np.array([*np.geomspace(30.0, 0.3, steps), 0.0])[1:]
    tables = []
    for first in (0.0, 1e-60):
        alphas = (first, *(1.0 / np.hypot(1.0, kappa)))
        sigmas = (1.0, *(kappa / np.hypot(1.0, kappa)))
        points = schedules.custom(alphas=tuple(map(float, alphas)), sigmas=tuple(map(float, sigmas)))
        both = [samplers.unipc(order, "bh2", predict, corrector=predict == "x0"), samplers.deis(order)]
        both += [
            samplers.dpm_solver(order, "dpmsolver++" if predict == "x0" else "dpmsolver", "heun"),
            samplers.lms(order),
        ]
        tables.append([sampler.table(points, prediction.v(), "none", "vp") for sampler in both])
    net = FakeNetwork(WIDTH)
    for exact, near in zip(*tables, strict=True):
        x = np.random.default_rng(0).standard_normal((BATCH, WIDTH))
        ends = [run_table(table, lambda x, t: [net(x, t, 0)], x)[-1] for table in (exact, near)]
        # The slopes over an infinite step vanish like one over its length, which is 140 here.
        assert relative_error(*ends) < 0.05
