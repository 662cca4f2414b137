"""Mistakes in building and verifying a graph (SG1xx)."""

from __future__ import annotations

from collections.abc import Iterable

from scoregraph.errors.base import Location, ScoregraphError, did_you_mean


class UnknownName(ScoregraphError):
    """A name (of a model, sampler, schedule, input, option …) is not known; the nearest known one is suggested."""

    code = "SG101"
    title = "unknown name"
    message = "there is no {kind} named {name!r}"
    cure = "{suggestion}"

    def __init__(self, *, kind: str, name: str, known: Iterable[str], where: Location | str | None = None) -> None:
        super().__init__(kind=kind, name=name, suggestion=did_you_mean(name, known), where=where)


class MixedPredictions(ScoregraphError):
    """Guidance adds the answers of several branches, so they must mean the same thing: all noise (eps), all clean
    samples (x0), all velocities, of latents of one space and shape. Convert one of them first::

        clean = g.convert(pred, step, sg.predictions.x0())
    """

    code = "SG102"
    title = "mixed predictions"
    message = "{guidance} cannot combine {first} with {other}"
    cure = "convert one of them first: g.convert(pred, step, …)"


class BranchCount(ScoregraphError):
    """A guidance rule weighs a fixed number of branches: ``cfg`` takes two, the conditional one first::

    g.fuse(sg.guidance.cfg(1.5), g.score(net, step, level), g.score(net, step, blank))
    """

    code = "SG103"
    title = "wrong number of branches"
    message = "{rule} takes {expected} branch(es), got {got}"
    cure = "give g.fuse one prediction per branch, conditional branches first"


class UnstatedGuidanceScale(ScoregraphError):
    """A bare number is ambiguous: diffusers calls "off" 1, Ho & Salimans and the masked models call it 0. The rule says
    which is meant::

        g.fuse(sg.guidance.cfg(1.5), cond, uncond)                       # 1 is off (Imagen, diffusers)
        g.fuse(sg.guidance.cfg(0.5, convention="ho"), cond, uncond)      # 0 is off
    """

    code = "SG104"
    title = "guidance scale without a convention"
    message = "the guidance {value!r} does not say whether 1 or 0 means 'off'"
    cure = "write sg.guidance.cfg({value!r}) for the convention of diffusers, where 1 is off"


class WrongOperand(ScoregraphError):
    """A node was given a value of a type it does not take. The message names the operand, the types that fit and the
    type that came; every type is explained in docs/graph-ir.md."""

    code = "SG105"
    title = "wrong type of value"
    message = "{operand} must be {expected}, got {got}"
    cure = "pass a value of that type; docs/graph-ir.md lists which node makes which"


class DiscreteInContinuous(ScoregraphError):
    """A continuous sampler moves a latent by a prediction (eps, x0, v, flow …). Tokens and logits are moved by a select
    rule, as in ``step.advance(sg.select.top_k(…), logits)``."""

    code = "SG106"
    title = "discrete value in a continuous step"
    message = "{sampler} moves latents by predictions, got {got}"
    cure = "advance tokens with a rule of sg.select"


class ContinuousInDiscrete(ScoregraphError):
    """A select rule chooses tokens from logits. Latents are moved by a sampler, as in
    ``step.advance(sg.samplers.ddim(), pred)``."""

    code = "SG107"
    title = "continuous value in a discrete step"
    message = "{rule} chooses tokens from logits, got {got}"
    cure = "advance latents with a sampler of sg.samplers"


class SpaceMismatch(ScoregraphError):
    """Latents live in a space: ``vp`` (alpha^2 + sigma^2 = 1), ``kappa`` (alpha = 1) or ``flow`` (alpha = 1 - sigma).
    The numbers of one mean something else in another, so nothing converts between them silently. Use a schedule, a
    sampler and a network of one space."""

    code = "SG108"
    title = "latent spaces differ"
    message = "{operand} lives in the space {expected!r}, got a latent of the space {got!r}"
    cure = "take network, schedule and noise of one space"


class ShapeMismatch(ScoregraphError):
    """Two values that must have one shape do not. Shapes are those of one sample; the batch is never part of them."""

    code = "SG109"
    title = "shapes differ"
    message = "{operand} has the shape [{expected}], got [{got}]"
    cure = "shapes are per sample, without the batch dimension"


