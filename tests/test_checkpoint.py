"""A run that is stopped anywhere and goes on equals the run that was not; what is damaged, full or not a number loses nothing."""

import errno
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

import checkpoint
import data
import draw
import eval as evaluation
import train
from data import shapes

ROOT = Path(__file__).parent.parent
RUN = ("--preset tiny --device cpu --workers 0 --pt-pictures 2 --pictures 2 --questions 2 --pt-steps 4 --steps 6 --eval-every 3 "
       "--save-every 2 --limit 20").split()


@pytest.fixture(scope="module", autouse=True)
def small(tokenizer):
    """Twenty held-out questions and a tokenizer that is there already: these tests start many runs."""
    heldout = shapes.Shapes.heldout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes.Shapes, "heldout", lambda self, split, limit=None: heldout(self, split, 20))
        patch.setattr(data.Tokenizer, "train", classmethod(lambda cls, texts, vocab_size: tokenizer))
        yield


def result(out):
    """What must be equal, bit for bit: parameters, metrics.jsonl, the final table."""
    record = json.loads((out / "run.json").read_text())
    weights = torch.load(out / "model.pt", weights_only=True)["weights"]
    return weights, (out / "metrics.jsonl").read_bytes(), evaluation.table({"run": [record]})


def same(a, b):
    return all(torch.equal(a[0][name], b[0][name]) for name in b[0]) and a[0].keys() == b[0].keys() and a[1:] == b[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main([*RUN, "--out", str(out)])
    assert {p.name for p in out.iterdir()} == {"model.pt", "tokenizer.model", "run.json", "metrics.jsonl", "curves.png", "sheet.png"}
    return result(out)


class Crash(BaseException):
    pass


def at_step(monkeypatch, n, what):
    """Call what() in place of the n-th training step of the process, counted from 1 over both stages."""
    steps, update = iter(range(1, 1000)), train.update

    def counted(*args):
        return what(*args) if next(steps) == n else update(*args)
    monkeypatch.setattr(train, "update", counted)


def crash(*args):
    raise Crash


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8, 10])  # before the first checkpoint, within both stages, right after stage 1
def test_a_crash_at_any_step_changes_nothing(whole, tmp_path, n):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, n, crash)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    torch.manual_seed(99)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)


def test_ctrl_c_again_and_again_changes_nothing(whole, tmp_path, monkeypatch, capsys):
    update = train.update

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)  # the step is finished, then saved
        return update(*args)
    monkeypatch.setattr(train, "update", interrupted)
    for _ in range(6):
        with pytest.raises(SystemExit) as stop:
            train.main([*RUN, "--out", str(tmp_path), "--resume"])
        assert stop.value.code == 130
    err = capsys.readouterr().err
    assert err.count("stopped; the same command with --resume goes on") == 6 and "Traceback" not in err
    assert not (tmp_path / "run.json").exists()
    monkeypatch.setattr(train, "update", update)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert "nothing to go on with" in capsys.readouterr().out and same(result(tmp_path), whole)


def test_a_crash_during_the_last_answers_changes_nothing(whole, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "write_sheet", crash)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)


@pytest.mark.parametrize("module,name,call", [(torch, "save", 2), (os, "fsync", 5), (os, "fsync", 6), (os, "replace", 3)])
def test_a_crash_while_saving_leaves_the_previous_checkpoint(whole, tmp_path, module, name, call):
    """In the third checkpoint: while it is written, flushed (first metrics.jsonl, then itself), renamed."""
    with pytest.MonkeyPatch.context() as patch:
        real, calls = getattr(module, name), iter(range(99))

        def dies(*args, **kwargs):
            if next(calls) < call:
                return real(*args, **kwargs)
            if name == "save":
                args[1].write(b"half of a checkpoint")
            raise Crash
        patch.setattr(module, name, dies)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    assert (state["stage"], state["step"]) == ("pt", 4)
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)
    assert not list(tmp_path.glob("*.part"))


def test_torn_and_later_lines_of_metrics_are_written_again(whole, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 9, crash)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)


@pytest.fixture
def stopped(tmp_path):
    out = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, crash)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(out)])
    return out


