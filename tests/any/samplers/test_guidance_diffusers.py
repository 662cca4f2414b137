"""Guidance rules against diffusers' guiders: on tensors, and as the compiler records them, over several steps."""

import copy
import inspect
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers.guiders")

import torch
import toys
from diffusers import guiders

import scoregraph as sg
from scoregraph.backends.reference.vectors import Vector
from scoregraph.graph import corrections, guidance, samplers, schedules
from scoregraph.graph.expression import Expr, constant
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.mixture import At, Mix, Recorder

STEPS = 10
SHAPE = (3, 16, 16)
"""Three samples. Their rank is 2 because diffusers' MAMBO-G takes a matrix norm, which refuses images."""


def answers(count: int) -> list[list[torch.Tensor]]:
    """For every step, one float64 answer per branch; branches are alike, as those of one network are."""
    generator = torch.Generator().manual_seed(7)
    common = torch.randn(STEPS, *SHAPE, generator=generator, dtype=torch.float64)
    return [
        [common[i] + 0.3 * torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]
        for i in range(STEPS)
    ]


CASES = {
    "cfg": (guidance.cfg(7.5), lambda: guiders.ClassifierFreeGuidance(7.5)),
    "cfg, ho": (
        guidance.cfg(6.5, convention="ho"),
        lambda: guiders.ClassifierFreeGuidance(6.5, use_original_formulation=True),
    ),
    "cfg, part of the steps": (
        guidance.cfg(7.5, start=0.25, stop=0.65),
        lambda: guiders.ClassifierFreeGuidance(7.5, start=0.25, stop=0.65),
    ),
    "cfg, off": (guidance.cfg(1.0), lambda: guiders.ClassifierFreeGuidance(1.0)),
    "rescale": (guidance.rescale(7.5, 0.7), lambda: guiders.ClassifierFreeGuidance(7.5, guidance_rescale=0.7)),
    "apg": (
        guidance.apg(7.5, eta=0.25, threshold=2.5, momentum=-0.5),
        lambda: guiders.AdaptiveProjectedGuidance(7.5, -0.5, 2.5, eta=0.25),
    ),
    "apg, loose": (
        guidance.apg(7.5, eta=0.0, threshold=1e6, momentum=0.0),
        lambda: guiders.AdaptiveProjectedGuidance(7.5, None, 0.0, eta=0.0),
    ),
    "apg, ho, rescaled, part of the steps": (
        guidance.apg(6.5, convention="ho", rescale=0.3, stop=0.5),
        lambda: guiders.AdaptiveProjectedGuidance(
            6.5, -0.5, 15.0, eta=0.0, use_original_formulation=True, guidance_rescale=0.3, stop=0.5
        ),
    ),
    "cfg_zero_star": (
        guidance.cfg_zero_star(5.0, zero_init=2),
        lambda: guiders.ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2),
    ),
    "cfg_zero_star, ho": (
        guidance.cfg_zero_star(4.0, zero_init=0, convention="ho", stop=0.7),
        lambda: guiders.ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=0, use_original_formulation=True, stop=0.7),
    ),
    "tcfg": (guidance.tcfg(7.5), lambda: guiders.TangentialClassifierFreeGuidance(7.5)),
    "tcfg, rescaled": (
        guidance.tcfg(7.5, rescale=0.5),
        lambda: guiders.TangentialClassifierFreeGuidance(7.5, guidance_rescale=0.5),
    ),
    "mambo_g": (guidance.mambo_g(10.0), lambda: guiders.MagnitudeAwareGuidance(10.0)),
    "mambo_g, ho": (
        guidance.mambo_g(9.0, damping=3.0, convention="ho"),
        lambda: guiders.MagnitudeAwareGuidance(9.0, alpha=3.0, use_original_formulation=True),
    ),
    "autoguidance": (
        guidance.autoguidance(2.0),
        lambda: guiders.AutoGuidance(2.0, auto_guidance_layers=1, dropout=0.1),
    ),
    "perturbed, cfg": (
        guidance.slg(2.8, cfg=7.0, start=0.01, stop=0.4),
        lambda: guiders.SkipLayerGuidance(
            7.0, 2.8, skip_layer_guidance_start=0.01, skip_layer_guidance_stop=0.4, skip_layer_guidance_layers=1
        ),
    ),
    "perturbed alone": (
        guidance.pag(3.0, start=0.1),
        lambda: guiders.PerturbedAttentionGuidance(
            0.0,
            3.0,
            perturbed_guidance_start=0.1,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_layers=1,
            use_original_formulation=True,
        ),
    ),
}


