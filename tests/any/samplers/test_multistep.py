"""What multistep samplers are made of and have in common: integrals, rings of registers, identities."""

import itertools
import math

import numpy as np
import pytest
from machine import FakeNetwork, relative_error, run_table
from scipy import integrate

from scoregraph.errors import InfiniteSigma, NoTimestep, OptionOutOfRange, UnknownName, WrongDirection
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.samplers.exponential import moments, phi, reach, weights
from scoregraph.graph.samplers.history import History, slots
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable

# --- Integrals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("z", [-60.0, -5.0, -2.0, -1.99, -0.3, -1e-9, 0.0, 1e-5, 0.7, 2.0, 9.0])
def test_phi_is_its_integral(k: int, z: float):
    integral, _ = integrate.quad(lambda s: math.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0)
    assert phi(k, z) == pytest.approx(integral, rel=1e-12)


@pytest.mark.parametrize("h", [-0.8, 1e-6, 0.3, 4.0])
@pytest.mark.parametrize("rate", [-1.0, 1.0, 1.36, 2.0])
def test_moments_and_weights_integrate_polynomials(h: float, rate: float):
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        offsets = [0.0, *(-h * np.cumsum(rng.uniform(0.5, 1.5, 3)))][:count]
        polynomial = np.polynomial.Polynomial(rng.standard_normal(count))
        exact, _ = integrate.quad(lambda s, p=polynomial: rate * math.exp(-rate * (h - s)) * p(s), 0, h, epsabs=0)
        assert weights(offsets, moments(h, rate, count)) @ polynomial(np.array(offsets)) == pytest.approx(
            exact, rel=1e-9
        )


def test_moments_of_an_infinite_step():
    assert moments(math.inf, 2.0, 1) == [1.0] == pytest.approx(moments(80.0, 2.0, 1))


# --- The ring ------------------------------------------------------------------------------------


def test_a_history_is_a_ring_that_forgets_what_nobody_reads():
    assert slots("x0", 1) == ("x0",)
    assert slots("x0", 3) == ("x0_0", "x0_1", "x0_2")
    table = samplers.dpmpp_3m().table(schedules.karras(steps=6), prediction.x0(), "none", "kappa")
    assert table.registers == ("x", "x0_0", "x0_1")
    for i in range(6):
        a, b, _ = table.matrices(i)
        written = [j for j in (1, 2) if b[j, 0] or not np.array_equal(a[j], np.eye(3)[j])]
        # Row i writes slot i mod 2 and leaves the other; the last rows write what nobody reads as zeros.
        if i < 4:
            assert b[1 + i % 2, 0] == 1.0
            assert i == 0 or (1 + (i + 1) % 2) not in written
    assert not table.matrices(5)[0][1:].any()


def test_what_a_history_keeps():
    class Names(dict[str, str]):
        def __missing__(self, name: str) -> str:
            return f"old {name}"

    ring = History(("a", "b"), reads=[0, 1, 2, 2, 0])
    kept = [ring.kept(Names(), row, "new") for row in range(5)]  # type: ignore[arg-type]
    assert kept == [{"a": "new"}, {"a": "old a", "b": "new"}, {"b": "old b", "a": "new"}, {}, {}]
    assert ring.past({"a": 1.0, "b": 2.0}, 3, 1) == 1.0  # type: ignore[arg-type,comparison-overlap]
    assert ring.past({"a": 1.0, "b": 2.0}, 3, 2) == 2.0  # type: ignore[arg-type,comparison-overlap]


def test_only_distinct_points_with_signal_tell_of_slopes():
    flow = schedules.flow(steps=5).grid()
    assert [reach(flow, i, 3) for i in range(5)] == [1, 1, 2, 3, 3]  # the first point has no signal
    k = [9.0, 5.0, 5.0, 2.0, 1.0, 0.0]
    custom = schedules.custom(sigmas=tuple(k), space="kappa").grid()
    assert [reach(custom, i, 3) for i in range(5)] == [1, 2, 1, 2, 3]


# --- Identities, each exact in real arithmetic -----------------------------------------------------

LINEAR = schedules.scaled_linear(steps=15, offset=1)
NOISY_END = schedules.scaled_linear(steps=15, offset=1, final="sigma_min")


