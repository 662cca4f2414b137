"""Mistakes with samplers, schedules, guidance and tables (SG2xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


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

    The schedules of discrete beta (``linear``, ``scaled_linear``, ``cosine``, …) know training timesteps; so do
    ``vp_sde`` and ``custom`` points that were given some::

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


class CannotImport(ScoregraphError):
    """A scheduler of another library cannot become a table.

    ``samplers.from_diffusers`` reads schedulers whose step is linear in the sample, the network's answer and the noise.
    A clamp (``clip_sample``, ``thresholding``), a step size taken from the data, a second input (``mask``) or tokens
    instead of a sample are not. The message names what it was; if another setting would do, the cure says it::

        DDPMScheduler()                                      # refused: clip_sample=True
        DDPMScheduler(clip_sample=False)                     # accepted
    """

    code = "SG209"
    title = "scheduler cannot be imported"
    message = "{scheduler} cannot be imported: {reason}"
    cure = "{cure}"


class ImportedElsewhere(ScoregraphError):
    """A sampler that was read from another library's scheduler is used where its numbers do not hold.

    Such a sampler is a table of numbers. It walks the schedule that came with it, in the space of its state, with the
    network that the scheduler assumed::

        imported = sg.samplers.from_diffusers(scheduler, 20)
        with g.loop(imported.schedule, g.noise(net)) as step:       # not schedules.karras(20)
            step.advance(imported.sampler, g.score(net, step))
    """

    code = "SG210"
    title = "imported sampler used elsewhere"
    message = "this imported sampler is for {has}, not for {got}"
    cure = "loop over the schedule that was imported with it, with the network it was configured for; or import it anew"


class WrongDirection(ScoregraphError):
    """A sampler that renews noise walks from noise to data; an ascending schedule walks the other way.

    Noise is added on the way down so that a state keeps the spread of its noise level. On the way up, for a likelihood
    or an inversion, the trajectory must be the one that leads down again, and that of an ODE does::

        samplers.ddim(), samplers.euler(), samplers.heun(), samplers.flow_heun()    on schedules.ascend(…)
    """

    code = "SG211"
    title = "sampler cannot walk upwards"
    message = "{sampler} adds noise on its way down, and {schedule} goes up"
    cure = "use a deterministic sampler (ddim, euler, heun, flow_euler, flow_heun) on ascending schedules"
