"""From finished runs to numbers: what a run says, tables over seeds, and tests of differences.

A result is what a comparison's JSON holds: {"arms": {name: [a run, as `read_run` gives it]},
"options": {name: its command line}, "show": what the tables have, ...}. Everywhere accuracies are
in %, a difference is in points, and a seed stands for the same data in the same order, unless
options like --steps say otherwise.
"""

import importlib.util
import json
import math
import re
import statistics
import warnings
from pathlib import Path

from data import DataError
from engine.run import read_record
from engine.tables import markdown, parts_of, spread

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "results"  # written on --publish alone
RESULTS = Path("runs/results")  # where an ordinary call writes
KEYS = ("seed", "accuracy", "consistency", "families", "n", "unparsed", "params", "seconds", "kept")
VALIDATION, TRAINED = "validation, last look", "as trained"
LEVEL = 0.05
NOTE = (
    "Two-sided t-tests over seeds, paired by seed where both arms have the same seeds and data, "
    f"else Welch's; yes and no below p = {LEVEL}, not corrected for the number of claims."
)
# With another value of one of these, a seed stands for other data
DATA_OPTIONS = ("--data", "--source", "--images", "--scenes", "--steps", "--pictures",
                "--questions", "--pt-steps", "--pt-pictures")  # fmt: skip


def need(package: str, what: str) -> None:
    """DataError if a package that the lab asks for is not installed."""
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{what} need {package}: pip install {package}")


# --- A run


def curve_of(run: Path) -> dict[int, float]:
    """Validation accuracy (0 to 1) at each step of stage 2 that was looked at."""
    log = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["val"]["accuracy"] for line in log if line.get("val")}


def read_run(run: Path, asked: dict[str, Path], split: str = "") -> dict:
    """What the tables need of a finished run. asked: name -> what eval.py or lab.text_loss wrote
    about it; that of `split` stands for the accuracy that the run itself reports."""
    record, log = read_record(run), run / "metrics.jsonl"
    curve = curve_of(run) if log.exists() else {}
    files = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in asked.items()}
    if split:
        record |= files.pop(split)["runs"][0]
    kept = {key: record[key] for key in KEYS if key in record}
    answers = {name: numbers_of(file) for name, file in files.items()}
    return {**kept, "curve": curve, "run": run.name} | ({"asked": answers} if answers else {})


def numbers_of(file: dict | list) -> dict:
    """What is kept of a JSON of eval.py or lab.aif, or of lab.text_loss: before and after."""
    if isinstance(file, list):
        return {"before": file[0]["loss"], "after": file[-1]["loss"]}
    return {key: file["runs"][0][key] for key in ("accuracy", "families")}


def first_step(curve: dict, level: float) -> int | None:
    """The first step at which validation accuracy (0 to 1) was at a level; None if it never was.
    A curve's keys are text once they were JSON."""
    return next((int(step) for step, accuracy in curve.items() if accuracy >= level), None)


def at_step(mark: float) -> str:
    return f"{mark:g} % at step"


# --- Tables


def frame(arms: dict[str, list[dict]], marks):
    """A row for each run (pandas): arm, seed, accuracies, steps to the marks, parameters."""
    need("pandas", "the tables")
    import pandas as pd

    return pd.DataFrame([
        {"arm": arm, "curve": curve, **row(run, curve, marks)}
        for arm, runs in arms.items() for run in runs
        for curve in [{int(step): value for step, value in run["curve"].items()}]
    ])  # fmt: skip


