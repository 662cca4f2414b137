"""What surrounds a sampler step, compiled to Rust, against the graph interpreted node by node in float64.

Rules that depend on the sample, corrections, masks, starts from an image, values that a loop emits, gradients of
energies, scales and noise that the caller gives: each as one plan whose steps are one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from subjects import captured_once, error, program, toy_network
from torch import nn

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.errors import BadInput, MissingInput
from scoregraph.graph import corrections, energies, guidance, noise, prediction, samplers, schedules
from scoregraph.graph import values as v
from scoregraph.graph.guidance import Guidance
from scoregraph.models import toy

pytestmark = pytest.mark.native

BATCH, WIDTH = 3, toy.WIDTH
SEEDS = noise.sample_seeds(5, BATCH)
RNG = np.random.default_rng(0)
INPUTS = {
    "tilt": RNG.uniform(-1, 1, (BATCH, toy.TILT)).astype(np.float32),
    "image": RNG.normal(size=(BATCH, WIDTH)).astype(np.float32),
    "known": RNG.normal(size=(BATCH, WIDTH)).astype(np.float32),
    "mask": np.tile(np.arange(WIDTH) % 2, (BATCH, 1)).astype(np.float32),
    "target": RNG.normal(size=(BATCH, WIDTH)).astype(np.float32),
    "scale": np.array([1.0, 2.5, 4.0], np.float32),
}
NET = toy_network(prediction.v(), "timestep", "vp")
STEPS = schedules.scaled_linear(steps=12, spacing="trailing")


@dataclass(frozen=True)
class EarlyRescale(Guidance):
    """Rescaled guidance in the first steps, none in the others: written here, so not one that the package knows."""

    name: ClassVar[str] = "early_rescale"
    scale: float = 3.0

    @property
    def roles(self):
        return ("cond", "uncond")

    def weights(self, step, steps, alpha, sigma):
        return None if step < 7 else (1.0, 0.0)

    def combine(self, branches, at):
        cond, uncond = branches
        guided = uncond + self.scale * (cond - uncond)
        return guided * (0.7 * cond.std() / guided.std() + 0.3)


class Pull(nn.Module):
    """E(x, target): how far a sample is from a target, not quadratically."""

    def forward(self, x, target):
        return torch.log1p((x - target).square().sum(1))


PULL = captured_once(sg.models.energy(Pull(), (torch.randn(3, WIDTH), torch.randn(3, WIDTH)), values=["target"]))


def build(
    rule=None, sampler=None, *, correct=None, emits=(), inpaint=False, image=False, pull=None, scale=False, skip=0
) -> sg.GraphBuilder:
    """A guided loop with whatever is asked for."""
    g = sg.GraphBuilder("algebra")
    tilt, null = g.condition(NET, g.input("tilt")), g.condition(NET, None)
    x = g.noise(NET)
    if image:
        x = g.renoise(g.input("image", v.Latent("vp", (WIDTH,))), x)
    if inpaint:
        mask, known = g.input("mask", v.Array("f32", (WIDTH,))), g.input("known", v.Latent("vp", (WIDTH,)))
        other = g.noise(NET)
    target = g.input("target", v.Array("f32", (WIDTH,))) if pull is not None else None
    with g.loop(schedules.scaled_linear(steps=12, spacing="trailing", skip=skip), x) as step:
        cond, uncond = g.score(NET, step, tilt), g.score(NET, step, null)
        grads = ()
        if pull is not None:
            at = None if pull.wrt == "x" else cond
            grads = (g.energy(pull, step, target, pred=at, net=PULL),)
        given = g.input("scale", v.Scalar("per-sample")) if scale else None
        pred = g.fuse(rule or guidance.cfg(3.0), cond, uncond, grads=grads, scale=given)
        if correct is not None:
            pred = g.correct(correct, pred, step)
        step.advance(sampler or samplers.ddim(), pred)
        if inpaint:
            step.inpaint(known, mask, other)
        for emit in emits:
            value = {
                "x": lambda: step.x,
                "x0": lambda: g.convert(pred, step, prediction.x0()),
                "gap": lambda: g.norm(cond, uncond),
                "logp": lambda: step.log_prob,
            }[emit]()
            g.emit(emit, value)
    g.output(x_final=step.result)
    return g


CASES = {
    "interval": lambda: build(guidance.cfg(3.0, low=0.3, high=5.0), samplers.dpmpp_2m()),
    "early rescale": lambda: build(EarlyRescale(), samplers.ddim(eta=1.0)),
    "rescale": lambda: build(guidance.rescale(3.0), samplers.dpmpp_2m()),
    "apg": lambda: build(guidance.apg(3.0, momentum=-0.5, threshold=2.0), samplers.ddim()),
    "cfg zero": lambda: build(guidance.cfg_zero_star(3.0), samplers.ddim()),
    "tcfg": lambda: build(guidance.tcfg(3.0), samplers.euler()),
    "cfg++": lambda: build(guidance.cfg_pp(0.6), samplers.ddim()),
    "a scale per sample": lambda: build(scale=True, sampler=samplers.heun()),
    "clamp": lambda: build(correct=corrections.clamp(), sampler=samplers.dpmpp_2m()),
    "threshold": lambda: build(EarlyRescale(), samplers.dpmpp_2m(), correct=corrections.dynamic_threshold()),
    "inpaint": lambda: build(sampler=samplers.ddim(eta=0.5), inpaint=True),
    "inpaint in two parts": lambda: build(EarlyRescale(), samplers.heun(), inpaint=True),
    "inpaint clamped": lambda: build(EarlyRescale(), correct=corrections.clamp(), inpaint=True),
    "image": lambda: build(image=True, skip=5),
    "pull on x": lambda: build(pull=energies.energy(0.5, wrt="x"), sampler=samplers.dpmpp_2m()),
    "pull on x0": lambda: build(pull=energies.energy(0.5, wrt="x0")),
    "pull on the mean": lambda: build(pull=energies.energy(0.5, form="mean"), sampler=samplers.ddpm()),
    "pull on the mean, inpainted": lambda: build(
        pull=energies.energy(0.5, wrt="x0", form="mean"), sampler=samplers.ddim(eta=0.7), inpaint=True
    ),
    "pull through the network": lambda: build(pull=energies.energy(0.5, wrt="x0", through=True)),
    "emits": lambda: build(sampler=samplers.ddim(eta=1.0), emits=("x", "x0", "gap", "logp")),
    "emits of two calls a step": lambda: build(sampler=samplers.heun(), emits=("x", "x0", "gap")),
    "emits corrected": lambda: build(correct=corrections.clamp(), emits=("x0",)),
    "emits of a rule": lambda: build(EarlyRescale(), samplers.ddim(eta=0.5), emits=("x0", "logp")),
}


def given(graph) -> dict[str, np.ndarray]:
    """The inputs that a graph takes."""
    return {name.name: INPUTS[name.name] for name in graph.inputs}


@pytest.fixture(scope="module")
def compiled():
    """Every case's graph and plan, made once."""
    made: dict[str, tuple[sg.Graph, sg.CompiledPlan]] = {}

    def get(name: str):
        if name not in made:
            graph = CASES[name]().build()
            networks = {net.ref.fingerprint: net for net in (NET, PULL)}
            made[name] = graph, sg.compile(graph, networks=networks, use_cache=False)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_rust_samples_what_the_graph_says(compiled, name):
    graph, plan = compiled(name)
    got = plan.run(seeds=SEEDS, **given(graph))
    networks = {NET.ref.name: NET, PULL.ref.name: PULL}
    expected = eager.run(graph, networks, given(graph), SEEDS)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        worst = error(got[key].reshape(BATCH, -1), value.reshape(BATCH, -1))
        print(f"{name} {key}: {worst:.1e}")
        # A norm of a difference loses what the two have in common.
        assert worst <= (1e-3 if key == "gap" else 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_no_sample_knows_of_another_and_no_thread_of_another(compiled, name):
    graph, plan = compiled(name)
    inputs = given(graph)
    bound = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
    whole = program(plan, threads=2).run(bound, SEEDS)
    for threads in (1, 3):
        again = program(plan, threads=threads).run(bound, SEEDS)
        assert all(np.array_equal(again[key], whole[key]) for key in whole)
    alone = plan.run(seeds=SEEDS[1:2], **{key: value[1:2] for key, value in inputs.items()})
    for key in whole:
        np.testing.assert_array_equal(alone[key][0], whole[key][1])


def test_a_saved_plan_does_the_same(compiled, tmp_path):
    graph, plan = compiled("threshold")
    loaded = sg.load(plan.save(tmp_path / "plan"))
    for key, value in plan.run(seeds=SEEDS, **given(graph)).items():
        np.testing.assert_array_equal(loaded.run(seeds=SEEDS, **given(graph))[key], value)


def test_interval_guidance_evaluates_28_branches_not_40():
    """20 steps of which 8 are guided: 12 calls for one branch, 8 batched calls for two."""
    schedule = schedules.karras(steps=20, sigma_min=0.01, sigma_max=50.0)
    kappa = schedule.grid().kappa
    rule = guidance.cfg(3.0, low=kappa[11] * 0.999, high=kappa[3] * 0.999)
    net = toy_network(prediction.edm(), "c_noise", "kappa")
    g = sg.GraphBuilder("interval")
    cond, null = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedule, g.noise(net)) as step:
        step.advance(samplers.dpmpp_2m(), g.fuse(rule, g.score(net, step, cond), g.score(net, step, null)))
    g.output(x=step.result)
    plan = sg.compile(g, use_cache=False)
    plan.run(tilt=0.3)
    counters = plan.counters()
    assert counters["network_calls"] == 20
    assert counters["branch_evaluations"] == 28
    stages = {stage.name: stage.counters for stage in plan.plan.stages}
    assert stages["batch-branches"] == {"network_calls_saved": 1}
    assert stages["drop-dead-branches"] == {"answers_read": 28, "answers_saved": 12}
    # Another interval is another table; the same interval everywhere needs no second kind of row.
    everywhere = guidance.cfg(3.0)
    g = sg.GraphBuilder("everywhere")
    cond, null = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedule, g.noise(net)) as step:
        step.advance(samplers.dpmpp_2m(), g.fuse(everywhere, g.score(net, step, cond), g.score(net, step, null)))
    g.output(x=step.result)
    plan = sg.compile(g, use_cache=False)
    plan.run(tilt=0.3)
    assert (plan.counters()["network_calls"], plan.counters()["branch_evaluations"]) == (20, 40)


