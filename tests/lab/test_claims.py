"""The claims and their tests, against p values by hand."""

import math

import pytest
from trials import run_of

from lab import claims


def by_seed(*values):
    return dict(enumerate(values))


def p_two(t):
    """Two-sided p of Student's t with two degrees of freedom."""
    return 1 - t / math.sqrt(2 + t * t)


def p_four(t):
    """With four."""
    x = t * t / (1 + t * t / 4)
    return 1 - 0.75 * math.sqrt(x) * (1 - x / 12)


def test_verdicts_by_hand():
    a, b = by_seed(90, 92, 95), by_seed(80, 81, 83)  # differences 10, 11, 12
    paired = claims.greater(a, b)
    assert paired.p == pytest.approx(p_two(11 * math.sqrt(3))) and paired.word == "yes"
    assert str(paired) == "yes (+11.0 points, p = 0.003, paired)"
    assert str(claims.greater(b, a)) == "no (-11.0 points, p = 0.003, paired)"
    backwards = dict(reversed(b.items()))  # pairs go by seed, not by place
    assert claims.greater(a, backwards).p == pytest.approx(paired.p)

    a, b = by_seed(90, 91, 92), by_seed(80, 81, 82)
    welch = claims.greater(a, b, same_data=False)
    assert welch.p == pytest.approx(p_four(10 / math.sqrt(2 / 3)))
    assert str(welch) == "yes (+10.0 points, p < 0.001, Welch)"
    assert claims.greater(a, {seed + 1: v for seed, v in b.items()}).test == "Welch"
    unclear = claims.greater(by_seed(80, 90, 100), by_seed(81, 91, 101), same_data=False)
    assert unclear.word == "not clear" and unclear.p == pytest.approx(
        p_four(1 / math.sqrt(200 / 3))
    )


def test_two_standard_errors_are_not_yet_a_yes():
    """Differences 1, 2, 3 lie 3.5 standard errors from zero, which said yes once; p is 0.07."""
    verdict = claims.greater(by_seed(81, 92, 103), by_seed(80, 90, 100))
    assert verdict.p == pytest.approx(p_two(2 * math.sqrt(3))) and verdict.p > 0.07
    assert verdict.word == "not clear"


def test_one_seed_is_no_evidence():
    a, b = by_seed(90), by_seed(80, 81, 82)  # the same seed of both, where it sees the same data
    assert str(claims.greater(a, b)) == "one seed (+10.0 points)"
    assert str(claims.greater(b, a)) == "one seed (-10.0 points)"
    assert str(claims.greater(a, b, same_data=False)) == "one seed (+9.0 points)"
    assert str(claims.greater({7: 90}, b)) == "one seed (+9.0 points)"
    alike = claims.greater(by_seed(90, 91), by_seed(90, 91))
    assert alike.word == "not clear" and math.isnan(alike.p)


def test_claims_pair_arms_with_the_same_data_only():
    runs = [run_of(80 + s, s) for s in range(3)], [run_of(70 + s * s, s) for s in range(3)]
    table = dict(zip(("t&i", "causal"), runs))
    assert "paired)" in claims.claims(table, {})
    assert "Welch)" in claims.claims(table, {"t&i": "--mask causal --steps 2x"})
    assert claims.NOTE in claims.claims(table, {})
    assert claims.claims({"lora": runs[0]}, {}) == ""


def test_masks_are_compared_at_each_count_and_across_budgets():
    ends = {"mma@1x": 90, "mma@2x": 95, "causal@1x": 80, "causal@2x": 91}
    arms = {name: [run_of(a + s * s / 10, s) for s in range(3)] for name, a in ends.items()}
    table = dict(
        (cell.strip() for cell in line.split("|")[1:3])
        for line in claims.counted_claims(arms, budget=True).splitlines()
        if " > " in line or "share" in line
    )
    names = ["mma@1x > causal@1x", "mma@1x > causal@2x", "mma@2x > causal@2x"]
    assert [name for name in table if " > " in name] == names
    assert table[names[0]].startswith("yes (+10.0") and table[names[0]].endswith("paired)")
    assert table[names[1]].startswith("no (-1.0") and table[names[1]].endswith("Welch)")
    assert "95 % on validation after fewer steps than causal@2x" in claims.counted_claims(
        arms, True
    )
    assert "bootstrap over 3 seeds" in table[
        "share of its steps after which mma@2x is where causal@2x ends"
    ]  # fmt: skip
    alone = claims.counted_claims({"mma@2": arms["mma@2x"], "causal@2": arms["causal@2x"]}, False)
    assert "mma@2 > causal@2" in alone and "share" not in alone
    assert (
        claims.counted_claims({"mma@2": arms["mma@2x"], "causal@4": arms["causal@2x"]}, False) == ""
    )


