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
    runs = results.frame(arms, result["show"]["marks"])
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
    rows = rows_of(arms, claims=("mma - causal > m2 - c2",), families=("mma > causal",))
    gain = rows["mma - causal > m2 - c2"]
    assert gain["here"] == "yes" and gain["difference"] == pytest.approx(9.833 - 0.667, abs=1e-3)
    assert rows["mma > causal, consistency"]["difference"] == pytest.approx(9.833 / 2, abs=1e-3)
    assert rows["mma > causal, exist"]["here"] == "the same on every seed"
    parts = ("consistency", "scattered", "towers", "count", "exist")
    assert list(rows)[1:] == [f"mma > causal, {part}" for part in parts]


def test_the_claim_about_the_largest_gains():
    names = ("counting", "existence", "other")
    arm = lambda *rows: [run_of(50, s, dict(zip(names, row))) for s, row in enumerate(rows)]
    causal = arm((50, 60, 40), (51, 60, 41), (52, 61, 41))
    for mma, here in (
        (arm((90, 90, 50), (92, 90, 51), (91, 92, 52)), "yes"),
        (arm((90, 90, 99), (92, 90, 99), (91, 92, 99)), "no"),
        (arm((90, 90, 50), (92, 70, 80), (91, 92, 52)), "not clear"),
    ):
        arms = {"mma": mma, "causal": causal}
        rows = rows_of(arms, families=("mma > causal",), largest=("counting", "existence"))
        weakest = rows["mma - causal is largest in counting and existence (here existence > other)"]
        assert weakest["here"] == here
        if here == "yes":
            assert weakest["difference"] == pytest.approx(20, abs=0.1)


def test_fewer_steps_to_a_mark():
    def runs(*steps):  # 80 % there, 95 % a hundred steps later
        return [
            run_of(95, seed, curve={"100": 0.1, str(step): 0.8, str(step + 100): 0.95})
            for seed, step in enumerate(steps)
        ]

    arms = {"a": runs(300, 200, 400), "b": runs(400, 400, 700)}  # 100, 200, 300 fewer
    rows = rows_of(arms, steps=("a > b",), marks=(80, 95, 96))
    first, second, never = (row for claim, row in rows.items() if " % on validation" in claim)
    assert first["difference"] == second["difference"] == 200 and first["unit"] == "steps"
    assert first["p"] == pytest.approx(0.074, abs=1e-3)
    assert never["here"] == "not clear (a seed never is)"
    table = results.main_table(results.frame(arms, (80, 96)), (80, 96))
    assert columns(table)["80 % at step"] == "300, 200, 400"
    assert columns(table)["96 % at step"] == "never, never, never"


def test_the_share_of_steps_by_hand():
    def run(seed, *accuracies):
        curve = {str(100 * (i + 1)): a for i, a in enumerate(accuracies)}
        return run_of(1, seed, curve=curve)

    def share(soon, late):
        claim = "share of its steps after which a is where b ends (validation)"
        return rows_of({"a": soon, "b": late}, steps=("a > b",), marks=())[claim]

    # b ends at 0.82 on average; a's mean is 0.5, 0.7, 0.9, 1.0: 0.82 at step 260 of 400
    b = [run(seed, 0.1, 0.2, 0.3, end) for seed, end in enumerate((0.72, 0.92, 0.82))]
    a = [run(0, 0.4, 0.6, 0.8, 1.0), run(1, 0.6, 0.8, 1.0, 1.0), run(2, 0.5, 0.7, 0.9, 1.0)]
    found = share(a, b)  # seed 0 alone: 0.72 at step 260; the others: 0.92 and 0.82, there too
    assert found["here"] == "0.65" and found["test"] == "bootstrap; by seed 0.65, 0.65, 0.65"
    assert (found["low"], found["high"]) == pytest.approx((0.65, 0.65))
    never = share([run(seed, 0.1, 0.2, 0.3, 0.7 - seed / 10) for seed in range(3)], b)
    assert never["here"] == "never" and "never to never" in results.differences_table([never])
    two = share(a[:2], [run(0, 0.1, 0.2, 0.3, 0.6), b[1]])  # at 0.6 at step 200; no interval of two
    assert (two["here"], two["test"]) == ("0.57", "by seed 0.50, 0.65")
    assert "low" not in two and share(a[:1], b)["n"] == "1"
    assert share(a, [run(7, 0.1, 0.1, 0.1, 0.1)])["here"].startswith("not clear")
    assert share(a, [run(0), run(1)])["here"].startswith("not clear")  # never looked at
    assert results.step_of([{100: 0.5, 200: 0.5}], 0.25) == 50
    # Seeds that looked at other steps are compared where both did
    curves = [{100: 0.5, 200: 0.9, 300: 0.9}, {200: 0.7, 400: 1.0}]
    assert results.step_of(curves, 0.8) == 200 and results.step_of(curves, 0.4) == 100


# --- Tables


def test_the_table_has_what_the_runs_say(tmp_path):
    kept = run_of(80, 0, {"place": 70}, {"1": 0.9, "2": 0.7}, kept={"step": 3600})
    arms = {"mma": [kept, run_of(81, 1, {"place": 72})], "causal": [run_of(60, 0, {"place": 5})]}
    row = columns(results.main_table(results.frame(arms, (80,)), (80,)))
    assert row == {
        "arm": "mma", "seeds": "2", "overall": spread([80, 81]), "place": spread([70, 72]),
        "validation, last look": spread([70, 81]), "80 % at step": "1, 2",
        "best at step": "3,600, -", "parameters": "5",
    }  # fmt: skip
    arms["mma"] = [run_of(80, seed) for seed in range(3)]
    files = publish.report("x", result_of(arms, short=True, claims=("mma > causal",)))
    assert set(files) == {"x.md", "x_claims.md", "x_finding.md"}
    assert "causal" not in files["x_finding.md"] and "best at" not in files["x_finding.md"]


def test_learning_rates_are_chosen_on_validation(tmp_path):
    """The rate that is best on test is not the one that is chosen."""
    arms = {
        "mma@0.002": [run_of(95, 0, curve={"9": 0.9, "10": 0.7})],
        "mma@0.004": [run_of(60, s, curve={"9": 0.1, "10": 0.8 + s / 9}) for s in (0, 1)],
    }
    files = publish.report("rates", result_of(arms, counts=publish.RATE))
    assert "Chosen on validation, at the last look: mma@0.004 (80.0, seed 0)." in files["rates.md"]
    runs = results.frame(arms, ())
    lines = publish.over_count(runs, results.VALIDATION)["mma"]
    assert lines[0] == pytest.approx({0.002: 0.7, 0.004: 0.8})
    assert publish.over_count(runs, "overall")["mma"][0] == pytest.approx({0.002: 0.95, 0.004: 0.6})
    files = publish.write(tmp_path, "rates", result_of(arms, counts=publish.RATE))
    assert {file.name for file in files} >= {"rates.png", "rates-curves.png", "rates.json"}
