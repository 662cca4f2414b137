"""Schedules, parameterizations, guidance, tables and select rules as values: what they hold, print and refuse."""

import math

import numpy as np
import pytest

from scoregraph.errors import (
    BadTable,
    BadWeights,
    EmptyRange,
    InfiniteSigma,
    NoTimestep,
    OptionOutOfRange,
    TooManySteps,
    UnknownName,
    ZeroAlpha,
)
from scoregraph.graph import caches, corrections, energies, guidance, prediction, samplers, schedules, select
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable, machine_columns

ALL = [
    *(f(steps=7) for f in (schedules.linear, schedules.scaled_linear, schedules.cosine)),
    schedules.linear(steps=50, spacing="trailing", zero_snr=True, beta_end=0.03),
    schedules.karras(steps=5, rho=5),
    schedules.exponential(steps=5),
    schedules.flow(steps=5, shift=3),
    *(f() for f in (samplers.ddim, samplers.euler, samplers.heun, samplers.flow_euler, samplers.consistency)),
    samplers.ddim(0.25),
    samplers.dpmpp_2m(correction="heun"),
    *(f() for f in (prediction.eps, prediction.x0, prediction.v, prediction.flow, prediction.score)),
    prediction.edm(0.6),
    prediction.consistency(sigma_min=0.01),
    guidance.single(),
    guidance.cfg(3),
    guidance.cfg(1.5, convention="ho", low=0.1, high=5),
    guidance.compose((1.0, -0.5)),
    guidance.edit(7.5, 1.5),
    guidance.weighted(2, (0.25, 0.75)),
    guidance.cfg(3.0, start=0.2, stop=0.6),
    guidance.cfg_steps((7.5, 5, 1)),
    guidance.cfg_pp(0.6),
    guidance.autoguidance(2.0),
    guidance.perturbed(3.0),
    guidance.perturbed(2.8, cfg=7.0, start=0.01, stop=0.2),
    guidance.rescale(7.5, 0.7),
    guidance.apg(10, threshold=2.5),
    guidance.cfg_zero_star(5.0, zero_init=2),
    guidance.tcfg(5.0, convention="ho"),
    guidance.mambo_g(10.0),
    corrections.clamp(-0.5, 2),
    corrections.dynamic_threshold(limit=3),
    energies.energy(1.0),
    select.most_confident(mask=126336, counts="cosine", forbid=(1, 2), block=32),
    select.threshold(mask=5),
    select.factor(mask=5),
    select.entropy_bound(mask=5),
    select.ancestral(mask=5, temperature=1),
    select.first_hitting(mask=5),
    select.everything(mask=5, top_k=3, top_p=0.9),
    caches.every(3),
    caches.taylor(3, order=2),
    caches.change(0.1),
    caches.prefix(32),
    caches.dual(32),
    energies.classifier(2.0),
    energies.measurement(1, wrt="x0", normalize=True),
]


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_a_spec_prints_and_parses_back(spec: Spec):
    again = Spec.parse(spec.family, str(spec))
    assert again == spec
    assert hash(again) == hash(spec)
    assert str(again) == str(spec)


def test_equal_specs_print_equally():
    assert str(schedules.karras(steps=12, rho=7)) == str(schedules.karras(steps=np.int64(12), rho=np.float32(7)))
    assert str(guidance.compose([1, 2])) == "compose(scales=(1.0, 2.0))"