class MissingCondition(ScoregraphError):
    """A network needs a value for each of its conditions: ``g.condition(net, level)`` when there is one, by name when
    there are several, and ``g.condition(net, None)`` for the unconditional branch."""

    code = "SG110"
    title = "missing condition"
    message = "network {net!r} needs a value for {missing}"
    cure = "write g.condition({net}, {missing}=…), or g.condition({net}, None) for the unconditional branch"


class NoUnconditionalBranch(ScoregraphError):
    """``None`` asks for the answer without a condition, but the network was not trained to give one: its condition has
    no null value. Guide with a negative condition instead, or use the network without guidance."""

    code = "SG111"
    title = "no unconditional branch"
    message = "network {net!r} has no value that stands for an absent {cond!r}"
    cure = "give {cond!r} a value; negative guidance works with any two values"


class UntypedInput(ScoregraphError):
    """``g.input("name")`` takes its type from the condition it is given to. Anywhere else the type must be said::

    start = g.input("start", net.latent)
    """

    code = "SG112"
    title = "input without a type"
    message = "the type of input {name!r} is not known here"
    cure = "say it: g.input({name!r}, type)"


class UnusedValue(ScoregraphError):
    """A value was made, but nothing that leaves the graph depends on it: often a forgotten ``g.output``, or a branch
    that was meant to go into ``g.fuse``."""

    code = "SG113"
    title = "unused value"
    message = "{value} is made but no output depends on it"
    cure = "use it, make it an output with g.output(name=value), or leave it out"


class LoopWithoutStep(ScoregraphError):
    """A loop whose state never moves is a mistake. Its body ends with one step::

    with g.loop(schedule, x) as step:
        step.advance(sg.samplers.ddim(), g.score(net, step, cond))
    """

    code = "SG114"
    title = "loop without a step"
    message = "the loop {loop!r} ends without {missing}"
    cure = "end its body with {missing}"


class StepAdvancedTwice(ScoregraphError):
    """One pass through a loop is one step of its sampler. Methods with several network calls per step (Heun) are one
    sampler; two samplers are two loops."""

    code = "SG115"
    title = "state set twice"
    message = "value {index} of the loop {loop!r} is already set in this body"
    cure = "set it once; use two loops for two samplers"


class ValueOutsideLoop(ScoregraphError):
    """A value of a loop's body has one number per step, so it means nothing outside that loop, nor inside another one.
    What leaves a loop is ``step.result``; ``g.emit(name, value)`` inside the body records every step."""

    code = "SG116"
    title = "value outside its loop"
    message = "{value} belongs to the body of the loop {loop!r}, which is not open here"
    cure = "use step.result after the loop, or g.emit inside it"


class LoopStillOpen(ScoregraphError):
    """The result of a loop exists once its ``with`` block has ended, and a graph is built outside all loops."""

    code = "SG117"
    title = "loop still open"
    message = "{what} is not there before the loop {loop!r} has ended"
    cure = "dedent the line to after the with block"


class DuplicateName(ScoregraphError):
    """Inputs, outputs, emitted values and loops are found by name, so each name stands for one thing."""

    code = "SG118"
    title = "duplicate name"
    message = "two {kind}s are named {name!r}"
    cure = "give one of them another name"


class NoOutput(ScoregraphError):
    """A graph without an output computes nothing. End it with ``g.output(image=g.decode(net, step.result))``."""

    code = "SG119"
    title = "no output"
    message = "the graph {graph!r} has no output"
    cure = "end it with g.output(name=value)"


class WrongSpec(ScoregraphError):
    """A schedule, a sampler, a guidance rule, a select rule or a prediction stands where another family belongs, as in
    ``step.advance(sg.schedules.karras(…), pred)``."""

    code = "SG120"
    title = "wrong kind of rule"
    message = "expected a {expected}, got {got}"
    cure = "{help}"


class NetworkNameClash(ScoregraphError):
    """Two different networks of one graph have the same name. Texts, plans and profiles find a network by its name."""

    code = "SG121"
    title = "two networks with one name"
    message = "{name!r} names two networks, with the fingerprints {first} and {second}"
    cure = "load one of them under another name"


