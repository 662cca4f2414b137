"""Backends: what makes a plan runnable on a device. Each is loaded when a plan first asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from scoregraph.errors import UnknownName

if TYPE_CHECKING:
    from scoregraph.backends.protocol import Backend

NAMES = ("cpu", "reference", "triton")
"""The devices a graph can be compiled for; each names the subpackage that implements it."""


def load(name: str, threads: int | None = None) -> Backend:
    """The backend of that name.

    Args:
        name: one of ``NAMES``.
        threads: of a backend that runs on a CPU; None takes all cores.

    Raises:
        UnknownName: no backend has that name.
    """
    if name not in NAMES:
        raise UnknownName(kind="device", name=name, known=NAMES)
    return import_module(f"scoregraph.backends.{name}").backend(threads)
