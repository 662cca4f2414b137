"""What every result says of where it comes from."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from scoregraph import _native
from scoregraph.diagnosis import processor


def stamp() -> dict[str, str]:
    """The processor, its instruction set as the kernels use it, the commit, the date, and Python's version."""
    here = Path(__file__).parent
    return {
        "processor": processor(),
        "isa": _native.isa(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=here, text=True).strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
    }