def of_diffusers(guider, branches: list[list[torch.Tensor]], roles: tuple[str, ...]) -> list[torch.Tensor]:
    """What a guider makes of the answers, step by step; its own order is (cond, uncond, perturbed)."""
    made: list[torch.Tensor] = []
    for step, answer in enumerate(branches):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=None)
        if step == 0 and getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
            guider.momentum_buffer = guiders.adaptive_projected_guidance.MomentumBuffer(
                guider.adaptive_projected_guidance_momentum
            )
        by_role = dict(zip(roles, answer, strict=True))
        third = {"pred_cond_skip": by_role["perturbed"]} if "perturbed" in by_role else {}
        cond, second = answer[0], by_role.get("uncond", by_role.get("weak"))
        made.append(guider.forward(cond, second, **third).pred)
    return made


def on_tensors(rule: Guidance, branches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """The rule's own arithmetic, run on the answers."""
    nothing = torch.zeros(SHAPE, dtype=torch.float64)
    memory = dict.fromkeys(rule.memory(), nothing)
    made: list[torch.Tensor] = []
    for step, answer in enumerate(branches):
        weights = rule.weights(step, STEPS, 1.0, 1.0)
        if weights is not None:
            made.append(sum((w * m for w, m in zip(weights, answer, strict=True)), nothing))
            continue
        numbers: list[torch.Tensor] = []
        at = At(
            constant(1.0), constant(1.0), {name: Vector(value, numbers) for name, value in memory.items()}, numbers={}
        )
        made.append(rule.combine(tuple(Vector(m, numbers) for m in answer), at).value)
        memory = {name: at.kept[name].value for name in memory}
    return made


def number_of(e: Expr, statistics: list[np.ndarray], row: int, recorder: Recorder) -> np.ndarray:
    """An expression for every sample, [B], in one row."""
    match e.op:
        case "const":
            return np.array([float(e.leaf[0])])
        case "row":
            return np.array([recorder.parameters[str(e.leaf[0])][row]])
        case "in":
            return statistics[int(e.leaf[1])]
    args = [number_of(arg, statistics, row, recorder) for arg in e.args]
    functions = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "min": np.minimum,
        "max": np.maximum,
        "sqrt": np.sqrt,
        "square": np.square,
        "exp": np.exp,
        "neg": np.negative,
    }
    return functions[e.op](*args)


