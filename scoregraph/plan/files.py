"""Plans on disk: ``plan.json``, ``constants.arrow`` and the text of every stage, written atomically, trusted never.

``constants.arrow`` is an Arrow IPC file of one row per constant (name, dtype, shape, layout, data), so any Arrow reader
can open it; ``plan.json`` repeats each constant's byte offset, so a loader maps the file and needs no Arrow at all.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pydantic

from scoregraph.errors import PlanCorrupt, PlanMissing, PlanVersion
from scoregraph.plan.layouts import STORED, nbytes, store
from scoregraph.plan.schema import VERSION, Constant, Plan

Bytes = bytes | mmap.mmap | memoryview
"""The contents of a constants file, in memory or mapped."""

ALIGN = 64


def file_name(name: str) -> str:
    """A name from a graph as part of one file name: it may hold slashes, or anything else."""
    return quote(name, safe=" :")


def lay_out(plan: Plan, arrays: Mapping[int, np.ndarray]) -> tuple[Plan, memoryview]:
    """The plan with every constant's place filled in, and its constants file."""
    raw = [store(arrays[constant.id], constant.dtype) for constant in plan.constants]
    # Arrow has no place for nothing, so that an empty constant takes some bytes, too.
    sizes = [max(ALIGN, -(-array.nbytes // ALIGN) * ALIGN) for array in raw]
    _, start = _arrow_file(plan, np.zeros(ALIGN, np.uint8), [ALIGN, *(0 for _ in sizes)])
    pad = -start % ALIGN
    data = np.zeros(pad + sum(sizes), np.uint8)
    offsets = np.cumsum([0, *sizes[:-1]]).tolist() if sizes else []
    for array, offset in zip(raw, offsets, strict=True):
        data[pad + offset : pad + offset + array.nbytes] = array.reshape(-1).view(np.uint8)
    whole, start = _arrow_file(plan, data, [pad, *sizes])
    placed = [
        constant.model_copy(
            update={"offset": start + pad + offset, "nbytes": nbytes(arrays[constant.id], constant.dtype)}
        )
        for constant, offset in zip(plan.constants, offsets, strict=True)
    ]
    digest = hashlib.sha256(whole).hexdigest()
    return plan.model_copy(update={"constants": tuple(placed), "constants_sha256": digest}), whole


def _arrow_file(plan: Plan, data: np.ndarray, sizes: list[int]) -> tuple[memoryview, int]:
    """The file with a first row of padding before the constants, and where ``data`` begins in it.

    That place depends on everything but the sizes of the rows, ``sizes``.
    """
    import pyarrow as pa

    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    columns = {
        "name": pa.array(["", *(c.name for c in plan.constants)], pa.string()),
        "dtype": pa.array(["", *(c.dtype for c in plan.constants)], pa.string()),
        "shape": pa.array([[], *(list(c.shape) for c in plan.constants)], pa.list_(pa.int64())),
        "layout": pa.array(["", *(c.layout for c in plan.constants)], pa.string()),
        "data": pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sizes), buffers),
    }
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    whole = sink.getvalue()
    found = pa.ipc.open_file(whole).get_batch(0).column("data").buffers()[2]
    return memoryview(whole), found.address - whole.address


def plan_json(plan: Plan) -> str:
    """The text of ``plan.json``: readable, one call a line, closed by a digest of everything before it."""
    body = plan.model_dump(mode="json", exclude_defaults=True)
    body["format"], body["version"] = plan.format, plan.version
    lines: list[str] = []
    for key, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and key != "segments":
            rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        elif key == "segments":
            parts = []
            for segment in value:
                head = {k: v for k, v in segment.items() if k != "calls"}
                calls = ",\n".join("   " + json.dumps(call, ensure_ascii=False) for call in segment["calls"])
                parts.append(f'  {json.dumps(head)[:-1]}, "calls": [\n{calls}\n  ]}}')
            lines.append(f" {json.dumps(key)}: [\n" + ",\n".join(parts) + "\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    text = "{\n" + ",\n".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text},\n "sha256": "{digest}"\n}}\n'


def parse_plan(text: str, source: str) -> Plan:
    """Read ``plan.json`` back.

    Raises:
        PlanVersion: written by another version of the format.
        PlanCorrupt: not JSON, edited or truncated (the digest disagrees), or not of the schema.
    """
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanCorrupt(problem=f"not JSON: {error.msg}", where=f"{source}:{error.lineno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists too deep in each other
        raise PlanCorrupt(problem=f"not JSON: {error}", where=source) from None
    if not isinstance(body, dict) or body.get("format") != "scoregraph-plan":
        raise PlanCorrupt(problem="it is not a scoregraph plan", where=source)
    if body.get("version") != VERSION:
        raise PlanVersion(found=body.get("version"), expected=VERSION, where=source)
    digest = body.pop("sha256", None)
    covered, _, _ = text.rpartition(',\n "sha256"')
    if digest != hashlib.sha256(covered.encode()).hexdigest():
        raise PlanCorrupt(problem="its digest does not match its text: it was edited or cut short", where=source)
    try:
        return Plan.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PlanCorrupt(problem=f"{place}: {first['msg']}", where=source) from None


def save(plan: Plan, constants: Bytes, stages: Mapping[str, str], folder: Path) -> None:
    """Write a plan folder; a reader sees all of it or nothing."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    box = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        box.chmod(0o755)
        (box / "plan.json").write_text(plan_json(plan), encoding="utf-8")
        (box / "constants.arrow").write_bytes(constants)
        (box / "stages").mkdir()
        for number, (name, text) in enumerate(stages.items()):
            (box / "stages" / f"{number:03d}-{file_name(name)}.txt").write_text(text, encoding="utf-8")
        _swap(box, folder)
    finally:
        shutil.rmtree(box, ignore_errors=True)


def _swap(box: Path, folder: Path) -> None:
    if folder.exists():
        if not (folder / "plan.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PlanCorrupt(problem="the folder exists and holds something else than a plan", where=str(folder))
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old / "plan")
        os.replace(box, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(box, folder)


def load(folder: Path) -> tuple[Plan, mmap.mmap | bytes]:
    """The plan of a folder and its constants, mapped.

    Raises:
        PlanMissing: there is no plan at ``folder``.
        PlanCorrupt, PlanVersion: see ``parse_plan``; also when the constants' digest or size disagrees.
    """
    folder = Path(folder)
    path = folder / "plan.json"
    if not path.is_file():
        raise PlanMissing(folder=folder)
    try:
        plan = parse_plan(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise PlanCorrupt(problem="it is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise PlanCorrupt(problem=f"it cannot be read: {error.strerror}", where=str(path)) from None
    data = folder / "constants.arrow"
    if not data.is_file():
        raise PlanCorrupt(problem="constants.arrow is missing", where=str(folder))
    with data.open("rb") as file:
        constants = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if data.stat().st_size else b""
    if hashlib.sha256(constants).hexdigest() != plan.constants_sha256:
        raise PlanCorrupt(problem="constants.arrow is not the one this plan was written with", where=str(data))
    return plan, constants


def load_stages(folder: Path) -> dict[str, str]:
    """The text of every stage of a saved plan, in order."""
    files = sorted((Path(folder) / "stages").glob("[0-9][0-9][0-9]-*.txt"))
    return {unquote(path.stem[4:]): path.read_text(encoding="utf-8", errors="replace") for path in files}


def read_constant(constant: Constant, constants: Bytes) -> np.ndarray:
    """What is stored of one constant, without a copy, as a flat array of its ``STORED`` type."""
    dtype = STORED[constant.dtype]
    return np.frombuffer(constants, dtype, count=constant.nbytes // dtype.itemsize, offset=constant.offset)
