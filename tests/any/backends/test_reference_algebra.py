"""Everything that may stand around a sampler step: the interpreter against straight torch, and passes against it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from smooth_networks import BATCH, LABEL, SEEDS, STEPS, WIDTH, energy, keeps, network
from torch import Tensor, nn

from scoregraph.backends.reference import eager
from scoregraph.errors import UncoveredNode
from scoregraph.graph import corrections, energies, guidance, noise, prediction, samplers, schedules
from scoregraph.graph.builder import GraphBuilder, Step
from scoregraph.graph.nodes import Node
from scoregraph.graph.values import Array, CondInput, Latent, NetRef

EPS = network(prediction.eps(), "flow", "vp")
SCHEDULE = schedules.scaled_linear(steps=STEPS, offset=1)
GRID = SCHEDULE.grid()
GUIDED = torch.from_numpy(LABEL).double()
BLANK = torch.zeros(BATCH, dtype=torch.float64)

Guide = Callable[[Tensor, int], Tensor]
"""What eps is, of the state and the step."""


def normals(site: int, micro: int = 0) -> Tensor:
    return torch.from_numpy(noise.normals(SEEDS, site, micro, WIDTH)).double()


def close(ours: np.ndarray, expected: Tensor, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=tolerance, atol=tolerance)


def level(i: int) -> tuple[float, float]:
    return GRID.alpha[i], GRID.sigma[i]


def eps_of(x: Tensor, i: int, label: Tensor) -> Tensor:
    alpha, sigma = level(i)
    return EPS(x, sigma / (alpha + sigma), label)


def ddim(guide: Guide, x: Tensor | None = None) -> Tensor:
    """The deterministic walk of Song et al. 2021 with eps from ``guide``."""
    x = normals(0) if x is None else x
    for i in range(STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        eps = guide(x, i)
        x = alpha1 * (x - sigma * eps) / alpha + sigma1 * eps
    return x


def by_x0(change: Callable[[Tensor], Tensor], label: Tensor = GUIDED) -> Guide:
    """eps of the network whose x0 has been changed."""

    def guide(x: Tensor, i: int) -> Tensor:
        alpha, sigma = level(i)
        x0 = (x - sigma * eps_of(x, i, label)) / alpha
        return (x - alpha * change(x0)) / sigma

    return guide


def built(body: Callable[[GraphBuilder, Step, Node, Node], object], **outputs: object) -> dict[str, np.ndarray]:
    """The outputs of a graph whose loop has ``body``, which gets the scores with and without the label."""
    g = GraphBuilder("algebra")
    label, blank = g.condition(EPS, g.input("label")), g.condition(EPS, None)
    with g.loop(SCHEDULE, g.noise(EPS)) as step:
        body(g, step, g.score(EPS, step, label), g.score(EPS, step, blank))
    g.output(x=step.result)
    return keeps(g.build(), {"toy": EPS}, {"label": LABEL})


# --- Corrections --------------------------------------------------------------------------------


def test_clamped_x0():
    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        guided = g.fuse(guidance.cfg(2.0), cond, blank)
        step.advance(samplers.ddim(), g.correct(corrections.clamp(-0.5, 0.75), guided, step))

    def guide(x: Tensor, i: int) -> Tensor:
        alpha, sigma = level(i)
        eps = 2.0 * eps_of(x, i, GUIDED) - eps_of(x, i, BLANK)
        return (x - alpha * ((x - sigma * eps) / alpha).clamp(-0.5, 0.75)) / sigma

    close(built(body)["x"], ddim(guide))


@pytest.mark.parametrize("limit", [None, 1.2])
def test_dynamic_threshold(limit: float | None):
    rule = corrections.dynamic_threshold(0.7, limit)

    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        step.advance(samplers.ddim(), g.correct(rule, g.fuse(guidance.cfg(3.0), cond, blank), step))

    def threshold(x0: Tensor) -> Tensor:
        s = torch.quantile(x0.abs(), 0.7, dim=1, keepdim=True).clamp(1.0, limit)
        return x0.clamp(-s, s) / s

    def guide(x: Tensor, i: int) -> Tensor:
        alpha, sigma = level(i)
        eps = 3.0 * eps_of(x, i, GUIDED) - 2.0 * eps_of(x, i, BLANK)
        return (x - alpha * threshold((x - sigma * eps) / alpha)) / sigma

    close(built(body)["x"], ddim(guide))


# --- Guidance -----------------------------------------------------------------------------------


def test_rescaled_guidance():
    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        step.advance(samplers.ddim(), g.fuse(guidance.rescale(4.0, rescale=0.6), cond, blank))

    def guide(x: Tensor, i: int) -> Tensor:
        cond, blank = eps_of(x, i, GUIDED), eps_of(x, i, BLANK)
        mixed = blank + 4.0 * (cond - blank)
        share = cond.std(dim=1, keepdim=True) / mixed.std(dim=1, keepdim=True)
        return mixed * (0.6 * share + 0.4)

    close(built(body)["x"], ddim(guide))


def test_projected_guidance_with_momentum():
    rule = guidance.apg(3.0, eta=0.2, threshold=0.8, momentum=-0.5)

    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        step.advance(samplers.ddim(), g.fuse(rule, cond, blank))

    running = torch.zeros(BATCH, WIDTH, dtype=torch.float64)

    def guide(x: Tensor, i: int) -> Tensor:
        nonlocal running
        cond, blank = eps_of(x, i, GUIDED), eps_of(x, i, BLANK)
        running = cond - blank - 0.5 * running
        length = running.norm(dim=1, keepdim=True)
        short = running * torch.minimum(torch.ones_like(length), 0.8 / length)
        unit = cond / cond.norm(dim=1, keepdim=True)
        parallel = (short * unit).sum(dim=1, keepdim=True) * unit
        return blank + 3.0 * (short - parallel + 0.2 * parallel)

    close(built(body)["x"], ddim(guide))


def test_momentum_goes_on_where_a_loop_emits():
    """What is emitted looks at the rule without making it remember twice."""
    rule = guidance.apg(3.0, threshold=0.8, momentum=-0.5)

    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        step.advance(samplers.ddim(), g.fuse(rule, cond, blank))

    def emitting(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        guided = g.fuse(rule, cond, blank)
        g.emit("length", g.norm(guided))
        step.advance(samplers.ddim(), guided)

    np.testing.assert_array_equal(built(body)["x"], built(emitting)["x"])


RULES = [
    guidance.cfg_zero_star(3.0, zero_init=2),
    guidance.tcfg(3.0),
    guidance.mambo_g(3.0),
    guidance.rescale(3.0, low=0.5, high=5.0),
    guidance.apg(2.0, momentum=0.0, rescale=0.3),
    guidance.apg(2.0, momentum=-0.7, start=0.25, stop=0.75),
    guidance.cfg_steps((3.0, 2.0, 1.0)),
    guidance.perturbed(0.5),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("sampler", [samplers.ddim(0.5), samplers.heun(), samplers.dpmpp_2m()], ids=lambda s: s.name)
def test_passes_keep_every_rule(rule: guidance.Guidance, sampler: samplers.Sampler):
    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        branches = [cond, blank] if rule.branches == 2 else [cond, blank, g.score(EPS, step, g.condition(EPS, 0.5))]
        step.advance(sampler, g.fuse(rule, *branches[: rule.branches]))

    assert np.isfinite(built(body)["x"]).all()


def test_cfg_plus_plus_steps_along_the_unguided_noise():
    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        step.advance(samplers.ddim(), g.fuse(guidance.cfg_pp(0.6), cond, blank))

    x = normals(0)
    for i in range(STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        cond, blank = eps_of(x, i, GUIDED), eps_of(x, i, BLANK)
        x0 = (x - sigma * (blank + 0.6 * (cond - blank))) / alpha
        x = alpha1 * x0 + sigma1 * blank
    close(built(body)["x"], x)


def test_experts_that_say_different_things():
    """An x0 network is converted and composed with two branches of an eps network, which are guided first."""
    other = network(prediction.x0(), "none", "vp", "other")
    g = GraphBuilder("experts")
    label, blank = g.condition(EPS, g.input("label")), g.condition(EPS, None)
    with g.loop(SCHEDULE, g.noise(EPS)) as step:
        guided = g.fuse(guidance.cfg(2.0), g.score(EPS, step, label), g.score(EPS, step, blank))
        expert = g.convert(g.score(other, step, g.condition(other, g.input("style"))), step, prediction.eps())
        step.advance(samplers.ddim(), g.fuse(guidance.weighted(2, (0.7, 0.3)), guided, expert))
    g.output(x=step.result)
    style = np.array([1.0, 0.5, -1.0], np.float32)

    def guide(x: Tensor, i: int) -> Tensor:
        alpha, sigma = level(i)
        x0 = other(x, 0.0, torch.from_numpy(style))
        guided = 2.0 * eps_of(x, i, GUIDED) - eps_of(x, i, BLANK)
        return 0.7 * guided + 0.3 * (x - alpha * x0) / sigma

    ours = keeps(g.build(), {"toy": EPS, "other": other}, {"label": LABEL, "style": style})
    close(ours["x"], ddim(guide))


# --- Energies -----------------------------------------------------------------------------------


class Bowl(nn.Module):
    """log cosh around a target: smooth, and no quadratic."""

    def forward(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        return torch.log(torch.cosh(x - target[:, None])).sum(dim=1)


class Timed(nn.Module):
    """The same, weaker at late times."""

    def forward(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        return (1.0 + t) * torch.log(torch.cosh(x - target[:, None])).sum(dim=1)


TARGET = np.array([0.5, -0.25, 1.0], np.float32)


@pytest.mark.parametrize("where", ["x", "x0", "through", "rooted"])
def test_gradients_of_an_energy(where: str):
    rule = {
        "x": energies.energy(0.3, "x"),
        "x0": energies.energy(0.3, "x0"),
        "through": energies.energy(0.3, "x0", through=True),
        "rooted": energies.measurement(0.3, normalize=True),
    }[where]
    net = energy(
        Timed() if where == "x" else Bowl(), "vp", CondInput("target"), time="flow" if where == "x" else "none"
    )
    g = GraphBuilder("energy")
    with g.loop(SCHEDULE, g.noise(EPS)) as step:
        eps = g.score(EPS, step, g.condition(EPS, g.input("label")))
        pull = g.energy(rule, step, g.input("target"), pred=None if where == "x" else eps, net=net)
        step.advance(samplers.ddim(), g.fuse(guidance.single(), eps, grads=(pull,)))
    g.output(x=step.result)
    target = torch.from_numpy(TARGET).double()

    def at(x: Tensor, i: int) -> float:
        """The energy's argument at x: its gradient is taken numerically."""
        alpha, sigma = level(i)
        if where == "x":
            return float(Timed()(x, torch.tensor(sigma / (alpha + sigma)), target).sum())
        x0 = (x - sigma * eps_of(x, i, GUIDED)) / alpha
        value = Bowl()(x0, torch.zeros(()), target)
        return float((torch.sqrt(2 * value) if where == "rooted" else value).sum())

    def slope(f: Callable[[Tensor], float], x: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        for k in range(x.numel()):
            up, down = x.clone(), x.clone()
            up.view(-1)[k] += 1e-5
            down.view(-1)[k] -= 1e-5
            made.view(-1)[k] = (f(up) - f(down)) / 2e-5
        return made

    def guide(x: Tensor, i: int) -> Tensor:
        alpha, sigma = level(i)
        eps = eps_of(x, i, GUIDED)
        if where == "x0":
            gradient = torch.tanh((x - sigma * eps) / alpha - target[:, None])
        else:
            gradient = slope(lambda moved: at(moved, i), x)
        return eps + sigma * 0.3 * gradient

    ours = keeps(g.build(), {"toy": EPS, "energy": net}, {"label": LABEL, "target": TARGET})
    close(ours["x"], ddim(guide), 1e-7)


def test_a_gradient_is_added_to_any_parameterization():
    """The same energy on an eps network and on the v network that says the same."""

    class AsV(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            eps = EPS.score.to(x.dtype)(x, t, label)
            norm = torch.hypot(t, 1 - t)
            alpha, sigma = ((1 - t) / norm)[:, None], (t / norm)[:, None]
            return alpha * eps - sigma * (x - sigma * eps) / alpha

    velocity = network(prediction.v(), "flow", "vp")
    velocity.score = AsV()
    net = energy(Bowl(), "vp", CondInput("target"))
    results: list[np.ndarray] = []
    for pred in (EPS, velocity):
        g = GraphBuilder("energy")
        with g.loop(SCHEDULE, g.noise(pred)) as step:
            m = g.score(pred, step, g.condition(pred, g.input("label")))
            pull = g.energy(energies.energy(0.5, "x0"), step, g.input("target"), pred=m, net=net)
            step.advance(samplers.ddim(), g.fuse(guidance.single(), m, grads=(pull,)))
        g.output(x=step.result)
        given = {"label": LABEL, "target": TARGET}
        results.append(keeps(g.build(), {"toy": pred, "energy": net}, given)["x"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9, atol=1e-9)


LIMIT = 30.0


def test_a_validator_scores_what_has_been_made():
    net = energy(Bowl(), "vp", CondInput("target"))
    g = GraphBuilder("validated")
    with g.loop(SCHEDULE, g.noise(EPS)) as step:
        step.advance(samplers.ddim(), g.score(EPS, step, g.condition(EPS, g.input("label"))))
    value = g.validate(energies.energy(2.0), step.result, g.input("target"), net=net)
    g.output(x=step.result, value=value, good=g.within(value, LIMIT))
    ours = keeps(g.build(), {"toy": EPS, "energy": net}, {"label": LABEL, "target": TARGET})
    target = torch.from_numpy(TARGET).double()
    expected = 2.0 * Bowl()(torch.from_numpy(ours["x"]), torch.zeros(()), target)
    close(ours["value"], expected)
    assert 0 < ours["good"].sum() < BATCH
    np.testing.assert_array_equal(ours["good"], ours["value"] <= LIMIT)


# --- Where loops start and what they keep --------------------------------------------------------


def test_image_to_image_starts_in_the_middle():
    schedule = schedules.scaled_linear(steps=STEPS, offset=1, skip=3)
    g = GraphBuilder("img2img")
    start = g.renoise(g.input("clean", Array("f32", (WIDTH,))), g.noise(EPS))
    with g.loop(schedule, start) as step:
        step.advance(samplers.ddim(), g.score(EPS, step, g.condition(EPS, g.input("label"))))
    g.output(x=step.result)
    clean = np.linspace(-1, 1, BATCH * WIDTH, dtype=np.float32).reshape(BATCH, WIDTH)
    alpha, sigma = level(3)
    x = alpha * torch.from_numpy(clean).double() + sigma * normals(0)
    for i in range(3, STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        eps = eps_of(x, i, GUIDED)
        x = alpha1 * (x - sigma * eps) / alpha + sigma1 * eps
    close(keeps(g.build(), {"toy": EPS}, {"label": LABEL, "clean": clean})["x"], x)


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.ddim(1.0), samplers.heun()], ids=str)
def test_inpainting_keeps_the_known_part(sampler: samplers.Sampler):
    g = GraphBuilder("inpainting")
    unknown = g.noise(EPS)
    with g.loop(SCHEDULE, unknown) as step:
        step.advance(sampler, g.score(EPS, step, g.condition(EPS, g.input("label"))))
        step.inpaint(g.input("known", Array("f32", (WIDTH,))), g.input("mask", Array("f32", (WIDTH,))), g.noise(EPS))
    g.output(x=step.result)
    known = np.linspace(-1, 1, BATCH * WIDTH, dtype=np.float32).reshape(BATCH, WIDTH)
    mask = np.tile(np.array([1, 0, 1, 0, 0.5, 1], np.float32), (BATCH, 1))
    ours = keeps(g.build(), {"toy": EPS}, {"label": LABEL, "known": known, "mask": mask})["x"]
    np.testing.assert_allclose(ours[:, [1, 3]], known[:, [1, 3]], atol=1e-12)
    if sampler != samplers.ddim():
        return
    x, keep = normals(0), torch.from_numpy(mask).double()
    for i in range(STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        eps = eps_of(x, i, GUIDED)
        x = alpha1 * (x - sigma * eps) / alpha + sigma1 * eps
        # Sites: the start, the step, the noise of what is known.
        x = keep * x + (1 - keep) * (alpha1 * torch.from_numpy(known).double() + sigma1 * normals(2))
    close(ours, x)


# --- What a loop shows --------------------------------------------------------------------------


def test_log_probabilities_are_those_of_torch_distributions():
    g = GraphBuilder("rl")
    with g.loop(SCHEDULE, g.noise(EPS)) as step:
        step.advance(samplers.ddim(1.0), g.score(EPS, step, g.condition(EPS, g.input("label"))))
        g.emit("before", step.x)
        g.emit("log_prob", step.log_prob)
    g.output(x=step.result)
    ours = keeps(g.build(), {"toy": EPS}, {"label": LABEL})
    states = [*torch.from_numpy(ours["before"]).unbind(dim=1), torch.from_numpy(ours["x"])]
    for i in range(STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        x, eps = states[i], eps_of(states[i], i, GUIDED)
        std = sigma1 * math.sqrt(1 - (alpha * sigma1 / (alpha1 * sigma)) ** 2)
        mean = alpha1 * (x - sigma * eps) / alpha + math.sqrt(sigma1**2 - std**2) * eps
        if std == 0.0:
            np.testing.assert_array_equal(ours["log_prob"][:, i], 0.0)
            continue
        drawn = torch.distributions.Normal(mean, std).log_prob(states[i + 1]).sum(dim=1)
        close(ours["log_prob"][:, i], drawn, 1e-7)


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.heun(), samplers.unipc()], ids=lambda s: s.name)
def test_what_a_loop_emits(sampler: samplers.Sampler):
    def body(g: GraphBuilder, step: Step, cond: Node, blank: Node) -> None:
        guided = g.fuse(guidance.cfg(2.0), cond, blank)
        g.emit("before", step.x)
        g.emit("after", step.advance(sampler, guided))
        g.emit("x0", g.convert(guided, step, prediction.x0()))
        g.emit("gap", g.norm(cond, blank))
        g.emit("length", g.norm(step.x))

    ours = built(body)
    np.testing.assert_allclose(ours["after"][:, -1], ours["x"], atol=1e-12)
    np.testing.assert_allclose(ours["after"][:, :-1], ours["before"][:, 1:], atol=1e-12)
    for i in range(STEPS):
        alpha, sigma = level(i)
        x = torch.from_numpy(ours["before"][:, i])
        cond, blank = eps_of(x, i, GUIDED), eps_of(x, i, BLANK)
        close(ours["gap"][:, i], (cond - blank).norm(dim=1))
        close(ours["length"][:, i], x.norm(dim=1))
        close(ours["x0"][:, i], (x - sigma * (2 * cond - blank)) / alpha)


# --- Samplers that no textbook here knows --------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "same"),
    [
        (samplers.lms(1), samplers.euler()),
        (samplers.deis(1), samplers.ddim()),
        (samplers.unipc(1, corrector=False), samplers.ddim()),
    ],
    ids=lambda s: s.name,
)
def test_rows_of_a_sampler_are_the_textbooks_step(sampler: samplers.Sampler, same: samplers.Sampler):
    def body(rule: samplers.Sampler) -> Callable[[GraphBuilder, Step, Node, Node], object]:
        return lambda g, step, cond, blank: step.advance(rule, g.fuse(guidance.cfg(2.0), cond, blank))

    np.testing.assert_allclose(built(body(sampler))["x"], built(body(same))["x"], rtol=1e-9, atol=1e-9)


class Learned(nn.Module):
    """The network of the others, which says a variance too."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([EPS.score.to(x.dtype)(x, t, label), torch.tanh(x + t[:, None])], dim=1)


def test_a_learned_variance_is_that_of_the_conditional_branch():
    """Nichol and Dhariwal 2021, equation 15: the log-variance between beta and beta~ by (v + 1)/2."""
    net = network(prediction.eps(), "flow", "vp")
    net.score = Learned()
    net.ref = NetRef(**{**{f: getattr(net.ref, f) for f in net.ref.__dataclass_fields__}, "variance": True})
    g = GraphBuilder("learned")
    label, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(SCHEDULE, g.noise(net)) as step:
        guided = g.fuse(guidance.cfg(2.0), g.score(net, step, label), g.score(net, step, blank))
        step.advance(samplers.ddpm("learned_range"), guided)
    g.output(x=step.result)
    x = normals(0)
    for i in range(STEPS):
        (alpha, sigma), (alpha1, sigma1) = level(i), level(i + 1)
        eps = 2.0 * eps_of(x, i, GUIDED) - eps_of(x, i, BLANK)
        x0, ratio = (x - sigma * eps) / alpha, alpha / alpha1
        beta = 1 - ratio**2
        mean = alpha1 * beta / sigma**2 * x0 + ratio * sigma1**2 / sigma**2 * x
        if i + 1 == STEPS:
            x = mean
            break
        v = torch.tanh(x + sigma / (alpha + sigma))
        share = (v + 1) / 2
        smaller = beta * sigma1**2 / sigma**2
        std = torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(smaller)))
        x = mean + std * normals(1, i)
    close(keeps(g.build(), {"toy": net}, {"label": LABEL})["x"], x)


# --- Likelihoods --------------------------------------------------------------------------------


class Gaussian(nn.Module):
    """The exact eps of N(0, diag(spread^2)) in kappa space, told sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.linspace(0.5, 2.0, WIDTH))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return t[:, None] * x / (self.spread**2 + t[:, None] ** 2)