def as_recorded(rule: Guidance, branches: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """What the recorded weights and products make of the answers: the rule is asked once, for all steps."""
    recorder = Recorder(STEPS, math.prod(SHAPE[1:]))
    count, names = len(branches[0]), rule.memory()

    def unit(source: int) -> Mix:
        form = np.zeros((STEPS, count + len(names)))
        form[:, source] = 1.0
        return Mix.of(recorder, form)

    at = At(
        constant(1.0),
        constant(1.0),
        {name: unit(count + i) for i, name in enumerate(names)},
        {},
    )
    result = rule.combine(tuple(unit(k) for k in range(count)), at)
    kept = {name: at.kept[name] for name in names}
    memory = {name: np.zeros(SHAPE) for name in names}
    made: list[torch.Tensor] = []
    for step, answer in enumerate(branches):
        sources = [m.numpy() for m in answer] + [memory[name] for name in names]
        weights = rule.weights(step, STEPS, 1.0, 1.0)
        if weights is not None:
            made.append(torch.from_numpy(sum(w * m for w, m in zip(weights, sources, strict=False))))
            continue
        forms = [sum(w * s for w, s in zip(form[step], sources, strict=True)) for form in recorder.forms]
        products = [np.prod([forms[i] for i in ids], axis=0).sum(axis=(1, 2)) for ids in recorder.statistics]

        def value(mix: Mix, sources=sources, products=products, step=step) -> np.ndarray:
            shares = [number_of(mix.weight(k), products, step, recorder) for k in range(len(sources))]
            return sum(share.reshape(-1, 1, 1) * s for share, s in zip(shares, sources, strict=True))

        made.append(torch.from_numpy(value(result)))
        memory = {name: value(mix) for name, mix in kept.items()}
    return made


@pytest.mark.parametrize("case", CASES)
def test_a_rule_is_that_of_diffusers_in_every_step(case):
    rule, guider = CASES[case]
    branches = answers(rule.branches)
    expected = of_diffusers(guider(), branches, rule.roles)
    found = {"tensors": on_tensors(rule, branches)}
    if not rule.is_linear:
        found["recorded"] = as_recorded(rule, branches)
    for way, steps in found.items():
        for step, (ours, theirs) in enumerate(zip(steps, expected, strict=True)):
            error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-30)
            # TCFG and CFG-Zero* take their products in float32 there.
            assert error < (1e-5 if "tcfg" in case or "zero" in case else 1e-12), (way, step, float(error))


def test_products_are_few():
    """Each rule needs at most the forms and products that its 2x2 Gram matrix and sums have."""
    most = {"rescale": (4, 4), "apg": (3, 3), "cfg_zero_star": (2, 2), "tcfg": (2, 3), "mambo_g": (2, 2)}
    for name, (forms, products) in most.items():
        recorder = Recorder(1, 64)
        rule = getattr(guidance, name)(7.5)
        units = [Mix.of(recorder, np.eye(3)[None, k]) for k in range(3)]
        rule.combine((units[0], units[1]), At(constant(1.0), constant(1.0), dict.fromkeys(rule.memory(), units[2]), {}))
        assert (len(recorder.forms), len(recorder.statistics)) <= (forms, products), (
            name,
            len(recorder.forms),
            recorder.statistics,
        )


def test_degenerate_answers_stay_finite():
    zero, some = torch.zeros(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    for rule in (
        guidance.apg(7.5),
        guidance.cfg_zero_star(5.0, zero_init=0),
        guidance.tcfg(5.0),
        guidance.mambo_g(5.0),
    ):
        for pair in ([zero, zero], [some, some], [zero, some], [some, zero]):
            assert all(torch.isfinite(made).all() for made in on_tensors(rule, [pair] * 2)), (rule.name, pair[0].max())


# --- Through the compiler ------------------------------------------------------------------------


def trajectory(guide, *, unguided_eps: bool = False, correct=None) -> tuple[np.ndarray, np.ndarray]:
    """(start, end) of four DDIM steps by hand, in float64; ``guide(step, cond, uncond)`` makes the prediction."""
    net, tilt = toys.network(), torch.tensor([[0.5, -0.2, 0.1, 0.3]] * 2, dtype=torch.float64)
    score = copy.deepcopy(net.score).double()
    grid = schedules.linear(steps=4).grid()
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float().double()
    start = x.numpy()
    for step, t in enumerate(grid.timesteps):
        at = torch.full((2,), float(t), dtype=torch.float64)
        cond, uncond = score(x, at, tilt), score(x, at, torch.zeros_like(tilt))
        said = guide(step, cond, uncond)
        x0 = (x - grid.sigma[step] * said) / grid.alpha[step]
        eps = uncond if unguided_eps else said
        if correct is not None:
            x0 = correct(x0)
            eps = (x - grid.alpha[step] * x0) / grid.sigma[step]
        x = grid.alpha[step + 1] * x0 + grid.sigma[step + 1] * eps
    return start, x.numpy()


def compiled(rule: Guidance, start: np.ndarray, correction=None) -> np.ndarray:
    """The same through the sampling passes and the reference backend."""
    net, g = toys.network(), sg.GraphBuilder("guided")
    level, blank = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedules.linear(steps=4), g.input("start", net.ref.latent)) as step:
        pred = g.fuse(rule, g.score(net, step, level), g.score(net, step, blank))
        step.advance(samplers.ddim(), pred if correction is None else g.correct(correction, pred, step))
    g.output(end=step.result)
    plan = sg.compile(g, device="reference", use_cache=False)
    return plan.run(start=start, tilt=np.array([0.5, -0.2, 0.1, 0.3]), batch=2)["end"]


