"""The passes over a draft plan, in order."""

from __future__ import annotations

from scoregraph.passes.base import Pass
from scoregraph.passes.plan.forward_copies import ForwardCopies
from scoregraph.passes.plan.hoist_invariants import HoistInvariants
from scoregraph.passes.plan.pack_weights import PackWeights
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.plan.draft import Draft

LAYOUTS = {"cpu": {"linear.w": "n16", "conv2d.w": "oc8"}}
"""The weight layouts that a device's kernels read; other devices read row-major weights."""


def plan_passes(device: str) -> list[Pass[Draft]]:
    """The pipeline for a device, without quantization."""
    return [*call_passes(), *memory_passes(device)]


def call_passes() -> list[Pass[Draft]]:
    """What rewrites calls; quantization follows it."""
    return [
        ForwardCopies(),
        # Before memory is planned, since a hoisted call's result lives through the loop.
        HoistInvariants(),
    ]


def memory_passes(device: str) -> list[Pass[Draft]]:
    """What lays constants and buffers out."""
    return [
        PackWeights(LAYOUTS.get(device, {})),
        # Last: nothing that changes when a buffer is live may follow.
        PlanMemory(),
    ]
