"""What a language model said before is mixed into its training, cut at sentences."""

import pickle

import pytest

import data
from data.shapes import Shapes
from lab import eyes
from lab.eyes import PROMPTS, Rehearsal, own_answers, whole_sentences


@pytest.mark.parametrize("text,kept", [
    ("It is red. It is blue! And then the", "It is red. It is blue!"),
    ("Is it red? Yes", "Is it red?"),
    ("1. Gold\n2. Copper\n3. Sil", ""),
    ("Pi is 3.14 or so", ""),
    ("Two lines.\nOf text. No", "Two lines.\nOf text."),
    ("", ""),
])  # fmt: skip
def test_whole_sentences(text, kept):
    assert whole_sentences(text) == kept


def test_prompts_are_many_and_no_template_is_left_unfilled():
    assert len(PROMPTS) == len(set(PROMPTS)) > 150
    assert not [prompt for prompt in PROMPTS if "{" in prompt or prompt != prompt.strip()]


def test_what_was_cut_ends_with_a_sentence_and_what_was_not_is_kept(monkeypatch):
    said = {"a": ("It is so. And", True), "b": ("no end", True), "c": ("no point", False)}

    def answers(model, tokenizer, examples, **options):
        assert options["max_new_tokens"] == eyes.LONGEST
        given = [said[e.turns[0][0]] for e in examples]
        return [{"given": text, "unparsed": cut} for text, cut in given]

    monkeypatch.setattr(eyes, "answer_all", answers)
    dialogues = own_answers(None, None, list("abc"))
    assert [e.turns for e in dialogues] == [[("a", "It is so.")], [("c", "no point")]]
    assert all(e.images == [] for e in dialogues)


def test_a_step_has_rows_more_and_is_else_what_it_was():
    dialogues = [data.Example([], [(f"question {i}", "answer")]) for i in range(50)]
    plain, source = Shapes(), Rehearsal(Shapes(), dialogues, 3)
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
