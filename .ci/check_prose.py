"""What README and docs say is so: links lead somewhere, numbers and tables are those of the
results, lines are counted anew, and what a command prints is what a page says it prints.

`python -m pytest .ci/*.py` checks this repository. It is no part of the suite that a fork runs.
"""

import base64
import json
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from engine.tables import spread
from lab import playground, publish, rehearsal, results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def result_of(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Its headings, as GitHub writes them behind #."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page):
    """To a file that is there, and to a heading of it."""
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


# --- Code and commands


def test_the_two_set_up_commands_stand_there():
    assert "pip install -r requirements.txt && python train.py" in README
    assert "pip install -r requirements-test.txt && python -m pytest" in README


def test_the_readme_prints_the_rule_as_it_stands_in_mma():
    """The lines `opened = ...` and `readable = ...`, letter by letter."""
    code = [line.strip() for line in (ROOT / "mma.py").read_text("utf-8").splitlines()]
    for name in ("opened", "readable"):
        (printed,) = re.findall(rf"^ *({name} += .*)$", README, re.M)
        assert printed in code


def test_the_lines_of_the_files_are_counted_anew():
    counted = re.findall(r"^\| \[[\w/.]+\]\(([\w/.]+)\) \| (\d+) \|", README, re.M)
    assert counted
    for name, lines in counted:
        assert len((ROOT / name).read_text("utf-8").splitlines()) == int(lines), name


@every_page
def test_what_a_page_says_that_a_command_prints_is_what_it_prints(page):
    """Blocks that begin with a dollar: git and wc, which count files and lines."""
    for block in re.findall(r"```text\n\$ (.*?)```", page.read_text("utf-8"), re.S):
        command, printed = block.split("\n", 1)
        done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == printed, command


def test_the_weights_answer_as_the_readme_says():
    (line,) = re.findall(r"^python (eval\.py weights/.*?)\n```", README, re.M | re.S)
    command = [sys.executable, *shlex.split(line.replace("\\\n", "")), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == 2 and all(f"`{answer}`" in README for answer in answers)


def test_the_world_of_fork_md_is_short():
    text = (ROOT / "docs" / "fork.md").read_text("utf-8")
    (code,) = re.findall(r"<!-- run: world -->\n```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) <= 40


def test_what_the_llm_is_shown_to_be_asked_was_not_rehearsed():
    told = " ".join((ROOT / "docs" / "weights.md").read_text("utf-8").split())
    asked = set(re.findall(r"Asked `(.*?)`", told))
    assert asked and not asked & set(rehearsal.PROMPTS)


def test_the_page_of_the_playground_is_made_from_the_weights(monkeypatch):
    """Deflated as it may be; what it holds is what the command would write now."""
    monkeypatch.chdir(ROOT)
    runs = [Path("weights", name) for name in ("shapes-causal", "shapes-mma")]
    made = playground.page([(run.name, *playground.opened(run)) for run in runs])
    kept = (ROOT / "docs" / "playground.html").read_text("utf-8")
    packed = r'(?<="weights":")[A-Za-z0-9+/=]+'
    assert re.sub(packed, "", made) == re.sub(packed, "", kept)
    for a, b in zip(re.findall(packed, made), re.findall(packed, kept), strict=True):
        assert zlib.decompress(base64.b64decode(a)) == zlib.decompress(base64.b64decode(b))


# --- Tables


@every_page
def test_its_tables_are_those_of_the_results(page):
    """Between two markers stands what a command wrote (python -m lab.compare --tables)."""
    text = page.read_text("utf-8")
    assert publish.with_tables(text, RESULTS) == text
    assert "@@" not in text and not re.search(r"@[A-Z]+@", text)


def test_every_published_table_stands_somewhere():
    """Between two markers of a page, or behind a link of one."""
    text = "".join(page.read_text("utf-8") for page in PAGES)
    shown = set(re.findall(r"(?:<!-- |results/)([\w+-]+\.md)(?: -->|\))", text))
    assert {file.name for file in RESULTS.glob("*.md")} == shown


RECORDS = [
    f.stem for f in sorted(RESULTS.glob("*.json")) if {"arms", "table"} & {*result_of(f.stem)}
]


@pytest.mark.parametrize("name", RECORDS)
def test_a_table_says_what_its_record_says(name):
    result = result_of(name)
    for file, text in publish.report(name, result).items():
        assert (RESULTS / file).read_text("utf-8") == text + "\n", file
    for runs in result.get("arms", {}).values():
        for run in runs:
            right = sum(f["accuracy"] * f["n"] for f in run["families"].values())
            assert abs(right / run["n"] - run["accuracy"]) < 1e-9


CLAIM = r"\| \[([^]]+)\]\(results/([\w+-]+?)(?:_claims)?\.md\) \| (.*?) \| \*\*(.*?)\*\*.*\|$"


def test_the_claims_at_the_top_of_results_md_are_those_of_the_results():
    """Of each row seeds, difference, interval, p and the verdict."""
    rows = re.findall(CLAIM, (ROOT / "docs" / "results.md").read_text("utf-8"), re.M)
    assert len(rows) > 20
    for claim, name, numbers, verdict in rows:
        record = result_of(name)
        record["show"]["claims"] = [*record["show"]["claims"], "mma > causal"]
        found = results.differences_table(results.differences(record, results.frame(record)))
        cells = [[c.strip() for c in row.split("|")[1:-1]] for row in found.splitlines()[2:]]
        by_claim = {row[0]: row[1:] for row in cells if row}
        here, difference, interval, p, n, _ = by_claim[claim]
        assert (numbers, verdict) == (" | ".join((n, difference, interval, p)), here), claim


# --- Numbers in the README's sentences


def test_the_numbers_of_the_default_world_are_in_the_results():
    runs = result_of("shapes")["arms"]
    for arm in ("mma", "causal"):
        assert spread([100 * run["accuracy"] for run in runs[arm]]).split(" ")[0] in README


def test_the_numbers_of_other_worlds_are_in_the_results():
    """Sound: the means of the arms; two pictures: the least and the most of each."""
    points, worlds = re.split(r"\n(?=\* |\n)", README), ("sounds", "shapes-pairs")
    sound, two = (next(" ".join(p.split()) for p in points if f"--data {w}`" in p) for w in worlds)
    by_world = [result_of(world)["arms"] for world in worlds]
    for arm in ("mma", "causal", "prefix", "t&i"):
        heard, seen = ([100 * run["accuracy"] for run in runs[arm]] for runs in by_world)
        assert spread(heard).split(" ")[0] in sound, arm
        for accuracy in (min(seen), max(seen)):
            assert f"{accuracy:.1f}" in two, arm


def test_the_laptops_numbers_are_those_of_its_run():
    header, *rows, mean = result_of("speed_job")["table"]
    run = {name: value.split(" ")[0] for name, value in zip(header[1:], mean[1:])}
    words = " ".join(README.split())
    minutes, seconds = divmod(round(float(run["in all"])), 60)
    assert f"{minutes} minutes {seconds} seconds" in words
    assert f"{run['test, %']} % of the test questions" in words
    column = header.index("to 97 %")
    marks = [f"{float(row[column]):.0f}" for row in rows if not row[column].startswith("never")]
    assert f"97 % on validation come after {' and '.join(marks)} seconds" in words
    for share in (80, 95):
        if (taken := run[f"to {share} %"]) != "never":  # never by all seeds
            assert f"{share} % on validation after {float(taken):.0f} seconds" in words
