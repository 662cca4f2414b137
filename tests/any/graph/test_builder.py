"""The builder: the design's example in a dozen lines, and one error class, with the user's line, per mistake."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from random_graphs import FLOWER, PAINTER, SPEAKER, TERRAIN, WRITER

from scoregraph import errors
from scoregraph.graph import caches, energies, guidance, prediction, samplers, schedules, select
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.text import parse
from scoregraph.graph.values import Array, CondInput, Decoded, HeadRef, Latent, NetRef, Pred, Scalar, Tokens

KARRAS = schedules.karras(steps=4)
COSINE = schedules.cosine(steps=4)


def terrain(net=TERRAIN):
    g = GraphBuilder("terrain")
    level = g.condition(net, g.input("difficulty"))
    blank = g.condition(net, None)
    x = g.noise(TERRAIN.latent)
    with g.loop(schedules.karras(steps=12), x) as step:
        guided = g.fuse(guidance.cfg(1.5), g.score(net, step, level), g.score(net, step, blank))
        step.advance(samplers.dpmpp_2m(), guided)
    g.output(terrain=g.decode(net, step.result))
    return g


def test_guided_sampling_is_a_dozen_lines():
    graph = terrain().build()
    assert graph.output("terrain").type == Decoded((16, 16))
    assert [node.name for node in graph.inputs] == ["difficulty"]
    assert graph.inputs[0].of == Array("f32", ())
    assert graph.nets == (TERRAIN,)
    assert len(inspect.getsource(terrain).splitlines()) <= 12
    assert parse(str(graph)) is graph


def test_every_node_knows_the_users_line():
    graph = terrain().build()
    lines, first = inspect.getsourcelines(terrain)
    score = next(node for node in graph.nodes if isinstance(node, n.Score))
    place = graph.place(score)
    assert place is not None
    assert place.file == Path(__file__).name
    assert "g.score" in lines[place.line - first]
    assert all(graph.place(node) for node in graph.nodes if not isinstance(node, n.LoopVar))


def test_two_builds_are_one_graph_and_nodes_are_interned():
    assert terrain().build() is terrain().build()
    assert n.Noise(TERRAIN.latent, 0) is n.Noise(TERRAIN.latent, site=0)
    assert n.Noise(TERRAIN.latent, 0) is not n.Noise(TERRAIN.latent, 1)
    assert n.Constant(1.0, Array("f32", ())) is not n.Constant(2.0, Array("f32", ()))


def test_a_network_is_whatever_has_a_reference():
    net = SimpleNamespace(ref=TERRAIN)
    g = terrain(net)
    assert g.build() is terrain().build()
    assert g.networks == [net]


def test_numbers_and_partial_nulls_become_constants():
    g = GraphBuilder()
    cond = g.condition(PAINTER, text=None, label=7)
    assert isinstance(cond, n.Condition)
    assert [(c.value, c.type) for c in cond.values] == [(0.0, Array("f32", (77, 16))), (7.0, Array("i64", ()))]


def test_discrete_loops_energies_caches_and_emits():
    g = GraphBuilder("all")
    rule = select.threshold(mask=0)
    with g.while_(64, g.input("masks", WRITER.latent)) as rounds:
        logits = g.score(WRITER, rounds)
        rounds.advance(rule, logits)
        rounds.go_on(g.eligible(rule, rounds.x))
    with g.loop(COSINE, g.noise(PAINTER), g.input("kept", Scalar("static"))) as step:
        pred = g.cache(caches.every(2), g.score(PAINTER, step, g.condition(PAINTER, None)))
        pull = g.energy(energies.measurement(1.0, wrt="x0"), step, pred=pred)
        fused = g.fuse(guidance.single(), pred, grads=(pull,))
        g.emit("preview", g.convert(fused, step, prediction.x0()))
        step.advance(samplers.ddim(), fused)
    g.emit("depth", g.decode(PAINTER, step.result, "depth"))
    g.output(text=rounds.result)
    graph = g.build()
    assert [emit.name for emit in graph.emits] == ["preview"]
    assert isinstance(graph.emits[0].type, Pred)
    assert graph.emits[0].type.prediction == prediction.x0()
    assert graph.output("text").type == Tokens(12, 50)
    assert len(step.results) == 2
    assert parse(str(graph)) is graph


# --- mistakes ----------------------------------------------------------------------------------


def opened(net=TERRAIN, schedule=KARRAS):
    g = GraphBuilder()
    return g, g.loop(schedule, g.noise(net))


def mixed_predictions():
    g = GraphBuilder()
    other = NetRef("other", "a", TERRAIN.latent, prediction.x0(), "sigma")
    with g.loop(KARRAS, g.noise(TERRAIN)) as step:
        g.fuse(guidance.cfg(2.0), g.score(TERRAIN, step, g.condition(TERRAIN, 5)), g.score(other, step))


def three_branches_for_cfg():
    g, loop = opened()
    with loop as step:
        pred = g.score(TERRAIN, step, g.condition(TERRAIN, None))
        g.fuse(guidance.cfg(2.0), pred, pred, pred)


def bare_guidance_scale():
    g, loop = opened()
    with loop as step:
        pred = g.score(TERRAIN, step, g.condition(TERRAIN, None))
        g.fuse(7.5, pred, pred)


def decode_a_prediction():
    g, loop = opened()
    with loop as step:
        g.decode(TERRAIN, g.score(TERRAIN, step, g.condition(TERRAIN, None)))


def logits_into_a_sampler():
    g, loop = opened()
    with loop as step:
        logits = n.Score(WRITER, g.input("tokens", WRITER.latent), None, (g.condition(WRITER, None),))
        step.advance(samplers.ddim(), logits)


def tokens_into_a_sampler():
    g = GraphBuilder()
    with g.while_(5, g.input("tokens", WRITER.latent)) as step:
        step.advance(samplers.ddim(), g.score(WRITER, step))


def a_prediction_into_a_select_rule():
    g, loop = opened()
    with loop as step:
        step.advance(select.everything(mask=0), g.score(TERRAIN, step, g.condition(TERRAIN, None)))


def a_latent_of_another_space():
    g = GraphBuilder()
    with g.loop(COSINE, g.noise(Latent("vp", (1, 16, 16)))) as step:
        g.score(TERRAIN, step, g.condition(TERRAIN, None))


def a_latent_of_another_shape():
    g = GraphBuilder()
    with g.loop(KARRAS, g.noise(Latent("kappa", (1, 32, 32)))) as step:
        g.score(TERRAIN, step, g.condition(TERRAIN, None))


def an_image_for_a_number():
    g = GraphBuilder()
    g.condition(TERRAIN, g.input("image", Array("f32", (16, 16))))


def one_of_two_conditions():
    GraphBuilder().condition(PAINTER, text=None)


def a_score_without_condition():
    g, loop = opened()
    with loop as step:
        g.score(TERRAIN, step)


def a_misspelt_condition():
    GraphBuilder().condition(TERRAIN, difficulti=3)


def null_where_there_is_none():
    GraphBuilder().condition(SPEAKER, None)


def an_input_without_a_type():
    g = GraphBuilder()
    g.loop(KARRAS, g.input("start"))


def an_input_that_is_never_used():
    g = terrain()
    g.input("forgotten")
    g.build()


def a_score_that_is_never_used():
    g, loop = opened(FLOWER, schedules.flow(steps=2))
    with loop as step:
        g.score(FLOWER, step, g.condition(FLOWER, None), x=g.input("x", FLOWER.latent))
        step.advance(samplers.flow_euler(), g.score(FLOWER, step))
    g.output(x=step.result)
    g.build()


def a_loop_without_a_step():
    _, loop = opened()
    with loop:
        pass


def a_while_without_a_condition():
    g = GraphBuilder()
    with g.while_(5, g.input("tokens", WRITER.latent)) as step:
        step.advance(select.everything(mask=0), g.score(WRITER, step))


def a_state_that_advances_twice():
    g, loop = opened()
    with loop as step:
        pred = g.score(TERRAIN, step, g.condition(TERRAIN, None))
        step.advance(samplers.euler(), pred)
        step.advance(samplers.euler(), pred)


def a_score_after_its_loop():
    g, loop = opened()
    with loop as step:
        step.advance(samplers.euler(), g.score(TERRAIN, step, g.condition(TERRAIN, None)))
    g.score(TERRAIN, step, g.condition(TERRAIN, None))


def an_output_from_inside_a_loop():
    g, loop = opened()
    with loop as step:
        moved = step.advance(samplers.euler(), g.score(TERRAIN, step, g.condition(TERRAIN, None)))
    g.output(x=moved)


def a_step_of_another_loop():
    g, loop = opened()
    cond = g.condition(TERRAIN, None)
    with loop as first:
        pred = g.score(TERRAIN, first, cond)
        first.advance(samplers.euler(), pred)
    with g.loop(KARRAS, first.result) as second:
        second.advance(samplers.euler(), pred)


def a_step_of_another_builder():
    g, loop = opened()
    with loop as step:
        GraphBuilder().score(TERRAIN, step, g.condition(TERRAIN, None))


def a_result_before_the_end():
    _, loop = opened()
    with loop as step:
        _ = step.result


def a_build_inside_a_loop():
    g, loop = opened()
    with loop:
        g.output(x=g.input("y", FLOWER.latent))
        g.build()


def two_outputs_of_one_name():
    g = terrain()
    g.output(terrain=g.input("x", FLOWER.latent))


def two_inputs_of_one_name():
    g = GraphBuilder()
    g.input("x")
    g.input("x")


def no_output():
    GraphBuilder().build()


def a_schedule_as_a_sampler():
    g, loop = opened()
    with loop as step:
        step.advance(KARRAS, g.score(TERRAIN, step, g.condition(TERRAIN, None)))


def a_sampler_as_a_schedule():
    g = GraphBuilder()
    g.loop(samplers.ddim(), g.noise(TERRAIN))


def two_networks_of_one_name():
    g = GraphBuilder()
    g.noise(TERRAIN)
    g.noise(NetRef("terrain", "0", TERRAIN.latent, prediction.eps()))


def two_heads():
    g = GraphBuilder()
    g.decode(PAINTER, g.input("x", PAINTER.latent))


def a_misspelt_head():
    g = GraphBuilder()
    g.decode(PAINTER, g.input("x", PAINTER.latent), "rgbb")


def a_torch_module():
    GraphBuilder().noise(object())


def an_array_as_an_option():
    g = GraphBuilder()
    g.fuse(Custom(np.ones(2)))


def a_network_that_predicts_nothing():
    NetRef("blank", "0", Latent("vp", (3,)))


def eps_at_alpha_zero():
    g = GraphBuilder()
    net = NetRef("old", "0", Latent("vp", (3,)), prediction.eps())
    with g.loop(schedules.scaled_linear(steps=5, spacing="trailing", zero_snr=True), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.score(net, step))


def time_the_schedule_does_not_have():
    g, loop = opened(NetRef("old", "0", Latent("kappa", (3,)), prediction.eps(), "timestep"))
    with loop as step:
        g.score(NetRef("old", "0", Latent("kappa", (3,)), prediction.eps(), "timestep"), step)


def time_in_a_while():
    g = GraphBuilder()
    with g.while_(5, g.input("tokens", SPEAKER.latent)) as step:
        g.score(SPEAKER, step, g.condition(SPEAKER, g.input("prompt")))


def a_value_that_is_none():
    g = GraphBuilder()
    g.output(x=3.0)


class Custom(guidance.Guidance):
    name = "custom-for-this-test"

    def __init__(self, weights):
        object.__setattr__(self, "weights_", weights)

    def options(self):
        return {"weights": self.weights_}


MISTAKES = {
    mixed_predictions: errors.MixedPredictions,
    three_branches_for_cfg: errors.BranchCount,
    bare_guidance_scale: errors.UnstatedGuidanceScale,
    decode_a_prediction: errors.WrongOperand,
    logits_into_a_sampler: errors.DiscreteInContinuous,
    tokens_into_a_sampler: errors.DiscreteInContinuous,
    a_prediction_into_a_select_rule: errors.ContinuousInDiscrete,
    a_latent_of_another_space: errors.SpaceMismatch,
    a_latent_of_another_shape: errors.ShapeMismatch,
    an_image_for_a_number: errors.ShapeMismatch,
    one_of_two_conditions: errors.MissingCondition,
    a_score_without_condition: errors.MissingCondition,
    a_misspelt_condition: errors.UnknownName,
    null_where_there_is_none: errors.NoUnconditionalBranch,
    an_input_without_a_type: errors.UntypedInput,
    an_input_that_is_never_used: errors.UnusedValue,
    a_score_that_is_never_used: errors.UnusedValue,
    a_loop_without_a_step: errors.LoopWithoutStep,
    a_while_without_a_condition: errors.LoopWithoutStep,
    a_state_that_advances_twice: errors.StepAdvancedTwice,
    a_score_after_its_loop: errors.ValueOutsideLoop,
    an_output_from_inside_a_loop: errors.ValueOutsideLoop,
    a_step_of_another_loop: errors.ValueOutsideLoop,
    a_step_of_another_builder: errors.ForeignStep,
    a_result_before_the_end: errors.LoopStillOpen,
    a_build_inside_a_loop: errors.LoopStillOpen,
    two_outputs_of_one_name: errors.DuplicateName,
    two_inputs_of_one_name: errors.DuplicateName,
    no_output: errors.NoOutput,
    a_schedule_as_a_sampler: errors.WrongSpec,
    a_sampler_as_a_schedule: errors.WrongSpec,
    two_networks_of_one_name: errors.NetworkNameClash,
    two_heads: errors.ChooseHead,
    a_misspelt_head: errors.UnknownName,
    a_torch_module: errors.NotANetwork,
    an_array_as_an_option: errors.BadOption,
    a_network_that_predicts_nothing: errors.IncompleteNetwork,
    eps_at_alpha_zero: errors.ZeroAlpha,
    time_the_schedule_does_not_have: errors.NoTimestep,
    time_in_a_while: errors.WrongOperand,
    a_value_that_is_none: errors.WrongOperand,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_where_it_is_made(mistake):
    with pytest.raises(errors.ScoregraphError) as caught:
        mistake()
    assert type(caught.value) is MISTAKES[mistake]
    text = str(caught.value)
    assert text.startswith(caught.value.code)
    assert "help " in text
    if mistake is not a_network_that_predicts_nothing:  # a reference has no place in a graph
        lines, first = inspect.getsourcelines(mistake)
        where = caught.value.where
        assert where is not None
        assert where.file == Path(__file__).name
        inside = first <= where.line < first + len(lines)
        assert inside or mistake is a_loop_without_a_step  # its place is the line that made the loop


def test_suggestions_name_the_nearest_spelling():
    with pytest.raises(errors.UnknownName, match="did you mean 'difficulty'"):
        a_misspelt_condition()
    with pytest.raises(errors.UnknownName, match="did you mean 'rgb'"):
        a_misspelt_head()


def test_an_exception_in_a_body_is_not_hidden_by_the_loop():
    g, loop = opened()
    with pytest.raises(ZeroDivisionError), loop:
        _ = 1 / 0
    assert g.open == []


def test_references_are_normalised():
    net = NetRef("n", "0", Latent("vp", [3, np.int64(4)]), prediction.eps(), heads=(HeadRef("h", [2]),))
    assert net.latent == Latent("vp", (3, 4))
    assert repr(CondInput("c", low=1)) == repr(CondInput("c", low=1.0))
