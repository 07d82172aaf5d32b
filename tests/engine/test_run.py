"""The folder of a run: what may go on, what is not overwritten, what stops it, and what it keeps in
memory."""

import gc
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import ROOT, RUN, at_steps, result_of, same, train_and_crash

import data
import train
from data.shapes import scenes as shapes_scenes
from engine import checkpoint
from engine.lock import run_lock
from engine.run import Run, one_line_errors

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def stopped(tmp_path):
    out = tmp_path / "stopped"
    train_and_crash(out, 8)
    return out


def resume(out, *options):
    train.main([*RUN, *options, "--out", str(out), "--resume"])


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


def test_torn_and_later_lines_of_metrics_are_written_again(whole, tmp_path):
    train_and_crash(tmp_path, 9)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)


@pytest.mark.parametrize("change,says", [
    (["--mask", "causal"], "--mask is 'causal' and was 'mma'"),
    (["--n-layer", "2"], "--n-layer is 2 and was 4"),
    (["--seed", "1"], "--seed is 1 and was 0"),
    (["--steps", "9"], "--steps is 9 and was 6"),
    (["--variant", "cca"], "--variant is 'cca' and was None"),
])  # fmt: skip
def test_what_is_not_the_same_run_does_not_go_on(stopped, change, says):
    before = (stopped / checkpoint.NAME).read_bytes()
    with pytest.raises(SystemExit, match=f"cannot go on: .*{says}"):
        resume(stopped, *change)
    assert (stopped / checkpoint.NAME).read_bytes() == before


def test_changed_data_do_not_go_on(stopped, monkeypatch):
    palette = shapes_scenes.PALETTE.clone()
    palette[0] = torch.tensor([1, 2, 3])
    monkeypatch.setattr(shapes_scenes, "PALETTE", palette)
    with pytest.raises(SystemExit, match="the data are not those it was trained on"):
        resume(stopped)


def test_what_fails_before_training_leaves_no_folder(tmp_path):
    with pytest.raises(SystemExit, match="--source"):
        resume(tmp_path / "new" / "run", "--data", "llava")
    assert not list(tmp_path.iterdir())


def test_other_options_than_those_of_a_finished_run_are_named(tmp_path, capsys):
    train.main([*RUN, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="finished run, of which --steps is 9 and was 6"):
        resume(tmp_path, "--steps", "9")
    with pytest.raises(SystemExit) as done:
        resume(tmp_path, "--save-every", "5")  # of which nothing depends
    assert done.value.code == 0 and "nothing to go on with" in capsys.readouterr().out


def test_a_stopped_run_is_not_overwritten_by_accident(stopped):
    message = "holds a run that was stopped; go on with it by --resume, or say --overwrite"
    with pytest.raises(SystemExit, match=message):
        train.main([*RUN, "--out", str(stopped)])


def test_a_damaged_checkpoint_is_named_and_metrics_are_not_needed(stopped, whole):
    (stopped / "metrics.jsonl").unlink()
    good = (stopped / checkpoint.NAME).read_bytes()
    (stopped / checkpoint.NAME).write_bytes(good[:1000])
    with pytest.raises(SystemExit, match="cannot be read as a checkpoint"):
        resume(stopped)
    (stopped / checkpoint.NAME).write_bytes(good)
    resume(stopped)
    assert same(result_of(stopped), whole)


@pytest.mark.parametrize("step,stage", [(4, "pt"), (8, "sft")])
def test_after_a_resume_no_second_copy_of_the_state_is_kept(tmp_path, monkeypatch, step, stage):
    train_and_crash(tmp_path, step)
    load, begin, tensors, seen = checkpoint.load, Run.begin, [], []

    def spy(*args):
        state = load(*args)
        tensors.extend(map(weakref.ref, state["model"].values()))
        return state

    def begun(run, name, model, *args):
        done = begin(run, name, model, *args)
        gc.collect()
        left = sum(tensor() is not None for tensor in tensors)
        seen.append((name, done, run.state, left))
        return done

    monkeypatch.setattr(checkpoint, "load", spy)
    monkeypatch.setattr(Run, "begin", begun)
    resume(tmp_path)
    assert len(tensors) > 50 and seen[0] == (stage, 2, None, 0)
    assert [name for name, *_ in seen] == ["pt", "sft"][stage == "sft" :]


# --- What stops it


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_while_writing_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="error: .*: no space left on the disk"):
        train.main([*RUN, "--out", str(tmp_path)])


def poison(model):
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)


@pytest.mark.parametrize("step", [3, 8])
def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_no_checkpoint(
    tmp_path, monkeypatch, step
):
    at_steps(monkeypatch, lambda s: s == step, poison)
    stage, n = ("pt", step) if step <= 4 else ("sft", step - 4)
    message = (
        f"loss nan, gradient norm nan at step {n} of stage {stage}: .* before and good.*Its rows: "
    )
    with pytest.raises(SystemExit, match=message):
        train.main([*RUN, "--out", str(tmp_path)])
    state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    assert all(p.isfinite().all() for p in state["model"].values())
    assert (state["stage"], state["step"]) == (stage, 2)


def test_the_rows_of_a_bad_step_are_named(llava, tmp_path, monkeypatch):
    at_steps(monkeypatch, lambda step: step == 1, poison)
    options = ["--data", "llava", "--source", str(llava), "--image-size", "32"]
    message = (
        r"at step 1 of stage pt: no checkpoint was written yet. "
        r"Its rows: .*data.json: entry \d+ \(id '"
    )
    with pytest.raises(SystemExit, match=message):
        train.main([*RUN, *options, "--out", str(tmp_path / "run")])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_worker_that_outlives_a_killed_training_does_not_hold_its_folder(tmp_path):
    program = (
        "import os, time; from pathlib import Path; from engine.lock import run_lock\n"
        f"with run_lock(Path({str(tmp_path)!r})):\n"
        "    worker = os.fork() or time.sleep(60)\n"
        "    print(worker, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(job.stdout.readline())
    job.kill()
    job.wait()
    try:
        with run_lock(tmp_path):
            assert str(os.getpid()) in (tmp_path / "lock").read_text()
    finally:
        os.kill(worker, signal.SIGKILL)
