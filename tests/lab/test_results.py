"""Tables and tests of differences, against Student's t by hand."""

import math

import pandas as pd
import pytest
from compared import result_of, run_of
from scipy import stats

from lab import publish, results


def by_hand(difference, error, freedom):
    t = stats.t(freedom)
    reach = t.ppf(0.975) * error
    p = 2 * t.sf(abs(difference) / error)
    return {"p": p, "low": difference - reach, "high": difference + reach}


PAIRED = {"n": "3", "test": "paired"}
WELCH = {"n": "3 and 3", "test": "Welch"} | by_hand(10, (2 / 3) ** 0.5, 4)
CLEAR = PAIRED | by_hand(11, 1 / math.sqrt(3), 2)  # differences 10, 11, 12
NEGATIVE = {"p": CLEAR["p"], "low": -CLEAR["high"], "high": -CLEAR["low"]}


@pytest.mark.parametrize("a, b, seeds, same_data, here, difference, more", [
    ([90, 92, 95], [80, 81, 83], [0, 1, 2], True, "yes", 11, CLEAR),
    ([90, 92, 95], [83, 81, 80], [2, 1, 0], True, "yes", 11, CLEAR),  # by seed, not by place
    ([80, 81, 83], [90, 92, 95], [0, 1, 2], True, "no", -11, PAIRED | NEGATIVE),
    ([90, 91, 92], [80, 81, 82], [0, 1, 2], False, "yes", 10, WELCH),
    ([90, 91, 92], [80, 81, 82], [1, 2, 3], True, "yes", 10, WELCH),
    # Differences 1, 2, 3 lie 3.5 standard errors from zero
    ([81, 92, 103], [80, 90, 100], [0, 1, 2], True, "not clear", 2,
     PAIRED | by_hand(2, 1 / math.sqrt(3), 2)),
    # One seed is no evidence: the same seed of both, where it sees the same data
    ([90], [80, 81, 82], [0, 1, 2], True, "one seed", 10, {"n": "1"}),
    ([80, 81, 82], [90], [0], True, "one seed", -10, {"n": "1"}),
    ([90], [80, 81, 82], [0, 1, 2], False, "one seed", 9, {"n": "1"}),
    ([90, 91], [90, 91], [0, 1], True, "the same on every seed", 0, {"n": "2", "test": "paired"}),
])  # fmt: skip
def test_differences_by_hand(a, b, seeds, same_data, here, difference, more):
    found = results.tested(pd.Series(a), pd.Series(b, index=seeds), same_data)
    assert found == pytest.approx({"here": here, "difference": difference, **more})


def rows_of(arms, options=None, **show):
    """claim -> row."""
    result = result_of(arms, options, **show)
    return {row["claim"]: row for row in results.differences(result, results.frame(result))}


@pytest.mark.parametrize("options, test", [
    ("--mask causal", "paired"), ("--steps 9", "Welch"), ("--lr 1 --preset=small", "Welch"),
])  # fmt: skip
def test_claims_pair_arms_with_the_same_data_only(options, test):
    """And a claim about an arm without a run is left out."""
    arms = {
        "a": [run_of(80 + s, s) for s in range(3)],
        "b": [run_of(70 + s * s, s) for s in range(3)],
    }
    rows = rows_of(arms, {"a": options, "b": "--mask causal"}, claims=("a > b", "a > c"))
    assert {claim: row["test"] for claim, row in rows.items()} == {"a > b": test}


def test_gains_families_and_the_consistency_are_tested():
    def runs(*accuracies):
        parts = lambda a: {"towers count": a, "towers exist": 50, "scattered count": a}
        return [run_of(a, s, parts(a), consistency=a / 200) for s, a in enumerate(accuracies)]

    arms = {"mma": runs(90, 91, 92), "causal": runs(80, 81, 82.5), "m2": runs(70, 72, 71),
            "c2": runs(69, 72, 70)}  # fmt: skip
    rows = rows_of(arms, claims=("mma - causal > m2 - c2",), detailed=("mma > causal",), marks=())
    gain = rows["mma - causal > m2 - c2"]
    assert gain["here"] == "yes" and gain["difference"] == pytest.approx(9.833 - 0.667, abs=1e-3)
    assert rows["mma > causal, consistency"]["difference"] == pytest.approx(9.833 / 2, abs=1e-3)
    assert rows["mma > causal, exist"]["here"] == "the same on every seed"
    parts = ("consistency", "scattered", "towers", "count", "exist")
    assert list(rows)[1:] == [f"mma > causal, {part}" for part in parts]


def test_fewer_steps_to_a_mark():
    def runs(*steps):  # 80 % there, 95 % a hundred steps later
        curves = ({"100": 0.1, str(step): 0.8, str(step + 100): 0.95} for step in steps)
        return [run_of(95, seed, curve=curve) for seed, curve in enumerate(curves)]

    arms = {"a": runs(300, 200, 400), "b": runs(400, 400, 700)}  # 100, 200, 300 fewer
    rows = rows_of(arms, detailed=("a > b",), marks=(80, 95, 96))
    first, second, never = (row for claim, row in rows.items() if " % on validation" in claim)
    assert first["difference"] == second["difference"] == 200 and first["unit"] == "steps"
    assert first["p"] == pytest.approx(0.074, abs=1e-3)
    assert never["here"] == "not clear (a seed never is)"
    table = results.main_table(results.frame(result_of(arms, marks=(80, 96))), (80, 96))
    assert "300, 200, 400" in table and "never, never, never" in table


def test_the_tables_have_what_the_runs_say():
    """A family may be called consistency, which is a number of its own."""
    families, curve = {"place": 70, "consistency": 75}, {"1": 0.9, "2": 0.7}
    kept = run_of(80, 0, families, curve, consistency=0.5, kept={"step": 3600}, code="old")
    runs = [kept, run_of(81, 1, {"place": 72}, consistency=0.5, code="new")]
    arms = {"mma": runs, "causal": [run_of(60, 0, {"place": 5}, code="old")]}
    texts = publish.report("x", result_of(arms, short=("mma",), claims=("mma > causal",)))
    assert set(texts) == {"x.md", "x_claims.md", "x_finding.md"}
    text = " ".join(texts["x.md"].split())
    names = "| arm | seeds | overall | consistency | place | consistency | validation, last look | "
    assert names + "80 % at step | best at step | parameters |" in text
    cells = "| mma | 2 | 80.5 ± 0.7 | 50.0 ± 0.0 | 71.0 ± 1.4 | 75.0 | 75.5 ± 7.8 | 1, 2 | "
    assert cells + "3,600, - | 5 |" in text and "2 versions of the code" in text
    assert "causal" not in texts["x_finding.md"] and "best at" not in texts["x_finding.md"]
    assert "versions" not in publish.report("x", result_of({"mma": [kept]}))["x.md"]
