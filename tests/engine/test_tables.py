"""Tables of runs: what their columns are called, and what categories may hold."""

import json

import pytest
from helpers import ROOT

from engine.tables import markdown, parts_of, pool, table


def run(name, mask="mma", seed=0, **args):
    args = {"mask": mask, "seed": seed, "out": name, "data": "shapes", "lr": 0.1, **args}
    return {"run": f"runs/{name}", "mask": mask, "seed": seed, "args": args}


@pytest.mark.parametrize("option,value", [
    ("data", "nlvr"), ("source", "other.json"), ("pt_source", "other.json"), ("preset", "small"),
    ("variant", "rings"), ("lr", 0.2),
])  # fmt: skip
def test_the_mask_heads_a_column_only_where_it_is_all_that_differs(option, value):
    a, b, again = run("a"), run("b", "causal"), run("c", seed=1)
    assert list(pool([a, b, again])) == ["mma (2 seeds)", "causal"]
    b["args"] |= {"workers": 3, "limit": 7, "eval_every": 9}  # what makes no other run
    assert list(pool([a, b])) == ["mma", "causal"]
    b["args"][option] = value
    assert list(pool([a, b, again])) == ["a (2 seeds)", "b"]
    again["args"][option] = value
    assert list(pool([a, again])) == ["a", "c"]  # of other data is no other seed


def test_the_published_weights_are_told_apart_by_mask_within_one_world():
    def labels(*names):
        files = [(name, ROOT / "weights" / name / "run.json") for name in names]
        return list(pool([{**json.loads(f.read_text("utf-8")), "run": name} for name, f in files]))

    for world in ("shapes", "nlvr"):
        assert labels(f"{world}-mma", f"{world}-causal") == ["mma", "causal"]
    assert labels("shapes-mma", "nlvr-causal") == ["shapes-mma", "nlvr-causal"]


@pytest.mark.parametrize("names,parts", [
    (("object count", "object shape"), None),
    (("near count", "far count"), None),
    (("object count",), None),
    (("a c", "a d", "b c"), ["a", "b", "c", "d"]),
])  # fmt: skip
def test_two_words_are_told_apart_only_where_both_recur(names, parts):
    families = {name: {"accuracy": 0.5, "n": 10} for name in names}
    assert list(parts_of(families)) == (parts or list(names))


def test_what_training_has_not_asked_yet_is_marked_where_it_is_so():
    families = {name: {"accuracy": 0.25, "n": 4} for name in ("place", "spatial")}
    of = {"families": families, "accuracy": 0.25, "n": 8, "unparsed": 0, "params": 1}
    lines = table({"a": [of | {"not_asked": ["spatial"]}], "b": [of]}).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:4] for line in lines}
    assert [cell.strip() for cell in cells["spatial"]] == ["25.0, not asked yet", "25.0"]
    assert [cell.strip() for cell in cells["place"]] == ["25.0", "25.0"]


def test_no_category_breaks_the_table():
    lines = markdown([["x", "a|b"], ["c\r\nd", "1"]]).splitlines()
    assert lines == [r"| x      | a\|b |", "|--------|-----:|", r"| c\r\nd |    1 |"]
