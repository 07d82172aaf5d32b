"""From a result to files: JSON, Markdown, curves; and the published ones in docs/results.

The JSON is the truth: tables and curves are made from it. A published file is written on --publish
alone, and never loses what another call has published: arms, and seeds of an arm, that this call
did not make are kept.
"""

import json
import re
from pathlib import Path

from data import DataError
from engine.checkpoint import write_file
from lab import results
from lab.curves import write_curves
from lab.results import VALIDATION, frame

ENOUGH = 3  # seeds with which an arm is in the short table, and among many curves
MANY = 6  # curves that can still be told apart
RATE = "learning rate"  # is what arms count that are chosen between, by validation


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda out: out.write((text.rstrip("\n") + "\n").encode()))


def write_json(file: Path, record: dict) -> None:
    write_text(file, json.dumps(record, indent=1))


def read_published(name: str, key: str = "arms") -> dict | None:
    """A published JSON, if there is one. DataError if another command wrote it: it lacks `key`."""
    file = results.PUBLISHED / f"{name}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if key not in record:
        raise DataError(f"{file} was written by another command; move it out of the way first")
    return record


# --- A result


def report(name: str, result: dict) -> dict[str, str]:
    """The Markdown of a result, file by file: NAME.md, the table; NAME_claims.md, the tests and
    what the runs were asked beside; NAME_finding.md, a short table."""
    show = result["show"]
    runs, marks = frame(result["arms"], show["marks"]), show["marks"]
    parts = [results.main_table(runs, marks)]
    if show["counts"] == RATE:
        parts.append(results.chosen_on_validation(runs))
    if result["missing"]:
        parts.append(f"Not yet run: {', '.join(result['missing'])}.")
    files = {f"{name}.md": parts}
    if show["short"]:
        enough = runs.groupby("arm")["seed"].transform("count") >= ENOUGH
        files[f"{name}_finding.md"] = [results.main_table(runs[enough], marks, short=True)]
    if show["claims"]:
        rows = results.differences(result, runs)
        files[f"{name}_claims.md"] = [results.differences_table(rows), results.asked_table(runs)]
    texts = {file: "\n\n".join(filter(None, parts)) for file, parts in files.items()}
    return {file: text for file, text in texts.items() if text}


def write(folder: Path, name: str, result: dict) -> list[Path]:
    """All files of a result. The curves come last: without matplotlib the tables are there."""
    rows = results.differences(result, frame(result["arms"], result["show"]["marks"]))
    write_json(folder / f"{name}.json", {**result, "differences": rows})
    texts = report(name, result)
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in (f"{name}.json", *texts)] + draw(folder, name, result)


def draw(folder: Path, name: str, result: dict) -> list[Path]:
    """Validation accuracy over the steps; where arms count something, accuracy over that too."""
    arms, counts = result["arms"], result["show"]["counts"]
    drawn = {arm: runs for arm, runs in arms.items() if any(run["curve"] for run in runs)}
    if len(drawn) > MANY and not counts:
        drawn = {arm: runs for arm, runs in drawn.items() if len(runs) >= ENOUGH} or drawn
    curves = {}
    for arm, runs in drawn.items():
        label = f"{arm} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        curves[label] = [{int(step): y for step, y in run["curve"].items()} for run in runs]
    files = []
    if curves:
        files.append(folder / f"{name}{'-curves' if counts else ''}.png")
        write_curves(files[-1], curves)
    if counts:
        column, split = (VALIDATION, "validation") if counts == RATE else ("overall", "test")
        lines, xlabel = over_count(frame(arms, ()), column), f"{counts} ({split} accuracy)"
        files.append(folder / f"{name}.png")
        write_curves(files[-1], lines, xlabel=xlabel)
    return files


def over_count(runs, column: str) -> dict[str, list[dict]]:
    """mask -> for each seed: what the @ counts -> accuracy (0 to 1)."""
    lines = {}
    for (arm, _), of_seed in runs.groupby([runs["arm"].str.split("@").str[0], "seed"], sort=False):
        counted = of_seed["arm"].str.split("@").str[1].str.rstrip("x").astype(float)
        lines.setdefault(arm, []).append(dict(zip(counted, of_seed[column] / 100)))
    return lines


# --- What is published


def check_settings(name: str, settings: dict) -> None:
    """DataError if runs with these settings do not belong into the published table `name`."""
    old = (read_published(name) or {"settings": {}})["settings"]
    differs = [
        f"--{n.replace('_', '-')} is {settings[n]!r} and was {old[n]!r}"
        for n in sorted({*old} & {*settings}) if old[n] != settings[n]
    ]  # fmt: skip
    if differs:
        raise DataError(
            f"these runs do not belong into the published table of {name}: {'; '.join(differs)}. "
            "Leave --publish out, or choose another --name"
        )


def merge(old: dict, new: dict) -> dict:
    """The published result with a new one: of the old one stay the arms, and the seeds of arms with
    the same options, that the new one has not."""
    arms, options = {}, {**old["options"], **new["options"]}
    for arm in dict.fromkeys([*old["arms"], *new["arms"]]):
        same = old["options"].get(arm) == options[arm]
        kept = old["arms"].get(arm, []) if same or arm not in new["arms"] else []
        runs = {run["seed"]: run for run in [*kept, *new["arms"].get(arm, [])]}
        arms[arm] = [runs[seed] for seed in sorted(runs)]
    made = {f"{arm}-{run['seed']}" for arm, runs in arms.items() for run in runs}
    missing = [m for m in dict.fromkeys([*new["missing"], *old["missing"]]) if m not in made]
    options = {arm: options[arm] for arm in arms}
    return {**new, "settings": old["settings"], "arms": arms, "missing": missing,
            "options": options}  # fmt: skip


def publish(name: str, result: dict) -> list[Path]:
    """Write docs/results, with what was published before."""
    check_settings(name, result["settings"])
    old = read_published(name)
    return write(results.PUBLISHED, name, merge(old, result) if old else result)


def with_tables(text: str, folder: Path) -> str:
    """The text, with what stands between <!-- NAME.md --> and <!-- end --> taken from a folder."""

    def block(match):
        file = folder / match[1]
        if not file.exists():
            raise DataError(f"{file} is missing: the command that writes it, with --publish, first")
        return f"<!-- {match[1]} -->\n{file.read_text(encoding='utf-8').strip()}\n<!-- end -->"

    return re.sub(r"<!-- ([\w+-]+\.md) -->\n.*?<!-- end -->", block, text, flags=re.S)


def renew(root: Path = results.ROOT) -> None:
    """Make the published tables anew from their JSON, and put them into README.md and docs/*.md:
    into all of these, or none."""
    for file in sorted(results.PUBLISHED.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if "arms" in record:
            for name, text in report(file.stem, record).items():
                write_text(results.PUBLISHED / name, text)
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    filled = {file: with_tables(text, results.PUBLISHED) for file, text in texts.items()}
    for file in files:
        if filled[file] != texts[file]:
            write_text(file, filled[file])
            print(f"{file.name}: tables renewed")