def test_the_claim_about_gains_rests_on_tests_too():
    def arm(*rows):
        names = ("counting", "existence", "other")
        return [run_of(50, s, dict(zip(names, row))) for s, row in enumerate(rows)]

    causal = arm((50, 60, 40), (51, 60, 41), (52, 61, 41))
    mma = arm((90, 90, 50), (92, 90, 51), (91, 92, 52))
    text = claims.largest_gains(mma, causal)
    assert text.startswith("yes (+20.") and "for existence over other" in text
    assert "counting +40.0, existence +30.3, other +10.3" in text
    everywhere = arm((90, 90, 99), (92, 90, 99), (91, 92, 99))
    assert claims.largest_gains(everywhere, causal).startswith("no (")
    scattered = arm((90, 90, 50), (92, 70, 80), (91, 92, 52))
    assert claims.largest_gains(scattered, causal).startswith("not clear (")
    assert claims.largest_gains(mma[:1], causal[:1]).startswith("one seed (")
    table = claims.claims({"mma": mma, "causal": causal}, {})
    assert "mma's gains are largest in counting and existence" in table


def test_fewer_steps_to_a_level():
    def runs(*steps):  # 80 % there, 95 % a hundred steps later
        return [
            {"seed": seed, "curve": {"100": 0.1, str(step): 0.8, str(step + 100): 0.95}}
            for seed, step in enumerate(steps)
        ]

    mma, causal = runs(300, 200, 400), runs(400, 400, 700)  # 100, 200, 300 fewer
    assert claims.earlier(mma, causal) == "not clear (+200.0 steps, p = 0.074, paired)"
    assert claims.earlier(mma, causal, 0.95) == claims.earlier(mma, causal)
    never = "not clear (a seed never is)"
    assert claims.earlier(mma, causal, 0.96) == never
    low = [{"seed": 0, "curve": {"100": 0.7}}]
    assert claims.earlier(mma[:1], low) == never


def test_the_share_of_steps_by_hand():
    def run(seed, *accuracies):
        return {"seed": seed, "curve": {str(100 * (i + 1)): a for i, a in enumerate(accuracies)}}

    # causal ends at 0.82 on average; mma's mean is 0.5, 0.7, 0.9, 1.0: 0.82 at step 260 of 400
    causal = [run(seed, 0.1, 0.2, 0.3, end) for seed, end in enumerate((0.72, 0.92, 0.82))]
    mma = [run(1, 0.6, 0.8, 1.0, 1.0), run(0, 0.4, 0.6, 0.8, 1.0), run(2, 0.5, 0.7, 0.9, 1.0)]
    text = claims.share_of_steps(mma, causal)
    # Seed 0 alone: 0.72 at step 260; the others alone: 0.92 and 0.82, there too
    interval = "95 % interval 0.65 to 0.65, bootstrap over 3 seeds"
    assert text == f"0.65 ({interval}; by seed 0.65, 0.65, 0.65)"
    late = [run(seed, 0.1, 0.2, 0.3, 0.7 - seed / 10) for seed in range(3)]
    assert claims.share_of_steps(late, causal).startswith("never (95 % interval never to never")
    # No interval of two: seed 1 is at 0.92 at step 260, seed 0 at 0.6 at step 200
    two = claims.share_of_steps(mma[:2], [run(0, 0.1, 0.2, 0.3, 0.6), causal[1]])
    assert two == "0.57 (by seed 0.65, 0.50)"
    assert claims.share_of_steps(mma[:1], causal) == "0.65 (one seed)"
    assert claims.share_of_steps(mma, [run(7, 0.1, 0.1, 0.1, 0.1)]).startswith("not clear")
    assert claims.step_of([{100: 0.5, 200: 0.5}], 0.25) == 50


def test_seeds_that_looked_at_other_steps_are_compared_where_both_did():
    curves = [{100: 0.5, 200: 0.9, 300: 0.9}, {200: 0.7, 400: 1.0}]
    assert claims.step_of(curves, 0.8) == 200 and claims.step_of(curves, 0.4) == 100


def test_every_family_and_the_consistency_have_a_row():
    def run(seed, count, exist, consistency):
        families = {"towers count": count, "towers exist": exist, "scattered count": count}
        parts = {name: {"accuracy": value, "n": 10} for name, value in families.items()}
        return {"seed": seed, "families": parts, "consistency": consistency}

    mma = [run(0, 0.8, 0.9, 0.5), run(1, 0.9, 0.9, 0.6)]
    causal = [run(0, 0.6, 0.9, 0.1), run(1, 0.6, 0.9, 0.1)]
    rows = dict(claims.by_family(mma, causal, "-fresh"))
    assert "+25.0 points" in rows["mma-fresh > causal-fresh, count"]
    assert rows["mma-fresh > causal-fresh, exist"] == "the same on every seed"
    assert "+45.0 points" in rows["mma-fresh > causal-fresh, consistency"]
    assert len(rows) == 5  # towers, scattered, count, exist, consistency
