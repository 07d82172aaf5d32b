"""Commands in README and docs parse, links lead somewhere, tables are those of the results."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import eval as evaluation
from engine.tables import spread
from lab import bench_arms, experiments, eyes_arms, publish

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORLDS = ("sounds", "shapes-pairs")
DATED = ("log.md",)  # records commands as they were at the time


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, a command each."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    parts = [part.split("#")[0].strip() for line in lines for part in line.split("&&")]
    python = (re.sub(r"torchrun .*(?=train\.py)", "python ", part) for part in parts)
    return [re.sub(r"\s+", " ", part) for part in python if part.startswith("python ")]


COMMANDS = sorted({c for page in PAGES if page.name not in DATED for c in commands(page)})


def test_the_two_set_up_commands_stand_there():
    assert "pip install -r requirements.txt && python train.py" in README
    assert "pip install -r requirements-test.txt && python -m pytest" in README


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, monkeypatch):
    """Its module's `arguments` takes it; what has no options is run."""
    _, script, *args = shlex.split(command)
    if script == "-m":
        script, *args = args
    if script in ("pytest", "mma.py", "model.py", "lab.variants") or script.startswith("data."):
        return
    module = importlib.import_module(script.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [script, *args])
    getattr(module, "options", module.arguments)(args)  # bridge.finetune adds its own


@pytest.mark.skipif(not os.environ.get("CI"), reason="a fork may add lines; CI counts")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_that_a_command_prints_is_what_it_prints(page):
    """Blocks that begin with a dollar: git and wc, which count files and lines."""
    for block in re.findall(r"```text\n\$ (.*?)```", page.read_text("utf-8"), re.S):
        command, printed = block.split("\n", 1)
        done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True)
        if done.returncode and "git" in command:
            pytest.skip("not a git checkout")
        assert done.stdout == printed, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_tables_are_those_of_the_results(page):
    """Between two markers stands what a command wrote; python -m lab.arms readme puts it there."""
    text = page.read_text("utf-8")
    assert publish.with_tables(text, RESULTS) == text
    assert "@@" not in text and not re.search(r"@[A-Z]+@", text)


def test_every_published_table_stands_somewhere():
    shown = {
        n for page in PAGES for n in re.findall(r"<!-- ([\w+-]+\.md) -->", page.read_text("utf-8"))
    }
    assert {file.name for file in RESULTS.glob("*.md")} == shown


def result_of(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


TRIALS = [  # nlvr.json is eval.py's
    name
    for name in experiments.EXPERIMENTS
    if (RESULTS / f"{name}.json").exists() and "arms" in result_of(name)
]


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_says_what_its_runs_say(name):
    result = result_of(name)
    for file, text in publish.report(name, result).items():
        assert (RESULTS / file).read_text("utf-8") == text + "\n", file
    for runs in result["arms"].values():
        for run in runs:
            right = sum(f["accuracy"] * f["n"] for f in run["families"].values())
            assert abs(right / run["n"] - run["accuracy"]) < 1e-9


@pytest.mark.parametrize("file", sorted(RESULTS.glob("eyes*.json")), ids=lambda file: file.stem)
def test_what_got_eyes_says_what_its_runs_say(file):
    text = eyes_arms.report(json.loads(file.read_text("utf-8")), file.stem.endswith("rates"))
    assert file.with_suffix(".md").read_text("utf-8") == text + "\n"


def test_the_table_of_times_counts_the_steps_of_all_seeds():
    text = bench_arms.report(result_of("time"), result_of("shapes")["arms"])
    assert (RESULTS / "time.md").read_text("utf-8") == text + "\n"


def test_the_numbers_in_its_sentences_are_in_the_results():
    runs = result_of("shapes")["arms"]
    for arm in ("mma", "causal"):
        assert spread([100 * run["accuracy"] for run in runs[arm]]).split(" ")[0] in README


def test_the_numbers_of_other_worlds_are_in_the_results():
    """Sound: the means of the arms; two pictures: the least and the most of each."""
    points = re.split(r"\n(?=\* |\n)", README)
    sound, two = (next(" ".join(p.split()) for p in points if f"--data {w}`" in p) for w in WORLDS)
    by_world = [result_of(world)["arms"] for world in WORLDS]
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


@pytest.mark.skipif(not os.environ.get("CI"), reason="a fork may add a line; CI counts them")
def test_the_lines_of_the_files_are_counted_anew():
    for name, lines in re.findall(r"^\| \[[\w/.]+\]\(([\w/.]+)\) \| (\d+) \|", README, re.M):
        assert len((ROOT / name).read_text("utf-8").splitlines()) == int(lines), name


def test_the_world_of_fork_md_trains():
    """The example runs as it stands."""
    text = (ROOT / "docs" / "fork.md").read_text("utf-8")
    (code,) = re.findall(r"<!-- run: world -->\n```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) <= 40
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "accuracy:" in done.stdout, done.stderr


def test_the_plan_of_another_model_is_as_weights_md_prints_it(capsys):
    text = (ROOT / "docs" / "weights.md").read_text("utf-8")
    found = re.findall(r"<!-- run: plan -->\n```python\n(.*?)```.*?```text\n(.*?)```", text, re.S)
    (code, printed) = found[0]
    exec(code, {})
    assert capsys.readouterr().out == printed


def test_the_weights_answer_as_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = next(c for c in COMMANDS if c.startswith("python eval.py weights/shapes"))
    evaluation.main([*shlex.split(command)[2:], "--device", "cpu"])
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2 and all(f"`{answer}`" in README for answer in answers)
