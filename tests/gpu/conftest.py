"""Tests that need a CUDA card; they skip, with the reason, where there is none. They run the plans of tests/any."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "any" / "backends"))


@pytest.fixture(autouse=True)
def _card() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
