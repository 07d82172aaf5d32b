"""Seconds that `python train.py` takes from the command to marks on validation and to its end, and
how they divide. Run by `python -m lab.bench job`; needs the machine to itself.

The run is watched from outside: the moment at which each line of metrics.jsonl appears (one every
10 steps; that of a look at validation comes after the look).
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import DataError
from engine.run import read_record
from engine.tables import spread
from lab import results

TRAIN = [sys.executable, "train.py"]
MARKS = (0.8, 0.95, 0.97)  # of validation
WATCHED = 0.05  # seconds between two glances at the file


def job(args) -> list[list[str]]:
    """A row a seed, one after the other, and their mean."""
    taken = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as out:
            taken.append(divide(*watch(seed, Path(out) / "run")))
    rows = [[str(seed), *(cell(value) for value in t.values())] for seed, t in enumerate(taken)]
    means = []
    for values in zip(*(t.values() for t in taken)):
        # a mark that some seeds never pass has no mean
        means.append("never by all" if None in values else spread(list(values), "{:.1f}"))
    return [["seed", *taken[0]], *rows, ["mean", *means]]


def cell(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"


def watch(seed: int, out: Path) -> tuple[list[tuple[float, dict]], float, float]:
    """The lines of a run with the seconds from the command at which they appeared, the seconds to
    its end, and its accuracy on test."""
    command = [*TRAIN, "--seed", str(seed), "--out", str(out)]
    file, lines, began = out / "metrics.jsonl", [], time.perf_counter()
    process = subprocess.Popen(command, cwd=results.ROOT)
    try:
        while process.poll() is None:
            time.sleep(WATCHED)
            read = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
            now = time.perf_counter() - began
            lines += [(now, json.loads(line)) for line in read[len(lines) :]]
    finally:
        process.kill()
    end = time.perf_counter() - began
    if process.returncode:
        raise DataError(f"{' '.join(command)} ended with status {process.returncode}")
    return lines, end, read_record(out)["accuracy"]


def divide(lines: list[tuple[float, dict]], end: float, accuracy: float) -> dict[str, float | None]:
    """column -> seconds (None: never), and the accuracy on test in %."""
    looks = [(at, line["val"]["accuracy"]) for at, line in lines if "val" in line]
    columns = {
        f"to {100 * mark:.0f} %": next((at for at, share in looks if share >= mark), None)
        for mark in MARKS
    }
    stages = {
        stage: [(at, "val" in line) for at, line in lines if line["stage"] == stage]
        for stage in ("pt", "sft")
    }
    steps = {stage: seconds_of_steps(times) for stage, times in stages.items()}
    looking = stages["sft"][-1][0] - stages["pt"][-1][0] - steps["sft"]
    start = stages["pt"][-1][0] - steps["pt"]
    parts = {"start": start, "stage 1": steps["pt"], "steps of stage 2": steps["sft"]}
    parts |= {"looks": looking, "end": end - stages["sft"][-1][0]}
    return {**columns, "in all": end, **parts, "test, %": 100 * accuracy}


def seconds_of_steps(times: list[tuple[float, bool]]) -> float:
    """Of one stage: what its steps took without the looks. times: (when a line came, whether a look
    came before it). The first ten steps, and those before a look, count as much as the median."""
    gaps = [b - a for (a, _), (b, looked) in zip(times, times[1:]) if not looked]
    return sum(gaps) + statistics.median(gaps) * (len(times) - len(gaps))
