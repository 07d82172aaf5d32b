"""Every command of the README parses, the fast ones run, and its numbers are those of the results files."""

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import eval as evaluation
import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.S)
COMMANDS = [part.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() for part in line.split("&&") if part.strip()]
PYTHON = [c for c in COMMANDS if c.startswith("python ")]
FAST = [c for c in PYTHON if c.split()[1] in ("mma.py", "model.py") or "data.shapes" in c]


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
    else:
        assert script in ("mma.py", "model.py") or (script == "-m" and args[0] in ("pytest", "data.shapes", "data.nlvr_world"))


@pytest.mark.parametrize("command", sorted(set(FAST)))
def test_a_fast_command_runs(command, tmp_path):
    args = shlex.split(command.replace("--png ", f"--png {tmp_path}/"))[1:]
    (tmp_path / "results").mkdir()
    subprocess.run([sys.executable, *args], cwd=ROOT, check=True, capture_output=True)


def test_nothing_is_left_open():
    assert "@@" not in README and "@@" not in (ROOT / "LOG.md").read_text(encoding="utf-8")


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "results").glob("*.json")))
def test_its_accuracies_are_those_of_the_results_files(name):
    runs = json.loads((ROOT / "results" / name).read_text())["runs"]
    for mask in {run["mask"] for run in runs}:
        mine = [run for run in runs if run["mask"] == mask]
        rows = {"**overall**": [run["accuracy"] for run in mine],
                **{family: [run["families"][family]["accuracy"] for run in mine] for family in mine[0]["families"]}}
        for label, values in rows.items():
            some = [100 * value for value in values]
            text = f"{statistics.mean(some):.1f}" + (f" ± {statistics.stdev(some):.1f}" if len(some) > 1 else "")
            lines = [line for line in README.splitlines() if line.startswith(f"| {label} ")]
            assert any(f" {text} |" in line for line in lines), (name, mask, label, text)