def test_guidance_of_scale_one_is_no_guidance_bit_for_bit():
    """At exactly 1 the second branch is not even evaluated."""

    def sample(rule, *, both: bool):
        g = sg.GraphBuilder("one")
        conditions = [g.condition(NET, g.input("tilt"))] + ([g.condition(NET, None)] if both else [])
        with g.loop(STEPS, g.noise(NET)) as step:
            step.advance(samplers.dpmpp_2m(), g.fuse(rule, *(g.score(NET, step, cond) for cond in conditions)))
        g.output(x=step.result)
        plan = sg.compile(g, networks={NET.ref.fingerprint: NET}, use_cache=False)
        return plan.run(seeds=SEEDS, tilt=INPUTS["tilt"])["x"], plan.counters()["branch_evaluations"]

    guided, evaluations = sample(guidance.cfg(1.0), both=True)
    plain, alone = sample(guidance.single(), both=False)
    np.testing.assert_array_equal(guided, plain)
    assert evaluations == alone == 12


def test_a_gradient_of_the_mean_moves_it_by_the_variance():
    """Dhariwal and Nichol 2021, algorithm 1, by hand: one step, the same noise with and without the gradient."""

    schedule = schedules.scaled_linear(steps=4)

    def second(scale: float) -> np.ndarray:
        g = sg.GraphBuilder("one")
        cond, target = g.condition(NET, g.input("tilt")), g.input("target", v.Array("f32", (WIDTH,)))
        with g.loop(schedule, g.input("start", v.Latent("vp", (WIDTH,)))) as step:
            pull = g.energy(energies.energy(scale, form="mean"), step, target, net=PULL)
            g.emit("x", step.x)
            step.advance(samplers.ddpm(), g.fuse(guidance.single(), g.score(NET, step, cond), grads=(pull,)))
        g.output(end=step.result)
        plan = sg.compile(g, networks={net.ref.fingerprint: net for net in (NET, PULL)}, use_cache=False)
        return plan.run(seeds=SEEDS, tilt=INPUTS["tilt"], target=INPUTS["target"], start=INPUTS["image"])["x"][:, 1]

    x, target = INPUTS["image"].astype(np.float64), INPUTS["target"].astype(np.float64)
    gradient = 2 * (x - target) / (1 + ((x - target) ** 2).sum(1, keepdims=True))
    variance = samplers.ddpm().table(schedule, NET.ref.prediction, "none", "vp").matrices(0)[2][0] ** 2
    # At scale 0 the gradient is not evaluated; its inputs are still taken.
    np.testing.assert_allclose(second(0.5) - second(0.0), -variance * 0.5 * gradient, atol=2e-6)
    with pytest.raises(sg.ScoregraphError, match="SG133"):
        build(pull=energies.energy(0.5, form="mean"))


