"""A run that is stopped anywhere and goes on equals the run that was not; what is damaged or full
loses nothing."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    ROOT,
    RUN,
    Crash,
    at_steps,
    crash,
    result_of,
    same,
    train_and_crash,
    weights_of,
)

import eval as evaluation
import train
from engine import checkpoint
from engine.checkpoint import load_model, save_model
from engine.run import Run
from model import MLLM, Config

pytestmark = pytest.mark.usefixtures("small")


def resume(out, *options):
    train.main([*RUN, *options, "--out", str(out), "--resume"])


def state_of(out):
    return torch.load(out / checkpoint.NAME, weights_only=True)


# --- A model's file


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_saved_and_loaded(tied, tmp_path):
    model = MLLM(Config(vocab_size=50, n_layer=3, tied=tied))
    with open(tmp_path / "model.pt", "wb") as file:
        save_model(file, model)
    again = load_model(tmp_path / "model.pt", MLLM)
    assert again.config == model.config and not again.training
    weights, loaded = model.state_dict(), again.state_dict()
    assert weights.keys() == loaded.keys() and ("unembed.weight" in weights) != tied
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


# --- Stopped and gone on


# Before the first checkpoint, within both stages, right after stage 1
@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 8, 10])
def test_a_crash_at_any_step_changes_nothing(whole, tmp_path, step):
    train_and_crash(tmp_path, step)
    torch.manual_seed(99)
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)


def test_ctrl_c_again_and_again_changes_nothing(whole, tmp_path, capsys):
    def interrupt(model):  # the step is finished, then saved
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, lambda step: True, interrupt)
        for _ in range(6):
            with pytest.raises(SystemExit) as stop:
                resume(tmp_path)
            assert stop.value.code == 130
    err = capsys.readouterr().err
    assert err.count("stopped; the same command with --resume goes on") == 6
    assert "Traceback" not in err and not (tmp_path / "run.json").exists()
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)
    with pytest.raises(SystemExit) as stop:
        resume(tmp_path)
    assert stop.value.code == 0 and "nothing to go on with" in capsys.readouterr().out
    assert same(result_of(tmp_path), whole)


def test_a_crash_during_the_last_answers_changes_nothing(whole, tmp_path):
    """The model is written before."""
    answers = train.answer_all

    def last_crashes(*args, progress=False, **options):
        return crash() if progress else answers(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "answer_all", last_crashes)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    assert weights_of(tmp_path) and not (tmp_path / "run.json").exists()
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)


@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_the_best_weights_go_back_with_the_checkpoint(tmp_path, monkeypatch, by):
    """A better validation that no checkpoint followed is forgotten: in the run that goes on there
    is another best, and model.pt has its weights. A loss is the better, the lower it is."""
    options = [*RUN, "--keep-best", by, "--eval-every", "1", "--out", str(tmp_path)]
    looks, (evaluate, write) = {}, (train.evaluate, Run.write)
    values = [0.2, 0.5, 0.9, 0.45, 0.3, 0.5, 0.1, 0.0]  # of steps 1 to 3, of 3 to 6, of the test

    def measured(model, *args, **options):
        results, summary = evaluate(model, *args, **options)
        looks["last"] = {name: w.clone() for name, w in model.state_dict().items()}
        return results, summary | {by: values.pop(0) * (1 if by == "accuracy" else -1)}

    def seen(run, step, loss, model, val, draw):
        if val:
            looks[step] = {name: w.clone() for name, w in model.state_dict().items()}
        write(run, step, loss, model, val, draw)

    monkeypatch.setattr(train, "evaluate", measured)
    monkeypatch.setattr(Run, "write", seen)
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, lambda step: step == 8, crash)  # step 4 of stage 2; step 2 was saved
        with pytest.raises(Crash):
            train.main(options)
    train.main([*options, "--resume"])
    kept = json.loads((tmp_path / "run.json").read_text())["kept"]
    assert not values and kept == {"step": 2, "val": kept["val"], "by": by}
    assert abs(kept["val"]) == 0.5  # the first of two that are as good
    final = weights_of(tmp_path)
    for look in (looks[2], looks["last"]):  # the test is answered with them too
        assert all(torch.equal(final[name], look[name]) for name in final)
    assert not all(torch.equal(final[name], looks[3][name]) for name in final)


class DiesAt:
    """A module in whose place it stands, but for one function, which dies at its n-th call."""

    def __init__(self, module, name, call):
        self.module, self.name, self.left = module, name, call

    def __getattr__(self, name):
        return self.counted if name == self.name else getattr(self.module, name)

    def counted(self, *args, **kwargs):
        self.left -= 1
        if self.left:
            return getattr(self.module, self.name)(*args, **kwargs)
        if self.name == "save":
            args[1].write(b"half of a checkpoint")
        raise Crash


@pytest.mark.parametrize("module,name,call", [
    (torch, "save", 3), (os, "fsync", 4), (os, "replace", 4),
])  # fmt: skip
def test_a_crash_while_saving_leaves_the_previous_checkpoint(whole, tmp_path, module, name, call):
    """In the third checkpoint: while it is written, flushed, renamed. The tokenizer's file was
    flushed and renamed before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, module.__name__, DiesAt(module, name, call))
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    state = state_of(tmp_path)
    assert (state["stage"], state["step"]) == ("pt", 4)
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_clear_error_and_the_last_good_checkpoint_stays(whole, tmp_path):
    write_file = checkpoint.write_file

    def full(path, save):
        if path.exists() and path.name == checkpoint.NAME:  # the second checkpoint meets it
            path.with_name(path.name + ".part").symlink_to("/dev/full")
        write_file(path, save)

    message = (
        "checkpoint.pt could not be written: No space left on device; "
        "checkpoint.pt is still the one from before"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_file", full)
        with pytest.raises(SystemExit, match=message):
            train.main([*RUN, "--out", str(tmp_path)])
    resume(tmp_path)
    assert same(result_of(tmp_path), whole)


@pytest.mark.parametrize("content", [b"", {"weights": {}}, []])
def test_a_checkpoint_of_something_else_is_named(content, tmp_path):
    train_and_crash(tmp_path, 8)
    file = tmp_path / checkpoint.NAME
    file.write_bytes(content) if content == b"" else torch.save(content, file)
    with pytest.raises(SystemExit, match="cannot be read as a checkpoint: .+--overwrite"):
        resume(tmp_path)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    out, trace = tmp_path / "run", tmp_path / "evil-was-here"
    train_and_crash(out, 8)
    for name in (checkpoint.NAME, "model.pt"):
        (out / name).write_bytes(pickle.dumps({"config": {}, "weights": Evil(trace)}))
    with pytest.raises(SystemExit, match="cannot be read as a checkpoint"):
        resume(out)
    finished = '{"args": {"data": "shapes"}}'
    for name, record in (("model.pt", finished), ("tokenizer.model", finished), ("run.json", "{")):
        (out / "run.json").write_text(record)
        if name == "tokenizer.model":
            (out / name).write_bytes(b"broken")
        with pytest.raises(SystemExit, match=f"{name} cannot be read: "):
            evaluation.main([str(out)])
    assert not trace.exists()


# --- Killed


def wait_and_kill(process, out, r) -> None:
    """One time in four at once, else after it has saved and gone on for a random moment, or while
    it is saving again."""

    def saved():
        file = out / checkpoint.NAME
        return file.stat().st_mtime_ns if file.exists() else 0

    before, early, saving = saved(), r.random() < 0.25, r.random() < 0.5
    end = time.time() + r.uniform(0, 10)
    while process.poll() is None:
        if early and time.time() > end:
            process.kill()
        if not early and saved() != before:
            end, part = time.time() + r.uniform(0, 0.5), out / (checkpoint.NAME + ".part")
            while time.time() < end and not (saving and part.exists()):
                time.sleep(0.0002)
            process.kill()
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_kill_and_resume_storm(tmp_path):
    """SIGKILL at random moments, while saving too, with a loader's worker: the result is that of
    the run nobody killed."""
    options = (
        "--preset tiny --device cpu --workers 1 --pt-pictures 4 --pictures 4 --questions 2 "
        "--pt-steps 60 --steps 120 --eval-every 60 --save-every 3 --limit 100 --val-limit 50"
    ).split()
    base, r, kills = [sys.executable, "train.py", *options], random.Random(0), 0
    whole, storm = tmp_path / "whole", tmp_path / "storm"
    run = dict(cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*base, "--out", str(whole)], **run)
    stormy = [*base, "--out", str(storm), "--resume"]
    quiet = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while kills < 40:
        process = subprocess.Popen(stormy, **quiet)
        wait_and_kill(process, storm, r)
        if process.returncode != -signal.SIGKILL:
            break
        kills += 1
    subprocess.run(stormy, **run)
    print(f"survived {kills} kills")
    assert kills >= 5  # how many fit depends on the machine
    assert same(result_of(storm), result_of(whole))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_sigterm_to_the_whole_group_saves(tmp_path):
    """As a cluster sends it: the loader's worker gets it too."""
    line = f"train.py --preset tiny --device cpu --workers 1 --pt-steps 10000 --out {tmp_path}"
    process = subprocess.Popen(
        [sys.executable, *line.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert "the same command with --resume goes on" in err and process.returncode == 130
    assert (tmp_path / checkpoint.NAME).exists()
