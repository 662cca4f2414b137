"""Rules per stage, rewrites that keep provenance, and questions about graphs."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from random_graphs import TERRAIN, WRITER, Patient, graphs

from scoregraph.errors import IllegalAtStage, Location
from scoregraph.graph import analysis, guidance, samplers, schedules, select
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import replace, rewrite
from scoregraph.graph.values import Array, Latent, Mask, Scalar, Tokens
from scoregraph.graph.verify import STAGES, verify

LATENT = TERRAIN.latent
NULL = n.Condition(TERRAIN, ())
KARRAS = schedules.karras(steps=3)
X, T = n.LoopVar("steps", 0, LATENT), n.StepTime("steps")
SCORE = n.Score(TERRAIN, X, T, (NULL,))
TABLE = samplers.euler().table(KARRAS, TERRAIN.prediction, "c_noise", "kappa")


def step(state=X, preds=(SCORE,), time=T, site=1, table=None):
    return n.SamplerStep(samplers.euler(), state, preds, time, site, table)


def loop(result, init=None, name="steps", emits=()):
    return n.Get(n.Loop(name, KARRAS, (init or n.Noise(LATENT, 0),), (result,), emits), 0)


def graph(**outputs):
    return Graph("test", tuple(outputs.items()))


WRONG_SCALE = n.LoopVar("steps", 0, Scalar("static"))
LATE = n.Convert(TERRAIN.prediction, n.Score(TERRAIN, X, n.StepTime("later"), (NULL,)), X, T)
GUIDED = n.FusedScore(guidance.single(), (SCORE,))
LATE_GUIDED = n.FusedScore(guidance.cfg(2.0), (GUIDED, LATE))


def around(pred):
    """A loop by ``pred``, inside the loop ``later``."""
    inner, time = loop(step(preds=(pred,), site=2)), n.StepTime("later")
    outer = step(inner, (n.Score(TERRAIN, inner, time, (NULL,)),), time, site=3)
    return loop(outer, init=n.Noise(LATENT, 4), name="later")


TOKENS = n.LoopVar("steps", 0, WRITER.latent)
WRITING = n.SamplerStep(
    select.everything(mask=0), TOKENS, (n.Score(WRITER, TOKENS, None, (n.Condition(WRITER, ()),)),), None, 1
)
OTHER_X, OTHER_T = n.LoopVar("other", 0, LATENT), n.StepTime("other")

ILLEGAL = {
    "no output": ("built", graph(), "the graph has no output"),
    "time as output": ("built", graph(x=NULL), "no value a caller could use"),
    "names": ("built", graph(x=loop(step(), emits=(n.Emit("x", X),))), "two outputs are named 'x'"),
    "inputs": ("built", graph(x=n.Input("a", LATENT), y=n.Input("a", Mask(()))), "two inputs are named 'a'"),
    "sites": ("built", graph(x=loop(step(site=0))), "draws the same random numbers"),
    "site range": ("built", graph(x=loop(step(site=2**32))), "not a 32-bit word"),
    "leak": ("built", graph(x=step()), "used outside"),
    "siblings": ("built", graph(x=loop(step(preds=(n.Score(TERRAIN, OTHER_X, T, (NULL,)),)))), "used outside"),
    "own body": ("built", graph(x=loop(step(), init=X)), "starts from a value of its own body"),
    "carry index": (
        "built",
        graph(x=loop(step(preds=(n.Score(TERRAIN, n.LoopVar("steps", 1, LATENT), T, (NULL,)),)))),
        "carries 1",
    ),
    "carry type": (
        "built",
        graph(
            x=loop(
                step(
                    preds=(
                        n.FusedScore(guidance.cfg(1.0), (SCORE, SCORE), (), n.LoopVar("steps", 0, Scalar("static"))),
                    )
                )
            )
        ),
        "carries a Latent",
    ),
    "no step": ("built", graph(x=loop(X)), "its state does not move"),
    "no schedule": (
        "built",
        graph(x=step(n.Input("x", LATENT), (n.Score(TERRAIN, n.Input("x", LATENT), T, (NULL,)),), None)),
        "used outside",
    ),
    "no time": ("built", graph(x=loop(step(time=None))), "needs the time of its loop"),
    "unnamed emit": ("built", graph(x=loop(step(), emits=(SCORE,))), "without a name"),
    "lost emit": ("built", graph(x=n.Emit("y", n.Input("x", LATENT))), "only a loop records"),
    "emit twice": (
        "built",
        graph(x=n.Input("x", LATENT), y=loop(step(), emits=(n.Emit("x", X),))),
        "two outputs are named 'x'",
    ),
    "while time": (
        "built",
        graph(x=n.Get(n.While("steps", 3, (n.Noise(LATENT, 0),), (step(),), n.Input("m", Mask(()))), 0)),
        "a while has no schedule",
    ),
    "own steps in a loop": (
        "built",
        graph(x=loop(n.SamplerStep(Patient(), X, (SCORE,), T, 1))),
        "belongs into a while over a schedule",
    ),
    "given steps in a while over a schedule": (
        "built",
        graph(x=n.Get(n.While("steps", 3, (n.Noise(LATENT, 0),), (step(),), n.Unfinished(T), (), KARRAS), 0)),
        "needs a sampler that chooses its own steps",
    ),
    "who is done in a loop": (
        "built",
        graph(x=loop(step(), emits=(n.Emit("late", n.Unfinished(T)),))),
        "comes to its end at once",
    ),
    "inpainting without a step": (
        "built",
        graph(x=loop(n.Inpaint(X, X, n.Input("mask", Array("f32", (1, 1, 1))), n.Noise(LATENT, 7), T))),
        "its state does not move",
    ),
    "branches at two times, deep": ("built", graph(x=around(LATE_GUIDED)), "scored at different times"),
    "untabled": ("tabled", graph(x=loop(step())), "it has no table"),
    "unfolded": ("folded", graph(x=loop(step(preds=(GUIDED,), table=TABLE))), "not folded into the table"),
    "unbatched": (
        "batched",
        graph(
            x=loop(
                step(
                    preds=(
                        SCORE,
                        n.Score(TERRAIN, X, T, (n.Condition(TERRAIN, (n.Input("d", TERRAIN.conds[0].type),)),)),
                    ),
                    table=TABLE.fold_guidance([(2.0, -1.0)] * 3),
                )
            )
        ),
        "calls the same network on the same latent",
    ),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_a_broken_rule_is_named_and_shown(case):
    stage, illegal, complaint = ILLEGAL[case]
    with pytest.raises(IllegalAtStage) as caught:
        verify(illegal, stage)
    assert complaint in str(caught.value)
    assert caught.value.values["stage"] == stage
    if illegal.outputs:
        assert "^^^" in str(caught.value)


def test_the_context_marks_the_node_and_its_place():
    bad = step(site=0)
    place = Location("sample.py", 7)
    with pytest.raises(IllegalAtStage) as caught:
        verify(Graph("test", (("x", loop(bad)),), ((bad, place),)))
    lines = str(caught.value).splitlines()
    marked = next(i for i, line in enumerate(lines) if "^^^" in line)
    assert "step(euler(" in lines[marked - 1]
    assert len(lines[marked].strip()) == len(lines[marked - 1].strip())
    assert "  at   sample.py:7" in lines


def test_each_stage_keeps_the_rules_of_the_one_before():
    stages = list(STAGES.values())
    for before, after in pairwise(stages):
        assert after[: len(before)] == before
        assert len(after) > len(before)
    assert list(STAGES) == ["built", "tabled", "folded", "batched"]
    verify(graph(x=loop(step(table=TABLE))), "batched")


# --- rewrites ----------------------------------------------------------------------------------


def test_a_rewrite_rebuilds_counts_and_keeps_places():
    place, other = Location("user.py", 3), Location("user.py", 4)
    before = Graph("g", (("x", loop(step(preds=(GUIDED,)))),), ((GUIDED, place), (SCORE, other)))

    def unwrap(node):
        return node.preds[0] if isinstance(node, n.FusedScore) else None

    after, count = rewrite(before, unwrap)
    assert count == 1
    assert after is Graph("g", (("x", loop(step())),), ((SCORE, other),))
    assert rewrite(after, unwrap) == (after, 0)


def test_new_nodes_inherit_the_place_of_what_they_replace():
    place = Location("user.py", 9)
    old = step()
    before = Graph("g", (("x", loop(old)),), ((old, place),))

    def guide(node):
        if isinstance(node, n.SamplerStep) and not isinstance(node.preds[0], n.FusedScore):
            return step(preds=(n.FusedScore(guidance.single(), node.preds),))
        return None

    after, count = rewrite(before, guide)
    fused = next(node for node in after.nodes if isinstance(node, n.FusedScore))
    assert count == 1
    assert after.place(fused) == place


def test_a_rule_without_fuel_stops_in_the_middle():
    twice = graph(a=n.Constant(1.0, TERRAIN.conds[0].type), b=n.Constant(2.0, TERRAIN.conds[0].type))
    fuel = [True]

    def double(node):
        return n.Constant(node.value * 10, node.of) if isinstance(node, n.Constant) and fuel and fuel.pop() else None

    after, count = rewrite(twice, double)
    assert count == 1
    assert [node.value for _, node in after.outputs] == [10.0, 2.0]


def test_replace_puts_one_node_for_another():
    swapped = replace(graph(x=loop(step())), n.Noise(LATENT, 0), n.Input("start", LATENT))
    assert [node.name for node in swapped.inputs] == ["start"]


@settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, max_examples=25)
@given(graphs())
def test_a_rewrite_that_does_nothing_returns_the_same_graph(g):
    assert rewrite(g, lambda _: None) == (g, 0)


# --- questions ---------------------------------------------------------------------------------


def sample():
    g = GraphBuilder("sample")
    cond = g.condition(TERRAIN, g.input("difficulty"))
    with g.loop(KARRAS, g.noise(TERRAIN)) as body:
        pred = g.score(TERRAIN, body, cond)
        body.advance(samplers.euler(), pred)
    g.output(x=body.result)
    return g.build(), cond, pred


def test_bodies_invariants_and_users():
    built, cond, pred = sample()
    (inside,) = analysis.loops(built).values()
    assert {node.op for node in analysis.body(inside)} == {"carry", "time", "score", "step"}
    assert analysis.invariants(inside) == (cond,)
    assert analysis.users(built)[cond] == (pred,)
    assert analysis.scopes(built)[pred] == "steps"
    assert analysis.scopes(built)[cond] is None
    assert analysis.step_of(inside).preds == (pred,)
    assert analysis.scores(built) == (pred,)
    assert analysis.depends_on_time_only(pred.time)
    assert not analysis.depends_on_time_only(pred)
    assert not analysis.depends_on_time_only(cond)


@settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, max_examples=25)
@given(graphs())
def test_topological_order_and_networkx_agree(g):
    import networkx as nx

    position = {node: i for i, node in enumerate(g.nodes)}
    assert all(position[operand] < position[node] for node in g.nodes for operand in node.operands)
    view = analysis.to_networkx(g)
    assert nx.is_directed_acyclic_graph(view)
    assert view.number_of_nodes() == len(g.nodes)


def test_deep_graphs_do_not_exhaust_the_stack():
    x: n.Node = n.Input("x", LATENT)
    for i in range(3000):
        x = loop(
            step(
                n.LoopVar(f"l{i}", 0, LATENT),
                (n.Score(TERRAIN, n.LoopVar(f"l{i}", 0, LATENT), n.StepTime(f"l{i}"), (NULL,)),),
                n.StepTime(f"l{i}"),
                site=i,
            ),
            init=x,
            name=f"l{i}",
        )
    assert len(graph(x=x).nodes) == 3000 * 6 + 2


def test_types_print_as_they_are_written():
    assert str(Latent("vp", (4, 8, 8))) == "Latent[vp, 4x8x8]"
    assert str(SCORE.type) == "Pred[edm(sigma_data=0.5), Latent[kappa, 1x16x16]]"
    assert str(Tokens(3, 5)) == "Tokens[3, 5]"
    assert str(Mask(())) == "Mask[]"
