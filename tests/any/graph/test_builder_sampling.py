"""What a builder says beyond plain sampling: starts, corrections, inpainting, likelihoods, validators, own steps."""

import inspect
from pathlib import Path

import pytest
from random_graphs import CRITICS, FLOWER, FRIENDS, PAINTER, TERRAIN, WRITER, Patient

from scoregraph import errors
from scoregraph.graph import corrections, energies, guidance, prediction, samplers, schedules
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.text import parse
from scoregraph.graph.values import Array, Latent, Mask, NetRef, Pred, Scalar, Start
from scoregraph.graph.verify import verify

COSINE, KARRAS = schedules.cosine(steps=4), schedules.karras(steps=4)
PIXELS = PAINTER.latent
EDGES = Array("f32", (1, 8, 8))
CRITIC = CRITICS["terrain"]


def asked(g, step, net=PAINTER):
    return g.score(net, step, g.condition(net, None))


def test_img2img_with_inpainting_records_what_it_did():
    g = GraphBuilder("repaint")
    known, edges = g.input("known", PIXELS), g.input("edges", EDGES)
    start = g.renoise(known, g.noise(PAINTER))
    with g.loop(schedules.cosine(steps=8, skip=3), start) as step:
        pred = g.correct(corrections.dynamic_threshold(0.99), asked(g, step), step)
        moved = step.advance(samplers.ddim(eta=1.0), pred)
        kept = step.inpaint(known, edges, g.noise(PAINTER))
        clean = g.convert(pred, step, prediction.x0())
        g.emit("preview", clean)
        g.emit("change", g.norm(clean, step.x))
        g.emit("log_prob", step.log_prob)
    g.output(image=step.result)
    graph = g.build()
    assert start.type == Start(PIXELS)
    assert kept.type == PIXELS
    assert kept.state is moved
    assert next(iter(graph.emits)).type == Pred(prediction.x0(), PIXELS)
    assert {emit.type for emit in graph.emits[1:]} == {Scalar("per-sample")}
    assert isinstance(pred.type, Pred)
    assert pred.type.prediction == prediction.eps()
    assert graph.output("image").type == PIXELS
    assert parse(str(graph)) is graph
    (log_prob,) = (node for node in graph.nodes if isinstance(node, n.LogProb))
    assert log_prob.step is moved


def test_a_log_density_moves_beside_the_state():
    g = GraphBuilder("likelihood")
    density = Latent("kappa", (1,))
    with g.loop(KARRAS, g.input("data", TERRAIN.latent), g.constant(0.0, density)) as step:
        cond = g.condition(TERRAIN, 5)
        step.advance(samplers.heun(), g.score(TERRAIN, step, cond))
        step.advance(samplers.heun(), g.divergence(TERRAIN, step, cond, g.noise(TERRAIN)), index=1)
    g.output(noise=step.result, change=step.results[1])
    graph = g.build()
    assert graph.output("change").type == density
    (flow,) = (node for node in graph.nodes if isinstance(node, n.Divergence))
    assert flow.type == Pred(prediction.eps(), density)
    assert graph.nets == (TERRAIN,)
    assert parse(str(graph)) is graph


def test_a_sampler_that_chooses_its_steps_makes_a_while_over_the_schedule():
    g = GraphBuilder("patient")
    with g.loop(KARRAS, g.noise(TERRAIN)) as step:
        step.advance(Patient(max_rounds=70), asked(g, step, TERRAIN))
    g.output(x=step.result)
    graph = g.build()
    (loop,) = (node for node in graph.nodes if isinstance(node, n.While))
    assert (loop.max_iters, loop.schedule) == (70, KARRAS)
    assert isinstance(loop.active, n.Unfinished)
    assert loop.active.type == Mask(())
    verify(graph, "tabled")  # it has no table, and needs none
    assert "while(steps, [%0], max_iters=70, schedule=karras(" in str(graph)
    assert parse(str(graph)) is graph


