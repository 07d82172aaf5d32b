"""Tables and tests of differences, against p values and intervals by hand."""

import math

import pandas as pd
import pytest
from compared import result_of, run_of

from engine.tables import spread
from lab import publish, results


def by_seed(*values):
    return pd.Series(values)


def p_two(t):
    """Two-sided p of Student's t with two degrees of freedom."""
    return 1 - t / math.sqrt(2 + t * t)


def p_four(t):
    """With four."""
    x = t * t / (1 + t * t / 4)
    return 1 - 0.75 * math.sqrt(x) * (1 - x / 12)


def rows_of(arms, options=None, **show):
    """claim -> row."""
    result = result_of(arms, options, **show)
    runs = results.frame(result)
    return {row["claim"]: row for row in results.differences(result, runs)}


def columns(table, row=2):
    """header -> cell of a Markdown table."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines()]
    return dict(zip(lines[0], lines[row]))


# --- Tests


def test_paired_and_welch_by_hand():
    a, b = by_seed(90, 92, 95), by_seed(80, 81, 83)  # differences 10, 11, 12: standard error 1/√3
    paired = results.tested(a, b)
    assert paired["p"] == pytest.approx(p_two(11 * math.sqrt(3)))
    assert (paired["here"], paired["test"], paired["n"]) == ("yes", "paired", "3")
    reach = 4.302653 / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom
    assert (paired["low"], paired["high"]) == pytest.approx((11 - reach, 11 + reach), abs=1e-5)
    assert results.tested(b, a)["here"] == "no"
    backwards = b.sort_index(ascending=False)  # pairs go by seed, not by place
    assert results.tested(a, backwards)["p"] == pytest.approx(paired["p"])

    a, b = by_seed(90, 91, 92), by_seed(80, 81, 82)
    welch, error = results.tested(a, b, same_data=False), math.sqrt(2 / 3)
    assert welch["p"] == pytest.approx(p_four(10 / error)) and welch["n"] == "3 and 3"
    assert (welch["here"], welch["test"]) == ("yes", "Welch")
    reach = 2.776445 * error
    assert (welch["low"], welch["high"]) == pytest.approx((10 - reach, 10 + reach), abs=1e-5)
    b.index = [1, 2, 3]
    assert results.tested(a, b)["test"] == "Welch"
    # Differences 1, 2, 3 lie 3.5 standard errors from zero; p is 0.07
    unclear = results.tested(by_seed(81, 92, 103), by_seed(80, 90, 100))
    assert unclear["here"] == "not clear" and unclear["p"] > 0.07


def test_one_seed_is_no_evidence():
    a, b = by_seed(90), by_seed(80, 81, 82)  # the same seed of both, where it sees the same data
    assert results.tested(a, b) == {"here": "one seed", "difference": 10, "n": "1"}
    assert results.tested(b, a)["difference"] == -10
    assert results.tested(a, b, same_data=False)["difference"] == 9
    alike = results.tested(by_seed(90, 91), by_seed(90, 91))
    assert alike["here"] == "the same on every seed" and "p" not in alike


def test_claims_pair_arms_with_the_same_data_only():
    arms = {
        "a": [run_of(80 + s, s) for s in range(3)],
        "b": [run_of(70 + s * s, s) for s in range(3)],
    }
    claims = ("a > b", "a > c")  # c has no run: left out
    assert [row["test"] for row in rows_of(arms, claims=claims).values()] == ["paired"]
    options = {"a": "--mask causal --steps 9", "b": "--mask causal"}
    assert rows_of(arms, options, claims=claims)["a > b"]["test"] == "Welch"


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
        return [
            run_of(95, seed, curve={"100": 0.1, str(step): 0.8, str(step + 100): 0.95})
            for seed, step in enumerate(steps)
        ]

    arms = {"a": runs(300, 200, 400), "b": runs(400, 400, 700)}  # 100, 200, 300 fewer
    rows = rows_of(arms, detailed=("a > b",), marks=(80, 95, 96))
    first, second, never = (row for claim, row in rows.items() if " % on validation" in claim)
    assert first["difference"] == second["difference"] == 200 and first["unit"] == "steps"
    assert first["p"] == pytest.approx(0.074, abs=1e-3)
    assert never["here"] == "not clear (a seed never is)"
    table = results.main_table(results.frame(result_of(arms, marks=(80, 96))), (80, 96))
    assert columns(table)["80 % at step"] == "300, 200, 400"
    assert columns(table)["96 % at step"] == "never, never, never"


# --- Tables


def test_the_table_has_what_the_runs_say(tmp_path):
    kept = run_of(80, 0, {"place": 70}, {"1": 0.9, "2": 0.7}, kept={"step": 3600})
    arms = {"mma": [kept, run_of(81, 1, {"place": 72})], "causal": [run_of(60, 0, {"place": 5})]}
    row = columns(results.main_table(results.frame(result_of(arms)), (80,)))
    assert row == {
        "arm": "mma", "seeds": "2", "overall": spread([80, 81]), "place": spread([70, 72]),
        "validation, last look": spread([70, 81]), "80 % at step": "1, 2",
        "best at step": "3,600, -", "parameters": "5",
    }  # fmt: skip
    files = publish.report("x", result_of(arms, short=("mma",), claims=("mma > causal",)))
    assert set(files) == {"x.md", "x_claims.md", "x_finding.md"}
    assert "causal" not in files["x_finding.md"] and "best at" not in files["x_finding.md"]
