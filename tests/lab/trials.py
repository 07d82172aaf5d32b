"""Small trials, and results as their JSON has them."""

import json

import pytest
from helpers import without_drawing

import train
from lab import arms, eyes

TINY = (
    "--preset tiny --device cpu --workers 0 --pt-pictures 4 --pictures 4 --questions 2 "
    "--pt-steps 2 --steps 3 --eval-every 2 --limit 100 --val-limit 40"
).split()
SMALL = ["--", *TINY, "--steps", "2", "--eval-every", "2"]
SOME = ("v2v", "aif 0.5")  # of finished.TEST_TIME


def make_here(todo, runs, jobs, program=("train.py",)):
    """As arms.make, in this process, and without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        without_drawing(patch)
        for name, line in todo:
            main = train.main if list(program) == ["train.py"] else eyes.main
            main([*line, "--out", str(runs / name), "--resume"])


def run_arms(folder, *args):
    folders = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    arms.main([*args, *folders, *SMALL])
    return read(folder / "results" / f"{args[0]}.json")


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def run_of(accuracy, seed=0, families=None, curve=None, params=5):
    """A run as tables.read gives it. accuracy: in %, like those of families."""
    families = {"other": accuracy} if families is None else families
    curve = {"2": accuracy / 100} if curve is None else curve
    return {
        "seed": seed, "accuracy": accuracy / 100, "n": 100, "unparsed": 0, "params": params,
        "families": {name: {"accuracy": a / 100, "n": 20} for name, a in families.items()},
        "curve": curve, "step_at_80": None, "run": f"run-{seed}",
    }  # fmt: skip


def result_of(options, settings, **runs):
    """A trial's JSON."""
    return {"data": "shapes", "arms": runs, "options": options, "missing": [], "settings": settings}
