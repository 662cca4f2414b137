"""Pictures of outputs. A heightfield becomes a shaded relief with a scale of metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scoregraph.errors import MissingExtra

CELL = 0.1
"""The distance between two grid points of a heightfield, in metres."""


def hillshade(heights: np.ndarray, path: Path, title: str) -> None:
    """Draw heightfields [n, H, W] in metres side by side, lit from the north-west, and write a PNG.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LightSource, ListedColormap, Normalize
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(package="matplotlib", extra="terrain") from None
    count = len(heights)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns + 1.2, 4.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    scale = Normalize(0.0, max(float(heights.max()), 1e-3))
    light = LightSource(azdeg=315, altdeg=45)
    palette = ListedColormap(colormaps["gist_earth"](np.linspace(0.32, 1.0, 256)))  # from valleys up: no sea
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, field in zip(axes, heights, strict=False):
        shaded = light.shade(field, cmap=palette, norm=scale, blend_mode="soft", dx=CELL, dy=CELL)
        axis.imshow(shaded, interpolation="bilinear")
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(ScalarMappable(scale, palette), ax=list(axes), label="height in metres", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


PICTURES = {"terrain": hillshade}
"""How an output is drawn, by its name."""