@pytest.mark.parametrize("change,says", [(["--mask", "causal"], "--mask is 'causal' and was 'mma'"),
                                         (["--n-layer", "2"], "--n-layer is 2 and was 3"), (["--seed", "1"], "--seed is 1 and was 0"),
                                         (["--steps", "9"], "--steps is 9 and was 6")])
def test_what_is_not_the_same_run_does_not_go_on(stopped, change, says):
    before = (stopped / checkpoint.NAME).read_bytes()
    with pytest.raises(SystemExit, match=f"cannot go on: .*{says}"):
        train.main([*RUN, *change, "--out", str(stopped), "--resume"])
    assert (stopped / checkpoint.NAME).read_bytes() == before


def test_changed_data_do_not_go_on(stopped, monkeypatch):
    monkeypatch.setitem(shapes.COLOURS, "red", (1, 2, 3))
    monkeypatch.setattr(shapes, "PALETTE", torch.tensor(list(shapes.COLOURS.values()), dtype=torch.uint8))
    with pytest.raises(SystemExit, match="the data are not those it was trained on"):
        train.main([*RUN, "--out", str(stopped), "--resume"])


def test_a_stopped_run_is_not_overwritten_by_accident(stopped):
    with pytest.raises(SystemExit, match="holds a run that was stopped; go on with it by --resume, or say --overwrite"):
        train.main([*RUN, "--out", str(stopped)])


def test_damaged_files_are_named(stopped):
    metrics = (stopped / "metrics.jsonl").read_bytes()
    (stopped / "metrics.jsonl").write_bytes(metrics[:5])
    with pytest.raises(SystemExit, match="metrics.jsonl is shorter than"):
        train.main([*RUN, "--out", str(stopped), "--resume"])
    (stopped / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit, match="metrics.jsonl belongs to the checkpoint"):
        train.main([*RUN, "--out", str(stopped), "--resume"])
    (stopped / checkpoint.NAME).write_bytes((stopped / checkpoint.NAME).read_bytes()[:1000])
    with pytest.raises(SystemExit, match="cannot be read as a checkpoint"):
        train.main([*RUN, "--out", str(stopped), "--resume"])


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil-was-here",)


