"""The folder of a run: who holds it, what may go on in it, what stops a run."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, RUN, at_steps, own_data, train_and_crash

import data
import train
from data.shapes import scenes as shapes_scenes
from engine import checkpoint
from engine.run import hold, one_line_errors

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("rank, says", [("", "stopped"), ("0", "stopped"), ("1", "")])
def test_one_of_torchruns_processes_says_that_they_were_stopped(monkeypatch, capsys, rank, says):
    monkeypatch.setattr(os, "environ", {"RANK": rank} if rank else {})
    with pytest.raises(SystemExit) as exit, one_line_errors():
        raise KeyboardInterrupt
    assert exit.value.code == 130 and capsys.readouterr().err.strip() == says
    with pytest.raises(SystemExit, match="error: this one alone"), one_line_errors():
        raise data.DataError("this one alone")


# --- What goes on


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory):
    train_and_crash(out := tmp_path_factory.mktemp("stopped"), 8)
    return out


@pytest.mark.parametrize("line, says", [
    ("--resume --mask causal", "cannot go on: .*--mask is 'causal' and was 'mma'"),
    ("--resume --n-layer 2 --variant cca",
     "cannot go on: .*--n-layer is 2 and was 4; --variant is 'cca' and was None"),
    ("", "holds a run that was stopped; go on with it by --resume, or say --overwrite"),
    ("--resume", "the data are not those it was trained on"),
])  # fmt: skip
def test_what_is_not_the_same_run_neither_goes_on_nor_overwrites(stopped, monkeypatch, line, says):
    before = (stopped / checkpoint.NAME).read_bytes()
    if line == "--resume":
        monkeypatch.setattr(shapes_scenes, "PALETTE", 255 - shapes_scenes.PALETTE)
    with pytest.raises(SystemExit, match=says):
        train.main([*RUN, "--out", str(stopped), *line.split()])
    assert (stopped / checkpoint.NAME).read_bytes() == before


# --- What stops it


def poison(model):
    model.norm.weight.data.fill_(torch.nan)


@pytest.mark.parametrize("step, stage, n, kept", [
    (2, "pt", 2, "no checkpoint was written yet"), (3, "pt", 3, "before and good"),
    (8, "sft", 4, "before and good"),
])  # fmt: skip
def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_no_checkpoint(
    llava, tmp_path, monkeypatch, step, stage, n, kept
):
    """The rows of the bad step are named."""
    at_steps(monkeypatch, lambda s: s == step, poison)
    message = rf"loss nan, gradient norm nan at step {n} of stage {stage}: .*{kept}"
    with pytest.raises(SystemExit, match=rf"{message}. Its rows: .*data.json: entry \d+ \(id '"):
        train.main([*RUN, *own_data(llava), "--out", str(tmp_path)])
    if step > 2:
        state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
        assert all(p.isfinite().all() for p in state["model"].values())
        assert (state["stage"], state["step"]) == (stage, 2)


# --- One training at a time in a folder

HOLD = """
import os, sys, time
from pathlib import Path
from engine.run import hold
file = hold(Path(sys.argv[1]))
worker = os.fork() if hasattr(os, "fork") else -1
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


def test_two_trainings_in_one_folder(tmp_path):
    """The second one is refused, and loses nothing of the first, whose end, however it comes, gives
    the folder free; a worker that outlives it does not hold it."""
    line = [sys.executable, "-c", HOLD, str(tmp_path)]
    (tmp_path / "metrics.jsonl").write_text("of the first")
    first = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = int(first.stdout.readline())
    try:
        for options in ([], ["--resume"], ["--overwrite"]):
            with pytest.raises(SystemExit, match="another process is training in .*; wait for it"):
                train.main([*RUN, *options, "--out", str(tmp_path)])
        first.kill()
        first.wait()
        assert [file.read_text() for file in tmp_path.iterdir()] == ["of the first"]
        hold(tmp_path).close()
    finally:
        first.kill()
        if worker > 0:
            os.kill(worker, signal.SIGKILL)
