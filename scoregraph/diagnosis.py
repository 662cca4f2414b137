"""What a machine offers to scoregraph, for ``scoregraph doctor`` and for the head of benchmark results."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from scoregraph import cache
from scoregraph.errors import ScoregraphError

OPTIONAL = ("torch", "triton", "onnx", "onnxruntime", "matplotlib", "diffusers", "adaptive-terrain-diffusion")


def processor() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def examine() -> dict[str, str]:
    """Each finding as one line of text."""
    found = {
        "scoregraph": _version("scoregraph") or "a source checkout",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
    }
    found |= _native()
    for name in OPTIONAL:
        found[name] = _version(name) or "not installed"
    found["gpu"] = _gpu()
    kept = cache.entries()
    found["plan cache"] = f"{cache.root()}: {len(kept)} plans, {sum(e.nbytes for e in kept) / 1e6:.1f} MB"
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, str]:
    from scoregraph.backends import cpu

    try:
        return cpu.describe()
    except ScoregraphError as error:  # the extension is missing, or the environment asks for what is not here
        return {"instruction set": f"unknown: {error}"}


def _gpu() -> str:
    if find_spec("torch") is None:
        return "unknown without torch"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