def row(run: dict, curve: dict[int, float], marks) -> dict:
    """A run's cells, column -> number; families are those of engine.tables.parts_of."""
    cells = {"seed": run["seed"], "overall": 100 * run["accuracy"]}
    if "consistency" in run:
        cells["family: consistency"] = 100 * run["consistency"]  # tested like one
    cells |= {f"family: {name}": 100 * f["accuracy"]
              for name, f in parts_of(run["families"]).items()}  # fmt: skip
    if curve:
        cells[VALIDATION] = 100 * curve[max(curve)]
    cells |= {at_step(mark): first_step(curve, mark / 100) or math.nan for mark in marks}
    if "kept" in run:
        cells["best at step"] = run["kept"]["step"]
    cells["parameters"] = run["params"]
    for name, numbers in run.get("asked", {}).items():
        cells[TRAINED] = cells["overall"]
        of_eval = {f"asked: {name}": 100 * numbers.get("accuracy", 0)}
        of_text = {f"asked: {name}, {when}": value for when, value in numbers.items()}
        cells |= of_eval if "accuracy" in numbers else of_text
    return cells


def columns_of(runs, kind: str) -> dict[str, str]:
    """The columns of a frame that begin with "family: " or "asked: ", and how they are called."""
    return {c: c.removeprefix(f"{kind}: ") for c in runs.columns if c.startswith(f"{kind}: ")}


def cell(column: str, values) -> str:
    """The runs of an arm in one cell: the step of each, or mean ± standard deviation."""
    if column == "parameters":
        return f"{values.iloc[0]:,.0f}"
    if column.endswith(" at step"):
        none = "-" if column == "best at step" else "never"
        return ", ".join(none if math.isnan(step) else f"{step:,.0f}" for step in values)
    return spread(values.dropna().tolist())


def table(runs, columns: dict[str, str]) -> str:
    """Markdown: a row for each arm. columns: of the frame -> how they are called."""
    rows = [["arm", "seeds", *columns.values()]]
    for arm, of_arm in runs.groupby("arm", sort=False):
        cells = [cell(column, of_arm[column]) for column in columns]
        rows.append([arm, str(len(of_arm)), *cells])
    return markdown(rows)


def main_table(runs, marks, short: bool = False) -> str:
    """Accuracy overall and by family, validation, steps to the marks. short: without validation."""
    held_out = [VALIDATION] if VALIDATION in runs and not short else []
    last = ["best at step"] if "best at step" in runs else []
    others = [*held_out, *map(at_step, marks), *last, "parameters"]
    names = {"overall": "overall", **columns_of(runs, "family")}
    return table(runs, names | {name: name for name in others})


def asked_table(runs) -> str:
    """What the runs that were asked something else say: "" if none was."""
    asked = columns_of(runs, "asked")
    return table(runs[runs[TRAINED].notna()], {TRAINED: TRAINED, **asked}) if asked else ""


def chosen_on_validation(runs) -> str:
    """A sentence, for arms MASK@RATE that are chosen between: the best on validation of each mask,
    on the seeds that all its rates have."""
    chosen = []
    for _, rivals in runs.groupby(runs["arm"].str.split("@").str[0], sort=False):
        by_seed = rivals.pivot(index="seed", columns="arm", values=VALIDATION).dropna()
        if len(by_seed) and len(by_seed.columns) > 1:
            means, seeds = by_seed.mean(), ", ".join(map(str, by_seed.index))
            some = f"seed{'s' * (len(by_seed) > 1)} {seeds}"
            chosen.append(f"{means.idxmax()} ({means.max():.1f}, {some})")
    return f"Chosen on validation, at the last look: {', '.join(chosen)}." if chosen else ""


# --- Tests