REFUSED = [
    (OptionOutOfRange, "SG201.*steps of karras must be an integer of at least 1", lambda: schedules.karras(steps=0)),
    (OptionOutOfRange, "SG201.*not 2.5", lambda: schedules.flow(steps=2.5)),
    (OptionOutOfRange, "SG201.*not True", lambda: schedules.flow(steps=True)),
    (OptionOutOfRange, "SG201.*rho of karras must be a number above 0", lambda: schedules.karras(steps=3, rho=0)),
    (OptionOutOfRange, "SG201.*not '7'", lambda: schedules.karras(steps=3, rho="7")),
    (OptionOutOfRange, "SG201.*not nan", lambda: schedules.karras(steps=3, rho=math.nan)),
    (OptionOutOfRange, "SG201.*not inf", lambda: guidance.cfg(math.inf)),
    (OptionOutOfRange, "SG201.*eta of ddim must be a number from 0 to 1", lambda: samplers.ddim(1.5)),
    (OptionOutOfRange, "SG201.*one of leading", lambda: schedules.linear(steps=3, spacing=3)),
    (OptionOutOfRange, "SG201.*True or False", lambda: schedules.linear(steps=3, zero_snr=1)),
    (OptionOutOfRange, "SG201.*tuple of at least 1", lambda: guidance.compose(())),
    (OptionOutOfRange, "SG201.*tuple of at least 1", lambda: guidance.compose(3)),
    (OptionOutOfRange, "SG201.*whole number of rows of 2", lambda: guidance.weighted(2, (1.0, 0.0, 1.0))),
    (OptionOutOfRange, "SG201.*tuple of integers", lambda: select.everything(mask=3, forbid=(1.5,))),
    (UnknownName, "SG101.*spacing.*did you mean 'trailing'", lambda: schedules.linear(steps=3, spacing="trailling")),
    (UnknownName, "SG101.*did you mean 'imagen'", lambda: guidance.cfg(3.0, convention="imagem")),
    (UnknownName, "SG101.*did you mean 'margin'", lambda: select.threshold(mask=1, confidence="margins")),
    (EmptyRange, "SG202.*sigma_min = 80.0.*sigma_max = 0.002", lambda: schedules.karras(3, 80.0, 0.002)),
    (EmptyRange, "SG202.*low = 5.0.*high = 5.0", lambda: guidance.cfg(3.0, low=5, high=5)),
    (EmptyRange, "SG202.*start = 0.5.*stop = 0.25", lambda: guidance.cfg(3.0, start=0.5, stop=0.25)),
    (EmptyRange, "SG202.*low = 1.0.*high = -1.0", lambda: corrections.clamp(1.0, -1.0)),
    (OptionOutOfRange, "SG201.*limit of dynamic_threshold", lambda: corrections.dynamic_threshold(limit=0.5)),
    (OptionOutOfRange, "SG201.*ratio of dynamic_threshold", lambda: corrections.dynamic_threshold(1.5)),
    (OptionOutOfRange, "SG201.*zero_init of cfg_zero_star", lambda: guidance.cfg_zero_star(3.0, zero_init=-1)),
    (OptionOutOfRange, "SG201.*rescale of rescale must be a number from 0 to 1", lambda: guidance.rescale(3.0, 1.5)),
    (OptionOutOfRange, "SG201.*threshold of apg", lambda: guidance.apg(3.0, threshold=-1)),
    (EmptyRange, "SG202.*beta_start", lambda: schedules.linear(steps=3, beta_start=0.5, beta_end=0.1)),
    (TooManySteps, "SG203.*needs timestep 1999", lambda: schedules.linear(steps=2000).grid()),
    (TooManySteps, "SG203.*needs timestep 1000", lambda: schedules.linear(steps=1000, offset=1).grid()),
    (NoTimestep, "SG206.*karras", lambda: schedules.karras(steps=3).grid().times("timestep")),
    (UnknownName, "SG101.*time convention", lambda: schedules.karras(steps=3).grid().times("sigmas")),
    (UnknownName, "SG101.*latent space", lambda: schedules.karras(steps=3).grid().in_space("ve")),
    (InfiniteSigma, "SG205.*c_noise", lambda: schedules.flow(steps=3).grid().times("c_noise")),
    (InfiniteSigma, "SG205.*kappa space", lambda: schedules.flow(steps=3).grid().in_space("kappa")),
    (ZeroAlpha, "SG204.*eps.*flow", lambda: schedules.flow(steps=3).check_prediction(prediction.eps())),
]


