"""From a record to files: JSON, Markdown, curves; and the published ones in docs/results.

A record is a comparison's result (lab/results.py), or {"table": rows of cells, "note": a line}. The
JSON is the truth: tables and curves are made from it. A published file is written on --publish
alone, and never loses what another call has published: arms, and seeds of an arm, that this call
did not make are kept.
"""

import json
import re
from pathlib import Path

from data import DataError
from engine.checkpoint import differences, write_file
from engine.code import told_apart
from engine.tables import markdown
from lab import results
from lab.curves import write_curves

PUBLISHED = results.ROOT / "docs" / "results"
ENOUGH = 3  # seeds with which an arm is among many curves
MANY = 6  # curves that can still be told apart


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, lambda out: out.write((text.rstrip("\n") + "\n").encode()))


def write_json(file: Path, record: dict) -> None:
    write_text(file, json.dumps(record, indent=1))


def report(name: str, record: dict) -> dict[str, str]:
    """The Markdown of a record, file by file: NAME.md, the table; of a comparison NAME_claims.md,
    the tests and what the runs were asked beside, and NAME_finding.md, a short table."""
    if "table" in record:
        parts = {f"{name}.md": [markdown(record["table"]), record["note"]]}
    else:
        show, runs, missing = record["show"], results.frame(record), record["missing"]
        made = [run for some in record["arms"].values() for run in some]
        parts = {f"{name}.md": [
            results.main_table(runs, show["marks"]),
            f"Not yet run: {', '.join(missing)}." if missing else "",
            told_apart(made),
        ]}  # fmt: skip
        if show["short"]:
            some = runs[runs["arm"].isin(show["short"])]
            parts[f"{name}_finding.md"] = [results.main_table(some, show["marks"], short=True)]
        if show["claims"]:
            tests = results.differences_table(results.differences(record, runs))
            parts[f"{name}_claims.md"] = [tests, results.asked_table(runs)]
    texts = {file: "\n\n".join(filter(None, some)) for file, some in parts.items()}
    return {file: text for file, text in texts.items() if text}


def write(folder: Path, name: str, record: dict) -> list[Path]:
    """All files of a record. The curves come last: without matplotlib the tables are there."""
    if "arms" in record:
        rows = results.differences(record, results.frame(record))
        record = {**record, "differences": rows}
    write_json(folder / f"{name}.json", record)
    texts = report(name, record)
    for file, text in texts.items():
        write_text(folder / file, text)
    drawn = draw(folder / f"{name}.png", record)
    return [folder / f"{name}.json", *drawn, *(folder / file for file in texts)]


def draw(file: Path, record: dict) -> list[Path]:
    """Validation accuracy over the steps; of many arms, those with enough seeds."""
    arms = record.get("arms", {})
    drawn = {arm: runs for arm, runs in arms.items() if any(run["curve"] for run in runs)}
    if len(drawn) > MANY:
        drawn = {arm: runs for arm, runs in drawn.items() if len(runs) >= ENOUGH} or drawn
    curves = {}
    for arm, runs in drawn.items():
        label = f"{arm} ({len(runs)} seed{'s' * (len(runs) > 1)})"
        curves[label] = [{int(step): y for step, y in run["curve"].items()} for run in runs]
    if curves:
        write_curves(file, curves)
    return [file] * bool(curves)


# --- What is published


def read_published(name: str, settings: dict) -> dict | None:
    """A published comparison, if there is one. DataError if another command wrote it, or if runs
    with these settings do not belong into it."""
    file = PUBLISHED / f"{name}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if "arms" not in record:
        raise DataError(f"{file} was written by another command; move it out of the way first")
    both = settings.keys() & record["settings"].keys()
    now, then = ({n: some[n] for n in both} for some in (settings, record["settings"]))
    if differs := differences(now, then):
        raise DataError(
            f"these runs do not belong into the published table of {name}: {differs}. "
            "Leave --publish out, or choose another --name"
        )
    return record


def merge(old: dict, new: dict) -> dict:
    """The published result with a new one: of the old one stay the arms, and the seeds of arms with
    the same options, that the new one has not."""
    arms, options = {}, {**old["options"], **new["options"]}
    for arm in options:
        same = arm not in new["arms"] or old["options"].get(arm) == options[arm]
        kept = old["arms"].get(arm, []) if same else []
        runs = {run["seed"]: run for run in [*kept, *new["arms"].get(arm, [])]}
        arms[arm] = [runs[seed] for seed in sorted(runs)]
    made = {f"{arm}-{run['seed']}" for arm, runs in arms.items() for run in runs}
    missing = [m for m in dict.fromkeys([*new["missing"], *old["missing"]]) if m not in made]
    return {**new, "settings": old["settings"], "arms": arms, "missing": missing,
            "options": options}  # fmt: skip


def publish(name: str, result: dict) -> list[Path]:
    """Write docs/results, with what was published before."""
    old = read_published(name, result["settings"])
    return write(PUBLISHED, name, merge(old, result) if old else result)


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
    folder = root / "docs" / "results"
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if {"arms", "table"} & {*record}:
            for name, text in report(file.stem, record).items():
                write_text(folder / name, text)
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    filled = {file: with_tables(text, folder) for file, text in texts.items()}
    for file in files:
        if filled[file] != texts[file]:
            write_text(file, filled[file])
            print(f"{file.name}: tables renewed")