def tested(a, b, same_data: bool = True) -> dict:
    """Is the mean of a above that of b? a, b: Series, seed -> value. Returns the verdict (yes, no,
    not clear, one seed), the difference of the means, its 95 % interval, p, how many seeds, and the
    test: paired by seed, or Welch's. One seed is no evidence: beside it stands the same seed of the
    other, where that is the same data."""
    need("scipy", "the tests")
    from scipy import stats

    alone, common = min(len(a), len(b)) < 2, a.index.intersection(b.index)
    if alone and same_data and len(common):
        a, b = a[common], b[common]
    said = {"difference": statistics.mean(a) - statistics.mean(b), "n": str(len(a))}
    if alone:
        return {"here": "one seed", **said, "n": "1"}
    paired = same_data and set(a.index) == set(b.index)
    with warnings.catch_warnings():  # no variance at all: p is 0, or not a number
        warnings.simplefilter("ignore", RuntimeWarning)
        if paired:
            test, said["test"] = stats.ttest_rel(a, b[a.index]), "paired"
        else:
            test, said["test"] = stats.ttest_ind(a, b, equal_var=False), "Welch"
            said["n"] = f"{len(a)} and {len(b)}"
        low, high = test.confidence_interval(0.95)
    if math.isnan(test.pvalue):
        return {"here": "the same on every seed", **said}
    said |= {"p": float(test.pvalue), "low": float(low), "high": float(high)}
    direction = "yes" if said["difference"] > 0 else "no"
    return {"here": direction if test.pvalue < LEVEL else "not clear", **said}


def values_of(runs, side: str, column: str):
    """Series seed -> a column of an arm; of "a - b" the differences on the seeds of both."""
    first, *others = (
        runs[runs["arm"] == arm].set_index("seed")[column].dropna() for arm in side.split(" - ")
    )
    return (first - others[0]).dropna() if others else first


def data_of(options: dict[str, str], side: str) -> dict[str, str]:
    """The options of an arm, or of the first of two, that decide which data a seed stands for."""
    words = options.get(side.split(" - ")[0], "").split()
    return {word: value for word, value in zip(words, words[1:]) if word in DATA_OPTIONS}


def accuracies_tested(runs, options: dict[str, str], pair, columns: dict[str, str]) -> list[dict]:
    """A row for each column, of the frame -> family ("": overall): is a above b? pair: a, b."""
    rows, (a, b) = [], pair
    same = data_of(options, a) == data_of(options, b)
    for column, family in columns.items():
        values = [values_of(runs, side, column) for side in pair]
        claim = f"{a} > {b}, {family}" if family else f"{a} > {b}"
        if all(map(len, values)):
            rows.append({"claim": claim, "unit": "points", **tested(*values, same)})
    return rows


def differences(result: dict, runs) -> list[dict]:
    """The rows of the tests that result["show"] asks for: what `tested` gives, and the claim. Left
    out are claims about arms that have no run."""
    show, there, rows = result["show"], set(runs["arm"]), []
    families = columns_of(runs, "family")
    claims, by_family, steps = (
        [claim.split(" > ") for claim in show[what] if there.issuperset(re.split(" [->] ", claim))]
        for what in ("claims", "families", "steps")
    )
    for pair in claims:
        rows += accuracies_tested(runs, result["options"], pair, {"overall": ""})
    for pair in by_family:
        rows += accuracies_tested(runs, result["options"], pair, families)
        if show["largest"] and {*show["largest"]} <= {*families.values()}:
            rows.append(largest_gains(runs, " - ".join(pair), show["largest"]))
    for a, b in steps:
        rows += [fewer_steps(runs, a, b, mark) for mark in show["marks"]]
        rows.append(share_of_steps(runs, a, b))
    return rows


def largest_gains(runs, gain: str, largest) -> dict:
    """Are the gains in the families `largest` above those in every other? yes if each of these
    tests says so (the weakest is shown), no if one says the opposite."""
    families = columns_of(runs, "family").items()
    gains = {family: values_of(runs, gain, column) for column, family in families}
    tests = [{"claim": f"{gain} is largest in {' and '.join(largest)} (here {a} > {b})",
              "unit": "points", **tested(gains[a], gains[b])}
             for a in largest for b in gains if b not in largest]  # fmt: skip
    tests.sort(key=lambda test: test["difference"])
    against = [test for test in tests if test["here"] == "no"]
    return [*against, *(test for test in tests if test["here"] != "yes"), *tests][0]