@pytest.mark.parametrize(("error", "message", "mistake"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_mistakes_are_refused(error: type[Exception], message: str, mistake):
    with pytest.raises(error, match=f"(?s){message}"):
        mistake()


def test_the_mistake_names_the_users_line():
    with pytest.raises(OptionOutOfRange, match=r"at   test_specs\.py:\d+"):
        schedules.karras(steps=-1)


# --- Schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [spec for spec in ALL if isinstance(spec, schedules.Schedule)], ids=str)
def test_grids_run_from_noise_to_the_clean_sample(schedule: schedules.Schedule):
    grid = schedule.grid()
    assert grid.steps == schedule.steps
    assert len(grid.alpha) == len(grid.sigma) == schedule.steps + 1
    assert (grid.alpha[-1], grid.sigma[-1]) == (1.0, 0.0)
    assert list(grid.kappa) == sorted(grid.kappa, reverse=True)
    assert len(set(grid.kappa)) == len(grid.kappa)
    for space, law in [("vp", lambda a, s: a * a + s * s), ("flow", lambda a, s: a + s), ("kappa", lambda a, s: a)]:
        if space == "kappa" and schedule.has_zero_alpha():
            continue
        for a, s in zip(grid.in_space(space).alpha, grid.in_space(space).sigma, strict=True):
            assert law(a, s) == pytest.approx(1.0, abs=1e-12)
    own = grid.in_space(schedule.space)
    np.testing.assert_allclose(own.alpha, grid.alpha, atol=1e-12)
    np.testing.assert_allclose(own.sigma, grid.sigma, atol=1e-12)


def test_timesteps_by_spacing():
    assert schedules.linear(steps=4, offset=1).grid().timesteps == (751, 501, 251, 1)
    assert schedules.linear(steps=4, spacing="trailing").grid().timesteps == (999, 749, 499, 249)
    assert schedules.linear(steps=4, spacing="linspace").grid().timesteps == (999, 666, 333, 0)
    assert schedules.linear(steps=1, spacing="linspace").grid().timesteps == (999,)
    assert schedules.linear(steps=3, train_steps=3).grid().timesteps == (2, 1, 0)


def test_known_values():
    karras = schedules.karras(steps=3, sigma_min=0.002, sigma_max=80.0).grid()
    root = (80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2
    assert karras.sigma == pytest.approx((80.0, root**7, 0.002, 0.0))
    assert schedules.exponential(steps=3, sigma_min=0.01, sigma_max=1.0).grid().sigma == pytest.approx(
        (1, 0.1, 0.01, 0)
    )
    flow = schedules.flow(steps=4, shift=3.0).grid()
    assert flow.sigma == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))
    assert flow.times("flow1000") == pytest.approx((1000.0, 900.0, 750.0, 500.0))
    assert schedules.karras(steps=1).grid().times("c_noise") == pytest.approx((0.25 * math.log(80),))
    assert schedules.karras(steps=2).grid().times("none") == (0.0, 0.0)
    # Stable Diffusion's smallest and largest noise level.
    stable = schedules.scaled_linear(steps=1000).grid()
    assert stable.kappa[0] == pytest.approx(14.6146, abs=1e-4)
    assert stable.kappa[999] == pytest.approx(0.0291672, abs=1e-7)


def test_zero_snr_ends_at_pure_noise_and_keeps_the_first_step():
    plain, rescaled = (schedules.scaled_linear(steps=1000, zero_snr=z) for z in (False, True))
    assert rescaled.alphas_cumprod[-1] == 0.0
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-12)


# --- Parameterizations ---------------------------------------------------------------------------


@pytest.mark.parametrize("pred", [spec for spec in ALL if isinstance(spec, prediction.Prediction)], ids=str)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.6), (1.0, 5.0), (0.3, 0.7), (1.0, 0.02)])
def test_x0_and_eps_add_up_to_x(pred: prediction.Prediction, alpha: float, sigma: float):
    (p, q), (p_eps, q_eps) = pred.to_x0(alpha, sigma), pred.to_eps(alpha, sigma)
    assert alpha * p + sigma * p_eps == pytest.approx(1.0, rel=1e-9)
    assert alpha * q + sigma * q_eps == pytest.approx(0.0, abs=1e-12)


def test_answers_that_are_right_by_definition():
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal(2)
    for alpha, sigma in [(0.8, 0.6), (1.0, 3.0), (0.25, 0.75)]:
        x, n = alpha * x0 + sigma * eps, math.hypot(alpha, sigma)
        answers = {
            prediction.eps(): eps,
            prediction.x0(): x0,
            prediction.v(): (alpha * eps - sigma * x0) / n,
            prediction.flow(): eps - x0,
            prediction.score(): -eps / sigma,
        }
        for pred, m in answers.items():
            p, q = pred.to_x0(alpha, sigma)
            assert p * x + q * m == pytest.approx(x0), pred


def test_consistency_is_the_identity_at_its_boundary():
    pred = prediction.consistency(sigma_data=0.5, sigma_min=0.002)
    assert pred.to_x0(1.0, 0.002) == (1.0, 0.0)
    assert pred.boundary == 0.002


