"""From a trial's numbers to files: JSON, Markdown, curves; and the published ones in docs/results.

A published file is written on --publish alone, and never loses what another call has published:
arms, seeds of an arm and masks at test time that this call did not make are kept. The JSON is the
truth: tables and curves are made from it.
"""

import json
import re
from pathlib import Path

from data import DataError
from engine.checkpoint import write_file
from engine.tables import markdown
from lab import tables
from lab.claims import claims, counted_claims
from lab.tables import arms_table, masks_of, rates_table

# Experiments whose table is tested for the claims
CLAIMED = ("shapes", "sounds", "shapes-pairs", "nlvr+world", "nlvr+world-high-rate")
ENOUGH = 3  # seeds with which an arm is in the short table and the curves
# What the @ in the name of an experiment's arm counts
COUNTS = {
    "depth": "decoder layers",
    "budget": "training budget, in default budgets",
    "scenes": "training scenes",
    "rates": "learning rate",
    "nlvr+world-rates": "learning rate",
}


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda out: out.write((text.rstrip("\n") + "\n").encode()))


def write_json(file: Path, record: dict) -> None:
    write_text(file, json.dumps(record, indent=1))


def read_published(name: str, key: str) -> dict | None:
    """A published JSON, if there is one. DataError if another command wrote it: it lacks `key`."""
    file = tables.PUBLISHED / f"{name}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if key not in record:
        raise DataError(f"{file} was written by another command; move it out of the way first")
    return record


# --- A trial


def report(experiment: str, result: dict) -> dict[str, str]:
    """The Markdown of an experiment's JSON, file by file: the table; what it says of the paper's
    claims (CLAIMED), or of mma against causal at each count; for shapes also a short table, and
    masks at test time."""
    arms, rest = result["arms"], []
    rates = COUNTS.get(experiment) == "learning rate"
    reported = "all of validation" if result["data"].startswith("nlvr") else "test"
    parts = [rates_table(arms, reported) if rates else arms_table(arms)]
    if result["missing"]:
        parts.append(f"Not yet run: {', '.join(result['missing'])}.")
    files = {f"{experiment}.md": parts}
    if experiment in CLAIMED:
        rest.append(claims(arms, result["options"]))
    if experiment == "shapes":
        if short := {arm: runs for arm, runs in arms.items() if len(runs) >= ENOUGH}:
            files["shapes_finding.md"] = [arms_table(short)]
    elif experiment in COUNTS and not rates:
        rest.append(counted_claims(arms, experiment == "budget"))
    if result.get("test_time"):
        header = ["trained with", "switched on for the test", "accuracy, %"]
        rows = [
            [r["trained"], r["test"], f"{100 * r['accuracy']:.1f}"] for r in result["test_time"]
        ]
        rest.append(markdown([header, *rows]))
    files[f"{experiment}_claims.md"] = [part for part in rest if part]
    return {name: "\n\n".join(some) for name, some in files.items() if some}


def write(folder: Path, experiment: str, result: dict) -> None:
    """All files of a trial. The curves come last: without matplotlib the tables are there."""
    write_json(folder / f"{experiment}.json", result)
    for name, text in report(experiment, result).items():
        write_text(folder / name, text)
    draw(folder, experiment, result["arms"])


def draw(folder: Path, experiment: str, arms: dict[str, list[dict]]) -> None:
    """Validation accuracy over the steps; where arms count something, accuracy over that too."""
    from lab.curves import write_curves

    counts = COUNTS.get(experiment)
    enough = [arm for arm, runs in arms.items() if len(runs) >= ENOUGH]
    drawn = list(arms) if counts else enough or list(arms)
    curves = {}
    for arm in drawn:
        label = f"{arm} ({len(arms[arm])} seed{'s' * (len(arms[arm]) > 1)})"
        curves[label] = [
            {int(step): accuracy for step, accuracy in run["curve"].items()} for run in arms[arm]
        ]
    write_curves(folder / f"{experiment}{'-curves' if counts else ''}.png", curves)
    if counts:
        rates = counts == "learning rate"
        lines = {mask: over_count(arms, mask, rates) for mask in masks_of(arms)}
        split = "validation" if rates else "test"
        xlabel = f"{counts} ({split} accuracy)"
        write_curves(folder / f"{experiment}.png", lines, xlabel=xlabel)