def end_of(sampler: Sampler, schedule: Schedule = LINEAR, space: str = "vp") -> np.ndarray:
    """Where it ends with the fake network that says v, its noise injected by step."""
    table = sampler.table(schedule, prediction.v(), "flow", space)
    net, rng = FakeNetwork(8), np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 8)), rng.standard_normal((40, 2, 8))
    return run_table(table, lambda x, t: [net(x, t, 0)], x, noise)[-1]


SAME: dict[str, tuple[Sampler, Sampler]] = {
    "DPM-Solver-1 is DDIM": (samplers.dpm_solver(1, "dpmsolver"), samplers.ddim()),
    "DPM-Solver++-1 is DDIM": (samplers.dpm_solver(1), samplers.ddim()),
    "DEIS-1 is DDIM": (samplers.deis(1), samplers.ddim()),
    "UniP-1 is DDIM": (samplers.unipc(1, corrector=False), samplers.ddim()),
    "UniP-1 in eps is DDIM": (samplers.unipc(1, predict="eps", corrector=False), samplers.ddim()),
    "iPNDM-1 is DDIM": (samplers.ipndm(1), samplers.ddim()),
    "LMS-1 is Euler": (samplers.lms(1), samplers.euler()),
    "SA-predictor-1 is DDIM": (samplers.sa_solver(1, 0, tau=0.0), samplers.ddim()),
    "DDPM is DDIM(1)": (samplers.ddpm(), samplers.ddim(1.0)),
    "SDE-DPM-Solver++-1 is DDPM": (samplers.dpm_solver(1, "sde-dpmsolver++"), samplers.ddpm()),
    "SA-predictor-1 with tau 1 is DDPM": (samplers.sa_solver(1, 0), samplers.ddpm()),
    "UniP-2 with bh2 is 2M": (samplers.unipc(2, corrector=False, lower_order_final=False), samplers.dpmpp_2m()),
    "SA-predictor-2 is UniP-2 with bh1": (
        samplers.sa_solver(2, 0, tau=0.0),
        samplers.unipc(2, "bh1", corrector=False),
    ),
    "UniP-3 is 3M with Taylor's weights": (
        samplers.unipc(3, corrector=False, lower_order_final=False),
        samplers.dpmpp_3m(third="taylor"),
    ),
    "DEIS-2 is DPM-Solver-2 with Heun's": (
        samplers.deis(2, lower_order_final=False),
        samplers.dpm_solver(2, "dpmsolver", "heun", lower_order_final=False),
    ),
    "2M SDE without noise is 2M": (samplers.dpmpp_2m_sde(0.0), samplers.dpmpp_2m()),
    "2M SDE is diffusers' of the name": (samplers.dpmpp_2m_sde(), samplers.dpm_solver(2, "sde-dpmsolver++")),
    "3M SDE without noise is 3M": (samplers.dpmpp_3m_sde(0.0), samplers.dpmpp_3m("heun")),
    "3M SDE is diffusers' of the name": (
        samplers.dpmpp_3m_sde(),
        samplers.dpm_solver(3, "sde-dpmsolver++", "heun", lower_order_final=False),
    ),
    "SA-predictor in eps with noise is SDE-DPM-Solver": (
        samplers.sa_solver(2, 0, predict="eps", lower_order_final=False),
        samplers.dpm_solver(2, "sde-dpmsolver", "heun", lower_order_final=False),
    ),
    "a corrector that never corrects": (
        samplers.unipc(2, uncorrected=tuple(range(15))),
        samplers.unipc(2, corrector=False),
    ),
    "tau only where there is noise": (samplers.sa_solver(3, 3, 0.5, low=1e9), samplers.sa_solver(3, 3, 0.0)),
}


@pytest.mark.parametrize("identity", SAME)
def test_two_names_for_one_sampler(identity: str):
    first, second = SAME[identity]
    for schedule, space in ((LINEAR, "vp"), (NOISY_END, "vp"), (LINEAR, "kappa")):
        assert relative_error(end_of(first, schedule, space), end_of(second, schedule, space)) < 1e-9, (schedule, space)


