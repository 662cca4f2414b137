"""The passes over a draft plan, in order."""

from __future__ import annotations

from scoregraph.passes.base import Pass
from scoregraph.passes.plan.batch_rows import BatchRows
from scoregraph.passes.plan.conditions_first import ConditionsFirst
from scoregraph.passes.plan.drop_unread import DropUnread
from scoregraph.passes.plan.forward_copies import ForwardCopies
from scoregraph.passes.plan.hoist_invariants import HoistInvariants
from scoregraph.passes.plan.merge_products import MergeProducts
from scoregraph.passes.plan.pack_weights import PackWeights
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.passes.plan.split_residuals import SplitResiduals
from scoregraph.passes.plan.tabulate_time import Evaluator, TabulateTime
from scoregraph.passes.plan.winograd import MinimalFiltering
from scoregraph.plan.draft import Draft

LAYOUTS = {"cpu": {"linear.w": "n16", "conv2d.w": "oc8"}}
"""The weight layouts that a device's kernels read; other devices read row-major weights."""


def plan_passes(device: str) -> list[Pass[Draft]]:
    """The pipeline for a device, without quantization and what is evaluated while compiling."""
    return [*call_passes(None), *product_passes(device), *memory_passes(device)]


def call_passes(evaluate: Evaluator | None) -> list[Pass[Draft]]:
    """What rewrites calls; quantization follows it.

    ``evaluate`` runs a draft in float64. None leaves out the passes whose plans serve one list of times only.
    """
    return [
        ForwardCopies(),
        # The next six take out of loops what is the same in every step, or known beforehand for all of them.
        SplitResiduals(),
        # Brings together what the next one merges.
        ConditionsFirst(),
        # Before the calls it merges are scattered over what is tabulated, hoisted and batched.
        MergeProducts(),
        *([TabulateTime(evaluate)] if evaluate is not None else []),
        HoistInvariants(),
        # Behind the hoisting: what it reads of the input is ready before the loop.
        *([BatchRows()] if evaluate is not None else []),
        DropUnread(),
    ]


def product_passes(device: str) -> list[Pass[Draft]]:
    """What brings products that stay in float32 into the form in which a device computes them fastest."""
    return [MinimalFiltering()] if device == "cpu" else []


def memory_passes(device: str) -> list[Pass[Draft]]:
    """What lays constants and buffers out."""
    return [
        # Quantization leaves the weights in float32 behind.
        DropUnread(),
        PackWeights(LAYOUTS.get(device, {})),
        # Last: nothing that changes when a buffer is live may follow.
        PlanMemory(),
    ]
