"""Tables and tests of differences, against Student's t by hand."""

import math
import re

import pandas as pd
import pytest
from compared import result_of, run_of
from scipy import stats

from engine.tables import spread
from lab import publish, results


def by_seed(*values, seeds=None):
    return pd.Series(values, index=seeds)


def rows_of(arms, options=None, **show):
    """claim -> row."""
    result = result_of(arms, options, **show)
    return {row["claim"]: row for row in results.differences(result, results.frame(result))}


# --- Tests


def test_paired_and_welch_by_hand():
    a, b = by_seed(90, 92, 95), by_seed(80, 81, 83)  # differences 10, 11, 12
    c, d = by_seed(90, 91, 92), by_seed(80, 81, 82)
    for (one, other), kind, difference, n, error, freedom in (
        ((a, b), "paired", 11, "3", 1 / math.sqrt(3), 2),
        ((c, d), "Welch", 10, "3 and 3", math.sqrt(2 / 3), 4),
    ):
        found, t = results.tested(one, other, same_data=kind == "paired"), stats.t(freedom)
        assert (found["here"], found["test"], found["n"]) == ("yes", kind, n)
        assert found["difference"] == difference
        assert found["p"] == pytest.approx(2 * t.sf(difference / error))
        reach = t.ppf(0.975) * error
        assert (found["low"], found["high"]) == pytest.approx(
            (difference - reach, difference + reach)
        )
    assert results.tested(b, a)["here"] == "no"
    assert results.tested(a, b[::-1])["p"] == results.tested(a, b)["p"]  # by seed, not by place
    assert results.tested(c, by_seed(80, 81, 82, seeds=[1, 2, 3]))["test"] == "Welch"
    # Differences 1, 2, 3 lie 3.5 standard errors from zero
    unclear = results.tested(by_seed(81, 92, 103), by_seed(80, 90, 100))
    assert unclear["here"] == "not clear" and 0.07 < unclear["p"] < 0.08


def test_one_seed_is_no_evidence():
    a, b = by_seed(90), by_seed(80, 81, 82)  # the same seed of both, where it sees the same data
    assert results.tested(a, b) == {"here": "one seed", "difference": 10, "n": "1"}
    assert results.tested(b, a)["difference"] == -10
    assert results.tested(a, b, same_data=False)["difference"] == 9
    alike = results.tested(by_seed(90, 91), by_seed(90, 91))
    assert alike["here"] == "the same on every seed" and "p" not in alike


@pytest.mark.parametrize("options, test", [("--mask causal", "paired"), ("--steps 9", "Welch")])
def test_claims_pair_arms_with_the_same_data_only(options, test):
    """And a claim about an arm without a run is left out."""
    arms = {
        "a": [run_of(80 + s, s) for s in range(3)],
        "b": [run_of(70 + s * s, s) for s in (0, 1, 2)],
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


# --- Tables


def test_the_tables_have_what_the_runs_say():
    kept = run_of(80, 0, {"place": 70}, {"1": 0.9, "2": 0.7}, kept={"step": 3600}, code="old")
    runs = [kept, run_of(81, 1, {"place": 72}, code="new")]
    arms = {"mma": runs, "causal": [run_of(60, 0, {"place": 5}, code="old")]}
    files = publish.report("x", result_of(arms, short=("mma",), claims=("mma > causal",)))
    assert set(files) == {"x.md", "x_claims.md", "x_finding.md"}
    head, _, row, *_ = ([cell.strip() for cell in line.split("|")[1:-1]]
                        for line in files["x.md"].splitlines())  # fmt: skip
    assert dict(zip(head, row)) == {
        "arm": "mma", "seeds": "2", "overall": spread([80, 81]), "place": spread([70, 72]),
        "validation, last look": spread([70, 81]), "80 % at step": "1, 2",
        "best at step": "3,600, -", "parameters": "5",
    }  # fmt: skip
    assert "causal" not in files["x_finding.md"] and "best at" not in files["x_finding.md"]
    assert "2 versions of the code" in files["x.md"]
    assert "versions" not in publish.report("x", result_of({"mma": [kept]}))["x.md"]


def test_a_family_that_is_called_consistency_is_not_taken_for_it():
    runs = {"a": [run_of(80, 0, {"consistency": 70}, consistency=0.5)]}
    table = results.main_table(results.frame(result_of(runs, marks=())), ())
    assert re.search(r"\| a +\| +1 \| +80.0 \| +50.0 \| +70.0 \|", table)
