"""The harness that runs our samplers beside diffusers' lives with the samplers' own tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "samplers"))
