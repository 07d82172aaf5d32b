"""Two processes train the run that one trains, each with the whole model or with a part of it; one that dies ends the job; resume crosses
over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import checkpoint
import train
from test_checkpoint import Crash, at_step, crash

ROOT = Path(__file__).parent.parent
RUN = ("--preset tiny --device cpu --workers 0 --pt-pictures 5 --pictures 3 --questions 3 --pt-steps 4 --steps 6 --eval-every 100 "
       "--save-every 2 --limit 21 --val-limit 10").split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TWO = [*TORCHRUN, "--nproc_per_node=2", "train.py", *RUN]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def result(out):
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return torch.load(out / "model.pt", weights_only=True)["weights"], losses, json.loads((out / "run.json").read_text())


def close(a, b):
    """Equal up to the order of sums: losses, parameters after ten steps of Muon and Adam, the number of questions."""
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
    """A folder in LLaVA's format; every other dialogue is text alone, so that a process may have a batch without any picture."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [{"id": str(i), "conversations": [{"from": "human", "value": f"what is {i} ?"}, {"from": "gpt", "value": f"it is {i % 3}"}]}
            for i in range(24)]
    for i, row in enumerate(rows[::2]):
        Image.new("RGB", (16, 16), (20 * i, 255 - 20 * i, 0)).save(folder / f"{i % 4}.png")
        row["image"], row["conversations"][0]["value"] = f"{i % 4}.png", "<image>" + row["conversations"][0]["value"]
    (folder / "mixed.json").write_text(json.dumps(rows))
    return [*RUN, "--data", "llava", "--source", str(folder / "mixed.json"), "--pictures", "2", "--pt-pictures", "2", "--questions", "1"]


def test_two_processes_are_one_with_the_whole_model_and_with_parts_of_it(mixed, tmp_path):
    (tmp_path / "runs.json").write_text(json.dumps([[*mixed, "--out", str(tmp_path / "whole")],
                                                    [*mixed, "--fsdp", "--out", str(tmp_path / "parts")]]))
    done = subprocess.run([*TORCHRUN, "--nproc_per_node=2", "tests/several.py", str(tmp_path / "runs.json")], cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out answers") == 2  # the first process alone speaks and writes
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {file.name for file in (tmp_path / "whole").iterdir()}
    train.main([*mixed, "--out", str(tmp_path / "one")])
    for two in ("whole", "parts"):
        close(result(tmp_path / two), result(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_parts_of_a_model_go_on_with_another_number_of_processes(one, tmp_path):
    job = subprocess.Popen([*TWO, "--fsdp", "--out", str(tmp_path)], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / checkpoint.NAME).exists():
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(timeout=120) != 0
    parts = torch.load(tmp_path / checkpoint.NAME, weights_only=True)["parts"]
    assert {file.name for file in (tmp_path / parts).iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    with pytest.raises(SystemExit, match="--fsdp is False and was True"):
        train.main([*RUN, "--out", str(tmp_path), "--resume"])
    three = [*TORCHRUN, "--nproc_per_node=3", "train.py", *RUN, "--fsdp", "--out", str(tmp_path), "--resume"]
    done = subprocess.run(three, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "going on after step" in done.stdout, done.stderr
    close(result(tmp_path), one)


def test_parts_of_a_model_need_several_processes(tmp_path):
    with pytest.raises(SystemExit, match="torchrun --nproc_per_node=N"):
        train.main([*RUN, "--fsdp", "--out", str(tmp_path)])


@pytest.mark.slow
def test_two_processes_are_one(one, tmp_path):
    done = subprocess.run([*TWO, "--out", str(tmp_path)], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out answers") == 1
    close(result(tmp_path), one)


@pytest.mark.slow
def test_from_one_process_to_two(one, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 8, crash)
        with pytest.raises(Crash):
            train.main([*RUN, "--out", str(tmp_path)])
    done = subprocess.run([*TWO, "--out", str(tmp_path), "--resume"], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "going on after step 2 of stage sft" in done.stdout, done.stderr
    close(result(tmp_path), one)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
def test_one_that_dies_ends_the_job_and_one_process_goes_on(one, tmp_path):
    job = subprocess.Popen([*TWO, "--out", str(tmp_path)], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / checkpoint.NAME).exists():
        assert job.poll() is None
        time.sleep(0.01)
    ranks = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "stat").read_text().split()[3] == str(job.pid):
                environment = dict(line.split("=", 1) for line in (entry / "environ").read_text().split("\0") if "=" in line)
                ranks[environment.get("RANK")] = int(entry.name)
        except OSError:
            pass
    os.kill(ranks["1"], signal.SIGKILL)
    assert job.wait(timeout=120) != 0
    train.main([*RUN, "--out", str(tmp_path), "--resume"])
    close(result(tmp_path), one)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_stops_all_at_the_same_step_and_saves(one, tmp_path):
    command = [*TWO, "--save-every", "1000", "--out", str(tmp_path)]
    job = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / checkpoint.NAME).exists():  # the end of stage 1
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    assert job.wait(timeout=120) != 0
    state = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    assert state["stage"] == "sft" and 1 <= state["step"] <= 6
    train.main([*RUN, "--save-every", "1000", "--out", str(tmp_path), "--resume"])
    close(result(tmp_path), one)


def test_parts_of_a_step_are_the_step(tokenizer):
    args = train.arguments(RUN)
    source = train.data.load("shapes")
    batches = train.Steps(source, tokenizer, train.config_of(args, tokenizer), "sft", args)
    whole = batches[0]
    torch.manual_seed(0)
    model = train.MLLM(train.config_of(args, tokenizer)).double()
    losses = []
    for rank in range(4):
        batches.rank, batches.world = rank, 4
        losses.append(model.loss(**batches[0]))
    assert torch.allclose(sum(losses) / 4, model.loss(**whole), atol=1e-9)
    batches.world = 10
    assert "9 rows for 10 processes" in str(batches[0])
