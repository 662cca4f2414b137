"""Every kernel call of docs/plan-format.md as a plain torch function: operands by role in, results by role out.

All arithmetic is in the precision of the operands, float32 or float64, except where the page says float64.
"""

from __future__ import annotations

from scoregraph.backends.reference import elementwise, formats, layers, sampling, statistics
from scoregraph.backends.reference.frame import Op

OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        sampling.noise,
        sampling.step_time,
        sampling.step_input,
        sampling.sampler_step,
        sampling.record,
        statistics.gram,
        statistics.quantile,
        statistics.scalars,
        statistics.interpolate,
        elementwise.fill,
        elementwise.pointwise,
        elementwise.copy,
        formats.quantize,
        layers.select_row,
        layers.linear,
        layers.matmul,
        layers.conv2d,
        layers.attention,
        layers.group_norm,
        layers.layer_norm,
        layers.rms_norm,
        layers.softmax,
        layers.avg_pool2d,
        layers.max_pool2d,
        layers.upsample_nearest,
        layers.embedding,
        layers.reduce,
    )
}
