"""The text and JSON forms: exact on random graphs of all kinds of nodes; damage gives an error of ours, or a graph."""

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs

from scoregraph.errors import BadTable, GraphFile, GraphSyntax, ScoregraphError
from scoregraph.graph import analysis
from scoregraph.graph.graph import Graph
from scoregraph.graph.json_form import from_json, json_schema, to_json
from scoregraph.graph.node import KINDS
from scoregraph.graph.text import parse
from scoregraph.graph.verify import verify

repeatable = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def assert_exact(examples: int) -> None:
    seen: set[str] = set()

    @settings(repeatable, max_examples=examples)
    @given(graphs())
    def check(graph):
        verify(graph, "built")
        assert parse(str(graph)) is graph
        assert from_json(to_json(graph)) is graph
        seen.update(node.op for node in graph.nodes)

    check()
    assert seen == set(KINDS)


def test_both_forms_are_exact():
    assert_exact(examples=150)


@pytest.mark.slow
def test_both_forms_are_exact_on_a_thousand_graphs():
    assert_exact(examples=1000)


@settings(repeatable, max_examples=20)
@given(graphs())
def test_copies_and_pickles_are_the_same_graph(graph):
    assert copy.deepcopy(graph) is graph
    assert pickle.loads(pickle.dumps(graph)) is graph


@settings(repeatable, max_examples=20)
@given(graphs())
def test_pictures_and_views_show_every_node(graph):
    mermaid, dot, view = graph.to_mermaid(), graph.to_dot(), analysis.to_networkx(graph)
    assert mermaid.startswith("flowchart TD")
    for number in range(len(graph.nodes)):
        assert len(re.findall(rf"^ +n{number}[\[({{>]", mermaid, re.MULTILINE)) == 1
        assert len(re.findall(rf"^ +n{number} \[label=", dot, re.MULTILINE)) == 1
    assert set(view.nodes) == set(range(len(graph.nodes)))


def assert_robust(write: Callable[[Graph], str], read: Callable[[str], Graph], examples: int) -> None:
    refused = 0

    @settings(repeatable, max_examples=examples)
    @given(graphs(), st.data())
    def check(graph, data):
        nonlocal refused
        try:
            verify(read(_damage(write(graph), data)), "built")
        except ScoregraphError:
            refused += 1

    check()
    assert refused > examples / 2


@pytest.mark.parametrize(("write", "read"), [(str, parse), (to_json, from_json)], ids=["text", "json"])
def test_damage_gives_an_error_of_ours_or_a_valid_graph(write, read):
    assert_robust(write, read, examples=80)


@pytest.mark.slow
@pytest.mark.parametrize(("write", "read"), [(str, parse), (to_json, from_json)], ids=["text", "json"])
def test_much_damage_gives_an_error_of_ours_or_a_valid_graph(write, read):
    assert_robust(write, read, examples=1000)


def _damage(text: str, data: st.DataObject) -> str:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        more = data.draw(
            st.sampled_from(["", "%0", "[", "(" * 40, "0", "-1", "x", "9" * 30, "\n", '"', "none", "@0", "="])
        )
        text = text[:at] + more + text[at + data.draw(st.integers(0, 4)) :]
        lines = text.split("\n")
        how = data.draw(st.sampled_from(["keep", "drop", "double", "swap"]))
        i = data.draw(st.integers(0, len(lines) - 1))
        if how == "drop":
            del lines[i]
        elif how == "double":
            lines.insert(i, lines[i])
        elif how == "swap":
            lines[i], lines[-1 - i] = lines[-1 - i], lines[i]
        text = "\n".join(lines)
    return text


