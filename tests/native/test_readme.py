"""The README's example runs as it is printed, and every file it links to exists."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(find_spec("terrain_diffusion") is None, reason="adaptive-terrain-diffusion is not installed")
def test_the_example_gives_a_heightfield():
    source = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert source
    assert len(source.group(1).strip().splitlines()) <= 13
    names: dict = {}
    exec(source.group(1), names)
    heights = names["heights"]
    assert heights.shape == (1, 128, 128)
    assert heights.dtype == np.float32
    assert heights.min() == 0.0
    assert 0.1 < heights.max() < 22.2


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
