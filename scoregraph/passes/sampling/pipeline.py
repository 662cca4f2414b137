"""The passes over a sampling graph, in order."""

from __future__ import annotations

from scoregraph.graph.graph import Graph
from scoregraph.passes.base import Pass
from scoregraph.passes.sampling.batch_branches import BatchBranches
from scoregraph.passes.sampling.fold_guidance import FoldGuidance
from scoregraph.passes.sampling.fold_tables import FoldTables

SAMPLING_PASSES: tuple[Pass[Graph], ...] = (
    # First, since everything later works on tables: it needs the networks behind a fusion, which are still in sight.
    FoldTables(),
    # Before guidance is folded: a fusion says which scores belong together, a step's operands no longer do.
    BatchBranches(),
    FoldGuidance(),
)