@pytest.mark.parametrize("probed", [False, True])
def test_the_likelihood_of_a_gaussian(probed: bool):
    """log p of data = log p of where its flow ends + what the flow thins out (Song et al. 2021, section 4.3).

    The Jacobian is diagonal, whose trace a probe of signs gives without an error.
    """
    net = network(prediction.eps(), "sigma", "kappa")
    net.score = Gaussian()
    net.ref = NetRef("toy", "0" * 16, Latent("kappa", (WIDTH,)), prediction.eps(), "sigma")
    net.encoder = None
    schedule = schedules.karras(steps=160, sigma_max=40.0, ascending=True)
    g = GraphBuilder("likelihood")
    data = g.input("data", Latent("kappa", (WIDTH,)))
    nothing = g.constant(0.0, Latent("kappa", (1,)))
    probe = g.noise(net) if probed else None
    with g.loop(schedule, data, nothing) as step:
        step.advance(samplers.heun(), g.score(net, step))
        step.advance(samplers.heun(), g.divergence(net, step, probe=probe), index=1)
    end, thinned = step.results
    g.output(end=end, thinned=thinned)
    x = np.linspace(-1.5, 1.5, BATCH * WIDTH, dtype=np.float32).reshape(BATCH, WIDTH)
    out = eager.run(g.build(), {"toy": net}, {"data": x}, SEEDS)
    grid = schedule.grid()
    spread = np.linspace(0.5, 2.0, WIDTH)
    # X(sigma) = x sqrt(spread^2 + sigma^2) / sqrt(spread^2 + sigma_0^2)
    lowest, highest = grid.sigma[0], grid.sigma[-1]
    growth = np.sqrt((spread**2 + highest**2) / (spread**2 + lowest**2))
    np.testing.assert_allclose(out["end"], x * growth, rtol=2e-3)
    np.testing.assert_allclose(out["thinned"][:, 0], -np.log(growth).sum(), rtol=1e-3)

    def log_normal(at: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return -0.5 * (at**2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)

    # log p(x) = log p_T(x_T) + log |dx_T / dx|, and the carried number is -log |dx_T / dx|.
    ours = log_normal(out["end"], spread**2 + highest**2) - out["thinned"][:, 0]
    np.testing.assert_allclose(ours, log_normal(x, spread**2 + lowest**2), rtol=1e-2)


def test_samplers_that_step_differently_cannot_move_side_by_side():
    net = network(prediction.eps(), "sigma", "kappa")
    net.score, net.encoder = Gaussian(), None
    net.ref = NetRef("toy", "0" * 16, Latent("kappa", (WIDTH,)), prediction.eps(), "sigma")
    g = GraphBuilder("likelihood")
    with g.loop(schedules.karras(steps=3), g.noise(net), g.constant(0.0, Latent("kappa", (1,)))) as step:
        step.advance(samplers.heun(), g.score(net, step))
        step.advance(samplers.euler(), g.divergence(net, step), index=1)
    g.output(x=step.result)
    with pytest.raises(UncoveredNode, match="two samplers that call networks at different points"):
        eager.run(g.build(), {"toy": net}, {}, SEEDS)
