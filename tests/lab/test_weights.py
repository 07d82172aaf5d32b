"""Runs that are given away, and those that lie in weights/."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, weights_of

import eval as evaluation
import train
from lab import weights


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("weights") / "run"
    train.main([*TINY, "--out", str(run)])
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy of a run that began with folders of another machine."""
    run = shutil.copytree(made, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["args"] |= {"encoder": "/home/me/weights/seeing", "llm": "/home/me/smollm2"}
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_a_run_in_half_precision_answers_as_before(run, tmp_path, capsys):
    out, files = tmp_path / "weights" / "mine", ("model.pt", "tokenizer.model", "example.png")
    weights.main([str(run), str(out)])
    assert "mine:" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {*files, "run.json"}
    assert (out / "model.pt").stat().st_size < 0.6 * (run / "model.pt").stat().st_size
    before, after = weights_of(run), weights_of(out)
    for name in before:
        assert torch.equal(before[name].half(), after[name]) or not before[name].is_floating_point()
    evaluation.main([str(out), "--device", "cpu", "--limit", "10"])
    question = ["--image", str(out / "example.png"), "--question", "is there a red circle?"]
    evaluation.main([str(out), "--device", "cpu", *question])
    record = json.loads((out / "run.json").read_text())
    args = record["args"]
    assert record["run"] == args["out"] == out.as_posix()  # and no paths of that machine
    assert (args["encoder"], args["llm"]) == ("seeing", "smollm2") and "vision" not in args


def test_the_run_stays_as_it_is_and_mistakes_are_one_line(run, tmp_path):
    before = (run / "model.pt").read_bytes()
    with pytest.raises(SystemExit, match="is the run itself; name another folder"):
        weights.main([str(run), str(tmp_path / "." / "run")])
    assert (run / "model.pt").read_bytes() == before
    with pytest.raises(SystemExit, match="not a finished run"):
        weights.main([str(tmp_path), str(tmp_path / "out")])
    (run / "model.pt").write_bytes(b"no weights")
    with pytest.raises(SystemExit, match="error: .*model.pt cannot be read"):
        weights.main([str(run), str(tmp_path / "out")])


@pytest.mark.parametrize("name", [f.parent.name for f in sorted(ROOT.glob("weights/*/run.json"))])
def test_the_weights_in_the_repository_answer_as_their_record_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run, result = Path("weights", name), tmp_path / "r.json"
    record = json.loads((run / "run.json").read_text())
    if record["args"]["data"] != "shapes":
        pytest.skip("its data are not in the repository")
    evaluation.main([str(run), "--device", "cpu", "--limit", "500", "--json", str(result)])
    measured = json.loads(result.read_text())["runs"][0]["accuracy"]
    published = record["accuracy"]
    spread = (published * (1 - published) / 500) ** 0.5  # of 500 questions out of all
    assert abs(measured - published) < 2.5 * spread + 0.002
