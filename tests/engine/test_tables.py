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


A, AGAIN = run("a"), run("c", seed=1)
NAMED = run("caf\udce9", lr=0.2)  # a folder's name may be any bytes
SAME = dict(workers=3, limit=7, eval_every=9)  # what makes no other run


@pytest.mark.parametrize("runs, columns", [
    ([A, run("b", "causal", **SAME), AGAIN], ["mma (2 seeds)", "causal"]),
    *(([A, run("b", "causal", **{option: value}), AGAIN], ["a (2 seeds)", "b"])
      for option, value in dict(data="nlvr", source="other", pt_source="other", preset="small",
                                variant="rings", lr=0.2).items()),
    ([A, run("c", seed=1, source="other")], ["a", "c"]),  # of other data is no other seed
    ([A, {**AGAIN, "code": "another"}], ["a", "c"]),
    ([A, dict(A)], ["a", "a'"]),  # the same seed twice is one seed
    ([NAMED, A], ["caf\\udce9", "a"]),
])  # fmt: skip
def test_the_mask_heads_a_column_only_where_it_is_all_that_differs(runs, columns):
    assert list(pool(runs)) == columns


def test_pooled_seeds_by_hand():
    a, b, c = run("x", accuracy=0.8), run("y", seed=1, accuracy=0.9), run("z", "causal")
    found = cells(a, b, c)
    assert found["**overall**"] == ["85.0 ± 7.1", "50.0"] and found["parameters"][0] == "1,234"
    assert spread([]) == "-" and spread([1.0]) == "1.0" and spread([1.0, 3.0]) == "2.0 ± 1.4"


def test_families_of_two_words_are_told_by_each_word_too():
    numbers = {"towers count": (0.5, 10), "towers place": (0.25, 30), "scattered count": (1.0, 30)}
    families = {name: {"accuracy": a, "n": n} for name, (a, n) in numbers.items()}
    assert parts_of(families) == {
        "scattered": {"accuracy": 1.0, "n": 30}, "towers": {"accuracy": (5 + 7.5) / 40, "n": 40},
        "count": {"accuracy": (5 + 30) / 40, "n": 40}, "place": {"accuracy": 0.25, "n": 30},
    }  # fmt: skip
    found = cells(run("x", families=families), A)
    shown = [found[name] for name in ("towers place", "towers", "count", "a")]
    assert shown == [["25.0", "-"], ["31.2", "-"], ["87.5", "-"], ["-", "50.0"]]


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
