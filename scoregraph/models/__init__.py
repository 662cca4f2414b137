"""Networks: the built-in ones by name, yours through ``from_module``, and the capture of both as tensor programs.

Importing this package does not import torch; the first network does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scoregraph.models.registry import find, load, names

if TYPE_CHECKING:
    from scoregraph.models.adapter import from_module
    from scoregraph.models.capture import TensorProgram
    from scoregraph.models.denoisers import from_diffusers
    from scoregraph.models.energies import EnergyNetwork, energy
    from scoregraph.models.functions import Function, function
    from scoregraph.models.network import Network
    from scoregraph.models.onnx import from_onnx, onnx_module
    from scoregraph.models.perturb import without_layers
    from scoregraph.models.pretrained import from_pretrained

__all__ = [
    "EnergyNetwork",
    "Function",
    "Network",
    "TensorProgram",
    "energy",
    "find",
    "from_diffusers",
    "from_module",
    "from_onnx",
    "from_pretrained",
    "function",
    "load",
    "names",
    "onnx_module",
    "without_layers",
]

_LAZY = {
    "EnergyNetwork": "energies",
    "Function": "functions",
    "Network": "network",
    "TensorProgram": "capture",
    "energy": "energies",
    "from_diffusers": "denoisers",
    "from_module": "adapter",
    "from_onnx": "onnx",
    "from_pretrained": "pretrained",
    "function": "functions",
    "onnx_module": "onnx",
    "without_layers": "perturb",
}


def __getattr__(name: str) -> object:
    """The names that need torch, imported when they are first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
