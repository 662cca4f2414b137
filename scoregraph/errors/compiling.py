"""What compiling refuses: passes, lowering, backends (SG4xx)."""

from __future__ import annotations

from scoregraph.errors.base import ScoregraphError


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
    """A backend has no kernel for one of the plan's calls. The message names the call and the layer it came from. The
    triton backend covers a part of docs/plan-format.md; cpu and reference cover all of it."""

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


class BadRecipe(ScoregraphError):
    """A quantization recipe is a name, a colon and options: ``w8a8:groups=4,attention=i8``. ``block`` is 0 or a
    multiple of 32, ``groups`` is ``dynamic`` or a number of timestep groups, ``attention`` is f32, bf16 or i8,
    ``conv`` and ``clip`` are yes or no, ``keep`` holds patterns of layers that stay in float32."""

    code = "SG411"
    title = "invalid recipe"
    message = "{option} is {value!r}, expected {expected}"
    cure = "write for example 'w8a8', 'w8a8:groups=4,attention=i8' or 'w4a8:block=64' (docs/quantization.md)"


class NothingToQuantize(ScoregraphError):
    """A recipe found no product that may compute in its formats: all of them have one row per sample, are the first or
    the last layer, are small, or are kept by the recipe's own patterns. Compiling without a recipe gives the same plan,
    so the recipe is a mistake."""

    code = "SG412"
    title = "nothing to quantize"
    message = "{recipe} leaves all {products} products of {name!r} in float32: {reasons}"
    cure = "compile without a recipe, or state one that reaches them (docs/quantization.md)"


class CannotCalibrate(ScoregraphError):
    """Static grids (``groups=n``) are found by running the graph and looking at the ranges of what its layers read. The
    steps must be rows of a schedule, so that a group of them has a grid: a sampler that chooses its own steps has
    none, and a network by itself has no steps. An input without bounds has to be given."""

    code = "SG413"
    title = "cannot calibrate"
    message = "{recipe} needs the ranges of {name!r}: {problem}"
    cure = "{help}"
