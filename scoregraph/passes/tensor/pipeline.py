"""The tensor passes in order, with the reason for every place."""

from __future__ import annotations

from torch.fx import GraphModule

from scoregraph.passes.base import Fuel, Pass, StageReport, run_passes
from scoregraph.passes.tensor.eliminate_dead import EliminateDead
from scoregraph.passes.tensor.expand_operators import ExpandOperators
from scoregraph.passes.tensor.fold_constants import FoldConstants
from scoregraph.passes.tensor.fuse_activation import FuseActivation
from scoregraph.passes.tensor.fuse_attention import FuseAttention
from scoregraph.passes.tensor.fuse_borders import FuseBorders
from scoregraph.passes.tensor.fuse_emb import FuseEmb
from scoregraph.passes.tensor.fuse_gate import FuseGate
from scoregraph.passes.tensor.fuse_gelu import FuseGelu
from scoregraph.passes.tensor.fuse_modulation import FuseModulation
from scoregraph.passes.tensor.fuse_pointwise import FusePointwise
from scoregraph.passes.tensor.fuse_residual import FuseResidual
from scoregraph.passes.tensor.fuse_rms import FuseRms
from scoregraph.passes.tensor.fuse_silu import FuseSilu
from scoregraph.passes.tensor.listing import listing
from scoregraph.passes.tensor.merge_duplicates import MergeDuplicates
from scoregraph.passes.tensor.normalize_expressions import NormalizeExpressions
from scoregraph.passes.tensor.normalize_operators import NormalizeOperators
from scoregraph.passes.tensor.normalize_products import NormalizeProducts
from scoregraph.passes.tensor.simplify_identities import SimplifyIdentities

PIPELINE: tuple[Pass[GraphModule], ...] = (
    # One form of everything first. None of this costs fuel: it is what lowering reads.
    EliminateDead(),  # first: an assertion about a value is a use of it, and uses decide what may be fused
    SimplifyIdentities(),  # x / 1.0 between a convolution and its residual would hide the one from the other
    ExpandOperators(),  # into ATen operators, so before those become ours
    NormalizeProducts(),  # makes expressions out of baddbmm, so before
    NormalizeExpressions(),
    NormalizeOperators(),
    FoldConstants(),  # after normalising, which reshapes weights
    MergeDuplicates(),  # after folding, so that equal tables are equal buffers; before fusing, which counts users
    FuseSilu(),  # before the activations it makes
    FuseGelu(),
    FuseRms(),  # before the modulation of what it makes
    FuseAttention(),  # before expressions swallow its scales and masks
    FuseBorders(),
    # The epilogues, inside out, as the kernels compute them: residual + gate * act(norm or product + emb).
    FuseModulation(),  # scale and shift come before a norm's activation
    FuseEmb(),  # so does the embedding before a convolution's
    FuseActivation(),
    FuseGate(),
    FuseResidual(),
    FusePointwise(),  # last: it takes what no kernel's epilogue wanted
    SimplifyIdentities(),  # attention has turned its operands back and forth
    FoldConstants(),  # a gate or shift that is a parameter has been given its row dimension
)


def run(module: GraphModule, fuel: Fuel | None = None) -> tuple[GraphModule, tuple[StageReport[GraphModule], ...]]:
    """Normalise and fuse a captured program. The argument stays as it was; weights are shared, not copied.

    Args:
        module: ATen operators, as ``models.capture`` makes it, ``meta["val"]`` on every node.
        fuel: what is left of the compilation's fuel; None is unlimited.

    Returns:
        The program that lowering reads, and one report per pass with its text.
    """
    return run_passes(PIPELINE, module, show=listing, fuel=fuel)