def over_count(arms: dict[str, list[dict]], mask: str, on_validation: bool) -> list[dict]:
    """For each seed of a mask: what the @ counts -> accuracy (0 to 1)."""
    by_seed = {}
    for arm, runs in arms.items():
        name, _, x = arm.partition("@")
        for run in runs if name == mask else ():
            value = tables.last_validation(run) / 100 if on_validation else run["accuracy"]
            by_seed.setdefault(run["seed"], {})[float(x.rstrip("x"))] = value
    return list(by_seed.values())


def publish(experiment: str, result: dict, order: list[str]) -> None:
    """Write docs/results, with what was published before. order: of the arms."""
    published = read_published(experiment, "arms")
    write(tables.PUBLISHED, experiment, merge(published, result, order) if published else result)


def check_settings(name: str, settings: dict, data: str) -> None:
    """DataError if runs with these settings do not belong into the published table `name`."""
    if old := read_published(name, "arms"):
        check_same(old.get("settings", {"preset": "tiny"}), old["data"], settings, data)


def check_same(old: dict, old_data: str, new: dict, data: str) -> None:
    if (new, data) != (old, old_data):
        raise DataError(
            f"the published runs have the settings {old} ({old_data}), these {new} ({data}): they "
            "do not belong into one table; leave --publish out, or move the published files"
        )


def merge(old: dict, new: dict, order: list[str]) -> dict:
    """The published result with a new one: of the old one stay the arms, and the seeds of arms with
    the same options, that the new one has not. DataError if they do not belong into one table."""
    settings = old.get("settings", {"preset": "tiny"})
    if new["arms"]:
        check_same(settings, old["data"], new["settings"], new["data"])
    arms, options = {}, {**old["options"], **new["options"]}
    for arm in sorted({*old["arms"], *new["arms"]}, key=place_in([*order, *old["arms"]])):
        same = old["options"].get(arm) == options[arm]
        kept = old["arms"].get(arm, []) if same or arm not in new["arms"] else []
        runs = {run["seed"]: run for run in [*kept, *new["arms"].get(arm, [])]}
        arms[arm] = [runs[seed] for seed in sorted(runs)]
    made = {f"{arm}-{run['seed']}" for arm, runs in arms.items() for run in runs}
    asked = new["missing"] if new["arms"] else []  # a call that only makes the tables anew
    missing = [m for m in dict.fromkeys([*asked, *old["missing"]]) if m not in made]
    test_time = {
        (r["trained"], r["test"]): r for r in [*old.get("test_time", []), *new.get("test_time", [])]
    }
    merged = {**new, "settings": settings, "arms": arms, "missing": missing}
    merged["options"] = {arm: options[arm] for arm in arms}
    return merged | ({"test_time": list(test_time.values())} if test_time else {})


def place_in(names: list[str]):
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return places.__getitem__


# --- README.md and docs/


def with_tables(text: str, results: Path) -> str:
    """The text, with what stands between <!-- NAME.md --> and <!-- end --> taken from results."""

    def block(match):
        file = results / match[1]
        if not file.exists():
            raise DataError(f"{file} is missing: the command that writes it, with --publish, first")
        return f"<!-- {match[1]} -->\n{file.read_text(encoding='utf-8').strip()}\n<!-- end -->"

    return re.sub(r"<!-- ([\w+-]+\.md) -->\n.*?<!-- end -->", block, text, flags=re.S)


def write_readme(root: Path = tables.ROOT) -> None:
    """Put the published tables into README.md and docs/*.md: all of them, or none."""
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    filled = {file: with_tables(text, tables.PUBLISHED) for file, text in texts.items()}
    for file in files:
        if filled[file] != texts[file]:
            write_text(file, filled[file])
            print(f"{file.name}: tables renewed")
