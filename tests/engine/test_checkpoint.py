"""A run that is stopped anywhere and goes on equals the run that was not; what is damaged or full
loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, Crash, at_steps, crash, record_of, train_and_crash, weights_of
from helpers import RUN as PLAIN

import eval as evaluation
import train
from data import DataError
from engine import checkpoint
from engine.checkpoint import write_file
from engine.tables import table
from engine.wings import VARIANTS, Variant
from model import MLLM

NOISY = ("--variant", "noisy")
RUN = [*PLAIN, *NOISY]
pytestmark = pytest.mark.usefixtures("small")


class Noisy(MLLM):
    """With dropout, as a fork's may be: torch's random generator goes on where it was, too."""

    def head(self, hidden):
        return super().head(F.dropout(hidden, 0.1, self.training))


@pytest.fixture(scope="module", autouse=True)
def noisy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "noisy", Variant("dropout", Noisy))
        yield


def result_of(out) -> list:
    """What must be equal, bit for bit: parameters, metrics.jsonl, the final table."""
    weights = {name: hash(w.numpy().tobytes()) for name, w in weights_of(out).items()}
    return [weights, (out / "metrics.jsonl").read_text(), table({"run": [record_of(out)]})]


@pytest.fixture(scope="module")
def whole(small, noisy, tmp_path_factory):
    """The result of the run that nobody stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main([*RUN, "--out", str(out)])
    return result_of(out)


def resume(out, *options):
    train.main([*RUN, *options, "--out", str(out), "--resume"])


# Before the first checkpoint, within both stages, right after stage 1
@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_crash_at_any_step_changes_nothing(whole, tmp_path, step):
    """Torn and later lines of metrics.jsonl are written again."""
    train_and_crash(tmp_path, step, *NOISY)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    torch.manual_seed(99)
    resume(tmp_path)
    assert result_of(tmp_path) == whole


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
    assert result_of(tmp_path) == whole
    with pytest.raises(SystemExit) as stop:
        resume(tmp_path, "--save-every", "5")  # of which nothing depends
    assert stop.value.code == 0 and "nothing to go on with" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="finished run, of which --steps is 9 and was 6"):
        resume(tmp_path, "--steps", "9")
    assert result_of(tmp_path) == whole


def test_a_crash_during_the_last_answers_changes_nothing(whole, tmp_path):
    """The model is written before."""
    answers = train.answer_all

    def last_crashes(*args, progress=False, **options):
        return crash() if progress else answers(*args, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(train, "answer_all", last_crashes)
        train.main([*RUN, "--out", str(tmp_path)])
    assert weights_of(tmp_path) and not (tmp_path / "run.json").exists()
    resume(tmp_path)
    assert result_of(tmp_path) == whole


@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_the_best_weights_go_back_with_the_checkpoint(tmp_path, monkeypatch, by):
    """A better validation that no checkpoint followed is forgotten: in the run that goes on there
    is another best, and model.pt has its weights. A loss is the better, the lower it is."""
    options = [*RUN, "--keep-best", by, "--eval-every", "1", "--out", str(tmp_path)]
    looked_at, evaluate = [], train.evaluate
    values = [0.2, 0.5, 0.9, 0.45, 0.3, 0.5, 0.1, 0.0]  # of steps 1 to 3, of 3 to 6, of the test

    def measured(model, *args, **options):
        results, summary = evaluate(model, *args, **options)
        looked_at.append({name: w.clone() for name, w in model.state_dict().items()})
        return results, summary | {by: values.pop(0) * (1 if by == "accuracy" else -1)}

    monkeypatch.setattr(train, "evaluate", measured)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_steps(patch, lambda step: step == 8, crash)  # step 4 of stage 2; step 2 was saved
        train.main(options)
    train.main([*options, "--resume"])
    kept = record_of(tmp_path)["kept"]
    # The first of two that are as good
    assert not values and kept == {"step": 2, "val": 0.5 if by == "accuracy" else -0.5, "by": by}
    final, of_step_2, of_step_3 = weights_of(tmp_path), looked_at[1], looked_at[2]
    for weights in (of_step_2, looked_at[-1]):  # the test is answered with them too
        assert all(torch.equal(final[name], weights[name]) for name in final)
    assert not all(torch.equal(final[name], of_step_3[name]) for name in final)


# --- A file is written whole or not at all


@pytest.mark.parametrize("dies", ["save", "fsync", "replace"])
def test_a_crash_while_a_file_is_written_leaves_the_one_before(tmp_path, monkeypatch, dies):
    (tmp_path / "x").write_bytes(b"before")
    save = lambda file: file.write(b"after") if dies != "save" else crash(file.write(b"half"))
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(os, dies, crash, raising=False)  # os has no "save"
        write_file(tmp_path / "x", save)
    assert (tmp_path / "x").read_bytes() == b"before"
    write_file(tmp_path / "x", lambda file: file.write(b"after"))  # over what was left behind
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("x", b"after")]


def test_an_error_that_is_no_full_disk_stays_itself(tmp_path):
    def save(file):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        write_file(tmp_path / "x", save)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("what", [{}, {"weights": torch.zeros(10**6)}])
def test_a_full_disk_is_one_clear_error(tmp_path, what):
    (tmp_path / "x").write_bytes(b"before")
    (tmp_path / "x.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; x is still the one from before"):
        write_file(tmp_path / "x", lambda file: torch.save(what, file))
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="error: .*: no space left on the disk"):
        train.main([*RUN, "--out", str(tmp_path)])


def test_what_is_no_checkpoint_is_named_and_no_code_in_it_is_run(tmp_path):
    out, trace = tmp_path / "run", tmp_path / "evil-was-here"
    train_and_crash(out, 8, *NOISY)
    evil = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()  # a pickle that calls os.system
    for content in (b"", evil, {"weights": {}}, []):
        file = out / checkpoint.NAME
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(SystemExit, match="cannot be read as a checkpoint: .+--overwrite"):
            resume(out)
    (out / "run.json").write_text('{"args": {"data": "shapes"}}')
    (out / "model.pt").write_bytes(evil)
    with pytest.raises(SystemExit, match="model.pt cannot be read: "):
        evaluation.main([str(out)])
    assert not trace.exists()


# --- Killed


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves(tmp_path, number):
    """As a cluster sends it, or a terminal that is closed: the loader's worker gets it too."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    line = f"train.py --preset tiny --device cpu --workers 1 --pt-steps 10000 --out {tmp_path}"
    process = subprocess.Popen(
        [sys.executable, *line.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.2)
    os.killpg(process.pid, number)
    err = process.communicate(timeout=60)[1]
    assert "the same command with --resume goes on" in err and process.returncode == 130
    assert (tmp_path / checkpoint.NAME).exists()
