"""The Triton backend: Hopper first, correct everywhere Triton runs, and under its interpreter without a card."""

from scoregraph.backends.triton.program import TritonBackend, TritonProgram

__all__ = ["TritonBackend", "TritonProgram", "backend"]


def backend(threads: int | None = None) -> TritonBackend:
    """The backend for ``device="triton"``; ``threads`` is for backends that run on a CPU."""
    return TritonBackend()