def k_diffusion(
    sampler: Sampler, x: np.ndarray, net: FakeNetwork, levels: list[float], noise: np.ndarray
) -> np.ndarray:
    """The published loops of dpmpp_2m_sde (midpoint) and dpmpp_3m_sde, restated; the state in kappa space."""
    eta, strength = sampler.options()["eta"], sampler.options()["noise"]
    old: list[np.ndarray] = []
    steps: list[float] = []
    for i, (sigma, after) in enumerate(itertools.pairwise(levels)):
        denoised = net(x, sigma, 0)
        if after == 0.0:
            return denoised
        h = math.log(sigma / after)
        both = h * (eta + 1)
        x = math.exp(-both) * x - math.expm1(-both) * denoised
        if sampler.name == "dpmpp_2m_sde" and old:
            x = x - 0.5 * math.expm1(-both) * (h / steps[-1]) * (denoised - old[-1])
        elif len(old) > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            d1_0, d1_1 = (denoised - old[-1]) / r0, (old[-1] - old[-2]) / r1
            d1, d2 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1), (d1_0 - d1_1) / (r0 + r1)
            phi_2 = math.expm1(-both) / both + 1
            x = x + phi_2 * d1 - (phi_2 / both - 0.5) * d2
        elif old:
            x = x + (math.expm1(-both) / both + 1) * (denoised - old[-1]) * h / steps[-1]
        x = x + noise[i] * after * math.sqrt(-math.expm1(-2 * h * eta)) * strength
        old, steps = [*old, denoised], [*steps, h]
    return x


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_sde_samplers_are_those_of_k_diffusion(eta: float, end: float):
    levels = [*schedules.karras(steps=9, sigma_max=15.0, sigma_min=0.1).grid().kappa[:-1], end]
    grid, net, rng = schedules.custom(sigmas=tuple(levels), space="kappa"), FakeNetwork(8), np.random.default_rng(0)
    x, noise = 15 * rng.standard_normal((2, 8)), rng.standard_normal((9, 2, 8))
    for sampler in (samplers.dpmpp_2m_sde(eta, 1.05), samplers.dpmpp_3m_sde(eta, 0.9)):
        table = sampler.table(grid, prediction.x0(), "sigma", "kappa")
        ours = run_table(table, lambda x, t: [net(x, t, 0)], x, noise)[-1]
        assert relative_error(ours, k_diffusion(sampler, x, net, levels, noise)) < 1e-12


@pytest.mark.parametrize("space", ["vp", "kappa"])
def test_learned_variances(space: str):
    """``learned`` is ln s^2 in vp space; ``learned_range`` goes from the small variance (v = -1) to the large (1)."""
    rng = np.random.default_rng(0)
    x, z, m = rng.standard_normal((3, 4, 5))
    grid = LINEAR.grid().in_space(space)

    def step(variance: str, v: float) -> np.ndarray:
        table = samplers.ddpm(variance).table(LINEAR, prediction.x0(), "timestep", space)
        if not variance.startswith("learned"):
            return run_table(table, lambda x, t: [m], x, [z] * 15)[1]
        assert (table.branches, table.estimates, table.outputs) == (2, 1, 1)
        assert not any(table.row(14).h.ravel())  # the last step adds nothing
        return run_table(table, lambda x, t: [m, np.full_like(m, v)], x, [z] * 15)[1]

    small, large = step("fixed_small", 0.0), step("fixed_large", 0.0)
    np.testing.assert_allclose(step("learned_range", -1.0), small, rtol=1e-9)
    np.testing.assert_allclose(step("learned_range", 1.0), large, rtol=1e-9)
    middle = np.abs(step("learned_range", 0.0) - step("learned", -1e9)) / np.abs(z)
    ends = [np.abs(end - step("learned", -1e9)) / np.abs(z) for end in (small, large)]
    np.testing.assert_allclose(middle, np.sqrt(ends[0] * ends[1]), rtol=1e-9)
    noise = step("learned", math.log(0.09)) - step("learned", -1e9)
    np.testing.assert_allclose(noise, 0.3 * z * math.hypot(grid.alpha[1], grid.sigma[1]), rtol=1e-9)


