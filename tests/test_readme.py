"""Commands in README and docs parse; the trained models in weights/ answer as they did; no cell of
the tour fails."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import eval as evaluation

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DATED = ("log.md",)  # records commands as they were at the time


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, a command each."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text("utf-8"), re.S)
    lines = [line for b in blocks for line in b.replace("\\\n", " ").splitlines()]
    parts = [part.split("#")[0].strip() for line in lines for part in line.split("&&")]
    python = (re.sub(r"torchrun .*(?=train\.py)", "python ", part) for part in parts)
    return [re.sub(r"\s+", " ", part) for part in python if part.startswith("python ")]


COMMANDS = sorted({c for page in PAGES if page.name not in DATED for c in commands(page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, monkeypatch):
    """Its module's `arguments` takes it; what has no options is run."""
    _, script, *args = shlex.split(command)
    if script == "-m":
        script, *args = args
    if script in ("pytest", "mma.py", "model.py", "lab.variants"):
        return
    name = "data.__main__" if script == "data" else script.removesuffix(".py")
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [script, *args])
    getattr(module, "options", module.arguments)(args)  # bridge.finetune adds its own


def test_the_trained_models_answer(monkeypatch, capsys):
    """A question on which they differ."""
    monkeypatch.chdir(ROOT)
    question = "which is higher up, the blue circle or the blue diamond?"
    line = "weights/shapes-mma weights/shapes-causal --device cpu --image"
    evaluation.main([*line.split(), "weights/shapes-mma/example.png", "--question", question])
    said = {"weights/shapes-mma: blue diamond", "weights/shapes-causal: blue circle"}
    assert said <= set(capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_the_tour_runs_from_nothing():
    """Opened where it lies; nbclient raises what a cell raised."""
    nbformat, nbclient, _ = map(pytest.importorskip, ("nbformat", "nbclient", "ipykernel"))
    tour = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    where = {"metadata": {"path": ROOT / "docs"}}
    nbclient.NotebookClient(tour, timeout=600, resources=where).execute()
