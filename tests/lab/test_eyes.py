"""A model is put together from two runs: what is taken, what is new, what stays; and what is
refused."""

import json
import pickle
import shutil

import pytest
import torch
from helpers import weights_of

import data
import eval as evaluation
import train
from data.shapes import Shapes
from data.shapes.questions import FAMILIES
from lab import eyes, talk

pytestmark = pytest.mark.usefixtures("nothing_drawn")

FEW = (
    "--device cpu --workers 0 --pt-pictures 2 --pictures 2 --questions 2 --pt-steps 2 --steps 4 "
    "--eval-every 2 --limit 6 --val-limit 6"
).split()
DECODER = ("embed", "blocks", "norm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an encoder, and one that learned from text."""
    folder = tmp_path_factory.mktemp("eyes")
    options = [*FEW, "--preset", "tiny", "--mask", "causal", "--seed", "3"]
    train.main([*options, "--out", str(folder / "seeing")])
    train.main([*options, "--data", "shapes-text", "--out", str(folder / "text")])
    return folder


@pytest.fixture
def line(runs):
    """line(options...) -> the command line."""
    sources = ["--encoder", str(runs / "seeing"), "--llm", str(runs / "text")]
    return lambda *more: [*sources, *FEW, *map(str, more)]


@pytest.fixture
def made(line):
    """made(options...) -> the weights that training begins with."""
    return lambda *more: eyes.put_together(eyes.options(line(*more)))[0].state_dict()


def equal(a: dict, b: dict, *names) -> bool:
    """Of the tensors whose names begin so; by default of all."""
    a, b = ({n: w for n, w in some.items() if n.startswith(names or "")} for some in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_encoder_and_decoder_are_those_of_the_runs_and_the_projector_is_new(runs, line, made):
    """The same in all arms of a seed."""
    args, (seeing, text) = eyes.options(line()), (weights_of(runs / n) for n in ("seeing", "text"))
    model, tokenizer = eyes.put_together(args)
    weights, fresh = model.state_dict(), made("--fresh")
    assert equal(weights, text, *DECODER) and not equal(fresh, text, *DECODER)
    for some in (weights, fresh):
        assert equal(some, seeing, "encoder")
        assert not equal(some, seeing, "projector") and not equal(some, text, "projector")
        assert equal(some, made("--mask", "causal"), "projector")
    assert not equal(weights, made("--seed", "1"), "projector")
    assert tokenizer.model == (runs / "text" / "tokenizer.model").read_bytes()
    assert args.vocab_size == len(tokenizer) == model.config.vocab_size


def test_training_leaves_the_encoder_and_moves_the_rest_in_both_stages(line, made, tmp_path):
    before = made()
    for stage in ("--steps", "--pt-steps"):
        out = tmp_path / stage
        eyes.main(line(stage, 0, "--out", out))
        after = weights_of(out)
        assert equal(after, before, "encoder")  # pixel_mean, too
        for name in ("projector.0.weight", "blocks.0.attention.q.weight", "embed.weight"):
            assert not torch.equal(after[name], before[name]), name
    for command in (evaluation, talk):  # they open the run like any other
        assert command.open_run(out, "cpu", "causal")[0].config.mask == "causal"


def other_tokenizer(folder):
    tokenizer = data.Tokenizer.train(["red green blue yellow"] * 20, 300)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)


def other_words(folder):
    """Of its tokenizer and, as it should be, of its model."""
    tokenizer = data.Tokenizer.train(["abc abd"] * 20, 4096)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    saved = torch.load(folder / "model.pt", weights_only=True)
    saved["config"]["vocab_size"] = len(tokenizer)
    saved["weights"]["embed.weight"] = saved["weights"]["embed.weight"][: len(tokenizer)]
    torch.save(saved, folder / "model.pt")


def variant(folder):
    record = json.loads((folder / "run.json").read_text())
    record["args"]["variant"] = "text-first"
    (folder / "run.json").write_text(json.dumps(record))


def hugging_face(folder):
    (folder / "run.json").rename(folder / "config.json")


@pytest.mark.parametrize("option, damage, says", [
    ("--llm", other_tokenizer, "they are not of one run"),
    ("--llm", other_words, "its tokenizer has no token for"),
    ("--llm", variant, "only the decoder of a plain run"),
    ("--llm", hugging_face, "a Hugging Face folder needs --template"),
    ("--encoder", shutil.rmtree, "not a finished run"),
    ("--rehearse", None, "--rehearse belongs to a Hugging Face folder"),
])  # fmt: skip
def test_mistakes_are_one_line(runs, line, tmp_path, option, damage, says):
    folder = shutil.copytree(runs / "text", tmp_path / "damaged")
    if damage:
        damage(folder)
    with pytest.raises(SystemExit, match=says) as exit:
        eyes.main(line(option, folder if damage else 2, "--out", tmp_path / "out"))
    assert "\n" not in str(exit.value)


def test_every_preset_asks_questions_of_every_family():
    """Stage 2 begins without relations: a preset of so few steps would never ask about them."""
    world = data.load("shapes")
    for preset in eyes.PRESETS:
        steps = eyes.options(["--encoder", "a", "--llm", "b", "--preset", preset]).steps
        assert {e.family for e in world.draw("sft", steps - 1, 8, 8, 0)} == {*FAMILIES}


# --- Rehearsal


@pytest.mark.parametrize("text, kept", [
    ("It is red. It is blue! And then the", "It is red. It is blue!"),
    ("Is it red? Yes", "Is it red?"),
    ("1. Gold\n2. Copper\n3. Sil", ""),
    ("Pi is 3.14 or so", ""),
    ("Two lines.\nOf text. No", "Two lines.\nOf text."),
    ("", ""),
])  # fmt: skip
def test_whole_sentences(text, kept):
    assert eyes.whole_sentences(text) == kept


def test_what_was_cut_ends_with_a_sentence_and_what_was_not_is_kept(monkeypatch):
    said = {"a": ("It is so. And", True), "b": ("no end", True), "c": ("no point", False)}

    def answers(model, tokenizer, examples, **options):
        assert options["max_new_tokens"] == eyes.LONGEST
        return [dict(zip(("given", "unparsed"), said[e.turns[0][0]])) for e in examples]

    monkeypatch.setattr(eyes, "answer_all", answers)
    dialogues = eyes.own_answers(None, None, list("abc"))
    assert [e.turns for e in dialogues] == [[("a", "It is so.")], [("c", "no point")]]
    assert all(e.images == [] for e in dialogues)


def test_a_step_has_rows_more_and_is_else_what_it_was():
    dialogues = [data.Example([], [(f"question {i}", "answer")]) for i in range(50)]
    plain, source, seen = Shapes(), eyes.Rehearsal(Shapes(), dialogues, 3), set()
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    for key in (("sft", 5, 2, 4, 0), ("sft", 6, 2, 4, 0), ("pt", 5, 8, 4, 0), ("sft", 5, 2, 4, 1)):
        drawn = source.draw(*key)
        assert [e.turns for e in drawn[:8]] == [e.turns for e in plain.draw(*key)]
        assert len(drawn) == 11 and all(e in dialogues for e in drawn[8:])
        assert drawn[8:] == again.draw(*key)[8:]
        seen.add(tuple(e.turns[0][0] for e in drawn[8:]))
    assert len(seen) == 4 and again.answers == plain.answers
    assert [e.id for e in again.heldout("val", 3)] == [e.id for e in plain.heldout("val", 3)]
