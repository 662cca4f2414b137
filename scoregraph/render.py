"""Pictures of outputs. A heightfield becomes a shaded relief with a scale of metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scoregraph.errors import MissingExtra


def hillshade(heights: np.ndarray, path: Path, title: str) -> None:
    """Draw heightfields [n, H, W] in metres side by side, lit from the north-west, and write a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.colors import LightSource, Normalize
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(package="matplotlib", extra="terrain") from None
    count = len(heights)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns + 1.2, 4.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    scale = Normalize(0.0, max(float(heights.max()), 1e-3))
    light = LightSource(azdeg=315, altdeg=40)
    palette = colormaps["gist_earth"]
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, field in zip(axes, heights, strict=False):
        shaded = light.shade(field, cmap=palette, norm=scale, vert_exag=3.0, blend_mode="soft")
        axis.imshow(shaded, interpolation="bilinear")
    for axis in axes:
        axis.set_axis_off()
    from matplotlib.cm import ScalarMappable

    figure.colorbar(ScalarMappable(scale, palette), ax=list(axes), label="height in metres", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


PICTURES = {"terrain": hillshade}
"""How an output is drawn, by its name."""
