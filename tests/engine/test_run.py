"""The folder of a run: who holds it, what may go on in it, what stops a run."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, RUN, at_steps, train_and_crash

import data
import train
from data.shapes import scenes as shapes_scenes
from engine import checkpoint, lock
from engine.lock import run_lock
from engine.run import one_line_errors

pytestmark = pytest.mark.usefixtures("small")
NO_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")


@pytest.fixture
def stopped(tmp_path):
    train_and_crash(tmp_path, 8)
    return tmp_path


@pytest.mark.parametrize("rank,says", [(None, "stopped"), ("0", "stopped"), ("1", "")])
def test_one_of_torchruns_processes_says_that_they_were_stopped(monkeypatch, capsys, rank, says):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as exit, one_line_errors():
        raise KeyboardInterrupt
    assert exit.value.code == 130 and capsys.readouterr().err.strip() == says
    with pytest.raises(SystemExit, match="error: this one alone"), one_line_errors():
        raise data.DataError("this one alone")


# --- What goes on


@pytest.mark.parametrize("line,says", [
    ("--resume --mask causal", "cannot go on: .*--mask is 'causal' and was 'mma'"),
    ("--resume --n-layer 2", "cannot go on: .*--n-layer is 2 and was 4"),
    ("--resume --variant cca", "cannot go on: .*--variant is 'cca' and was None"),
    ("", "holds a run that was stopped; go on with it by --resume, or say --overwrite"),
])  # fmt: skip
def test_what_is_not_the_same_run_neither_goes_on_nor_overwrites(stopped, line, says):
    before = (stopped / checkpoint.NAME).read_bytes()
    with pytest.raises(SystemExit, match=says):
        train.main([*RUN, "--out", str(stopped), *line.split()])
    assert (stopped / checkpoint.NAME).read_bytes() == before


def test_changed_data_do_not_go_on(stopped, monkeypatch):
    palette = shapes_scenes.PALETTE.clone()
    palette[0] = torch.tensor([1, 2, 3])
    monkeypatch.setattr(shapes_scenes, "PALETTE", palette)
    with pytest.raises(SystemExit, match="the data are not those it was trained on"):
        train.main([*RUN, "--out", str(stopped), "--resume"])


# --- What stops it


def poison(model):
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)


@pytest.mark.parametrize("step,stage,n,kept", [
    (1, "pt", 1, "no checkpoint was written yet"), (3, "pt", 3, "before and good"),
    (8, "sft", 4, "before and good"),
])  # fmt: skip
def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_no_checkpoint(
    llava, tmp_path, monkeypatch, step, stage, n, kept
):
    """The rows of the bad step are named."""
    at_steps(monkeypatch, lambda s: s == step, poison)
    options = ["--data", "llava", "--source", str(llava), "--image-size", "32"]
    message = rf"loss nan, gradient norm nan at step {n} of stage {stage}: .*{kept}"
    with pytest.raises(SystemExit, match=rf"{message}. Its rows: .*data.json: entry \d+ \(id '"):
        train.main([*RUN, *options, "--out", str(tmp_path / "run")])
    if step > 1:
        state = torch.load(tmp_path / "run" / checkpoint.NAME, weights_only=True)
        assert all(p.isfinite().all() for p in state["model"].values())
        assert (state["stage"], state["step"]) == (stage, 2)


# --- Who holds it


def start_holder(folder, *more: str):
    """A process that holds the folder until it reads a line; and what it says of that."""
    program = "import os, time; from pathlib import Path; from engine.lock import run_lock\n"
    program += f"with run_lock(Path({str(folder)!r})):\n    "
    program += "\n    ".join([*more, "print('held', flush=True); input()"])
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = subprocess.Popen([sys.executable, "-c", program], **pipes)
    return child, child.stdout.readline()


def test_two_trainings_in_one_folder(tmp_path):
    """The second one is refused, and loses nothing of the first; a killed one holds nothing."""
    child, said = start_holder(tmp_path)
    assert said == "held\n"
    with pytest.raises(SystemExit, match=f"process {child.pid} on .* is training in"):
        train.main([*RUN, "--out", str(tmp_path)])
    child.kill()
    child.wait()
    with run_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@NO_WINDOWS
def test_a_lock_that_was_deleted_holds_nothing_and_is_nobodys(tmp_path, monkeypatch):
    """The first training ends, and deletes the file, after the second has opened and before it has
    locked it. One that was deleted by hand is not taken from its new holder."""
    first, said = start_holder(tmp_path)
    assert said == "held\n"
    take = lock.take
    with monkeypatch.context() as patch:
        patch.setattr(lock, "take", lambda file: first.communicate("\n") and take(file))
        with pytest.raises(data.DataError, match="has ended just now; start this one again"):
            with run_lock(tmp_path):
                pass
    with run_lock(tmp_path):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("of another training")
    assert (tmp_path / "lock").read_text() == "of another training"


@NO_WINDOWS
def test_a_worker_that_outlives_a_killed_training_does_not_hold_its_folder(tmp_path):
    job, worker = start_holder(tmp_path, "worker = os.fork() or time.sleep(60); print(worker)")
    job.kill()
    job.wait()
    try:
        with run_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / "lock").read_text()
    finally:
        os.kill(int(worker), signal.SIGKILL)
