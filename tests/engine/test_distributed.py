"""Two processes train the run that one trains, each with the whole model or with a part of it;
resume crosses over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, lines_of, weights_of
from PIL import Image

import data
import train
from engine import checkpoint

RUN = (
    "--preset tiny --device cpu --workers 0 --pt-pictures 5 --pictures 3 --questions 3 "
    "--pt-steps 4 --steps 6 --eval-every 100 --save-every 2 --limit 21 --val-limit 10"
).split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
PLACE = dict(cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(command):
    done = subprocess.run(command, **PLACE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(out):
    losses = [line["loss"] for line in lines_of(out)]
    return weights_of(out), losses, json.loads((out / "run.json").read_text())


def assert_close(a, b):
    """Equal up to the order of sums: losses, parameters after ten steps of Muon and Adam, the
    number of questions."""
    assert a[0].keys() == b[0].keys() and len(a[1]) == len(b[1]) > 1
    assert max(abs(x - y) for x, y in zip(a[1], b[1])) < 1e-4
    assert max((a[0][name] - b[0][name]).abs().max() for name in b[0]) < 2e-3
    assert a[2]["n"] == b[2]["n"] >= 1 and a[2]["families"].keys() == b[2]["families"].keys()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    train.main([*RUN, "--out", str(out)])
    return result(out)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder in LLaVA's format; every other dialogue is text alone, so that a process may have a
    batch without any picture; every third has two turns, and answers are of many lengths. One
    picture is cut short."""
    folder, rows = tmp_path_factory.mktemp("mixed"), []
    for i in range(24):
        message = f"what is {i} ?" if i % 2 else f"<image>what is {i} ?"
        said = [("human", message), ("gpt", "it is " + "very " * (i % 4) + f"{i % 3}")]
        said += [("human", "really ?"), ("gpt", "yes")] * (i % 3 == 0)
        talk = [{"from": speaker, "value": value} for speaker, value in said]
        rows.append({"id": str(i), "conversations": talk})
        if i % 2 == 0:
            name, k = f"{i // 2 % 4}.png", i // 2
            Image.new("RGB", (16, 16), (20 * k, 255 - 20 * k, 0)).save(folder / name)
            rows[-1]["image"] = name
    (folder / "mixed.json").write_text(json.dumps(rows))
    shown = [g for g in data.load("llava", folder / "mixed.json").splits["train"] if g[0].images]
    picture = shown[0][0].images[0]
    picture.write_bytes(picture.read_bytes()[:45])
    source = ["--data", "llava", "--source", str(folder / "mixed.json")]
    return [*RUN, *source, "--pictures", "4", "--pt-pictures", "4", "--questions", "1"]


def test_two_processes_are_one_with_the_whole_model_and_with_parts_of_it(
    mixed, tmp_path, monkeypatch
):
    """Both compute a step in parts; and they stop where their loss raises."""
    names = {"whole": [], "parts": ["--fsdp"], "broken": []}
    mixed = [*mixed, "--accumulate", "2"]
    commands = [[*mixed, *options, "--out", str(tmp_path / n)] for n, options in names.items()]
    (runs := tmp_path / "runs.json").write_text(json.dumps(commands))
    said = finished([*TORCHRUN, "--nproc_per_node=2", "tests/several.py", str(runs)])
    assert said.count("Held-out answers") == 2  # the first process alone speaks and writes
    assert said.count("a loss was raised") == 2 and not (tmp_path / "broken" / "model.pt").exists()
    monkeypatch.setattr("data.folder.READ_FIRST", 0)  # as in tests/several.py
    train.main([*mixed, "--accumulate", "1", "--out", str(one := tmp_path / "one")])
    expected = result(one)
    for two in (tmp_path / "whole", tmp_path / "parts"):
        assert_close(result(two), expected)
        assert result(two)[2]["unread"] == expected[2]["unread"]
        assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
        assert lines_of(two)[-1]["val"]["n"] == lines_of(one)[-1]["val"]["n"]
    assert expected[2]["unread"]["pictures"] == 1
    assert said.count("left out of training: ") == 2
    splits = data.load("llava", Path(mixed[mixed.index("--source") + 1])).splits
    turns = [[len(e.turns) for group in splits[s] for e in group] for s in ("val", "test")]
    assert all(set(some) == {1, 2} for some in turns)  # answers of unequal shares are put together


def interrupted(out, *options) -> dict:
    """The checkpoint of two processes that are stopped, as a terminal does, after their first."""
    where = dict(PLACE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    command = [*TORCHRUN, "--nproc_per_node=2", "train.py", *RUN, *options, "--out", str(out)]
    job = subprocess.Popen(command, **where, start_new_session=True)
    while not (out / checkpoint.NAME).exists():
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(timeout=120) != 0
    return torch.load(out / checkpoint.NAME, weights_only=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_parts_of_a_model_go_on_with_another_number_of_processes(one, tmp_path):
    saved = interrupted(tmp_path, "--fsdp")["model"]
    assert {name: x.shape for name, x in saved.items()} == {n: x.shape for n, x in one[0].items()}
    with pytest.raises(SystemExit, match="--fsdp is False and was True"):
        train.main([*RUN, "--out", str(tmp_path), "--resume"])
    three = [*TORCHRUN, "--nproc_per_node=3", "train.py", *RUN, "--fsdp"]
    assert "going on after step" in finished([*three, "--out", str(tmp_path), "--resume"])
    assert_close(result(tmp_path), one)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_all_at_the_same_step_and_saves(one, tmp_path):
    options = ["--save-every", "1000"]  # the first checkpoint is the end of stage 1
    state = interrupted(tmp_path, *options)
    assert state["stage"] == "sft" and 1 <= state["step"] <= 6
    train.main([*RUN, *options, "--out", str(tmp_path), "--resume"])
    assert_close(result(tmp_path), one)