def fewer_steps(runs, a: str, b: str, mark: float) -> dict:
    """Is a at a mark on validation after fewer steps than b?"""
    claim = f"{a} is at {mark:g} % on validation after fewer steps than {b}"
    steps = [runs[runs["arm"] == arm].set_index("seed")[at_step(mark)] for arm in (b, a)]
    if any(taken.isna().any() for taken in steps):
        return {"claim": claim, "here": "not clear (a seed never is)"}
    return {"claim": claim, "unit": "steps", **tested(*steps)}


def step_of(curves: list[dict[int, float]], accuracy: float) -> float:
    """The step at which the mean of curves, {step: accuracy}, gets to an accuracy: between two
    looks that all of them have on a straight line; infinity, if it never does."""
    before = (0, 0.0)
    for step in sorted(set.intersection(*map(set, curves))):
        mean = sum(curve[step] for curve in curves) / len(curves)
        if mean >= accuracy:
            way = (accuracy - before[1]) / (mean - before[1]) if mean > before[1] else 0.0
            return before[0] + (step - before[0]) * way
        before = (step, mean)
    return math.inf


def share_of_steps(runs, a: str, b: str) -> dict:
    """After which share of its steps a has the accuracy, on validation, that b has at its last
    look: of the mean curves of the seeds that both have, with a bootstrap interval over these, and
    seed by seed. Two seeds get no interval: its ends would be the two."""
    looked = runs[runs["curve"].map(bool)].set_index("seed")
    first, second = (looked[looked["arm"] == arm]["curve"] for arm in (a, b))
    seeds = first.index.intersection(second.index)
    claim = f"share of its steps after which {a} is where {b} ends (validation)"
    if not len(seeds):
        return {"claim": claim, "here": "not clear (no seed in common)"}
    first, second = first[seeds].tolist(), second[seeds].tolist()

    def share(chosen) -> float:
        ends = [second[k][max(second[k])] for k in chosen]
        step = step_of([first[k] for k in chosen], sum(ends) / len(ends))
        return step / max(first[0])

    everyone = range(len(seeds))
    found = {"claim": claim, "here": share_text(share(everyone)), "n": str(len(seeds))}
    if len(seeds) > 1:
        found["test"] = "by seed " + ", ".join(share_text(share([k])) for k in everyone)
    if len(seeds) > 2:
        found["low"], found["high"] = bootstrap(share, len(seeds))
        found["test"] = f"bootstrap; {found['test']}"
    return found


def bootstrap(statistic, n: int) -> tuple[float | None, float | None]:
    """The 95 % interval of statistic(numbers below n, drawn with replacement); None: infinite."""
    from scipy import stats

    def of_drawn(numbers, axis=-1):
        return statistic([int(k) for k in numbers])

    with warnings.catch_warnings():  # of infinite shares scipy's standard error is no number
        warnings.simplefilter("ignore", RuntimeWarning)
        drawn = stats.bootstrap((range(n),), of_drawn, vectorized=False, method="percentile",
                                rng=0)  # fmt: skip
    return tuple(x if math.isfinite(x) else None for x in map(float, drawn.confidence_interval))


def share_text(share: float | None) -> str:
    return "never" if share is None or math.isinf(share) else f"{share:.2f}"


def differences_table(rows: list[dict]) -> str:
    """Markdown of `differences`; "" without rows."""
    cells = [["claim", "here", "difference", "95 % interval", "p", "seeds", "test"]]
    for row in rows:
        unit, p = row.get("unit"), row.get("p")
        difference = f"{row['difference']:+,.1f} {unit}" if unit else ""
        ends = [row[key] for key in ("low", "high") if key in row]
        interval = " to ".join(f"{x:+,.1f}" if unit else share_text(x) for x in ends)
        written = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        last = [row.get("n", ""), row.get("test", "")]
        cells.append([row["claim"], row["here"], difference, interval, written, *last])
    return f"{markdown(cells)}\n\n{NOTE}" if rows else ""