def test_energies_steer_and_judge():
    g = GraphBuilder("judged")
    label = g.input("label")
    with g.loop(KARRAS, g.noise(TERRAIN)) as step:
        pred = asked(g, step, TERRAIN)
        pull = g.energy(energies.classifier(2.0), step, label, net=CRITIC)
        through = g.energy(energies.energy(1.0, wrt="x0"), step, 3, pred=pred, net=CRITIC)
        step.advance(samplers.euler(), g.fuse(guidance.single(), pred, grads=(pull, through)))
    score = g.validate(energies.energy(1.0), step.result, label, net=CRITIC)
    g.output(x=step.result, score=score, good=g.within(score, 2.5))
    graph = g.build()
    assert [node.of for node in graph.inputs] == [Array("i64", ())]
    assert graph.output("score").type == Scalar("per-sample")
    assert graph.output("good").type == Mask(())
    assert graph.nets == (TERRAIN, CRITIC)
    assert parse(str(graph)) is graph


def test_guidance_nests_over_converted_answers_of_other_networks():
    g = GraphBuilder("nested")
    friend = FRIENDS["terrain"]
    with g.loop(KARRAS, g.noise(TERRAIN)) as step:
        hot, cold = (g.score(TERRAIN, step, g.condition(TERRAIN, d)) for d in (90, None))
        inner = g.fuse(guidance.cfg(2.0), hot, cold)
        other = g.convert(g.score(friend, step), step, prediction.edm())
        step.advance(samplers.euler(), g.fuse(guidance.compose((0.7,)), inner, other))
    g.output(x=step.result)
    graph = g.build()
    assert [f.guidance.name for f in n.fusions_of(analysis_step(graph).preds[0])] == ["compose", "cfg"]
    assert [score.net for score in n.scores_of(analysis_step(graph).preds[0])] == [TERRAIN, TERRAIN, friend]


def analysis_step(graph):
    (step,) = (node for node in graph.nodes if isinstance(node, n.SamplerStep))
    return step


# --- mistakes ----------------------------------------------------------------------------------


def sampled(body, net=PAINTER, schedule=COSINE):
    g = GraphBuilder()
    with g.loop(schedule, g.noise(net)) as step:
        return body(g, step)


def a_sampler_as_a_correction():
    sampled(lambda g, step: g.correct(samplers.ddim(), asked(g, step), step))


def a_correction_after_its_loop():
    g = GraphBuilder()
    with g.loop(COSINE, g.noise(PAINTER)) as step:
        pred = asked(g, step)
        step.advance(samplers.ddim(), pred)
    g.correct(corrections.clamp(), pred, step)


def a_start_from_two_latents():
    g = GraphBuilder()
    g.renoise(g.input("a", PIXELS), g.input("b", PIXELS))


def a_start_of_another_space():
    g = GraphBuilder()
    g.renoise(g.input("a", Latent("kappa", PIXELS.shape)), g.noise(PAINTER))


def inpainting_before_the_step():
    sampled(lambda g, step: step.inpaint(g.input("known", PIXELS), g.input("mask", EDGES), g.noise(PAINTER)))


def a_mask_of_another_shape():
    def body(g, step):
        step.advance(samplers.ddim(), asked(g, step))
        step.inpaint(g.input("known", PIXELS), g.input("mask", Array("f32", (3, 8, 8))), g.noise(PAINTER))

    sampled(body)


def a_mask_of_integers():
    def body(g, step):
        step.advance(samplers.ddim(), asked(g, step))
        step.inpaint(g.input("known", PIXELS), g.input("mask", Array("u8", PIXELS.shape)), g.noise(PAINTER))

    sampled(body)


def a_probability_before_the_step():
    sampled(lambda g, step: g.emit("log_prob", step.log_prob))


def a_probability_of_an_ode():
    sampled(lambda g, step: g.log_prob(step.advance(samplers.ddim(eta=0.0), asked(g, step))))


def a_probability_of_a_prediction():
    sampled(lambda g, step: g.log_prob(asked(g, step)))


def a_score_of_an_energy():
    g = GraphBuilder()
    with g.loop(KARRAS, g.noise(TERRAIN)) as step:
        g.score(CRITIC, step, g.condition(TERRAIN, None))


def an_energy_of_a_score_network():
    sampled(lambda g, step: g.energy(energies.classifier(1.0), step, net=PAINTER))


def an_energy_without_its_value():
    sampled(lambda g, step: g.energy(energies.classifier(1.0), step, net=CRITIC), TERRAIN, KARRAS)


def an_energy_whose_time_the_schedule_lacks():
    critic = NetRef("critic", "0", TERRAIN.latent, time="timestep", energy=True)
    sampled(lambda g, step: g.energy(energies.energy(1.0), step, net=critic), TERRAIN, KARRAS)


