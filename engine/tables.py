"""Numbers as text: mean and spread over seeds, Markdown tables."""

import json
import statistics
from pathlib import Path

from engine.checkpoint import NON_IDENTITY_ARGS
from engine.options import PATHS

# Options in which runs that are pooled may differ; the data must be the same
APART = {"seed", "val_limit", "eval_every", *NON_IDENTITY_ARGS} - {*PATHS}


def spread(values: list[float], form: str = "{:.1f}") -> str:
    """mean ± standard deviation over seeds; one seed has no spread."""
    if not values:
        return "-"
    text = form.format(statistics.mean(values))
    return text + (" ± " + form.format(statistics.stdev(values)) if len(values) > 1 else "")


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells, the first one the header, as a Markdown table with its columns aligned. What
    would end a cell or a row is escaped: a category, or a folder's name, may be any text."""
    escapes = str.maketrans({"|": r"\|", "\n": r"\n", "\r": r"\r"})
    rows = [[cell.translate(escapes) for cell in row] for row in rows]
    width = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]

    def line(row):
        cells = (t.rjust(w) if c else t.ljust(w) for c, (t, w) in enumerate(zip(row, width)))
        return "| " + " | ".join(cells) + " |"

    rule = "|".join("-" * (w + 1) + (":" if c else "-") for c, w in enumerate(width))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def parts_of(families: dict[str, dict]) -> dict[str, dict]:
    """Where every family has a name of two words ("towers count"), and first and second words both
    recur, the same numbers by each word: towers, scattered; count, place, ...; else the families as
    they are ("object count" and "object shape" are two names and no more)."""
    names = [name.split() for name in families]
    if not all(len(words) == 2 for words in names):
        return families
    firsts, seconds = ({words[k] for words in names} for k in (0, 1))
    if len(names) in (len(firsts), len(seconds)):
        return families
    parts = {}
    for part in [*sorted(firsts), *sorted(seconds)]:
        some = [f for name, f in families.items() if part in name.split()]
        n = sum(f["n"] for f in some)
        parts[part] = {"accuracy": sum(f["accuracy"] * f["n"] for f in some) / max(1, n), "n": n}
    return parts


def pool(runs: list[dict]) -> dict[str, list[dict]]:
    """Runs that differ by seed alone stand together: label -> runs. Where a run was made does not
    matter, but runs of other code (engine/code.py) stand apart. The label is the mask where nothing
    but the mask tells the groups apart, else the name of the first run's folder."""
    groups, others = {}, set()
    for run in runs:
        same = {name: value for name, value in run["args"].items() if name not in APART}
        key = json.dumps([same, run["mask"], run.get("code")], sort_keys=True)
        others.add(json.dumps({**same, "mask": None}, sort_keys=True))
        while run["seed"] in [other["seed"] for other in groups.get(key, [])]:
            key += "'"  # the same seed again is not another seed
        groups.setdefault(key, []).append(run)
    by_mask = len(others) == 1 and len({run["mask"] for run in runs}) == len(groups)
    labelled = {}
    for group in groups.values():
        label = group[0]["mask"] if by_mask else Path(group[0]["run"]).name
        label = label.encode(errors="backslashreplace").decode()  # a folder's name may be any bytes
        label += f" ({len(group)} seeds)" if len(group) > 1 else ""
        while label in labelled:
            label += "'"
        labelled[label] = group
    return labelled


def table(groups: dict[str, list[dict]]) -> str:
    """Markdown: a row for each family, and each part of families (parts_of); a column for each
    group of runs (see pool)."""
    everyone = [run for runs in groups.values() for run in runs]

    def row(name: str, value, form: str = "{:.1f}") -> list[str]:
        """value(run): a number, or None where the run has none."""
        columns = ([value(run) for run in runs] for runs in groups.values())
        return [name, *(spread([x for x in some if x is not None], form) for some in columns)]

    def accuracies(family: str) -> list[str]:
        """Marked where training has not asked the family yet."""

        def of(run: dict) -> float | None:
            found = {**run["families"], **parts_of(run["families"])}.get(family)
            return found and 100 * found["accuracy"]

        marks = (
            ", not asked yet" * any(family in run.get("not_asked", ()) for run in runs)
            for runs in groups.values()
        )
        return [text + mark for text, mark in zip(row(family, of), ["", *marks])]

    families = sorted({family for run in everyone for family in run["families"]})
    parts = dict.fromkeys(part for run in everyone for part in parts_of(run["families"]))
    rows = [["accuracy, %", *groups]]
    rows += [accuracies(name) for name in dict.fromkeys([*families, *parts])]
    rows.append(row("**overall**", lambda run: 100 * run["accuracy"]))
    if any("consistency" in run for run in everyone):
        share = lambda run: 100 * run["consistency"] if "consistency" in run else None
        rows.append(row("consistency", share))
    if any("loss" in run for run in everyone):
        rows.append(row("token loss", lambda run: run.get("loss"), "{:.3f}"))
    rows.append(["questions", *(f"{runs[0]['n']:,}" for runs in groups.values())])
    rows.append(row("unparsed", lambda run: run["unparsed"], "{:,.0f}"))
    rows.append(["parameters", *(f"{runs[0]['params']:,}" for runs in groups.values())])
    return markdown(rows)
