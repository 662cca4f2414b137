"""Compiled plans kept on disk under readable, content-addressed names, and the reason whenever one is not found.

A key has parts (structure of the graph, times of its steps, device, quantization, compiler, format); its name is
``<graph name>-<device>-<digest of the parts>``. Beside each plan lies ``key.json`` with the parts in clear, so that a
miss can say which part differs from the nearest plan that is there. Plans are written to a temporary folder and
renamed: a reader never sees half of one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scoregraph.plan import files
from scoregraph.plan.schema import VERSION, Plan


@dataclass(frozen=True)
class Key:
    """What a plan depends on. Every part is text; two plans with equal parts are the same.

    ``times`` is ``any`` for a plan that serves every list of steps, else a digest of the list it was made for; beside
    those of one structure lies its draft (``DRAFT``), from which plans for other lists are made.
    """

    name: str
    structure: str
    device: str
    quant: str
    compiler: str
    times: str = "any"
    format: str = str(VERSION)

    def at(self, times: str) -> Key:
        """The key of the same plan for these times."""
        return replace(self, times=times)

    @property
    def entry(self) -> str:
        """The folder's name."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{files.file_name(self.name)}-{self.device}-{digest[:16]}"


DRAFT = "draft"
"""The ``times`` of a draft."""


def root() -> Path:
    """``$SCOREGRAPH_CACHE``, else ``scoregraph`` in the user's cache folder."""
    if stated := os.environ.get("SCOREGRAPH_CACHE"):
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoregraph"


def digest(text: str) -> str:
    """Sixteen hex digits that stand for ``text`` in a key."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def compiler() -> str:
    """A digest of this package's Python sources: any change of a pass makes older plans misses."""
    package = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(str(path.relative_to(package)).encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def find(key: Key) -> Path | None:
    """The folder of the plan with that key, if there is one. What it holds is not checked."""
    folder = root() / key.entry
    return folder if (folder / "plan.json").is_file() else None


def keep(key: Key, plan: Plan, constants: files.Bytes, stages: Mapping[str, str]) -> Path:
    """Store a plan; a cache that cannot be written raises ``OSError``, which callers may ignore."""
    folder = root() / key.entry
    files.save(plan, constants, stages, folder)
    (folder / "key.json").write_text(json.dumps(asdict(key), indent=1), encoding="utf-8")
    return folder


def why(key: Key) -> str:
    """Why ``find`` returned None: what differs from the closest plan that is kept."""
    wanted = asdict(key)
    best: tuple[int, str] | None = None
    for entry in entries():
        parts = entry.parts
        differs = [part for part, value in wanted.items() if parts.get(part) != value]
        if parts.get("name") == key.name and (best is None or len(differs) < best[0]):
            shown = ", ".join(f"{part} {parts.get(part, '?')} -> {wanted[part]}" for part in differs)
            best = (len(differs), f"the closest plan, {entry.folder.name}, differs in {shown}")
    return best[1] if best else f"no plan of {key.name!r} is kept in {root()}"


@dataclass(frozen=True)
class Entry:
    """One plan in the cache."""

    folder: Path
    parts: Mapping[str, str]
    nbytes: int
    used: float


def entries() -> list[Entry]:
    """Every plan kept, the most recently written first."""
    found: list[Entry] = []
    for path in root().glob("*/key.json") if root().is_dir() else []:
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(parts, dict):
            continue
        size = sum(f.stat().st_size for f in path.parent.rglob("*") if f.is_file())
        found.append(Entry(path.parent, parts, size, path.stat().st_mtime))
    return sorted(found, key=lambda e: -e.used)


def clear() -> int:
    """Remove every plan; returns how many there were. Only folders that hold a key are touched."""
    kept = entries()
    for entry in kept:
        shutil.rmtree(entry.folder, ignore_errors=True)
    return len(kept)
