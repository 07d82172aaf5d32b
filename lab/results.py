"""From finished runs to numbers: what a run says, tables over seeds, and tests of differences.

A result is what a comparison's JSON holds: {"arms": {name: [a run, as `read_run` gives it]},
"options": {name: its command line}, "show": what the tables have, ...}. Everywhere accuracies are
in %, a difference is in points, and a seed stands for the same data in the same order, unless
options like --steps say otherwise.
"""

import json
import math
import re
import warnings
from pathlib import Path

from data import DataError
from engine.run import read_record
from engine.tables import markdown, parts_of, spread

ROOT = Path(__file__).resolve().parent.parent
NEEDED = "seed", "accuracy", "families", "params"  # of run.json
# What it may have besides
KEYS = "consistency", "n", "unparsed", "seconds", "kept", "code", "turns", "tokens"
PARTS = ("group", "family", "turn")  # of the accuracy, in a frame's columns
VALIDATION, LOSS = "validation, last look", "validation loss"
LEVEL = 0.05
NOTE = (
    "Two-sided t-tests over seeds, paired by seed where both arms have the same seeds and data, "
    f"else Welch's; yes and no below p = {LEVEL}, not corrected for the number of claims."
)
# With another value of one of these, a seed stands for other data
DATA_OPTIONS = ("--data", "--source", "--images", "--scenes", "--steps", "--pictures",
                "--questions", "--pt-steps", "--pt-pictures", "--preset")  # fmt: skip


# --- A run


def validations(run: Path) -> dict[int, dict]:
    """What validation said at each step of stage 2 at which it was made: accuracy (0 to 1), and
    the loss, where the program has it."""
    if not (file := run / "metrics.jsonl").exists():
        raise DataError(f"{run}: metrics.jsonl is missing, so it has no curve")
    log = map(json.loads, file.read_text().splitlines())
    return {line["step"]: line["val"] for line in log if line.get("val")}


def curve_of(run: Path) -> dict[int, float]:
    return {step: val["accuracy"] for step, val in validations(run).items()}


def read_run(run: Path, asked: dict[str, Path], split: str = "") -> dict:
    """What the tables need of a finished run. asked: name -> what eval.py or lab.text_loss wrote
    about it; that of `split` stands for the accuracy that the run itself reports."""
    record, numbers, curve = read_record(run), {}, validations(run)
    files = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in asked.items()}
    if split:
        record |= files.pop(split)["runs"][0]
    for name, file in files.items():
        if isinstance(file, list):  # of lab.text_loss, in nats
            numbers |= {f"{name}, before": file[0]["loss"], f"{name}, after": file[-1]["loss"]}
        elif "turns" in (said := file["runs"][0]):  # of lab.dialogues
            record |= {"turns": said["turns"], "tokens": said["tokens"]}
        else:
            numbers[name] = 100 * said["accuracy"]
    kept = {key: record[key] for key in (*NEEDED, *KEYS) if key in NEEDED or key in record}
    if curve and "loss" in (last := curve[max(curve)]):
        kept["loss"] = last["loss"]
    kept |= {"curve": {step: val["accuracy"] for step, val in curve.items()}, "run": run.name}
    return kept | ({"asked": numbers} if numbers else {})


def first_step(curve: dict, level: float) -> int | None:
    """The first step at which validation accuracy (0 to 1) was at a level; None if it never was.
    A curve's keys are text once they were JSON."""
    return next((int(step) for step, accuracy in curve.items() if accuracy >= level), None)


def at_step(mark: float) -> str:
    return f"{mark:g} % at step"


# --- Tables


def frame(result: dict):
    """A row for each run (pandas): arm, seed, accuracies, steps to the marks, parameters."""
    import pandas as pd

    marks = result["show"]["marks"]
    rows = [row(arm, run, marks) for arm, runs in result["arms"].items() for run in runs]
    return pd.DataFrame(rows)


def row(arm: str, run: dict, marks) -> dict:
    """A run's cells, column -> number; families are those of engine.tables.parts_of."""
    cells = {"arm": arm, "seed": run["seed"], "overall": 100 * run["accuracy"]}
    if "consistency" in run:
        cells["group: consistency"] = 100 * run["consistency"]  # tested like a family
    for name, family in parts_of(run["families"]).items():
        cells[f"family: {name}"] = 100 * family["accuracy"]
    if run["curve"]:
        cells[VALIDATION] = 100 * [*run["curve"].values()][-1]
    if "loss" in run:
        cells[LOSS] = run["loss"]
    cells |= {at_step(mark): first_step(run["curve"], mark / 100) or math.nan for mark in marks}
    if "kept" in run:
        cells["best at step"] = run["kept"]["step"]
    cells |= {f"turn: {turn}": value for turn, value in run.get("turns", {}).items()}
    asked = {f"asked: {name}": value for name, value in run.get("asked", {}).items()}
    return {**cells, "parameters": run["params"], **asked}


def columns_of(runs, *kinds: str) -> dict[str, str]:
    """The columns of a frame that begin with "family: " and the like, and how they are called."""
    names = (c.partition(": ") for c in runs.columns)
    return {kind + colon + name: name for kind, colon, name in names if kind in kinds}