@pytest.mark.parametrize("case", [name for name, (rule, _) in CASES.items() if rule.roles == ("cond", "uncond")])
def test_compiled_trajectories_are_those_of_the_guider(case):
    rule, make = CASES[case]
    guider = make()

    def guide(step: int, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        guider.set_state(step=step, num_inference_steps=4, timestep=None)
        if step == 0 and getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
            guider.momentum_buffer = guiders.adaptive_projected_guidance.MomentumBuffer(
                guider.adaptive_projected_guidance_momentum
            )
        return guider.forward(cond[:, None], uncond[:, None]).pred[:, 0]

    start, expected = trajectory(guide)
    np.testing.assert_allclose(compiled(rule, start), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_cfg_pp_leads_to_the_guided_sample_with_the_unguided_noise():
    start, expected = trajectory(lambda step, cond, uncond: uncond + 0.6 * (cond - uncond), unguided_eps=True)
    _, plain = trajectory(lambda step, cond, uncond: uncond + 0.6 * (cond - uncond))
    found = compiled(guidance.cfg_pp(0.6), start)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()


def threshold(x0: torch.Tensor) -> torch.Tensor:
    """Saharia et al. 2022, section 2.3, with s at most 1.5."""
    s = torch.quantile(x0.abs(), 0.8, dim=1, keepdim=True).clamp(1.0, 1.5)
    return torch.minimum(torch.maximum(x0, -s), s) / s


@pytest.mark.parametrize(
    ("correction", "by_hand"),
    [
        (corrections.clamp(-0.7, 0.7), lambda x0: x0.clamp(-0.7, 0.7)),
        (corrections.dynamic_threshold(0.8, limit=1.5), threshold),
    ],
    ids=["clamp", "threshold"],
)
def test_a_correction_around_guidance_is_one_of_its_x0(correction, by_hand):
    def guide(step: int, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        return uncond + 3.0 * (cond - uncond)

    start, expected = trajectory(guide, correct=by_hand)
    _, plain = trajectory(guide)
    np.testing.assert_allclose(compiled(guidance.cfg(3.0), start, correction), expected, rtol=0, atol=1e-5)
    assert np.abs(plain - expected).max() > 0.1


def test_a_rule_of_ones_own_is_short_and_compiles():
    examples = Path(__file__).parents[3] / "examples"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(examples)
        from own_guidance import Limited  # pyright: ignore[reportMissingImports]
    assert len(inspect.getsource(Limited).splitlines()) <= 20

    def guide(step: int, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        pull = 2.0 * (cond - uncond)
        lengths = [torch.linalg.vector_norm(m, dim=1, keepdim=True) for m in (cond, pull)]
        return cond + pull * (0.3 * lengths[0] / lengths[1]).clamp(max=1.0)

    start, expected = trajectory(guide)
    np.testing.assert_allclose(compiled(Limited(3.0, 0.3), start), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