def a_validator_that_reads_the_logarithm_of_no_noise():
    g = GraphBuilder()
    critic = NetRef("critic", "0", TERRAIN.latent, time="c_noise", energy=True)
    g.validate(energies.energy(1.0), g.input("x", TERRAIN.latent), net=critic)


def an_energy_of_x0_without_prediction():
    sampled(lambda g, step: g.energy(energies.energy(1.0, wrt="x0"), step, 3, net=CRITIC), TERRAIN, KARRAS)


def a_learned_variance_where_there_is_none():
    def body(g, step):
        step.advance(samplers.ddpm("learned_range"), asked(g, step, TERRAIN))

    sampled(body, TERRAIN, KARRAS)


def a_scale_from_outside_for_a_projection():
    def body(g, step):
        scale = g.input("scale", Scalar("per-sample"))
        g.fuse(guidance.apg(5.0), asked(g, step), asked(g, step), scale=scale)

    sampled(body)


def cfg_pp_below_other_guidance():
    def body(g, step):
        pred = asked(g, step)
        inner = g.fuse(guidance.cfg_pp(0.5), pred, pred)
        step.advance(samplers.ddim(), g.fuse(guidance.cfg(2.0), inner, pred))

    sampled(body)


def norms_of_two_shapes():
    g = GraphBuilder()
    g.norm(g.input("a", PIXELS), g.input("b", FLOWER.latent))


def a_norm_of_tokens():
    g = GraphBuilder()
    g.norm(g.input("a", WRITER.latent))


def the_time_as_a_record():
    sampled(lambda g, step: g.emit("t", step.time))


def a_state_that_is_not_carried():
    sampled(lambda g, step: step.advance(samplers.ddim(), asked(g, step), index=1))


def a_validator_of_tokens():
    g = GraphBuilder()
    g.validate(energies.energy(1.0), g.input("text", WRITER.latent), 3, net=CRITIC)


def a_limit_on_a_latent():
    g = GraphBuilder()
    g.within(g.input("x", PIXELS), 1.0)


def an_energy_that_predicts():
    NetRef("critic", "0", PIXELS, prediction.eps(), energy=True)


MISTAKES = {
    a_sampler_as_a_correction: errors.WrongSpec,
    a_correction_after_its_loop: errors.ValueOutsideLoop,
    a_start_from_two_latents: errors.WrongOperand,
    a_start_of_another_space: errors.SpaceMismatch,
    inpainting_before_the_step: errors.StepNotTaken,
    a_mask_of_another_shape: errors.ShapeMismatch,
    a_mask_of_integers: errors.WrongOperand,
    a_probability_before_the_step: errors.StepNotTaken,
    a_probability_of_an_ode: errors.DeterministicStep,
    a_probability_of_a_prediction: errors.WrongOperand,
    a_score_of_an_energy: errors.WrongOperand,
    an_energy_of_a_score_network: errors.WrongOperand,
    an_energy_without_its_value: errors.WrongOperand,
    an_energy_whose_time_the_schedule_lacks: errors.NoTimestep,
    a_validator_that_reads_the_logarithm_of_no_noise: errors.WrongOperand,
    an_energy_of_x0_without_prediction: errors.WrongOperand,
    a_learned_variance_where_there_is_none: errors.NoLearnedVariance,
    a_scale_from_outside_for_a_projection: errors.WrongOperand,
    cfg_pp_below_other_guidance: errors.WrongOperand,
    norms_of_two_shapes: errors.ShapeMismatch,
    a_norm_of_tokens: errors.WrongOperand,
    the_time_as_a_record: errors.WrongOperand,
    a_state_that_is_not_carried: errors.UnknownName,
    a_validator_of_tokens: errors.WrongOperand,
    a_limit_on_a_latent: errors.WrongOperand,
    an_energy_that_predicts: errors.IncompleteNetwork,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_where_it_is_made(mistake):
    with pytest.raises(errors.ScoregraphError) as caught:
        mistake()
    assert type(caught.value) is MISTAKES[mistake], str(caught.value)
    assert "help " in str(caught.value)
    where = caught.value.where
    lines, first = inspect.getsourcelines(mistake)
    assert where is not None
    assert where.file == Path(__file__).name
    assert first <= where.line < first + len(lines)