ALL: list[Sampler] = [
    samplers.ddpm("fixed_large"),
    samplers.dpm_solver(3, "dpmsolver"),
    samplers.dpm_solver(3, "sde-dpmsolver++", "heun"),
    samplers.dpm_solver(2, "sde-dpmsolver"),
    samplers.dpm_solver_single(2),
    samplers.dpm_solver_single(3, "dpmsolver", "heun"),
    samplers.dpmpp_3m(),
    samplers.dpmpp_2m_sde(0.5, 1.1),
    samplers.dpmpp_3m_sde(),
    samplers.unipc(3),
    samplers.unipc(2, "bh1", "eps"),
    samplers.deis(3),
    samplers.sa_solver(3, 4, 0.8),
    samplers.sa_solver(2, 2, predict="eps"),
    samplers.pndm(),
    samplers.pndm(skip_prk=True, average="eps"),
    samplers.ipndm(),
    samplers.lms(),
]


@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_it_prints_parses_and_means_the_same_in_every_space(sampler: Sampler):
    """The same network behind latents of each space: the states differ by the scale of the space alone."""
    assert Spec.parse("sampler", str(sampler)) == sampler
    net, rng, ends = FakeNetwork(8), np.random.default_rng(3), []
    start, noise = rng.standard_normal((2, 8)), rng.standard_normal((40, 2, 8))
    for space in ("vp", "kappa", "flow"):
        table = sampler.table(LINEAR, prediction.edm(), "sigma", space)
        first = LINEAR.grid().in_space(space).alpha[0]
        # EDM's c_in undoes the scale of the space, so the network sees the same numbers.
        ends.append(run_table(table, lambda x, t: [net(x, t / 20, 0)], first * start, noise)[-1])
    assert relative_error(ends[1], ends[0]) < 1e-9
    assert relative_error(ends[2], ends[0]) < 1e-9


@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_a_point_mass_is_reached_exactly(sampler: Sampler):
    """If the network knows the one data point, every sampler ends on it, whatever its order and number of steps."""
    if sampler == samplers.sa_solver(2, 2, predict="eps"):
        return  # corrects the state after the call but keeps its eps, so a last step does not end on x0
    point = np.array([[0.5, -1.0, 2.0]])
    for steps in (1, 2, 3, 4, 14, 15):
        for schedule in (schedules.linear(steps=steps), schedules.karras(steps=steps)):
            table = sampler.table(schedule, prediction.x0(), "none", "kappa")
            rng = np.random.default_rng(0)
            noise = rng.standard_normal((len(table.rows), 1, 3))
            end = run_table(table, lambda x, t: [point], table.init_scale * rng.standard_normal((1, 3)), noise)[-1]
            np.testing.assert_allclose(end, point, atol=1e-9)


@pytest.mark.parametrize(
    "sampler", [s for s in ALL if s.name in ("dpm_solver", "unipc", "deis", "lms", "pndm", "ipndm")]
)
def test_odes_walk_upwards_and_sdes_do_not(sampler: Sampler):
    upwards = schedules.scaled_linear(steps=40, ascending=True)
    if "sde" in str(sampler):
        with pytest.raises(WrongDirection, match="SG"):
            sampler.table(upwards, prediction.v(), "none", "vp")
        return
    table = sampler.table(upwards, prediction.x0(), "none", "vp")
    alphas, sigmas, ends = table.values("alpha"), table.values("sigma"), upwards.grid()
    rows = iter(zip(alphas, sigmas, strict=True))

    def denoise(x: np.ndarray, t: float) -> list[np.ndarray]:
        alpha, sigma = next(rows)
        return [alpha * x / (alpha**2 + sigma**2)]  # data N(0, 1): the ODE's solution is x itself in vp space

    x = np.random.default_rng(0).standard_normal((3, 2))
    assert ends.sigma[-1] > ends.sigma[0]
    assert relative_error(run_table(table, denoise, x)[-1], x) < 0.05


def test_flows_walk_upwards_to_the_pure_noise():
    upwards = schedules.flow(steps=10, ascending=True)
    assert upwards.grid().alpha[-1] == 0.0
    for sampler in (
        samplers.dpm_solver(3),
        samplers.unipc(3),
        samplers.deis(3),
        samplers.lms(),
        samplers.ipndm(),
        samplers.ddim(),
    ):
        assert sampler.table(upwards, prediction.flow(), "flow", "flow").rows[-1]  # finite, or there is no table


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_lms_on_even_steps_of_kappa(order: int):
    even = schedules.custom(sigmas=tuple(np.linspace(10.0, 0.5, 13).tolist()), space="kappa")
    assert relative_error(end_of(samplers.ipndm(order), even), end_of(samplers.lms(order), even)) < 1e-9


