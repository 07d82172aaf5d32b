"""Every command of the README parses, the fast ones run, and its numbers are those of the results files."""

import json
import re
import runpy
import shlex
import statistics
import sys
from pathlib import Path

import pytest

import arms
import bench
import benchmarks
import eval as evaluation
import look
import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.S)
COMMANDS = [part.split("#")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()
            for part in line.split("&&") if part.strip()]
PYTHON = [re.sub("torchrun .*(?=train.py)", "python ", c) for c in COMMANDS if c.startswith(("python ", "torchrun "))]
FAST = [c for c in PYTHON if c.split()[1] in ("mma.py", "model.py", "draw.py")]


def test_the_two_set_up_commands_stand_there():
    assert "pip install -r requirements.txt && python train.py" in README
    assert "pip install -r requirements-test.txt && python -m pytest" in README


@pytest.mark.parametrize("command", sorted(set(PYTHON)))
def test_a_command_parses(command):
    script, *args = shlex.split(command)[1:]
    if script == "train.py":
        train.arguments(args)
    elif script == "eval.py":
        evaluation.arguments(args)
    elif script == "arms.py":
        arms.arguments(args)
    elif script == "look.py":
        look.arguments(args)
    elif script == "bench.py":
        bench.arguments(args)
    elif script == "benchmarks.py":
        benchmarks.arguments(args)
    else:
        assert script in ("mma.py", "model.py", "draw.py") or (script == "-m" and args[0] in ("pytest", "data.shapes", "data.nlvr_world"))


@pytest.mark.parametrize("command", sorted(set(FAST)))
def test_a_fast_command_runs(command, tmp_path, monkeypatch):
    """In this process: starting Python and torch would take longer than the commands."""
    script, *args = shlex.split(command)[1:]
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *args])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert all((tmp_path / arg).stat().st_size > 1000 for arg in args if arg.endswith(".png"))


def test_nothing_is_left_open():
    assert "@@" not in README and "@@" not in (ROOT / "LOG.md").read_text(encoding="utf-8")


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name


RESULTS = ROOT / "results"


def test_its_tables_are_those_of_the_results():
    """Each table between two markers is a file that a command wrote (python arms.py readme puts it there)."""
    assert "<!-- shapes.md -->" in README and arms.with_tables(README, RESULTS) == README


@pytest.mark.parametrize("name", sorted(p.stem for p in RESULTS.glob("*.json")))
def test_a_table_is_what_its_json_says(name):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    if "arms" in result:
        for file, expected in arms.report(name, result).items():
            assert (RESULTS / file).read_text(encoding="utf-8") == expected + "\n"
        for arm, runs in result["arms"].items():  # and the report is what the runs say
            mean = evaluation.spread([100 * run["accuracy"] for run in runs])
            assert any(line.startswith(f"| {arm} ") and f" {mean} |" in line for line in text.splitlines())
            for run in runs:
                right = sum(f["accuracy"] * f["n"] for f in run["families"].values())
                assert abs(right / run["n"] - run["accuracy"]) < 1e-9
    elif "runs" in result:
        groups = {}
        for run in result["runs"]:
            groups.setdefault(run["label"], []).append(run)
        assert text == evaluation.table(groups) + "\n"
    elif name == "time":
        assert all(any(line.startswith(f"| {arm} ") and f" {ms:.0f} |" in line for line in text.splitlines())
                   for arm, ms in result["ms"].items())
    elif "topic" in result:
        assert text == bench.report(result) + "\n"
    else:
        assert text == look.text(result) + "\n"


def test_every_table_stands_in_it():
    assert {file.name for file in RESULTS.glob("*.md")} == set(re.findall(r"<!-- ([\w+]+\.md) -->", README))


def test_the_lines_of_the_files_are_counted_anew():
    assert json.loads((RESULTS / "speed_code.json").read_text())["table"] == bench.code(None), (
        "run: python bench.py code --json results/speed_code.json --md results/speed_code.md && python arms.py readme")


def test_the_numbers_in_its_sentences_are_in_the_results():
    """Percentages named in the text near a results file's figure are rounded from it: mma and causal on shapes."""
    arms_of = json.loads((RESULTS / "shapes.json").read_text())["arms"]
    for arm in ("mma", "causal"):
        assert f"{100 * statistics.mean(run['accuracy'] for run in arms_of[arm]):.1f}" in README