def cell(values) -> str:
    """The runs of an arm in one cell: the step of each, or mean ± standard deviation."""
    if values.name == "parameters":
        return f"{values.iloc[0]:,.0f}"
    if values.name.endswith(" at step"):
        none = "-" if values.name == "best at step" else "never"
        return ", ".join(none if math.isnan(step) else f"{step:,.0f}" for step in values)
    return spread(values.dropna().tolist(), "{:.3f}" if values.name == LOSS else "{:.1f}")


def table(runs, columns: dict[str, str]) -> str:
    """Markdown: a row for each arm. columns: of the frame -> how they are called."""
    by_arm = runs.groupby("arm", sort=False)
    rows = [[arm, str(len(some)), *(cell(some[c]) for c in columns)] for arm, some in by_arm]
    return markdown([["arm", "seeds", *columns.values()], *rows])


def main_table(runs, marks, short: bool = False) -> str:
    """Accuracy overall and by family, validation, steps to the marks. short: accuracy alone."""
    others = (VALIDATION, LOSS, *map(at_step, marks), "best at step", "parameters")
    others = () if short else others
    columns = {"overall": "overall", **columns_of(runs, *PARTS)}
    return table(runs, columns | {c: c for c in others if c in runs})


def asked_table(runs) -> str:
    """What the runs that were asked something else say: "" if none was."""
    if not (asked := columns_of(runs, "asked")):
        return ""
    some = runs.dropna(subset=list(asked), how="all")
    return table(some, {"overall": "as trained", **asked})


# --- Tests


def tested(a, b, same_data: bool = True) -> dict:
    """Is the mean of a above that of b? a, b: Series, seed -> value. Returns the verdict (yes, no,
    not clear, one seed), the difference of the means, its 95 % interval, p, how many seeds, and the
    test: paired by seed, or Welch's. One seed is no evidence: beside it stands the same seed of the
    other, where that is the same data."""
    from scipy import stats

    alone, common = min(len(a), len(b)) < 2, a.index.intersection(b.index)
    if alone and same_data and len(common):
        a, b = a[common], b[common]
    said = {"difference": float(a.mean() - b.mean()), "n": str(len(a))}
    if alone:
        return {"here": "one seed", **said, "n": "1"}
    # Without any variance p is 0, or not a number
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        if same_data and set(a.index) == set(b.index):
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
    first, *others = (runs[runs["arm"] == arm].set_index("seed")[column]
                      for arm in side.split(" - "))  # fmt: skip
    return (first - others[0]).dropna() if others else first


def data_of(options: dict[str, str], side: str) -> dict[str, str]:
    """The options of an arm, or of the first of two, that decide which data a seed stands for."""
    words = options.get(side.split(" - ")[0], "").replace("=", " ").split()
    return {word: value for word, value in zip(words, words[1:]) if word in DATA_OPTIONS}


def difference(result: dict, runs, claim: str, column: str, said: str, unit: str) -> dict:
    """A row of `differences`: is a above b in a column? claim: a > b; said: how the row is called.
    Empty where an arm has no value."""
    sides = claim.split(" > ")
    values = [values_of(runs, side, column) for side in sides]
    if unit != "points" and any(some.isna().any() for some in values):
        why = "a seed never is" if unit == "steps" else "a seed has none"
        return {"claim": said, "here": f"not clear ({why})"}
    values = [some.dropna() for some in values]
    if not all(map(len, values)):
        return {}
    a, b = (data_of(result["options"], side) for side in sides)
    return {"claim": said, "unit": unit, **tested(*values, a == b)}


def differences(result: dict, runs) -> list[dict]:
    """The rows of the tests that result["show"] asks for: what `tested` gives, and the claim. Left
    out are claims about arms that have no run."""
    show, there = result["show"], set(runs["arm"])
    rows = [(claim, "overall", claim, "points") for claim in show["claims"]]
    for claim in show["detailed"]:
        a, b = claim.split(" > ")
        for column, family in columns_of(runs, *PARTS).items():
            rows.append((claim, column, f"{claim}, {family}", "points"))
        for mark in show["marks"]:  # fewer steps, and a lower loss, are better
            says = f"{a} is at {mark:g} % on validation after fewer steps than {b}"
            rows.append((f"{b} > {a}", at_step(mark), says, "steps"))
        if LOSS in runs:
            says = f"{a} has a lower validation loss than {b}"
            rows.append((f"{b} > {a}", LOSS, says, "nats"))
    known = (row for row in rows if there.issuperset(re.split(" [->] ", row[0])))
    return [made for row in known if (made := difference(result, runs, *row))]


def differences_table(rows: list[dict]) -> str:
    """Markdown of `differences`; "" without rows."""
    cells = [["claim", "here", "difference", "95 % interval", "p", "seeds", "test"]]
    for row in rows:
        p, unit = row.get("p"), row.get("unit")
        form = "{:+,.3f}" if unit == "nats" else "{:+,.1f}"
        moved = f"{form.format(row['difference'])} {unit}" if unit else ""
        interval = "" if p is None else f"{form} to {form}".format(row["low"], row["high"])
        written = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        last = [row.get("n", ""), row.get("test", "")]
        cells.append([row["claim"], row["here"], moved, interval, written, *last])
    return f"{markdown(cells)}\n\n{NOTE}" if rows else ""
