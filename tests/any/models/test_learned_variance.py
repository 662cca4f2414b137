"""A network that also says its variance, and the sampler that reads it: the plan against the graph, interpreted."""

import numpy as np
import pytest
import torch
from torch import nn

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.errors import WrongAnswer
from scoregraph.graph import guidance, samplers, schedules


class TwoAnswers(nn.Module):
    """eps and v in [-1, 1], four channels each, of a state [n, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 8)

    def forward(self, x, t, label):
        """[n, 8]."""
        both = self.layer(torch.cat([x, (0.001 * t + label)[:, None]], dim=1))
        return torch.cat([both[:, :4], torch.tanh(both[:, 4:])], dim=1)


EXAMPLES = {"x": torch.randn(3, 4), "t": torch.tensor([1.0, 2.0, 3.0]), "label": torch.zeros(3)}


def loaded(**options):
    return sg.models.from_module(
        TwoAnswers(), EXAMPLES, prediction="eps", conds={"label": {"null": 0.0}}, name="two", **options
    )


@pytest.mark.parametrize("sampler", [samplers.ddpm("learned_range"), samplers.ddpm("learned")], ids=str)
def test_a_learned_variance_reaches_the_noise(sampler):
    net = loaded(variance=True)
    assert net.ref.variance

    def build(rule):
        g = sg.GraphBuilder("learned")
        one, none = g.condition(net, 0.7), g.condition(net, None)
        with g.loop(schedules.linear(steps=5), g.noise(net)) as step:
            step.advance(rule, g.fuse(guidance.cfg(2.0), g.score(net, step, one), g.score(net, step, none)))
        g.output(x=step.result)
        return g

    found = sg.compile(build(sampler), device="reference", use_cache=False).run(seed=5, batch=3)["x"]
    expected = eager.run(build(sampler).build(), {"two": net}, {}, np.array([5, 6, 7], np.uint64))["x"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    fixed = sg.compile(build(samplers.ddpm()), device="reference", use_cache=False).run(seed=5, batch=3)["x"]
    assert np.abs(found - fixed).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.rk23()], ids=str)
def test_a_variance_that_no_sampler_asks_for_is_left_alone(sampler):
    net = loaded(variance=True)
    g = sg.GraphBuilder("unasked")
    one, none = g.condition(net, 0.7), g.condition(net, None)
    with g.loop(schedules.linear(steps=5), g.noise(net)) as step:
        step.advance(sampler, g.fuse(guidance.cfg(2.0), g.score(net, step, one), g.score(net, step, none)))
    g.output(x=step.result)
    found = sg.compile(g, device="reference", use_cache=False).run(seed=5, batch=3)["x"]
    expected = eager.run(g.build(), {"two": net}, {}, np.array([5, 6, 7], np.uint64))["x"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


class Away(nn.Module):
    """E(x), not quadratic."""

    def forward(self, x):
        """[n, 4] to [n]."""
        return torch.log1p(x.square().sum(1))


def test_a_gradient_of_the_mean_follows_the_learned_variance():
    """Dhariwal and Nichol 2021, algorithm 1, with the variance of each element."""
    net, away = loaded(variance=True), sg.models.energy(Away(), (torch.randn(3, 4),))

    def build(scale):
        g = sg.GraphBuilder("pulled")
        cond = g.condition(net, 0.7)
        with g.loop(schedules.linear(steps=5), g.noise(net)) as step:
            pull = g.energy(sg.energies.classifier(scale, form="mean"), step, net=away)
            pred = g.fuse(guidance.single(), g.score(net, step, cond), grads=(pull,))
            step.advance(samplers.ddpm("learned_range"), g.correct(sg.corrections.clamp(-3.0, 3.0), pred, step))
        g.output(x=step.result)
        return g

    def sampled(scale):
        return sg.compile(build(scale), device="reference", use_cache=False).run(seed=5, batch=3)["x"]

    networks = {"two": net, away.ref.name: away}
    expected = eager.run(build(2.0).build(), networks, {}, np.array([5, 6, 7], np.uint64))["x"]
    np.testing.assert_allclose(sampled(2.0), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert np.abs(sampled(2.0) - sampled(0.0)).max() > 1e-2 * np.abs(expected).max()


def test_a_second_answer_is_asked_about():
    with pytest.raises(WrongAnswer, match="variance=True"):
        loaded()
    assert not loaded(half="first").ref.variance
