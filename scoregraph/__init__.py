"""scoregraph: a compiler for sampling graphs.

    import scoregraph as sg

    net = sg.models.load("terrain")
    g = sg.GraphBuilder("terrain")
    …
    plan = sg.compile(g)
    plan.run(difficulty=60, seed=7)

Public names are imported when they are first used: running a saved plan (``sg.load``) imports neither torch nor the
compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scoregraph import models, pipelines, samplers
    from scoregraph.compiler import compile
    from scoregraph.errors import ScoregraphError
    from scoregraph.graph import corrections, energies, guidance, schedules, select
    from scoregraph.graph import prediction as predictions
    from scoregraph.graph.builder import GraphBuilder
    from scoregraph.graph.graph import Graph
    from scoregraph.graph.text import parse
    from scoregraph.likelihoods import likelihood
    from scoregraph.runtime import CompiledPlan, load

_HOME = {
    "CompiledPlan": "scoregraph.runtime:CompiledPlan",
    "Graph": "scoregraph.graph.graph:Graph",
    "GraphBuilder": "scoregraph.graph.builder:GraphBuilder",
    "ScoregraphError": "scoregraph.errors:ScoregraphError",
    "compile": "scoregraph.compiler:compile",
    "corrections": "scoregraph.graph.corrections",
    "energies": "scoregraph.graph.energies",
    "guidance": "scoregraph.graph.guidance",
    "likelihood": "scoregraph.likelihoods:likelihood",
    "load": "scoregraph.runtime:load",
    "models": "scoregraph.models",
    "parse": "scoregraph.graph.text:parse",
    "pipelines": "scoregraph.pipelines",
    "predictions": "scoregraph.graph.prediction",
    "samplers": "scoregraph.samplers",
    "schedules": "scoregraph.graph.schedules",
    "select": "scoregraph.graph.select",
}

__all__ = [
    "CompiledPlan",
    "Graph",
    "GraphBuilder",
    "ScoregraphError",
    "compile",
    "corrections",
    "energies",
    "guidance",
    "likelihood",
    "load",
    "models",
    "parse",
    "pipelines",
    "predictions",
    "samplers",
    "schedules",
    "select",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scoregraph' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    found = import_module(module)
    found = getattr(found, attribute) if attribute else found
    globals()[name] = found  # so that the next use is a plain look-up
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