# --- noise from the caller -------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [samplers.ddim(eta=1.0), samplers.dpmpp_2m_sde()], ids=str)
def test_a_bank_of_the_generated_noise_changes_nothing(sampler):
    graph = build(sampler=sampler).build()
    networks = {NET.ref.fingerprint: NET}
    drawn = sg.compile(graph, networks=networks, use_cache=False)
    banked = sg.compile(graph, networks=networks, use_cache=False, noise="bank")
    draws, *shape = banked.draws
    assert tuple(shape) == (WIDTH,)
    sites = [(0, 0)] + [(1, row) for row in range(STEPS.steps)]
    bank = np.stack([noise.normals(SEEDS, site, micro, WIDTH) for site, micro in sites[:draws]], axis=1)
    expected = drawn.run(seeds=SEEDS, tilt=INPUTS["tilt"])["x_final"]
    got = banked.run(seeds=SEEDS, tilt=INPUTS["tilt"], noise=bank)["x_final"]
    np.testing.assert_array_equal(got, expected)


def test_a_bank_must_be_there_and_fit():
    networks = {NET.ref.fingerprint: NET}
    plan = sg.compile(build(sampler=samplers.ddim(eta=1.0)), networks=networks, use_cache=False, noise="bank")
    with pytest.raises(MissingInput, match="noise"):
        plan.run(tilt=0.0)
    with pytest.raises(BadInput, match="noise"):
        plan.run(tilt=0.0, noise=np.zeros((2, WIDTH), np.float32))


# --- validators ------------------------------------------------------------------------------------


def test_an_energy_scores_and_rejects_finished_samples():
    g = sg.GraphBuilder("judged")
    cond = g.condition(NET, g.input("tilt"))
    target = g.input("target", v.Array("f32", (WIDTH,)))
    with g.loop(STEPS, g.noise(NET)) as step:
        step.advance(samplers.ddim(), g.score(NET, step, cond))
    score = g.validate(energies.energy(2.0), step.result, target, net=PULL)
    g.output(x=step.result, score=score, accepted=g.within(score, 12.0))
    plan = sg.compile(g, networks={net.ref.fingerprint: net for net in (NET, PULL)}, use_cache=False)
    made = plan.run(seeds=SEEDS, tilt=INPUTS["tilt"], target=INPUTS["target"])
    expected = 2.0 * np.log1p(((made["x"].astype(np.float64) - INPUTS["target"]) ** 2).sum(1))
    np.testing.assert_allclose(made["score"], expected, rtol=1e-5)
    np.testing.assert_array_equal(made["accepted"], (expected <= 12.0).astype(np.float32))