# --- Guidance ------------------------------------------------------------------------------------


def test_weights():
    at = (3, 10, 0.8, 0.6)
    assert guidance.single().weights(*at) == (1.0,)
    assert guidance.cfg(3.0).weights(*at) == (3.0, -2.0)
    assert guidance.cfg(2.0, convention="ho").weights(*at) == (3.0, -2.0)
    assert guidance.compose((2.0, -0.5)).weights(*at) == (2.0, -0.5, -0.5)
    assert guidance.edit(text_scale=7.0, image_scale=1.5).weights(*at) == (7.0, -5.5, -0.5)
    assert guidance.weighted(2, (1.0, 0.0, 0.5, 0.5)).weights(1, 10, 0.8, 0.6) == (0.5, 0.5)
    interval = guidance.cfg(3.0, low=0.5, high=0.75)
    assert interval.weights(0, 10, 0.5, 0.375) == (1.0, 0.0)  # kappa = 0.75 is outside
    assert interval.weights(0, 10, 1.0, 0.5) == (3.0, -2.0)
    assert interval.weights(0, 10, 0.0, 1.0) == (1.0, 0.0)
    for rule in (spec for spec in ALL if isinstance(spec, guidance.Guidance)):
        weights = rule.weights(*at)
        assert (weights is None) <= (not rule.is_linear)
        if weights is not None:
            assert rule.branches == len(rule.roles) == len(weights)
            assert math.fsum(weights) == pytest.approx(1.0)


def test_a_rule_is_off_exactly_at_its_neutral_scale_and_outside_its_interval():
    def on(rule):
        return [rule.weights(step, 10, 1.0, 10.0 - step) != (1.0, 0.0) for step in range(10)]

    for rule in (guidance.cfg, guidance.autoguidance, guidance.rescale, guidance.apg, guidance.tcfg, guidance.mambo_g):
        assert on(rule(3.0, start=0.25, stop=0.6)) == [2 <= step < 6 for step in range(10)]  # int(2.5), int(6)
        assert on(rule(3.0, low=4.0, high=8.0)) == [4.0 <= 10.0 - step < 8.0 for step in range(10)]
        assert on(rule(1.0)) == on(rule(0.0, convention="ho")) == [False] * 10
        assert on(rule(0.0)) == on(rule(math.nextafter(1.0, 2.0))) == [True] * 10
    zero = guidance.cfg_zero_star(3.0, zero_init=2, stop=0.5)
    assert [zero.weights(step, 10, 1.0, 1.0) for step in (0, 1, 2, 4, 5)] == [(0.0, 0.0)] * 2 + [None] * 2 + [
        (1.0, 0.0)
    ]


def test_scales_by_step_and_perturbed_networks():
    by_step = guidance.cfg_steps((7.5, 1.0))
    assert [by_step.weights(i, 5, 1.0, 1.0) for i in (0, 1, 4)] == [(7.5, -6.5), (1.0, 0.0), (1.0, 0.0)]
    assert guidance.cfg_steps((2.0,), convention="ho").weights(3, 5, 1.0, 1.0) == (3.0, -2.0)
    assert guidance.perturbed(3.0).weights(0, 10, 1.0, 1.0) == (4.0, -3.0)
    both = guidance.perturbed(2.0, cfg=5.0, start=0.0, stop=0.5)
    assert [both.weights(i, 10, 1.0, 1.0) for i in (0, 1, 5)] == [(5.0, -4.0, 0.0), (7.0, -4.0, -2.0), (5.0, -4.0, 0.0)]
    assert guidance.autoguidance(2.0).roles == ("strong", "weak")
    assert guidance.cfg_pp(0.6).weights(0, 10, 1.0, 1.0) == (0.6, 0.4)
    assert guidance.cfg_pp(0.6).splits
    assert not guidance.cfg(3.0).splits


def small_table() -> StepTable:
    return samplers.dpmpp_2m().table(schedules.karras(steps=3), prediction.edm(), "c_noise", "kappa")


