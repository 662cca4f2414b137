"""The built-in networks by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from scoregraph.errors import UnknownName, UnknownNetwork, here

if TYPE_CHECKING:
    from scoregraph.graph.values import NetRef
    from scoregraph.models.network import Network

_BUILT_IN = {
    "terrain": "scoregraph.models.terrain",
    "toy": "scoregraph.models.toy",
}
"""The module of each network; its ``load()`` makes it."""


def names() -> tuple[str, ...]:
    """The names that ``load`` knows, sorted."""
    return tuple(sorted(_BUILT_IN))


def find(ref: NetRef) -> Network:
    """The network that a graph read from a file names; raises ``UnknownNetwork`` when its weights are not here."""
    if ref.name in _BUILT_IN:
        network = load(ref.name)
        if network.ref == ref:
            return network
    raise UnknownNetwork(name=ref.name, fingerprint=ref.fingerprint, where=here())


def load(name: str) -> Network:
    """The built-in network of that name, with its weights.

    Raises ``UnknownName``, and ``MissingPackage`` where the weights come with a package that is not installed.
    """
    if name not in _BUILT_IN:
        raise UnknownName(kind="network", name=name, known=_BUILT_IN, where=here())
    return import_module(_BUILT_IN[name]).load()
