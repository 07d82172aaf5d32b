"""A model is put together from two runs: what is taken, what is new, what stays; and what is
refused."""

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
from lab import eyes

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
    """Of the tensors whose names begin so."""
    return all(torch.equal(a[n], b[n]) for n in a.keys() | b.keys() if n.startswith(names))


def test_encoder_and_decoder_are_those_of_the_runs_and_the_projector_is_new(runs, line, made):
    """The same in all arms of a seed."""
    args, (seeing, text) = eyes.options(line()), (weights_of(runs / n) for n in ("seeing", "text"))
    model, tokenizer = eyes.put_together(args)
    weights, fresh = model.state_dict(), made("--fresh")
    assert equal(weights, text, *DECODER) and not equal(fresh, text, *DECODER)
    for some in (weights, fresh):
        assert equal(some, seeing, "encoder") and equal(some, made("--mask", "causal"), "projector")
        assert not equal(some, seeing, "projector") and not equal(some, text, "projector")
    assert not equal(weights, made("--seed", "1"), "projector")
    assert tokenizer.model == (runs / "text" / "tokenizer.model").read_bytes()
    assert args.vocab_size == len(tokenizer) == model.config.vocab_size


def test_training_leaves_the_encoder_and_moves_the_rest_in_both_stages(line, made, tmp_path):
    """A run that eval.py and others open like any other."""
    before = made()
    for stage in ("--steps", "--pt-steps"):
        out = tmp_path / stage
        eyes.main(line(stage, 0, "--out", out))
        after = weights_of(out)
        assert equal(after, before, "encoder")  # pixel_mean, too
        for name in ("projector.0.weight", "blocks.0.attention.q.weight", "embed.weight"):
            assert not torch.equal(after[name], before[name]), name
    assert evaluation.open_run(out, "cpu", "causal")[0].config.mask == "causal"


def other_tokenizer(run):
    tokenizer = data.Tokenizer.train(["red green blue yellow"] * 20, 300)
    (run / "tokenizer.model").write_bytes(tokenizer.model)


def variant(run):
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace('"variant": null', '"variant": "text-first"'))


@pytest.mark.parametrize("option, damage, says", [
    ("--llm", other_tokenizer, "they are not of one run"),
    ("--llm", variant, "only the decoder of a plain run"),
    ("--llm", lambda run: (run / "run.json").rename(run / "config.json"),
     "a Hugging Face folder needs --template"),
    ("--encoder", shutil.rmtree, "not a finished run"),
    ("--data llava --source", None, "its tokenizer has no token for"),
    ("--rehearse", 2, "--rehearse belongs to a Hugging Face folder"),
])  # fmt: skip
def test_mistakes_are_one_line(runs, line, llava, tmp_path, option, damage, says):
    value = llava if damage is None else damage
    if callable(damage):
        damage(value := shutil.copytree(runs / "text", tmp_path / "damaged"))
    with pytest.raises(SystemExit, match=says) as exit:
        eyes.main(line(*option.split(), value, "--out", tmp_path / "out"))
    assert "\n" not in str(exit.value)


def test_every_preset_asks_questions_of_every_family():
    """Stage 2 begins without relations: a preset of so few steps would never ask about them."""
    world = data.load("shapes")
    for preset in eyes.PRESETS:
        steps = eyes.options(["--encoder", "a", "--llm", "b", "--preset", preset]).steps
        assert {e.family for e in world.draw("sft", steps - 1, 8, 8, 0)} == {*FAMILIES}


# --- Rehearsal


@pytest.mark.parametrize("given, was_cut, kept", [
    ("It is red. It is blue! And then the", True, "It is red. It is blue!"),
    ("Is it red? Yes", True, "Is it red?"),
    ("1. Gold\n2. Copper\n3. Sil", True, ""),
    ("Pi is 3.14 or so", True, ""),
    ("Two lines.\nOf text. No", True, "Two lines.\nOf text."),
    ("no point", False, "no point"),
    ("", False, ""),
])  # fmt: skip
def test_what_was_cut_ends_with_a_sentence_and_what_was_not_is_kept(
    monkeypatch, given, was_cut, kept
):
    def answers(model, tokenizer, examples, **options):
        assert options["max_new_tokens"] == eyes.LONGEST
        return [{"given": given, "unparsed": was_cut}]

    monkeypatch.setattr(eyes, "answer_all", answers)
    said = [(e.images, e.turns) for e in eyes.own_answers(None, None, ["why?"])]
    assert said == [([], [("why?", kept)])] * bool(kept)


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
