"""The reference backend: plain, readable torch in float64 or float32. It is the oracle of every test, not a fast path.

``program`` runs plans, call by call, as docs/plan-format.md states them; ``eager`` interprets a sampling graph that no
pass has touched, with the formulas of the papers in ``textbook``. The two share no step of the way.
"""

from scoregraph.backends.reference.program import Reference

__all__ = ["Reference", "backend"]


def backend(threads: int | None = None) -> Reference:
    """The backend for ``device="reference"``, in float64; ``threads`` is for backends of our own kernels."""
    return Reference("float64")
