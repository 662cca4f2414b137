"""The samplers of ``scoregraph.graph.samplers``, and the way in from diffusers and back: ``sg.samplers``.

    samplers.dpmpp_2m()                              one of ours
    samplers.from_diffusers(scheduler, 20)           a diffusers scheduler as a table
    samplers.as_diffusers(samplers.dpmpp_2m(), …)    one of ours for a diffusers pipeline

The two that touch torch are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from scoregraph.graph import samplers as _specs
from scoregraph.graph.samplers import *  # noqa: F403  # every sampler, by the names of its own list

if TYPE_CHECKING:
    from scoregraph.interop.importer import from_diffusers
    from scoregraph.interop.scheduler import as_diffusers

_HOME = {
    "as_diffusers": "scoregraph.interop.scheduler",
    "from_diffusers": "scoregraph.interop.importer",
}

__all__ = ["as_diffusers", "from_diffusers"]
__all__ += _specs.__all__


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scoregraph.samplers' has no attribute {name!r}")
    found = getattr(import_module(_HOME[name]), name)
    globals()[name] = found  # so that the next use is a plain look-up
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
