"""Operators that compute: each against torch in float64 at batches 1, 2 and 3, and refused where no kernel is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensor_plans import aten, check, fused, lower, program

from scoregraph.errors import UncoveredOperator
from scoregraph.passes.tensor import fused as f

torch.manual_seed(0)


def linear(**options):
    return lambda x, w, b: fused(f.linear, x, w, bias=b, **options)


W, B = torch.randn(5, 4), torch.randn(5)
KERNEL, CHANNELS = torch.randn(6, 4, 3, 3), torch.randn(6)
SCALE = torch.randn(4)

CASES = {
    "linear": (linear(), [(4,)], [W, B], ["linear"]),
    "linear, activation": (linear(act="gelu_erf"), [(3, 4)], [W, B], ["linear"]),
    "linear of a permutation": (
        lambda x, w, b: fused(f.linear, aten.permute.default(x, [0, 2, 1]), w, bias=b),
        [(4, 3)],
        [W, B],
        ["copy", "linear"],
    ),
    "linear of part of a row": (
        lambda x, w: fused(f.linear, aten.slice.Tensor(x, 2, 2, 6), w),
        [(3, 7)],
        [W],
        ["linear"],
    ),
    "linear, residual and gate": (
        lambda x, r, g, w: fused(f.linear, x, w, residual=r, gate=g, act="silu"),
        [(3, 4), (3, 5), (5,)],
        [W],
        ["linear"],
    ),
    "linear, gate from a chunk": (
        lambda x, m, w: fused(f.linear, x, w, gate=aten.chunk.default(m, 2, 1)[1]),
        [(3, 4), (10,)],
        [W],
        ["linear"],
    ),
    "conv2d": (
        lambda x, w, b: fused(f.conv2d, x, w, bias=b, padding=(1, 1, 1, 1)),
        [(4, 5, 6)],
        [KERNEL, CHANNELS],
        ["conv2d"],
    ),
    "conv2d, stride, residual, emb": (
        lambda x, r, e, w: fused(f.conv2d, x, w, residual=r, emb=e, stride=(2, 1), padding=(1, 0, 1, 0), act="silu"),
        [(4, 6, 6), (6, 3, 4), (6,)],
        [KERNEL],
        ["conv2d"],
    ),
    "group_norm": (
        lambda x, w, b: fused(f.group_norm, x, weight=w, bias=b, groups=2, eps=1e-3, act="silu"),
        [(4, 3, 3)],
        [SCALE, SCALE],
        ["group_norm"],
    ),
    "group_norm, modulated by chunks": (
        lambda x, m: fused(
            f.group_norm, x, scale=aten.chunk.default(m, 2, 1)[0], shift=aten.chunk.default(m, 2, 1)[1], groups=2
        ),
        [(4, 6), (8,)],
        [],
        ["group_norm"],
    ),
    "layer_norm": (lambda x, w: fused(f.layer_norm, x, weight=w), [(3, 4)], [SCALE], ["layer_norm"]),
    "layer_norm, modulated": (
        lambda x, s, t: fused(f.layer_norm, x, scale=s, shift=t, eps=1e-4),
        [(3, 4), (4,), (4,)],
        [],
        ["layer_norm"],
    ),
    "layer_norm of a permutation": (
        lambda x: fused(f.layer_norm, aten.permute.default(x, [0, 2, 1])),
        [(4, 3)],
        [],
        ["copy", "layer_norm"],
    ),
    "rms_norm": (lambda x, w: fused(f.rms_norm, x, w, eps=1e-5), [(3, 4)], [SCALE], ["rms_norm"]),
    "attention": (
        lambda q, k, v: fused(f.attention, q, k, v, scale=0.5),
        [(2, 3, 4), (2, 5, 4), (2, 5, 4)],
        [],
        ["attention", "copy"],
    ),
    "attention, heads split and merged": (
        lambda x: aten.reshape.default(
            aten.permute.default(
                fused(
                    f.attention,
                    *[
                        aten.permute.default(aten.view.default(part, [aten.sym_size.int(x, 0), 3, 2, 4]), [0, 2, 1, 3])
                        for part in (aten.chunk.default(x, 3, 2)[i] for i in range(3))
                    ],
                    scale=0.5,
                ),
                [0, 2, 1, 3],
            ),
            [aten.sym_size.int(x, 0), 3, 8],
        ),
        [(3, 24)],
        [],
        ["attention"],
    ),
    "attention, mask broadcast": (
        lambda q, k, v, m: fused(f.attention, q, k, v, mask=m, scale=0.5),
        [(2, 3, 4), (2, 5, 4), (2, 5, 4), (1, 1, 5)],
        [],
        ["attention", "copy"],
    ),
    "attention, constant mask": (
        lambda q, m: fused(f.attention, q, q, q, mask=m, scale=0.5),
        [(2, 3, 4)],
        [torch.tensor([[0.0, -9.0, -9.0], [0.0, 0.0, -9.0], [0.0, 0.0, 0.0]])],
        ["copy", "attention", "copy"],
    ),
    "pointwise, broadcast": (
        lambda x, y, w: fused(f.pointwise, (("mul", 0, 1), ("const", 2.0), ("add", 3, 4), ("max", 5, 2)), x, y, w),
        [(3, 4), (1, 4)],
        [torch.randn(3, 1)],
        ["copy", "pointwise"],
    ),
    "bmm": (lambda x, y: aten.bmm.default(x, y), [(3, 4), (4, 5)], [], ["matmul"]),
    "matmul of transposed heads": (
        lambda x, y: aten.matmul.default(x, aten.transpose.int(y, 2, 3)),
        [(2, 3, 4), (2, 5, 4)],
        [],
        ["matmul"],
    ),
    "matmul, one operand for all": (
        lambda x, w: aten.matmul.default(x, w),
        [(2, 3, 4)],
        [torch.randn(4, 5)],
        ["copy", "matmul"],
    ),
    "softmax": (lambda x: aten._softmax.default(x, -1, False), [(3, 4)], [], ["softmax"]),
    "softmax of a window": (
        lambda x: aten.softmax.int(aten.slice.Tensor(x, 2, 1, 4), 2),
        [(3, 5)],
        [],
        ["copy", "softmax"],
    ),
    "avg_pool2d": (lambda x: aten.avg_pool2d.default(x, [2, 3]), [(2, 4, 6)], [], ["avg_pool2d"]),
    "avg_pool2d, stride": (lambda x: aten.avg_pool2d.default(x, [3, 3], [1, 2]), [(2, 5, 7)], [], ["avg_pool2d"]),
    "max_pool2d": (lambda x: aten.max_pool2d.default(x, [2, 2]), [(2, 4, 6)], [], ["max_pool2d"]),
    "max_pool2d with indices": (
        lambda x: aten.max_pool2d_with_indices.default(x, [2, 2])[0],
        [(2, 4, 6)],
        [],
        ["max_pool2d"],
    ),
    "upsample_nearest2d": (
        lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 3.0]),
        [(2, 2, 3)],
        [],
        ["upsample_nearest"],
    ),
    "upsample_nearest2d to a size": (
        lambda x: aten.upsample_nearest2d.default(x, [4, 9]),
        [(2, 2, 3)],
        [],
        ["upsample_nearest"],
    ),
    "mean": (lambda x: aten.mean.dim(x, [1, 2], True), [(3, 4, 2)], [], ["copy", "reduce"]),
    "sum of the last": (lambda x: aten.sum.dim_IntList(x, [-1]), [(3, 4)], [], ["reduce"]),
    "sum in the middle": (lambda x: aten.sum.dim_IntList(x, [1]), [(3, 4)], [], ["copy", "reduce"]),
    "amin": (lambda x: aten.amin.default(x, [1]), [(4,)], [], ["reduce"]),
    "amax, kept": (lambda x: aten.amax.default(x, [2], True), [(3, 4)], [], ["reduce"]),
    "full": (lambda x: aten.full.default([aten.sym_size.int(x, 0), 3], 2.5), [(4,)], [], ["fill"]),
    "zeros": (lambda x: aten.zeros.default([aten.sym_size.int(x, 0), 3]), [(4,)], [], ["fill"]),
    "ones": (lambda x: aten.ones.default([aten.sym_size.int(x, 0), 3]), [(4,)], [], ["fill"]),
    "a cast that changes nothing": (lambda x: aten._to_copy.default(x, dtype=torch.float64), [(4,)], [], []),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_its_kernel(case):
    function, shapes, weights, expected = CASES[case]
    assert check(function, *shapes, weights=weights) == expected


def test_a_product_with_computed_weights():
    """The weights may themselves be a window of a result; here of a constant, seen transposed."""
    ops = check(lambda x, w: fused(f.linear, x, aten.permute.default(w, [1, 0])), (4,), weights=[torch.randn(4, 5)])
    assert ops == ["copy", "copy", "linear"]


def test_embedding_and_integers():
    table = torch.randn(7, 3)
    assert check(lambda i, w: aten.embedding.default(w, i), (2,), weights=[table], integers=7) == ["embedding"]
    ops = check(lambda i: aten._to_copy.default(i, dtype=torch.float64), (2,), integers=7)
    assert ops == ["copy", "pointwise"]


REFUSED = {
    "softmax over channels": (lambda x: aten._softmax.default(x, 1, False), (3, 4), "only the last is covered"),
    "padded pooling": (lambda x: aten.avg_pool2d.default(x, [2, 2], [2, 2], [1, 1]), (2, 4, 4), "padding"),
    "pooling that rounds up": (lambda x: aten.avg_pool2d.default(x, [2, 2], [2, 2], [0, 0], True), (2, 5, 5), "ceil"),
    "pooling with a divisor": (
        lambda x: aten.avg_pool2d.default(x, [2, 2], [2, 2], [0, 0], False, True, 3),
        (2, 4, 4),
        "divisor",
    ),
    "dilated pooling": (
        lambda x: aten.max_pool2d.default(x, [2, 2], [2, 2], [0, 0], [2, 2]),
        (2, 6, 6),
        "dilation",
    ),
    "resize by 1.5": (lambda x: aten.upsample_nearest2d.vec(x, None, [1.5, 1.5]), (2, 4, 4), "whole factors"),
    "resize by 2.2": (lambda x: aten.upsample_nearest2d.vec(x, None, [2.2, 2.2]), (2, 2, 2), "whole factors"),
    "a sum over the batch": (lambda x: aten.sum.dim_IntList(x, [0]), (4,), "batch"),
    "a cast to float16": (lambda x: aten._to_copy.default(x, dtype=torch.float16), (4,), "float16"),
    "a concatenation along the batch": (lambda x: aten.cat.default([x, x], 0), (4,), "along the batch"),
    "a slice of the batch": (lambda x: aten.slice.Tensor(x, 0, 0, 1), (4,), "batch dimension is sliced"),
    "one sample": (lambda x: aten.select.int(x, 0, 0), (4,), "one sample"),
    "einsum with a product": (lambda x: aten.einsum.default("bi,bi->b", [x, x]), (4,), "einsum"),
    "a mean over everything": (lambda x: aten.mean.dim(x, None), (4,), "a mean over the batch"),
    "an operator without a kernel": (lambda x: aten.cumsum.default(x, 1), (4,), "it has no kernel"),
    "an option without a kernel": (
        lambda x: aten.cat.default([x, x], 1, out=x),
        (4,),
        "its kernel: got an unexpected keyword argument 'out'",
    ),
    "integers made up": (
        lambda x: aten.full.default([aten.sym_size.int(x, 0)], 1, dtype=torch.int64),
        (4,),
        "constant of torch.int64",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kernel_computes_is_refused(case):
    function, shape, reason = REFUSED[case]
    with pytest.raises(UncoveredOperator) as caught:
        lower(program(function), [shape])
    assert reason in str(caught.value)
    assert caught.value.where is not None


def test_the_refusal_names_operator_line_and_shape():
    class Net(torch.nn.Module):
        def forward(self, x):
            y = x * 2
            return torch.cumsum(y, dim=1)

    exported = torch.export.export(
        Net(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim("B", max=63)},), strict=False
    )
    module = exported.run_decompositions({}).module(check_guards=False)
    from scoregraph.passes.tensor import pipeline

    with pytest.raises(UncoveredOperator) as caught:
        lower(pipeline.run(module)[0], [(4,)])
    text = str(caught.value)
    assert text.startswith("SG401")
    assert "aten.cumsum.default of shape [B, 4]" in text
    line = next(i for i, code in enumerate(Path(__file__).read_text().splitlines(), 1) if "return torch.cumsum" in code)
    assert f"lower/test_operators.py:{line}" in text