# --- What is refused -------------------------------------------------------------------------------

REFUSED = [
    (OptionOutOfRange, "SG201.*order of deis", lambda: samplers.deis(5)),
    (OptionOutOfRange, "SG201.*order of unipc", lambda: samplers.unipc(0)),
    (UnknownName, "bh3", lambda: samplers.unipc(2, "bh3")),
    (UnknownName, "dpmsolver", lambda: samplers.dpm_solver(2, "dpmsolver+")),
    (UnknownName, "variance of ddpm", lambda: samplers.ddpm("fixed_smal")),
    (OptionOutOfRange, "SG201.*tau of sa_solver", lambda: samplers.sa_solver(tau=-1.0)),
    (NoTimestep, "SG206", lambda: table_on_karras(samplers.ddim(prev="stride"))),
    (NoTimestep, "SG206", lambda: table_on_karras(samplers.pndm(prev="stride"))),
    (InfiniteSigma, "SG205.*sa_solver", lambda: table_on_flow(samplers.sa_solver(predict="eps"))),
    (InfiniteSigma, "SG205.*dpm_solver", lambda: table_on_flow(samplers.dpm_solver(2, "sde-dpmsolver"))),
    (InfiniteSigma, "SG205.*pndm", lambda: table_on_flow(samplers.pndm())),
    (InfiniteSigma, "SG205.*pndm", lambda: table_on_flow(samplers.pndm(skip_prk=True, average="eps"))),
    (InfiniteSigma, "SG205.*pndm", lambda: table_on_flow(samplers.pndm(skip_prk=True), corrected=True)),
    (WrongDirection, "SG", lambda: table_upwards(samplers.ddim(0.5))),
    (WrongDirection, "SG", lambda: table_upwards(samplers.ddpm())),
    (WrongDirection, "SG", lambda: table_upwards(samplers.sa_solver())),
    (WrongDirection, "SG", lambda: table_upwards(samplers.dpm_solver_single(2, "sde-dpmsolver++"))),
]


def table_on_karras(sampler: Sampler) -> StepTable:
    return sampler.table(schedules.karras(steps=5), prediction.edm(), "c_noise", "kappa")


def table_on_flow(sampler: Sampler, *, corrected: bool = False) -> StepTable:
    return sampler.table(schedules.flow(steps=5), prediction.flow(), "flow", "flow", corrected=corrected)


def table_upwards(sampler: Sampler) -> StepTable:
    return sampler.table(schedules.karras(steps=5, ascending=True), prediction.edm(), "c_noise", "kappa")


@pytest.mark.parametrize(("error", "match", "make"), REFUSED)
def test_what_is_refused(error: type[Exception], match: str, make: object):
    with pytest.raises(error, match=match):
        make()  # type: ignore[operator]


def test_a_corrected_x0_reaches_every_sampler():
    """Where x0 is clamped, say, a table reads the corrected estimate, and not the network's answer beside it."""
    for sampler in ALL:
        table = sampler.table(LINEAR, prediction.v(), "timestep", "vp", corrected=True)
        assert table.outputs == 1
        for i in range(len(table.rows)):
            row = table.row(i)
            assert not row.b.any() or not table.values("calls")[i]
            assert row.h[0, 0] != 0.0


def test_calls_per_step():
    counts = {str(s): len(s.table(LINEAR, prediction.eps(), "timestep", "vp").rows) for s in ALL}
    for name, rows in counts.items():
        assert rows == (24 if name.startswith("pndm(skip_prk=False") else 16 if name.startswith("pndm") else 15)
    table = samplers.pndm().table(LINEAR, prediction.eps(), "timestep", "vp")
    t = LINEAR.grid().timesteps
    assert t is not None
    halves = [(a + b) / 2 for a, b in itertools.pairwise(t)]
    assert table.values("t")[:12] == pytest.approx(
        [*(u for i in range(3) for u in (t[i], halves[i], halves[i], t[i + 1]))], abs=1e-9
    )
