"""What a user may do wrong, or meet: each ends in one clear line, or does the right thing."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, train_tiny

import eval as evaluation
import train
from model import MLLM

ALL_PARTS = "encoder projector embed blocks norm"


@pytest.mark.parametrize("options, message", [
    ("--steps -5", "must be 0 or more"),
    ("--steps 1e3", "must be a whole number, not 1e3"),
    ("--limit 0", "must be 1 or more"),
    ("--seed 100000000000000000000", "must have 64 bits"),
    *((f"--lr {bad}", f"must be a number above 0, not {bad}") for bad in ("x", "nan", "0", "inf")),
    ("--mask nothing", "invalid choice"),
    ("--pt-steps 0 --steps 0", "nothing to train"),
    ("--resume --overwrite", "choose one"),
    ("--keep-best --fsdp", "does not go with --fsdp"),
])  # fmt: skip
def test_a_bad_option_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(options.split())
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("options, message", [
    ("--freeze encodr", "--freeze 'encodr': no parameter's name begins so; there are encoder, "),
    (f"--freeze {ALL_PARTS}", "--freeze encoder .* leaves no parameter to train; name fewer parts"),
    (f"--pt-freeze {ALL_PARTS}", "--pt-freeze encoder .* leaves no parameter to train"),
    ("--source mine.json", "--source belongs to --data easy_vqa or llava or nlvr"),
    ("--images pictures", "--images belongs to --data llava, not to shapes"),
    ("--strict", "--strict belongs to --data llava, not to shapes"),
    ("--data nlvr --source x --images y", "--images belongs to --data llava, not to nlvr"),
    ("--data llava --source x --pt-images y", "--pt-images belongs to --pt-source FILE"),
    ("--data llava --source /nowhere.json", ".*nowhere.json: no such file"),
    ("--data easy_vqa", "--data easy_vqa needs --source"),
    ("--max-tokens 10", ".*--max-tokens"),
    ("--image-size 60", "image_size=60 must be a multiple of patch_size=16"),
    ("--device meta", "--device meta cannot be used here"),
    ("--variant nonsense", "no variant 'nonsense'; there are "),
    ("--fsdp", "--fsdp .*torchrun --nproc_per_node=N"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_leaves_no_folder(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        train_tiny(tmp_path / "new" / "run", *options.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [train, evaluation])
def test_the_scripts_help_themselves(script, capsys):
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    out = capsys.readouterr().out
    about = script.__doc__.strip().splitlines()
    assert done.value.code == 0 and "--device" in out
    assert about[0] in out and about[2] in out  # what it is, how to run it


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_out_that_is_a_file(below, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit, match="cannot be written"):
        train_tiny(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_gpu_is_one_line_that_names_what_helps(tmp_path, monkeypatch):
    def full(*args, **batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MLLM, "loss", full)
    message = r"^error: out of GPU memory \(CUDA out of memory.*--accumulate 2[^\n]*$"
    with pytest.raises(SystemExit, match=message):
        train_tiny(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error")
def test_a_reader_that_has_read_enough_sees_no_traceback():
    """| head -1: of what the masks look like, and of an evaluation that prints line by line."""
    how = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    how["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    for line in ("mma.py", "-u eval.py weights/shapes-mma --limit 20 --device cpu"):
        job = subprocess.Popen([sys.executable, *line.split()], **how)
        job.stdout.close()
        said = job.stderr.read().decode()
        assert "Traceback" not in said and "Error" not in said, said
        job.wait()