TEXT = """graph demo

net toy abc
  latent Latent[kappa, 2]
  prediction edm(sigma_data=0.5)
  time sigma

%0 = noise(Latent[kappa, 2], site=0) : Noise[Latent[kappa, 2]]
%c = condition(toy, []) : Cond[toy]
%1 = loop(steps, karras(steps=3), [%0]) : (Latent[kappa, 2])
  %x = carry(steps, index=0) : Latent[kappa, 2]
  %t = time(steps) : Time
  %m = score(toy, %x, %t, [%c]) : Pred[edm(sigma_data=0.5), Latent[kappa, 2]]
  %y = step(euler(), %x, [%m], %t, site=1) : Latent[kappa, 2]
  yield([%y])
%2 = get(%1, index=0) : Latent[kappa, 2]

output x = %2
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("graph demo", "grph demo", 1, "expected 'graph'"),
        ("score(toy, %x", "scorn(toy, %x", 13, "no kind of node 'scorn'"),
        ("[%m]", "[%q]", 14, "%q is not defined above this line"),
        ("%t = time", "%x = time", 12, "%x is defined twice"),
        ("latent Latent[kappa, 2]", "latent Latent[kapa, 2]", 4, "expected one of vp, kappa, flow"),
        ("latent Latent[kappa, 2]", "latent Latent[kappa, 2.5]", 4, "expected a shape"),
        ("  time sigma\n", "", 3, "has no line 'time'"),
        (", site=1)", ")", 14, "lacks its argument 'site'"),
        (", site=1)", ", site=1, site=2)", 14, "'site' is given twice"),
        (": Time", ": Mask[]", 12, "this is a Time"),
        ("steps=3", "steps=", 10, "expected a value"),
        ("  yield([%y])\n", "", 15, "'yield(…)' is missing above"),
        ("  yield([%y])\n%2 = get(%1, index=0) : Latent[kappa, 2]\n\noutput x = %2\n", "", 14, "expected 'yield(…)'"),
        ("output x = %2", "output x = %2 %2", 18, "expected the end of the line"),
        ("site=0", "site=0 $", 8, "unexpected '$'"),
        ("%2 = get(%1, index=0)", "%2 = get(%1, index=0) # nowhere", 16, "a comment is the place"),
        ("%c = condition(toy, [])", "%c = condition(toy, [" + "[" * 40, 9, "expected"),
        ("site=0)", "site=0, table=none)", 8, "takes no further argument"),
    ],
)
def test_syntax_errors_point_at_the_place(old, new, line, message):
    assert TEXT.count(old) >= 1
    with pytest.raises(GraphSyntax) as caught:
        parse(TEXT.replace(old, new, 1))
    assert message in str(caught.value)
    assert caught.value.values["line"] in (line, line - 1, line + 1)
    assert "^" in str(caught.value)


def test_the_demo_parses_and_typing_errors_name_the_line_of_the_text():
    assert parse(TEXT).name == "demo"
    with pytest.raises(ScoregraphError, match="line 13 of the graph text") as caught:
        parse(TEXT.replace("%m = score(toy, %x,", "%m = score(toy, %0,"))
    assert caught.value.code == "SG105"


def test_a_table_in_a_text_is_checked():
    table = (
        "table @0 registers=[x] branches=1 init_scale=1.0\n  | t | c_in | a0_0 | b0_0 | c0\n  | 1.0 | 1.0 | 1.0 | 2.0\n"
    )
    text = TEXT.replace("%0 = noise", table + "\n%0 = noise", 1).replace("site=1)", "site=1, table=@0)")
    with pytest.raises(BadTable, match="row 0 has 4 numbers for 5 columns"):
        parse(text)
    assert parse(text.replace("| 2.0\n", "| 2.0 | 0.0\n"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version"),
        ({"format": "something"}, "format"),
        ({"extra": 1}, "extra"),
        ({"outputs": [{"name": "x", "node": 99}]}, "refers to node 99"),
    ],
)
def test_damaged_json_says_what_is_wrong(change, message):
    whole = json.loads(to_json(parse(TEXT))) | change
    with pytest.raises(GraphFile, match=message):
        from_json(json.dumps(whole))


def test_the_schema_covers_every_kind_of_node():
    definitions = json_schema()["$defs"]
    assert {f"{cls.__name__}Node" for cls in KINDS.values()} <= set(definitions)
    assert all(definitions[f"{cls.__name__}Node"]["additionalProperties"] is False for cls in KINDS.values())


def test_the_example_of_the_documentation_parses():
    page = (Path(__file__).parents[3] / "docs" / "graph-ir.md").read_text(encoding="utf-8")
    example = page.split("```text\n")[1].split("```")[0]
    graph = parse(example)
    assert graph.name == "terrain"
    assert parse(str(graph)) is graph
    table = page.split("## Nodes")[1].split("Typing rules")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} == set(KINDS)