class ChooseHead(ScoregraphError):
    """A network with several heads (or with none) cannot decode without being told how: ``g.decode(net, x, "rgb")``."""

    code = "SG122"
    title = "which head?"
    message = "network {net!r} has {heads}"
    cure = "name one of its heads: g.decode(net, x, name); without a head, output the latent itself"


class NotANetwork(ScoregraphError):
    """The graph needs a network: what ``sg.models.load`` or ``sg.models.from_module`` returns. A torch module alone
    does not say what it predicts, nor what it calls time."""

    code = "SG123"
    title = "not a network"
    message = "expected a network, got {got}"
    cure = "wrap a torch module with sg.models.from_module(module, …)"


class IllegalAtStage(ScoregraphError):
    """A graph breaks a rule of its stage of compilation. After a build this is a mistake in a hand-written graph; after
    a pass it is a bug in that pass. The rules are the table in scoregraph/graph/verify.py."""

    code = "SG124"
    title = "illegal graph"
    message = "at stage {stage!r}, rule {rule!r}: {complaint}\n{context}"
    cure = "the rules of a stage are listed in docs/graph-ir.md"


class GraphSyntax(ScoregraphError):
    """The text of a graph does not follow its grammar, which docs/graph-ir.md gives with an example."""

    code = "SG125"
    title = "graph text does not parse"
    message = "line {line}, column {column}: {problem}\n  {source}\n  {marker}"
    cure = "docs/graph-ir.md has the grammar and an example"


class GraphFile(ScoregraphError):
    """The JSON form of a graph is damaged, has an unknown field, or comes from another version."""

    code = "SG126"
    title = "graph file not valid"
    message = "{problem}"
    cure = "write it again with graph.to_json(); its schema is printed by json_schema()"


class BadOption(ScoregraphError):
    """Options of schedules, samplers and rules are plain numbers, texts, or tuples of them, so that a graph can be
    printed and saved. Arrays and tensors are not."""

    code = "SG127"
    title = "option is not a plain value"
    message = "{spec} has {option}={value}, a {got}"
    cure = "give a number, a text or a tuple of them: float(x), x.item(), tuple(x)"


class IncompleteNetwork(ScoregraphError):
    """A network that reads a latent must state its prediction (eps, x0, v …); one that reads tokens answers logits and
    has none, and neither has an energy, which reads a latent."""

    code = "SG128"
    title = "network not described"
    message = "network {net!r} reads {latent} and states the prediction {prediction}"
    cure = "state prediction= for a network on latents, and none for an energy or a network on tokens"


class ForeignStep(ScoregraphError):
    """A step or an input that one builder made was given to another builder."""

    code = "SG129"
    title = "from another graph"
    message = "{what} was made by another graph builder"
    cure = "use one GraphBuilder for all of one graph"


class ReservedName(ScoregraphError):
    """An input is given to ``plan.run`` by its name, so it cannot have the name of one of run's own arguments."""

    code = "SG130"
    title = "reserved name"
    message = "an input cannot be named {name!r}, which is an argument of plan.run"
    cure = "give it another name, for example {name}_value"


class NoLearnedVariance(ScoregraphError):
    """A sampler with a learned variance reads, besides the prediction, what the network says of its variance. Only
    networks that were trained so answer it, and say it: ``sg.models.from_module(module, …, variance=True)``."""

    code = "SG131"
    title = "no learned variance"
    message = "{sampler} reads a learned variance, and {net} says none"
    cure = 'take a fixed variance, such as sg.samplers.ddpm(variance="fixed_small")'


class StepNotTaken(ScoregraphError):
    """What a step makes can be changed, or asked for its probability, once the step is there::

    step.advance(sg.samplers.ddim(eta=1.0), pred)
    step.inpaint(known, mask, noise)
    g.emit("log_prob", step.log_prob)
    """

    code = "SG132"
    title = "no step yet"
    message = "the state of the loop {loop!r} has not been moved yet, {what} comes after that"
    cure = "write step.advance(sampler, pred) above this line"


class DeterministicStep(ScoregraphError):
    """Only a step that draws noise has a log-probability, and a mean that a gradient (``form="mean"``) could move. The
    step of an ordinary differential equation goes to one point with certainty."""

    code = "SG133"
    title = "step without noise"
    message = "{sampler} draws no noise: its steps have no log-probability, and no mean that a gradient could move"
    cure = "take a stochastic sampler, such as sg.samplers.ddim(eta=1.0)"
