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
