"""The passes over a sampling graph, in order."""

from __future__ import annotations

from scoregraph.graph.graph import Graph
from scoregraph.passes.base import Pass
from scoregraph.passes.sampling.allocate_registers import AllocateRegisters
from scoregraph.passes.sampling.batch_branches import BatchBranches
from scoregraph.passes.sampling.drop_dead_branches import DropDeadBranches
from scoregraph.passes.sampling.fold_step import FoldStep
from scoregraph.passes.sampling.fold_tables import FoldTables

SAMPLING_PASSES: tuple[Pass[Graph], ...] = (
    # First, since everything later works on tables: it needs the networks behind a fusion, which are still in sight.
    FoldTables(),
    # Guidance, corrections and what is emitted go into the step; from here on a step reads plain answers.
    FoldStep(),
    # Behind the folding, where all answers of a step stand side by side however deeply they were nested.
    BatchBranches(),
    # Before rows are sorted into variants, of which a register's liveness does not depend.
    AllocateRegisters(),
    # Last: which answers a row reads is known when nothing changes their order any more.
    DropDeadBranches(),
)
