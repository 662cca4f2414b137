"""What multistep samplers remember: the estimates of earlier rows, in a ring of registers.

A new estimate takes the place of the oldest one, so nothing is moved: a row writes one register, and the rows only
differ in which column of the table belongs to which age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoregraph.graph.samplers.base import Vector, Walk


def slots(name: str, count: int) -> tuple[str, ...]:
    """The registers of a ring of ``count`` estimates."""
    return (name,) if count == 1 else tuple(f"{name}_{k}" for k in range(count))


@dataclass(frozen=True)
class History:
    """The estimates that rows 0, 1, … hand on to later ones.

    Attributes:
        ring: the registers, as ``slots`` names them.
        reads: how many of the estimates before its own each row reads; at most the size of the ring.
    """

    ring: tuple[str, ...]
    reads: Sequence[int]

    def past(self, walk: Walk, row: int, age: int) -> Vector:
        """The estimate of row ``row - age``, for age 1, 2, …"""
        assert 1 <= age <= len(self.ring)
        return walk[self.ring[(row - age) % len(self.ring)]]

    def kept(self, walk: Walk, row: int, new: Vector) -> dict[str, Vector]:
        """What the ring holds after ``row``: its estimate ``new`` and older ones, as far as later rows read them."""
        held: dict[str, Vector] = {}
        for source in range(max(0, row + 1 - len(self.ring)), row + 1):
            if any(later - source <= self.reads[later] for later in range(row + 1, len(self.reads))):
                held[self.ring[source % len(self.ring)]] = (
                    new if source == row else walk[self.ring[source % len(self.ring)]]
                )
        return held
