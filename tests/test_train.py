"""Training as a user runs it, on small things."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, lines_of, weights_of
from PIL import Image

import data
import engine.run
import eval as evaluation
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
        train.main([*TINY, *args, "--out", str(folder / name)])
    return folder


def test_a_run_leaves_what_it_promises(runs):
    out = runs / "mma-0"
    promised = {"model.pt", "tokenizer.model", "run.json", "metrics.jsonl"}
    drawn = {"curves.png", "sheet.png", "example.png"}
    assert {path.name for path in out.iterdir()} == promised | drawn
    record = json.loads((out / "run.json").read_text())
    families = {"existence", "counting", "attribute", "comparison", "place", "spatial"}
    assert record["n"] == 100 and families <= set(record["families"])
    assert 0 <= record["accuracy"] <= 1 and record["mask"] == "mma" and record["seed"] == 0
    assert record["args"]["lr"] and [step for step, _ in record["clock"]] == [2, 3]
    looks = lines_of(out)
    assert [(r["stage"], r["step"]) for r in looks] == [("pt", 2), ("sft", 2), ("sft", 3)]
    assert looks[1]["val"]["n"] == 40
    assert record["not_asked"] == looks[2]["val"]["not_asked"] == ["spatial"]  # asked from 401 on
    assert Image.open(out / "sheet.png").size > (900, 600)


def test_a_run_says_what_it_does_and_how_long_it_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(engine.run, "TIMED", 2)
    few = ["--max-tokens", "27", "--out", str(tmp_path / "run"), "--pt-freeze", "embed"]
    train.main([*TINY, *few])
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
    assert re.search("At this speed: stage 1 00:0., both stages 00:0., plus validation", said.out)
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
    assert (f"photographs, such as one of {side} x {side} pixels" in said) == warned
    assert ("python -m bridge.finetune --llm DIR --vision DIR" in said) == warned


def test_the_same_seed_gives_the_same_run_and_another_draws_other_parameters(runs, tmp_path):
    train.main([*TINY, "--workers", "1", "--out", str(tmp_path / "again")])
    first, again, other = (
        weights_of(out) for out in (runs / "mma-0", tmp_path / "again", runs / "causal-1")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (first["encoder.row"] - other["encoder.row"]).abs().mean() > 0.5  # hardly trained


@pytest.mark.parametrize("option, few, many, moved", [
    ("--pt-freeze blocks embed", "--steps 0 --pt-steps 1", "--steps 0 --pt-steps 3",
     {"encoder", "projector", "norm"}),
    ("--pt-steps 0", "--steps 1", "--steps 4", {"projector", "embed", "blocks", "norm"}),
    ("--pt-steps 0 --freeze", "--steps 1", "--steps 4",
     {"encoder", "projector", "embed", "blocks", "norm"}),
])  # fmt: skip
def test_a_frozen_part_does_not_move(option, few, many, moved, tmp_path):
    """The encoder is frozen in stage 2 unless --freeze says otherwise."""
    weights = []
    for steps in (few, many):
        out = tmp_path / steps
        train.main([*TINY, *steps.split(), "--limit", "1", *option.split(), "--out", str(out)])
        weights.append(weights_of(out))
    differ = {name for name, w in weights[0].items() if not torch.equal(w, weights[1][name])}
    assert {name.split(".")[0] for name in differ} == moved


def test_evaluation_says_what_training_said(runs, tmp_path):
    names, file = [str(runs / name) for name in ("mma-0", "causal-1")], tmp_path / "r.json"
    evaluation.main([*names, "--device", "cpu", "--limit", "100", "--json", str(file)])
    for name, result in zip(names, json.loads(file.read_text())["runs"], strict=True):
        record = json.loads((runs / name / "run.json").read_text())
        for key in ("run", "accuracy", "families", "n", "unparsed", "params", "mask", "seed"):
            assert result[key] == record[key]


def test_your_own_folder_trains_and_evaluates(llava, tmp_path, capsys):
    """What is damaged in it is told once, and counted when evaluating."""
    entries = json.loads(llava.read_text())
    entries[3]["image"] = "missing.png"
    llava.write_text(json.dumps(entries))
    out, result = str(tmp_path / "run"), tmp_path / "r.json"
    source = ["--data", "llava", "--source", str(llava), "--images", str(llava.parent)]
    train.main([*TINY, *source, "--image-size", "32", "--out", out])
    said = capsys.readouterr()
    assert "; test: " in said.out and "stage 1:" in said.err and "captions" not in said.err
    assert said.out.count("no such picture") == 1
    evaluation.main([out, "--device", "cpu", "--split", "all", "--json", str(result)])
    said = capsys.readouterr().out
    assert json.loads(result.read_text())["runs"][0]["n"] == 29 * 2 + 2
    assert "1 of 32 entries are damaged and left out (1 missing picture)\n" in said
    assert "no such picture" not in said
    evaluation.main([out, "--device", "cpu", *source])  # other data may be new
    assert capsys.readouterr().out.count("no such picture") == 1


def test_how_your_own_data_were_split_is_said(llava):
    """Its questions, turn by turn, and its pictures; and what shows none, and so cannot be seen."""
    source, words = data.load("llava", llava), [data.Example([], [("hello?", "hello.")])]
    n, shown = {}, {}
    for split in source.splits:
        n[split] = sum(len(e.turns) for e in source.heldout(split))
        shown[split] = len({image for e in source.heldout(split) for image in e.images})
    said = "train: {} questions about {} pictures; val: {} about {}; test: {} about {}"
    numbers = (x[split] for split in ("train", "val", "test") for x in (n, shown))
    assert sum(n.values()) == 62 and describe_splits(source) == said.format(*numbers)
    source.splits["val"] = [words]
    assert describe_splits(source).endswith(". No picture is left for val")
    source.splits["test"] = [words]
    why = "No picture is left for val and test: example.png, a picture to ask about, is not written"
    assert describe_splits(source).endswith(f"; val: 1 about 0; test: 1 about 0. {why}")


def test_two_pictures_are_enough_to_evaluate_but_not_to_train(llava, runs, tmp_path):
    llava.write_text(json.dumps(json.loads(llava.read_text())[:2]))
    source = ["--data", "llava", "--source", str(llava)]
    with pytest.raises(SystemExit, match="too few pictures"):
        train.main([*TINY, *source, "--out", str(tmp_path / "run")])
    evaluate = [str(runs / "mma-0"), "--device", "cpu", *source]
    with pytest.raises(SystemExit, match="try --split all"):
        evaluation.main(evaluate)
    evaluation.main([*evaluate, "--split", "all", "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["runs"][0]["n"] == 4


def test_a_failed_overwrite_leaves_no_mixture(tmp_path, monkeypatch):
    line, out = [*TINY, "--out", str(tmp_path / "run")], tmp_path / "run"
    train.main(line)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    for again, message in (
        ([], "holds a finished run"),
        (["--overwrite", "--vocab-size", "300", "--max-tokens", "18"], "--max-tokens"),
    ):
        with pytest.raises(SystemExit, match=message):
            train.main([*line, *again])
        # Refused before anything was touched
        assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    monkeypatch.setattr(train, "train_stage", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*line, "--overwrite"])
    with pytest.raises(SystemExit, match="not a finished run"):
        evaluation.main([str(out)])


def test_training_refuses_a_leaking_mask(tokenizer, tmp_path, monkeypatch):
    reads_answers = lambda q, k: (q == Role.IMAGE) & (k == Role.ANSWER)
    monkeypatch.setitem(EXTRA_PAIRS, "mine", reads_answers)
    message = "'mine' .* answer tokens .* instead of predicted"
    with pytest.raises(SystemExit, match=message):
        train.main([*TINY, "--mask", "mine", "--out", str(tmp_path / "run")])
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
    few, lost = [*TINY, "--pt-steps", "2", "--steps", "0", "--limit", "2"], MLLM.loss
    monkeypatch.setattr(MLLM, "loss", lambda *args, **batch: lost(*args, **batch) + 100)
    train.main([*few, "--out", str(tmp_path / "run")])
    plain, found = (lines_of(out)[0]["loss"] for out in (runs / "mma-0", tmp_path / "run"))
    assert found == pytest.approx(100 + plain, abs=1e-3)
    monkeypatch.setattr(MLLM, "loss", lambda *args, **batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([*few, "--out", str(tmp_path / "run"), "--overwrite"])
