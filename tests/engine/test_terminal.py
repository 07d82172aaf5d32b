"""Stopped while it loads, or read by nobody: a command ends without a traceback. What loads is a
`torch` of the test's own, so that nobody waits for the real one."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

COMMANDS = ["train.py", "eval.py", "model.py", "-m lab.talk", "-m lab.bench", "-m bridge.finetune"]


def run(folder, command, torch, *options, **how):
    """A command whose `import torch` runs the given line."""
    (folder / "torch.py").write_text(torch, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(folder), **how.pop("env", {})}
    line = [sys.executable, *options, *command.split()]
    how = {"stdout": subprocess.PIPE, **how}
    return subprocess.run(line, cwd=ROOT, env=env, stderr=subprocess.PIPE, **how)


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_torch_loads(command, tmp_path):
    done = run(tmp_path, command, "raise KeyboardInterrupt")
    assert done.returncode and done.stderr.decode().split() == ["stopped"]


def closed_pipe() -> int:
    """Where writing fails: its reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error")
@pytest.mark.parametrize("text", ["'a' * 100_000", "'a'"])
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_reader_that_has_gone(text, options, tmp_path):
    stdout = closed_pipe()
    done = run(tmp_path, "model.py", f"print({text}); raise SystemExit(0)", *options, stdout=stdout)
    os.close(stdout)
    assert done.stderr == b""


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error")
def test_another_pipe_that_breaks_is_told(tmp_path):
    for options in ([], ["-u"]):
        done = run(tmp_path, "model.py", "raise BrokenPipeError('a worker')", *options)
        assert b"BrokenPipeError: a worker" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error")
def test_the_drawing_of_masks_too():
    stdout = closed_pipe()
    done = subprocess.run(
        [sys.executable, "mma.py"], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE
    )
    os.close(stdout)
    assert done.stderr == b""


def test_what_the_terminal_cannot_show_or_does_not_send_as_text(tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = run(tmp_path, "model.py", "print('±'); raise SystemExit", env=ascii_only)
    assert done.stdout.split() == [b"\\xb1"] and done.stderr == b""
    said = "print(ascii(input())); raise SystemExit"
    done = run(tmp_path, "model.py", said, input=b"caf\xe9\n", env={"PYTHONUTF8": "1"})
    assert done.stdout.split() == [b"'caf\\udce9'"]


@pytest.mark.skipif(os.name == "nt", reason="there exec starts another process")
def test_closed_streams(tmp_path):
    """As under a service that has neither."""
    program = f"import os, sys; os.close(0); os.close(1); os.execl({sys.executable!r}, 'python', "
    program += "'model.py')"
    (tmp_path / "torch.py").write_text("raise SystemExit")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, stderr=subprocess.PIPE
    )
    assert done.returncode == 0 and done.stderr == b""


def test_a_program_of_ones_own_is_left_alone():
    program = "import sys, engine.terminal; sys.exit(sys.excepthook is not sys.__excepthook__)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
