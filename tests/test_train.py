"""Training as a user runs it, on small things."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, evaluated, lines_of, own_data, record_of, train_tiny, weights_of
from PIL import Image

import data
import engine.run
import train
from engine.batches import StepBatches
from engine.folders import describe_splits
from engine.options import arguments
from engine.plan import plan_of
from mma import EXTRA_PAIRS, Role
from model import MLLM, Config

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the built-in world."""
    folder = tmp_path_factory.mktemp("runs")
    for name, args in (("mma-0", []), ("causal-1", ["--seed", "1", "--mask=causal"])):
        train_tiny(folder / name, *args)
    return folder


def test_a_run_leaves_what_it_promises(runs):
    out = runs / "mma-0"
    assert {path.name for path in out.iterdir()} == {
        "model.pt", "tokenizer.model", "run.json", "metrics.jsonl", "curves.png", "sheet.png",
        "example.png",
    }  # fmt: skip
    record, validations = record_of(out), [line["val"] for line in lines_of(out)[1:]]
    families = {"existence", "counting", "attribute", "comparison", "place", "spatial"}
    assert record["n"] == 100 and families <= set(record["families"])
    assert 0 <= record["accuracy"] <= 1 and record["mask"] == "mma" and record["seed"] == 0
    assert record["args"]["lr"] and [step for step, _ in record["clock"]] == [2, 3]
    assert [(r["stage"], r["step"]) for r in lines_of(out)] == [("pt", 2), ("sft", 2), ("sft", 3)]
    assert validations[0]["n"] == 40
    assert record["not_asked"] == validations[1]["not_asked"] == ["spatial"]  # asked from 401 on
    assert Image.open(out / "sheet.png").size > (900, 600)
    one, other = (weights_of(runs / name)["encoder.row"] for name in ("mma-0", "causal-1"))
    assert (one - other).abs().mean() > 0.5  # of another seed; it is hardly trained


def test_a_run_says_what_it_does_and_how_long_it_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine.run, "TIMED", 2)
    train_tiny(tmp_path / "run", "--max-tokens", 27, "--pt-freeze", "embed")
    said = capsys.readouterr()
    for line in (
        "pictures of 64 x 64 pixels become 16 tokens each; the vision encoder starts from nothing",
        "optimizer: Muon for weight matrices, peak rate 0.004 (0.008 in stage 1); AdamW for the "
        "rest, 0.002",
        "stage 1: 2 steps of 4 pictures with captions, mask causal, embed frozen",
        "stage 2: 3 steps of 4 pictures with 2 questions each, mask mma, encoder frozen",
        "rows of the first batch are longer than 27 tokens and are cut",
        "; spatial is not asked",
        "0.0, not asked yet",
    ):
        assert line in " ".join(said.out.split())
    assert re.search(
        "At this speed: stage 1 [0-9:]+, both stages [0-9:]+, plus validation", said.out
    )
    assert "not asked yet=spatial" in said.err
    assert "photographs" not in said.out


