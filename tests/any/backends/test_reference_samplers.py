"""Every sampler there is, with a rule that remembers, a correction and what a loop emits: passes keep what it means."""

import numpy as np
import pytest
from smooth_networks import LABEL, STEPS, keeps, network

from scoregraph.graph import corrections, guidance, prediction, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.spec import Spec

NET = network(prediction.eps(), "flow", "vp")
EVERY = {name: kind for name, kind in Spec.registry["sampler"].items() if name != "tabulated"}
SAMPLERS: dict[str, Sampler] = {name: kind() for name, kind in EVERY.items() if not kind.adaptive}
SAMPLERS |= {
    "ddim, new noise": samplers.ddim(1.0),
    "euler, churn before": samplers.euler(s_churn=3.0),
    "euler, churn after": samplers.euler(s_churn=3.0, order="after"),
    "heun, churn": samplers.heun(s_churn=3.0),
    "kdpm2, churn": samplers.kdpm2(s_churn=3.0),
}
RULES = {
    "plain": (guidance.cfg(2.0), None),
    "remembering and clamped": (guidance.apg(2.0, momentum=-0.5, threshold=1.0, low=0.3), corrections.clamp(-0.8, 0.8)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_passes_keep_every_sampler(sampler: str, rule: str):
    mix, correction = RULES[rule]
    g = GraphBuilder("samplers")
    label, blank = g.condition(NET, g.input("label")), g.condition(NET, None)
    with g.loop(schedules.scaled_linear(steps=STEPS, offset=1), g.noise(NET)) as step:
        pred = g.fuse(mix, g.score(NET, step, label), g.score(NET, step, blank))
        pred = pred if correction is None else g.correct(correction, pred, step)
        g.emit("state", step.x)
        g.emit("x0", g.convert(pred, step, prediction.x0()))
        step.advance(SAMPLERS[sampler], pred)
    g.output(x=step.result)
    out = keeps(g.build(), {"toy": NET}, {"label": LABEL})
    assert all(np.isfinite(value).all() for value in out.values())


def test_a_clamp_that_never_acts_changes_nothing():
    """For every sampler: a correction stands outside of what the sampler does with a prediction."""
    for name, sampler in SAMPLERS.items():
        results = []
        for wide in (None, corrections.clamp(-1e6, 1e6)):
            g = GraphBuilder("clamp")
            label = g.condition(NET, g.input("label"))
            with g.loop(schedules.scaled_linear(steps=4, offset=1), g.noise(NET)) as step:
                pred = g.score(NET, step, label)
                step.advance(sampler, pred if wide is None else g.correct(wide, pred, step))
            g.output(x=step.result)
            results.append(keeps(g.build(), {"toy": NET}, {"label": LABEL})["x"])
        np.testing.assert_allclose(results[1], results[0], rtol=1e-8, atol=1e-8, err_msg=name)
