"""From what ``torch.export`` records to operators without side effects, with as little tracing as possible.

``run_decompositions`` traces the whole program a second time, which takes as long as the export. Most networks do not
need it: nothing is written in place, and every operator is one that the compiler knows. It is run for the others, and
writes rare operators (activations, statistics) in terms of common ones on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten

# Composite operators that passes and lowering read as they are.
_KNOWN = {
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.batch_norm.default,
    aten.cdist.default,
    aten.chunk.default,
    aten.concat.default,
    aten.contiguous.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.dropout.default,
    aten.einsum.default,
    aten.embedding.default,
    aten.flatten.using_ints,
    aten.group_norm.default,
    aten.layer_norm.default,
    aten.linear.default,
    aten.matmul.default,
    aten.max_pool2d.default,
    aten.outer.default,
    aten.pad.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.repeat_interleave.self_int,
    aten.reshape.default,
    aten.rms_norm.default,
    aten.scaled_dot_product_attention.default,
    aten.silu.default,
    aten.softmax.int,
    aten.square.default,
    aten.std.correction,
    aten.std.dim,
    aten.sym_size.int,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.type_as.default,
    aten.unflatten.int,
    aten.upsample_bicubic2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
    aten.var.correction,
    aten.var.dim,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.Scalar,
}

_RARE = (
    aten.addcdiv,
    aten.addcmul,
    aten.celu,
    aten.elu,
    aten.glu,
    aten.hardsigmoid,
    aten.hardswish,
    aten.hardtanh,
    aten.leaky_relu,
    aten.lerp,
    aten.linalg_vector_norm,
    aten.log_sigmoid_forward,
    aten.masked_fill,
    aten.mish,
    aten.norm,
    aten.relu6,
    aten.selu,
    aten.softplus,
    aten.threshold,
    aten.tril,
    aten.triu,
)
"""What becomes arithmetic, reductions and choices by torch's own decompositions."""


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    return dict(get_decompositions(_RARE))


def functionalized(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program itself if all its operators are known and pure, else decomposed."""
    plain = all(_is_plain(node.target) for node in program.graph.nodes if node.op == "call_function")
    return program if plain else program.run_decompositions(_decompositions())


def _is_plain(target: Any) -> bool:
    """Whether an operator writes nothing and is either known or no composition of others."""
    if not isinstance(target, torch._ops.OpOverload):
        return True  # arithmetic of sizes, and parts of tuples
    if target._schema.is_mutable or target in _decompositions():
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return target in _KNOWN or not composite
