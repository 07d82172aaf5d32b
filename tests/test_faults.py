"""Faults that were found by trying the project: each ends in one clear line, or does the right
thing."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, write_nlvr_split
from PIL import Image

import data
import eval as evaluation
import train
from engine.checkpoint import write_file
from engine.lock import run_lock, take
from engine.run import read_record
from model import MLLM

QUICK = [
    "--workers",
    "0",
    "--device",
    "cpu",
    "--pt-pictures",
    "2",
    "--pictures",
    "2",
    "--limit",
    "2",
]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--steps -5", "must be 0 or more"),
        ("--steps 1e3", "must be a whole number, not 1e3"),
        ("--seed 0.5", "must be a whole number, not 0.5"),
        ("--lr x", "must be a number above 0, not x"),
        ("--workers -1", "must be 0 or more"),
        ("--lr -1", "must be a number above 0"),
        ("--lr nan", "must be a number above 0"),
        ("--pt-steps 0 --steps 0", "nothing to train"),
        ("--limit 0", "must be 1 or more"),
        ("--mask nothing", "invalid choice"),
        ("--seed 100000000000000000000", "must have 64 bits"),
    ],
)
def test_a_bad_option_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(options.split())
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("option, part", [("--freeze", "encodr"), ("--pt-freeze", "")])
def test_a_part_to_freeze_that_does_not_exist_is_an_error(option, part, tmp_path):
    with pytest.raises(SystemExit, match=f"{option} '{part}': no .* begins so; there are encoder"):
        train.main([*QUICK, option, part, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize("option", ["--freeze", "--pt-freeze"])
def test_a_stage_that_would_train_nothing_is_an_error(option, tmp_path):
    parts = ["encoder", "projector", "embed", "blocks", "norm"]
    message = f"^error: {option} {' '.join(parts)} leaves no parameter to train; name fewer parts$"
    with pytest.raises(SystemExit, match=message):
        train.main([*QUICK, option, *parts, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.glob("run/*.pt"))


@pytest.mark.parametrize(
    "options, message",
    [
        ("--source mine.json", "--source belongs to --data easy_vqa or llava or nlvr"),
        ("--images pictures", "--images belongs to --data llava, not to shapes"),
        ("--strict", "--strict belongs to --data llava, not to shapes"),
        ("--data nlvr --source x --images y", "--images belongs to --data llava, not to nlvr"),
        ("--data llava --source x --pt-images y", "--pt-images belongs to --pt-source FILE"),
        ("--device meta", "--device meta cannot be used here"),
    ],
)
def test_an_option_that_would_be_ignored_is_an_error(options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train.main([*QUICK, "--out", str(tmp_path / "run"), *options.split()])


def test_adamw_has_a_rate_of_its_own():
    from engine.options import arguments

    assert arguments(["--optimizer", "adamw"]).lr == arguments([]).adam_lr != arguments([]).lr
    assert arguments(["--optimizer", "adamw", "--lr", "0.5"]).lr == 0.5


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_out_that_is_a_file(below, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit, match="cannot be written"):
        train.main([*QUICK, "--out", str(tmp_path / "file" / below)])
    assert (tmp_path / "file").read_text() == "precious"


def start_holder(folder):
    """A process that tries to hold the folder until it reads a line; and what it says of that."""
    program = "import sys; from pathlib import Path; from engine.lock import run_lock\n"
    program += f"with run_lock(Path({str(folder)!r})): print('held', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )  # fmt: skip
    return child, child.stdout.readline()


def test_two_trainings_in_one_folder(tmp_path):
    """The second one is refused, and loses nothing of the first; a killed one holds nothing."""
    child, said = start_holder(tmp_path)
    assert said == "held\n"
    with pytest.raises(SystemExit, match=f"process {child.pid} on .* is training in"):
        train.main([*QUICK, "--out", str(tmp_path)])
    child.kill()
    child.wait()
    with run_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")
def test_a_training_that_begins_while_another_ends_holds_nothing(tmp_path, monkeypatch):
    """The first ends, and deletes the lock's file, after the second has opened and before it has
    locked it: what nobody else can find keeps nobody else out."""
    first, said = start_holder(tmp_path)
    assert said == "held\n"

    def end_first_and_take(file):
        first.communicate("\n")
        return take(file)

    monkeypatch.setattr("engine.lock.take", end_first_and_take)
    with pytest.raises(data.DataError, match="has ended just now; start this one again"):
        with run_lock(tmp_path):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no open file")
def test_a_lock_that_was_deleted_by_hand_is_not_taken_from_its_new_holder(tmp_path):
    with run_lock(tmp_path):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("of another training")
    assert (tmp_path / "lock").read_text() == "of another training"


def test_json_and_md_are_checked_before_the_evaluation(tmp_path):
    (tmp_path / "file").write_text("")
    for option in ("--json", "--md"):
        with pytest.raises(SystemExit, match="cannot be written"):
            evaluation.main(
                [str(tmp_path), option, str(tmp_path / "file" / "x"), "--device", "cpu"]
            )


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"args": {}}', '{"args": []}'])
def test_a_run_json_that_is_none(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(data.DataError, match="run.json cannot be read"):
        read_record(tmp_path)


def test_only_a_full_disk_is_called_one(tmp_path):
    def broken(file):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        write_file(tmp_path / "x", broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_grey(mode, tmp_path):
    """A black square on transparency: not all black."""
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 16))
    picture.convert(mode).save(tmp_path / "x.png")
    pixels = data.pixels_of(tmp_path / "x.png", 16, "")
    assert pixels[:, 4, 4].tolist() == [0, 0, 0] and pixels[:, 4, 12].tolist() == [128, 128, 128]


@pytest.mark.parametrize("said, same", [("(3)", "3"), ("3)", "3"), ("(a) Cat.", "cat")])
def test_brackets_do_not_count(said, same):
    assert evaluation.normalise(said) == evaluation.normalise(same)


def test_consistency_tells_splits_apart(tmp_path):
    """Groups of the same number in two splits of NLVR are two groups."""
    for split in ("train", "dev"):
        write_nlvr_split(tmp_path, split, [(1, 0), (2, 0)])
    source = data.load("nlvr", tmp_path)
    asked = {split: source.heldout(split) for split in ("val", "dev")}
    assert asked["val"][0].turns[0][0] in {e.turns[0][0] for e in asked["dev"]}  # the same number
    assert not {e.group for e in asked["val"]} & {e.group for e in asked["dev"]}


def test_a_full_gpu_is_one_line_that_names_what_helps(tmp_path, monkeypatch):
    def full(*args, **batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MLLM, "loss", full)
    message = r"^error: out of GPU memory \(CUDA out of memory.*--accumulate 2[^\n]*$"
    with pytest.raises(SystemExit, match=message):
        train.main([*QUICK, "--out", str(tmp_path)])


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error")
def test_a_reader_that_has_read_enough_sees_no_traceback():
    """| head -1: of what the masks look like, and of an evaluation that prints line by line."""
    drawing, evaluating = "mma.py", "-u eval.py weights/shapes-mma --limit 20 --device cpu"
    pipes = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pipes["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen([sys.executable, *line.split()], **pipes) for line in (drawing, evaluating)
    ]
    assert jobs[0].stdout.readline().startswith(b"rows = queries")
    for job in jobs:
        job.stdout.close()
        said = job.stderr.read().decode()
        assert "Traceback" not in said and "Error" not in said, said
        job.wait()