def test_a_pickle_with_code_in_it_is_refused(stopped, tmp_path):
    for name in (checkpoint.NAME, "model.pt"):
        (stopped / name).write_bytes(pickle.dumps({"config": {}, "weights": Evil()}))
    with pytest.raises(SystemExit, match="cannot be read as a checkpoint"):
        train.main([*RUN, "--out", str(stopped), "--resume"])
    for name, content in (("model.pt", "{}"), ("tokenizer.model", "{}"), ("run.json", "{")):
        (stopped / "run.json").write_text(content)
        if name == "tokenizer.model":
            (stopped / name).write_bytes(b"broken")
        with pytest.raises(SystemExit, match=f"{name} cannot be read: "):
            evaluation.main([str(stopped)])
    assert not Path("/tmp/evil-was-here").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_clear_error_and_the_last_good_checkpoint_stays(whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        write = checkpoint.write

        def full(path, save):
            if path.exists() and path.name == checkpoint.NAME:  # the second checkpoint meets a full disk
                path.with_name(path.name + ".part").symlink_to("/dev/full")
            write(path, save)
        patch.setattr(checkpoint, "write", full)
        with pytest.raises(SystemExit, match="checkpoint.pt could not be written: No space left on device; checkpoint.pt is still the one"):
            train.main([*RUN, "--out", str(tmp_path)])
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    assert same(result(tmp_path), whole)


def test_full_while_writing_metrics(tmp_path, monkeypatch):
    calls, fsync = iter(range(99)), os.fsync

    def full(file):
        if next(calls) == 1:  # the first is that of tokenizer.model
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(SystemExit, match="error: .*: no space left on the disk"):
        train.main([*RUN, "--out", str(tmp_path)])


@pytest.mark.parametrize("n", [3, 8])
def test_a_loss_that_is_not_a_number_stops_the_run_and_spoils_no_checkpoint(tmp_path, monkeypatch, n):
    update = train.update

    def poisoned(model, *args):
        with torch.no_grad():
            model.norm.weight.fill_(torch.nan)
        return update(model, *args)
    at_step(monkeypatch, n, poisoned)
    stage, step = ("pt", n) if n <= 4 else ("sft", n - 4)
    with pytest.raises(SystemExit, match=f"loss nan, gradient norm nan at step {step} of stage {stage}: .* before and good.*Its rows: "):
        train.main([*RUN, "--out", str(tmp_path)])
    state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    assert all(p.isfinite().all() for p in state["model"].values()) and (state["stage"], state["step"]) == (stage, 2)


def test_the_rows_of_a_bad_step_are_named(llava, tmp_path, monkeypatch):
    monkeypatch.setattr(train.MLLM, "loss", lambda self, *args, **kwargs: self.norm.weight.sum() * torch.nan)
    with pytest.raises(SystemExit, match=r"at step 1 of stage pt: no checkpoint was written yet. Its rows: .*data.json: entry \d+ \(id '"):
        train.main([*RUN, "--data", "llava", "--source", str(llava), "--image-size", "32", "--out", str(tmp_path / "run")])


def test_float16_gradients_are_scaled(batch_of, dialogues, model):
    """On a GPU without bfloat16; here the same code on the CPU."""
    model = model.float().train()
    args = train.arguments([*RUN])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    optimizers, before = train.optimizers_of(model, args), {k: p.clone() for k, p in model.named_parameters()}
    losses = [float(train.update(model, optimizers, batch_of(dialogues), "mma", [1e-2, 1e-2], scaler)[0]) for _ in range(5)]
    assert losses[-1] < losses[0] and any(not torch.equal(before[k], p) for k, p in model.named_parameters())
    assert not train.scaler_of("cpu").is_enabled()


def killed(command, out, r):
    """Start it and kill it (SIGKILL): one time in four at once, else after it has saved and gone on for a random moment, or while
    it is saving again. False if it ended by itself."""
    def saved():
        return (out / checkpoint.NAME).stat().st_mtime_ns if (out / checkpoint.NAME).exists() else 0

    process, before = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), saved()
    early, saving, end = r.random() < 0.25, r.random() < 0.5, time.time() + r.uniform(0, 10)
    while process.poll() is None:
        if early and time.time() > end:
            process.kill()
        if not early and saved() != before:
            end = time.time() + r.uniform(0, 0.5)
            while time.time() < end and not (saving and (out / (checkpoint.NAME + ".part")).exists()):
                time.sleep(0.0002)
            process.kill()
        time.sleep(0.001)
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_and_resume_storm(tmp_path):
    """SIGKILL at random moments, while saving too, with a loader's worker: the result is that of the run nobody killed."""
    options = ("--preset tiny --device cpu --workers 1 --pt-pictures 4 --pictures 4 --questions 2 --pt-steps 60 --steps 120 "
               "--eval-every 60 --save-every 3 --limit 100 --val-limit 50").split()
    base, r, kills = [sys.executable, "train.py", *options], random.Random(0), 0
    subprocess.run([*base, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    whole, out = result(tmp_path / "whole"), tmp_path / "storm"
    while kills < 40 and killed([*base, "--out", str(out), "--resume"], out, r):
        kills += 1
    subprocess.run([*base, "--out", str(out), "--resume"], cwd=ROOT, check=True, capture_output=True)
    print(f"survived {kills} kills")
    assert kills >= 10 and same(result(out), whole)


def test_data_errors_are_not_resumed_into(tmp_path):
    with pytest.raises(SystemExit, match="--source"):
        train.main([*RUN, "--data", "llava", "--out", str(tmp_path), "--resume"])


@pytest.mark.slow
def test_a_sigterm_to_the_whole_group_saves(tmp_path):
    """As a cluster sends it: the loader's worker gets it too."""
    line = f"train.py --preset tiny --device cpu --workers 1 --pt-steps 10000 --out {tmp_path}".split()
    process = subprocess.Popen([sys.executable, *line], cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    assert "the same command with --resume goes on" in process.communicate(timeout=60)[1] and process.returncode == 130
    assert (tmp_path / checkpoint.NAME).exists()
