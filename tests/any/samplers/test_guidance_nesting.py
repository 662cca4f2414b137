"""Guidance below guidance, with rules that are off in some steps: the passes against the interpreter of the graph."""

import numpy as np
import pytest

pytest.importorskip("torch")

import toys

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, prediction, samplers, schedules

TILT = np.array([[0.9, -0.4, 0.2, 0.0]] * 3, np.float32)
SEEDS = np.array([3, 4, 5], np.uint64)


def nested(inner: guidance.Guidance, outer: guidance.Guidance) -> sg.GraphBuilder:
    """``outer`` of what ``inner`` makes of one network, and another network; x0 of both is recorded."""
    net, other = toys.network(), toys.network("friend", seed=3)
    g = sg.GraphBuilder("nested")
    level, blank = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedules.linear(steps=5), g.noise(net)) as step:
        below = g.fuse(inner, g.score(net, step, level), g.score(net, step, blank))
        whole = g.fuse(outer, below, g.score(other, step, g.condition(other, None)))
        g.emit("below", g.convert(below, step, prediction.x0()))
        g.emit("pull", g.norm(whole, below))
        step.advance(samplers.dpmpp_2m(), whole)
    g.output(x=step.result)
    return g


CASES = [
    (guidance.cfg(2.0), guidance.cfg(1.5)),
    (guidance.cfg(2.0, start=0.4), guidance.apg(1.5)),
    (guidance.apg(3.0), guidance.cfg(1.5)),
    (guidance.apg(3.0, start=0.4), guidance.cfg(1.5)),
    (guidance.apg(3.0, start=0.4), guidance.rescale(1.5, stop=0.6)),
    (guidance.apg(3.0, stop=0.6), guidance.apg(2.0, momentum=0.25, start=0.4)),
    (guidance.cfg_zero_star(3.0), guidance.cfg(1.5)),
    (guidance.tcfg(3.0, stop=0.4), guidance.mambo_g(2.0, stop=0.6)),
    (guidance.rescale(3.0), guidance.rescale(2.0)),
]


@pytest.mark.parametrize(("inner", "outer"), CASES, ids=lambda rule: str(rule))
def test_rules_below_rules_keep_their_own_intervals_and_memories(inner, outer):
    nets = {"toy": toys.network(), "friend": toys.network("friend", seed=3)}
    expected = eager.run(nested(inner, outer).build(), nets, {"tilt": TILT}, SEEDS)
    plan = sg.compile(nested(inner, outer), device="reference", use_cache=False)
    found = plan.run(tilt=TILT, seed=3, batch=3)
    for name in ("x", "below", "pull"):
        size = np.abs(expected["x" if name == "pull" else name]).max()  # a pull is a difference of such numbers
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6 * size, err_msg=name)
