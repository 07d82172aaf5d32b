"""Tables of runs: which runs stand together, what columns are called, what a cell says."""

import pytest

from engine.tables import markdown, parts_of, pool, spread, table


def run(name, mask="mma", seed=0, accuracy=0.5, families=None, **args):
    args = {"mask": mask, "seed": seed, "out": name, "data": "shapes", "lr": 0.1, **args}
    families = families or {"a": {"accuracy": accuracy, "n": 10}}
    return {
        "run": f"runs/{name}", "accuracy": accuracy, "families": families, "n": 10, "unparsed": 0,
        "params": 1234, "mask": mask, "seed": seed, "args": args,
    }  # fmt: skip


def cells(*runs) -> dict[str, list[str]]:
    """Of each row of the table of runs, by its name."""
    lines = [line.split("|")[1:-1] for line in table(pool(runs)).splitlines()]
    return {name.strip(): [cell.strip() for cell in row] for name, *row in lines}


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
    assert list(pool([a, {**run("c", seed=1), "code": "another"}])) == ["a", "c"]


def test_pooled_seeds_by_hand():
    a, b, c = run("x", accuracy=0.8), run("y", seed=1, accuracy=0.9), run("z", "causal")
    found = cells(a, b, c)
    assert found["**overall**"] == ["85.0 ± 7.1", "50.0"] and found["parameters"][0] == "1,234"
    assert spread([]) == "-" and spread([1.0]) == "1.0" and spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert list(pool([a, dict(a)])) == ["x", "x'"]  # the same seed twice is one seed
    other = run("w", families={"b": {"accuracy": 0.4, "n": 10}}, lr=0.2)
    assert cells(a, other)["b"] == ["-", "40.0"]
    named = run("caf\udce9", lr=0.2)  # a folder's name may be any bytes
    assert list(pool([named, c])) == ["caf\\udce9", "z"]


def test_families_of_two_words_are_told_by_each_word_too():
    numbers = {"towers count": (0.5, 10), "towers place": (0.25, 30), "scattered count": (1.0, 30)}
    families = {name: {"accuracy": a, "n": n} for name, (a, n) in numbers.items()}
    parts = parts_of(families)
    assert list(parts) == ["scattered", "towers", "count", "place"]
    assert parts["towers"] == {"accuracy": (5 + 7.5) / 40, "n": 40}
    assert parts["count"] == {"accuracy": (5 + 30) / 40, "n": 40}
    found = cells(run("x", families=families))
    shown = (found[name] for name in ("towers place", "towers", "count"))
    assert [*shown] == [["25.0"], ["31.2"], ["87.5"]]


@pytest.mark.parametrize("names", [
    ("object count", "object shape"), ("near count", "far count"), ("object count",),
    ("a c", "a d", "b c", "all"),
])  # fmt: skip
def test_two_words_are_told_apart_only_where_both_recur(names):
    families = {name: {"accuracy": 0.5, "n": 10} for name in names}
    assert parts_of(families) == families


def test_what_training_has_not_asked_yet_is_marked_where_it_is_so():
    families = {name: {"accuracy": 0.25, "n": 4} for name in ("place", "spatial")}
    of = run("a", families=families) | {"not_asked": ["spatial"]}
    found = cells(of, run("b", "causal", families=families))
    assert found["spatial"] == ["25.0, not asked yet", "25.0"] and found["place"] == 2 * ["25.0"]


def test_markdown_is_aligned_and_no_category_breaks_it():
    lines = markdown([["x", "a|b"], ["c\r\nd", "1"]]).splitlines()
    assert lines == [r"| x      | a\|b |", "|--------|-----:|", r"| c\r\nd |    1 |"]
