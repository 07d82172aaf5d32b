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

from lab import eyes, playground, publish, results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ARMS, LAPTOP = ("mma", "causal"), ("in all", "test, %")
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
    assert asked and not asked & set(eyes.PROMPTS)


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


def points_of(name: str, arm: str) -> float:
    """The mean over seeds of an arm's test accuracy, in %."""
    runs = result_of(name)["arms"][arm]
    return sum(100 * run["accuracy"] for run in runs) / len(runs)


def test_the_numbers_of_the_readme_are_in_the_results():
    words = " ".join(README.split())
    found = {row["claim"]: row for row in result_of("nlvr+world")["differences"]}["mma > causal"]
    points, low, high, seeds = (found[name] for name in ("difference", "low", "high", "n"))
    assert seeds == "3"
    for said in (
        f"four times the steps causal catches up**: {points_of('budget', 'causal@4x'):.1f}",
        f"(NLVR), mma {points:.1f} points higher ({low:.1f} to {high:.1f}; three seeds)",
        f"{points_of('shapes_small', 'causal'):.1f} %, one seed, measured",
    ):
        assert said in words, said


def test_the_headline_of_the_readme_is_in_the_results():
    found = {row["claim"]: row for row in result_of("shapes")["differences"]}
    points, low, high, p = (found["mma > causal"][x] for x in ("difference", "low", "high", "p"))
    said = f"**mma ends {points:.1f} points higher than causal** "
    assert f"{said}(95 % interval {low:.1f} to {high:.1f}; p = {p:.3f})" in README
    arms = result_of("shapes")["arms"]
    seeds = [[run["accuracy"] for run in arms[arm]] for arm in ARMS]
    assert len(seeds[0]) == 5 and all(mma > causal for mma, causal in zip(*seeds))


def test_the_laptops_numbers_are_those_of_its_run():
    header, *_, mean = result_of("speed_job")["table"]
    run = {name: float(value.split(" ")[0]) for name, value in zip(header, mean) if name in LAPTOP}
    minutes, right = (run[name] for name in LAPTOP)
    assert f"| `python train.py` | {minutes / 60:.0f} | {right} %, measured |" in README
