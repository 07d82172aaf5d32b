"""What docs/fork.md promises: its world trains as it stands, and whoever adds its mask, its method,
lines and files of their own finds the tests green."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}


def block(name: str) -> str:
    """The code of docs/fork.md that stands below the comment `run: name`."""
    text = (ROOT / "docs" / "fork.md").read_text("utf-8")
    (code,) = re.findall(rf"<!-- run: {name} -->\n```python\n(.*?)```", text, re.S)
    return code


def python(folder: Path, *line: str) -> str:
    """What a command prints that is run in a copy of the repository."""
    env = {**ENVIRONMENT, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *line], cwd=folder, env=env, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_world_trains():
    assert "accuracy:" in python(ROOT, "-c", block("world"))


def insert(file: Path, after: str, lines: str) -> None:
    """Lines behind the first place of a file that the pattern `after` describes."""
    text = file.read_text("utf-8")
    found = re.search(after, text, re.M | re.S)
    assert found, f"{file}: nowhere {after}"
    file.write_text(text[: found.end()] + lines + text[found.end() :], "utf-8")


@pytest.fixture
def fork(tmp_path):
    """A copy of the repository, without its history."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_a_fork_stays_green(fork):
    for file in [*fork.glob("*.py"), *fork.glob("[a-z]*/*.py")]:
        insert(file, r"\Z", "# a line of one's own\n")
    (fork / "attempt.py").write_text('if __name__ == "__main__":\n    print("mine")\n', "utf-8")
    forward = r"^class MLLM\b.*? def forward\(.*?:( *#[^\n]*)?\n"
    insert(fork / "model.py", forward, "        print('forward')\n")
    insert(fork / "mma.py", r"^EXTRA_PAIRS\b.*?(?=^\})", block("mask"))
    insert(fork / "lab" / "variants.py", r"\A.*?(?=^if __name__|\Z)", block("variant"))
    assert "both-ways: leaks no label" in python(fork, "mma.py")
    assert "qk-norm" in python(fork, "-m", "lab.variants")
    python(fork, "-m", "pytest")
