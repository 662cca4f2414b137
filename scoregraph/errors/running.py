"""Mistakes when a plan runs (SG6xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


class MissingInput(ScoregraphError):
    """A graph declares its inputs with ``g.input(name)``; a run gives each a value: ``plan.run(difficulty=60)``."""

    code = "SG601"
    title = "missing input"
    message = "the plan needs a value for {name!r}"
    cure = "pass plan.run({name}=…), or --set {name}=… on the command line; the plan takes {known}"


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


class LoopUnfinished(ScoregraphError):
    """A loop that chooses its own steps (an adaptive solver, a while loop) stops after its most rounds at the latest.
    If some sample is not done by then, its values are those of a time in the middle of the trajectory, so none are
    returned. Too tight a tolerance, or a network whose answers jump from step to step, needs the most rounds."""

    code = "SG610"
    title = "loop not finished"
    message = "the loop {loop} was not done after {rounds} rounds: {unfinished} of {samples} samples are unfinished"
    cure = "allow more rounds, or loosen the solver's tolerances"