def test_folding_guidance_multiplies_b():
    table = small_table()
    folded = table.fold_guidance([(3.0, -2.0), (1.0, 0.0), (0.5, 0.5)])
    assert folded.branches == 2
    assert folded.columns == (*machine_columns(2, 2), *table.report)
    assert {"step", "alpha", "sigma", "calls"} <= set(table.report)
    for i, weights in enumerate([(3.0, -2.0), (1.0, 0.0), (0.5, 0.5)]):
        (a, b, c), (a2, b2, c2) = table.matrices(i), folded.matrices(i)
        assert np.array_equal(a, a2)
        assert np.array_equal(c, c2)
        assert np.array_equal(b2, b @ np.array([weights]))
    for name in ("t", "c_in", "step", "alpha", "sigma"):
        assert folded.values(name) == table.values(name)


def test_heun_rows_know_their_step_and_their_own_noise_level():
    table = samplers.heun().table(schedules.karras(steps=3), prediction.edm(), "sigma", "kappa")
    sigma = schedules.karras(steps=3).grid().sigma
    assert table.steps == (0, 0, 1, 1, 2)
    assert table.values("sigma") == (sigma[0], sigma[1], sigma[1], sigma[2], sigma[2])
    weights = guidance.weighted(1, (1.0,)).table_weights(table)
    assert weights == ((1.0,),) * 5
    halves = guidance.cfg(3.0, low=1.0).table_weights(table)
    assert halves == ((3.0, -2.0), (3.0, -2.0), (3.0, -2.0), (1.0, 0.0), (1.0, 0.0))


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([(1.0, 0.0)] * 2, "2 rows of weights for 3 micro-steps"),
        ([(1.0, 0.0), (1.0,), (1.0, 0.0)], "micro-step 1 has 1 weights for 2 branches"),
        ([(2.0, 0.0)] * 3, "micro-step 0 sum to 2, not to 1"),
        ([(math.nan, 1.0)] * 3, "not finite"),
        ([()] * 3, "0 weights for 0 branches"),
    ],
)
def test_weights_that_do_not_fit(weights: list[tuple[float, ...]], problem: str):
    with pytest.raises(BadWeights, match="SG207") as error:
        small_table().fold_guidance(weights)
    assert problem in str(error.value)


def test_weights_of_a_sample_are_not_in_a_table():
    with pytest.raises(BadWeights, match=r"SG207.*depend on the sample"):
        guidance.apg(5.0).table_weights(small_table())
    off = guidance.apg(1.0).table_weights(small_table())
    assert off == ((1.0, 0.0),) * 3
    with pytest.raises(TypeError, match="neither weights nor combine"):
        Unwritten().weights(0, 1, 1.0, 1.0)


class Unwritten(guidance.Guidance):
    """A rule that says nothing."""


def test_a_rule_with_bad_rows_is_found_when_its_table_is_made():
    with pytest.raises(BadWeights, match=r"SG207.*micro-step 1 sum to 0.9"):
        guidance.weighted(2, (1.0, 0.0, 0.4, 0.5)).table_weights(small_table())
    folded = small_table().fold_guidance([(3.0, -2.0)] * 3)
    with pytest.raises(BadWeights, match=r"SG207.*already folded"):
        folded.fold_guidance([(1.0, 0.0)] * 3)


# --- Tables --------------------------------------------------------------------------------------


def test_a_table_is_a_value():
    table = small_table()
    assert table == small_table()
    assert hash(table) == hash(small_table())
    assert table.float32().shape == (3, len(table.columns))
    assert table.column("a0_1") == 3
    assert not any(math.copysign(1.0, value) < 0 for row in table.rows for value in row if value == 0.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"columns": ("t",)}, "columns should begin with t c_in a0_0"),
        ({"columns": (*machine_columns(2, 1), "step", "alpha", "alpha")}, "same name"),
        ({"registers": ()}, "at least one register"),
        ({"branches": 0}, "one branch"),
        ({"rows": ()}, "at least one row"),
        ({"rows": ((1.0, 2.0),)}, "row 0 has 2 numbers for 16 columns"),
        ({"rows": ((math.nan,) * 16,)}, "not finite"),
        ({"estimates": -1}, "negative number"),
        ({"forms": 1}, "columns should begin with"),
        ({"init_scale": math.inf}, "init_scale"),
    ],
)
def test_what_is_not_a_table(change: dict[str, object], problem: str):
    table = small_table()
    fields = {name: getattr(table, name) for name in ("columns", "rows", "registers", "branches", "init_scale")}
    with pytest.raises(BadTable, match="SG208") as error:
        StepTable(**{**fields, **change})
    assert problem in str(error.value)
