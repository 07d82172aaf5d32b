"""A model is put together from two runs: what is taken, what is new, what stays; and what is
refused."""

import json
import pickle
import shutil

import pytest
import torch
from helpers import Crash, at_steps, crash, weights_of

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an encoder, and one that learned from text."""
    folder = tmp_path_factory.mktemp("eyes")
    options = [*FEW, "--preset", "tiny", "--mask", "causal", "--seed", "3"]
    train.main([*options, "--out", str(folder / "seeing")])
    train.main([*options, "--data", "shapes-text", "--out", str(folder / "text")])
    return folder


def line_of(runs, *more) -> list[str]:
    return ["--encoder", str(runs / "seeing"), "--llm", str(runs / "text"), *FEW, *more]


def parts(weights: dict, *names) -> dict:
    return {n: w for n, w in weights.items() if n.startswith(names)}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


DECODER = ("embed", "blocks", "norm")


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_encoder_and_decoder_are_those_of_the_runs_and_the_projector_is_new(runs, fresh):
    args = eyes.options(line_of(runs, *fresh))
    model, tokenizer = eyes.put_together(args)
    weights, seeing, text = model.state_dict(), *map(weights_of, (runs / "seeing", runs / "text"))
    assert equal(parts(weights, "encoder"), parts(seeing, "encoder"))
    assert equal(parts(weights, *DECODER), parts(text, *DECODER)) == (not fresh)
    for run in (seeing, text):
        assert not torch.equal(weights["projector.0.weight"], run["projector.0.weight"])
    assert tokenizer.model == (runs / "text" / "tokenizer.model").read_bytes()
    assert args.vocab_size == len(tokenizer) == model.config.vocab_size


def test_all_arms_of_a_seed_begin_with_the_same_projector(runs):
    def projector(*more):
        return parts(eyes.put_together(eyes.options(line_of(runs, *more)))[0].state_dict(), "proj")

    assert equal(projector(), projector("--fresh"))
    assert equal(projector(), projector("--mask", "causal"))
    assert not equal(projector(), projector("--seed", "1"))


def test_training_leaves_the_encoder_and_moves_the_rest_in_both_stages(runs, tmp_path):
    before, _ = eyes.put_together(eyes.options(line_of(runs)))
    before = before.state_dict()
    for stage in (["--steps", "0"], ["--pt-steps", "0"]):
        out = tmp_path / stage[0]
        eyes.main(line_of(runs, *stage, "--out", str(out)))
        after = weights_of(out)
        assert equal(parts(after, "encoder"), parts(before, "encoder"))  # pixel_mean, too
        for name in ("projector.0.weight", "blocks.0.attention.q.weight", "embed.weight"):
            assert not torch.equal(after[name], before[name]), name
    for command in (evaluation, talk):  # they open the run like any other
        assert command.open_run(out, "cpu", "causal")[0].config.mask == "causal"


def test_a_stopped_run_goes_on_to_the_same_bits(runs, tmp_path):
    line = line_of(runs, "--save-every", "1")
    eyes.main([*line, "--out", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        at_steps(patch, lambda step: step == 5, crash)  # the third of stage 2
        with pytest.raises(Crash):
            eyes.main([*line, "--out", str(tmp_path / "parts")])
    eyes.main([*line, "--out", str(tmp_path / "parts"), "--resume"])
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


def damaged(runs, tmp_path, what: str):
    """A copy of the text run that is not as it should be."""
    folder = shutil.copytree(runs / "text", tmp_path / "damaged")
    saved = torch.load(folder / "model.pt", weights_only=True)
    record = json.loads((folder / "run.json").read_text())
    if what == "another tokenizer":
        tokenizer = data.Tokenizer.train(["red green blue yellow"] * 20, 300)
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
    if what == "no words":
        tokenizer = data.Tokenizer.train(["abc abd"] * 20, 4096)
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
        saved["config"]["vocab_size"] = len(tokenizer)
        saved["weights"]["embed.weight"] = saved["weights"]["embed.weight"][: len(tokenizer)]
    if what == "a variant":
        record["args"]["variant"] = "text-first"
    if what == "a folder":
        (folder / "run.json").unlink()
        (folder / "config.json").write_text("{}")
    torch.save(saved, folder / "model.pt")
    if what != "a folder":
        (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("option,what,says", [
    ("--llm", "another tokenizer", "they are not of one run"),
    ("--llm", "no words", "its tokenizer has no token for"),
    ("--llm", "a variant", "only the decoder of a plain run"),
    ("--llm", "a folder", "a Hugging Face folder needs --template"),
    ("--encoder", "nowhere", "not a finished run"),
])  # fmt: skip
def test_mistakes_are_one_line(runs, tmp_path, option, what, says):
    folder = tmp_path / "none" if what == "nowhere" else damaged(runs, tmp_path, what)
    with pytest.raises(SystemExit, match=says) as exit:
        eyes.main(line_of(runs, option, str(folder), "--out", str(tmp_path / "out")))
    assert "\n" not in str(exit.value)


def test_every_preset_asks_questions_of_every_family():
    """Stage 2 begins without relations: a preset of so few steps would never ask about them."""
    world = data.load("shapes")
    for preset in eyes.PRESETS:
        steps = eyes.options(["--encoder", "a", "--llm", "b", "--preset", preset]).steps
        assert {e.family for e in world.draw("sft", steps - 1, 8, 8, 0)} == {*FAMILIES}


def test_sizes_are_those_of_the_runs_and_ours_know_no_dialogue(runs, capsys, tmp_path):
    with pytest.raises(SystemExit, match="--rehearse belongs to a Hugging Face folder"):
        eyes.main(line_of(runs, "--rehearse", "2", "--out", str(tmp_path / "out")))
    with pytest.raises(SystemExit):
        eyes.options(line_of(runs, "--n-layer", "2"))
    said = "--n-layer cannot be given: it is that of --encoder and --llm"
    assert said in capsys.readouterr().err


# --- Rehearsal


@pytest.mark.parametrize("text,kept", [
    ("It is red. It is blue! And then the", "It is red. It is blue!"),
    ("Is it red? Yes", "Is it red?"),
    ("1. Gold\n2. Copper\n3. Sil", ""),
    ("Pi is 3.14 or so", ""),
    ("Two lines.\nOf text. No", "Two lines.\nOf text."),
    ("", ""),
])  # fmt: skip
def test_whole_sentences(text, kept):
    assert eyes.whole_sentences(text) == kept


def test_prompts_are_many_and_no_template_is_left_unfilled():
    assert len(eyes.PROMPTS) == len(set(eyes.PROMPTS)) > 150
    assert not [prompt for prompt in eyes.PROMPTS if "{" in prompt or prompt != prompt.strip()]


def test_what_was_cut_ends_with_a_sentence_and_what_was_not_is_kept(monkeypatch):
    said = {"a": ("It is so. And", True), "b": ("no end", True), "c": ("no point", False)}

    def answers(model, tokenizer, examples, **options):
        assert options["max_new_tokens"] == eyes.LONGEST
        given = [said[e.turns[0][0]] for e in examples]
        return [{"given": text, "unparsed": cut} for text, cut in given]

    monkeypatch.setattr(eyes, "answer_all", answers)
    dialogues = eyes.own_answers(None, None, list("abc"))
    assert [e.turns for e in dialogues] == [[("a", "It is so.")], [("c", "no point")]]
    assert all(e.images == [] for e in dialogues)


def test_a_step_has_rows_more_and_is_else_what_it_was():
    dialogues = [data.Example([], [(f"question {i}", "answer")]) for i in range(50)]
    plain, source = Shapes(), eyes.Rehearsal(Shapes(), dialogues, 3)
    seen = set()
    for key in (("sft", 5, 2, 4, 0), ("sft", 6, 2, 4, 0), ("pt", 5, 8, 4, 0), ("sft", 5, 2, 4, 1)):
        drawn = source.draw(*key)
        assert [e.turns for e in drawn[:8]] == [e.turns for e in plain.draw(*key)]
        assert len(drawn) == 11 and all(e in dialogues for e in drawn[8:])
        assert drawn[8:] == source.draw(*key)[8:]
        seen.add(tuple(e.turns[0][0] for e in drawn[8:]))
    assert len(seen) == 4
    again = pickle.loads(pickle.dumps(source))  # as a worker gets it
    assert again.answers == plain.answers and again.draw(*key)[8:] == drawn[8:]
    assert [e.id for e in again.heldout("val", 3)] == [e.id for e in plain.heldout("val", 3)]
