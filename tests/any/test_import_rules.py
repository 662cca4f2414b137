"""Who may import whom, and that nothing imports torch before it is needed."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scoregraph as sg

PACKAGE = Path(sg.__file__).parent
HEAVY = ("torch", "triton", "diffusers", "transformers", "onnx", "matplotlib")


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh process has after ``code``."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})"
    tell = "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    script = f"{path}\n{code}\n{tell}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import scoregraph",
        "import scoregraph as sg; sg.GraphBuilder, sg.schedules, sg.samplers, sg.guidance, sg.select, sg.predictions",
        "import scoregraph as sg; sg.load, sg.CompiledPlan, sg.compile",
        "import scoregraph.cli, scoregraph.errors, scoregraph.plan.files, scoregraph.graph.json_form",
        "import scoregraph.passes.sampling.pipeline, scoregraph.passes.plan.pipeline",
    ],
)
def test_nothing_heavy_is_imported_unasked(code):
    assert not loaded_after(code) & set(HEAVY)


def test_building_and_printing_a_graph_needs_no_torch():
    code = """
import scoregraph as sg
from scoregraph.graph.values import Latent, NetRef
net = NetRef("n", "0", Latent("vp", (3,)), sg.predictions.eps())
g = sg.GraphBuilder("small")
with g.loop(sg.schedules.linear(steps=3), g.noise(net)) as step:
    step.advance(sg.samplers.ddim(), g.score(net, step))
g.output(x=step.result)
graph = g.build()
assert sg.parse(str(graph)) is graph
graph.to_json(), graph.to_mermaid(), graph.to_dot()
"""
    assert not loaded_after(code) & set(HEAVY)


def test_the_public_names_are_few_and_all_there():
    assert len(sg.__all__) <= 20
    assert sg.__all__ == sorted(sg.__all__)
    assert set(sg.__all__) <= set(dir(sg))
    for name in sg.__all__:
        assert getattr(sg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        operator.attrgetter("nonsense")(sg)


def test_the_layers_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    if not (PACKAGE.parent / "pyproject.toml").exists():
        pytest.skip("not a source checkout")
    ended = subprocess.run([linter], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout


def imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """The modules a file names in imports: at its top level, or also inside of functions; never those for types."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(ast.iter_child_nodes(node))


def users_of(module: str) -> set[str]:
    """The files of the package that import ``module``, wherever in the file."""
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name == module or name.startswith(f"{module}.") for name in imports(path, everywhere=True))
    }


def test_graph_and_plan_never_import_torch():
    assert not {file for file in users_of("torch") if file.startswith(("graph/", "plan/", "errors/"))}


def test_each_library_has_its_place():
    assert users_of("networkx") <= {"graph/analysis.py"}
    assert {file.rpartition("/")[0] for file in users_of("triton")} == {"backends/triton"}
    assert users_of("scoregraph._native") == {"backends/cpu/backend.py"}
    assert users_of("pickle") == set(), "nothing that is loaded may be executed"


def test_torch_is_imported_late_by_what_runs_plans():
    for file in ("__init__.py", "runtime.py", "cache.py", "cli.py", "compiler.py", "gallery.py", "diagnosis.py"):
        top = {name.partition(".")[0] for name in imports(PACKAGE / file, everywhere=False)}
        assert not top & set(HEAVY), file