@pytest.mark.parametrize("side, few, pretrained, warned", [
    (640, False, False, True), (640, True, False, False), (100, False, False, False),
    (640, False, True, False),
])  # fmt: skip
def test_who_trains_an_encoder_from_nothing_on_photographs_is_told(
    tmp_path, tokenizer, side, few, pretrained, warned
):
    noise = Image.effect_noise((side // 8, side // 8), 90)
    picture = Image.merge("RGB", [noise.rotate(angle) for angle in (0, 90, 180)])
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    (picture.quantize(16) if few else picture).save(tmp_path / "a.png")
    example = data.Example([tmp_path / "a.png"], [("<image>?", "a")])
    source, args = SimpleNamespace(draw=lambda *step: [example]), arguments(["--data", "llava"])
    model = MLLM(Config(vocab_size=len(tokenizer)))
    model.encoder.pretrained = pretrained
    stages = [StepBatches(source, tokenizer, model.config, stage, args) for stage in ("pt", "sft")]
    said = " ".join(plan_of(stages, model, args).split())
    for words in ("such as one of 640 x 640 pixels", "bridge.finetune --llm DIR --vision DIR"):
        assert (words in said) == warned


@pytest.mark.parametrize("option, few, many, moved", [
    ("--pt-freeze blocks embed", "--steps 0 --pt-steps 1", "--steps 0 --pt-steps 3",
     {"encoder", "projector", "norm"}),
    ("--pt-steps 0", "--steps 1", "--steps 4", {"projector", "embed", "blocks", "norm"}),
])  # fmt: skip
def test_a_frozen_part_does_not_move(option, few, many, moved, tmp_path):
    """The encoder is frozen in stage 2 unless --freeze says otherwise."""
    for steps in (few, many):
        train_tiny(tmp_path / steps, "--limit", 1, *option.split(), *steps.split())
    few, many = (weights_of(tmp_path / steps) for steps in (few, many))
    differ = {name for name, w in few.items() if not torch.equal(w, many[name])}
    assert {name.split(".")[0] for name in differ} == moved


def test_evaluation_says_what_training_said(runs):
    for result in evaluated(runs / "mma-0", runs / "causal-1", "--limit", 100):
        record = record_of(Path(result["run"]))
        for key in ("run", "accuracy", "families", "n", "unparsed", "params", "mask", "seed"):
            assert result[key] == record[key]


def test_your_own_folder_trains_and_evaluates(llava, tmp_path, capsys):
    """What is damaged in it is told once, and counted when evaluating."""
    entries = json.loads(llava.read_text())
    entries[3]["image"] = "missing.png"
    llava.write_text(json.dumps(entries))
    train_tiny(tmp_path, *own_data(llava), "--images", llava.parent)
    said = capsys.readouterr()
    assert "; test: " in said.out and "stage 1:" in said.err and "captions" not in said.err
    assert said.out.count("no such picture") == 1
    assert evaluated(tmp_path, "--split", "all")[0]["n"] == 29 * 2 + 2
    said = capsys.readouterr().out
    assert "1 of 32 entries are damaged and left out (1 missing picture)\n" in said
    assert "no such picture" not in said
    evaluated(tmp_path, "--data", "llava", "--source", llava)  # other data may be new
    assert capsys.readouterr().out.count("no such picture") == 1


def test_how_your_own_data_were_split_is_said():
    """Its questions, turn by turn, and its pictures; and what shows none, and so cannot be seen."""
    words = data.Example([], [("hello?", "hello.")])
    shown = data.Example(["a.png"], [("q", "a")] * 2)
    splits = {"train": [[shown, shown], [words]], "val": [[words]], "test": [[shown]]}
    source = SimpleNamespace(splits=splits, final_split="test")
    said = "train: 5 questions about 1 pictures; val: 1 about 0; test: {}. No picture is left for "
    said += "val"
    assert describe_splits(source) == said.format("2 about 1")
    splits["test"] = splits["val"]
    why = " and test: example.png, a picture to ask about, is not written"
    assert describe_splits(source) == said.format("1 about 0") + why


def test_two_pictures_are_enough_to_evaluate_but_not_to_train(llava, runs, tmp_path):
    llava.write_text(json.dumps(json.loads(llava.read_text())[:2]))
    with pytest.raises(SystemExit, match="too few pictures"):
        train_tiny(tmp_path / "run", *own_data(llava))
    line = runs / "mma-0", "--data", "llava", "--source", llava
    with pytest.raises(SystemExit, match="try --split all"):
        evaluated(*line)
    assert evaluated(*line, "--split", "all")[0]["n"] == 4


def test_a_failed_overwrite_leaves_no_mixture(tmp_path, monkeypatch):
    train_tiny(tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for again, message in (
        ("", "holds a finished run"),
        ("--overwrite --vocab-size 300 --max-tokens 18", "--max-tokens"),
    ):
        with pytest.raises(SystemExit, match=message):
            train_tiny(tmp_path, *again.split())
        # Refused before anything was touched
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    monkeypatch.setattr(train, "train_stage", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_tiny(tmp_path, "--overwrite")
    with pytest.raises(SystemExit, match="not a finished run"):
        evaluated(tmp_path)


def test_training_refuses_a_leaking_mask(tokenizer, tmp_path, monkeypatch):
    reads_answers = lambda q, k: (q == Role.IMAGE) & (k == Role.ANSWER)
    monkeypatch.setitem(EXTRA_PAIRS, "mine", reads_answers)
    message = "'mine' .* answer tokens .* instead of predicted"
    with pytest.raises(SystemExit, match=message):
        train_tiny(tmp_path / "run", "--mask", "mine")
    args = arguments([*TINY, "--out", str(tmp_path / "run")])
    args.pt_mask = "mine"  # and in stage 1, for who calls fit
    model = MLLM(Config(vocab_size=len(tokenizer)))
    with pytest.raises(data.DataError, match=message):
        train.fit(model, tokenizer, data.load("shapes"), args)


def test_fit_trains_a_given_model_and_needs_nobody_who_draws(tokenizer, tmp_path):
    args = arguments([*TINY, "--out", str(tmp_path / "run")])
    model = MLLM(Config(vocab_size=len(tokenizer), n_layer=1))
    before = model.embed.weight.detach().clone()
    train.fit(model, tokenizer, data.load("shapes"), args)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"model.pt", "tokenizer.model", "run.json", "metrics.jsonl"}
    assert not torch.equal(model.embed.weight, before)
    assert torch.equal(weights_of(tmp_path / "run")["embed.weight"], model.embed.weight)


def test_what_the_model_says_is_what_is_trained(runs, tmp_path, monkeypatch):
    """Its loss is minimised. (test_model.py: each layer is computed by its own class.)"""
    loss = MLLM.loss
    monkeypatch.setattr(MLLM, "loss", lambda *args, **batch: loss(*args, **batch) + 100)
    train_tiny(tmp_path, "--steps", 0, "--limit", 2)
    plain, found = (lines_of(out)[0]["loss"] for out in (runs / "mma-0", tmp_path))
    assert found == pytest.approx(100 + plain, abs=1e-3)
