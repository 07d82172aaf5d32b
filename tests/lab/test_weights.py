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
def run(tmp_path_factory):
    """One that began with folders of another machine."""
    run = tmp_path_factory.mktemp("weights") / "run"
    train.main([*TINY, "--out", str(run)])
    record = json.loads((run / "run.json").read_text())
    record["args"] |= {"encoder": "/home/me/weights/seeing", "llm": "/home/me/smollm2"}
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_a_run_in_half_precision_answers_as_before(run, tmp_path):
    out, files = tmp_path / "weights" / "mine", ("model.pt", "tokenizer.model", "example.png")
    weights.main([str(run), str(out)])
    assert {file.name for file in out.iterdir()} == {*files, "run.json"}
    assert (out / "model.pt").stat().st_size < 0.6 * (run / "model.pt").stat().st_size
    before, after = weights_of(run), weights_of(out)
    for name in before:
        assert torch.equal(before[name].half(), after[name]) or not before[name].is_floating_point()
    question = ["--image", str(out / "example.png"), "--question", "is there a red circle?"]
    for asked in (["--limit", "10"], question):
        evaluation.main([str(out), "--device", "cpu", *asked])
    record = json.loads((out / "run.json").read_text())
    args = record["args"]
    assert record["run"] == args["out"] == out.as_posix()  # and no paths of that machine
    assert (args["encoder"], args["llm"]) == ("seeing", "smollm2") and "vision" not in args


def test_mistakes_are_one_line_and_the_run_stays_as_it_is(run, tmp_path):
    before, broken = (run / "model.pt").read_bytes(), shutil.copytree(run, tmp_path / "broken")
    (broken / "model.pt").write_bytes(b"no weights")
    for some, out, why in (
        (run, run.parent / "." / "run", "is the run itself; name another folder"),
        (tmp_path, tmp_path / "out", "not a finished run"),
        (broken, tmp_path / "out", "error: .*model.pt cannot be read"),
    ):
        with pytest.raises(SystemExit, match=why):
            weights.main([str(some), str(out)])
    assert (run / "model.pt").read_bytes() == before


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
