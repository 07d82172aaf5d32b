"""Answers to benchmarks' questions, judged by hand and as VLMEvalKit judges them."""

import json
from pathlib import Path

import pytest

from bridge.benchmark_files import Question
from bridge.benchmarks import letter_of, score, soft, yes_or_no
from data import Example

# Predictions of ours, and what VLMEvalKit's own matching and scoring (e8e78f05) make of them:
# of a choice a letter for each way of saying it, "-" for none
REFERENCE = json.loads((Path(__file__).parent / "reference_scores.json").read_text("utf-8"))

OPTIONS = {"A": "a cat", "B": "two dogs", "C": "A", "D": "blue"}


@pytest.mark.parametrize("given,strict,lenient", [
    ("B", "B", "B"), ("(B)", "B", "B"), ("B.", "B", "B"), (" D: ", "D", "D"), ("**B**", "B", "B"),
    ("Ｂ。", "B", "B"), ("'B'", None, "B"), ("The answer is B.", None, "B"), ("E", None, None),
    ("A or B", None, None), ("", None, None), ("I think B", None, "B"), ("option d", None, "D"),
    ("A dog runs", None, None), ("Blue.", None, "D"), ("B, C", None, None), ("B12", None, None),
    ("The answer is A or B.", None, None), ("Not A, but B.", None, "B"), ("答案是B", None, "B"),
    ("B because A is too small", None, "B"), ("A dog, so D", None, "D"), ("option (b)", None, "B"),
    ("I see two dogs and a cat", None, None), ("I see two dogs, not one.", None, "B"),
    ("There are cats", None, "A"), ("concatenated", None, None), ("A cat, that is B", None, "B"),
    ("The answer is A cat.", None, "A"), ("A is wrong; the rest is unclear.", None, None),
    ("The answer is B's colour.", None, None), ("It is not a cat.", None, None),
    ("It isn't a cat, it is blue.", None, "D"), ("It can't be D.", None, None),
    ("A. a cat\nB. two dogs\nC. A\nD. bl", None, None),
    ("Option A: a cat, Option B: two dogs", None, None),
    ("A. a cat B. two dogs C. A D. blue\nAnswer: D", None, "D"),
])  # fmt: skip
def test_letters(given, strict, lenient):
    assert letter_of(given, OPTIONS, False) == strict
    assert letter_of(given, OPTIONS, True) == lenient


SIGNS = {"A": "C", "B": "C++", "C": "CC", "D": "D"}  # a text is not its letters alone
YES_NO = {"A": "No", "B": "Yes."}


@pytest.mark.parametrize("options,given,letter", [
    (SIGNS, "C", "C"), (SIGNS, "The answer is C.", "C"), (SIGNS, "(c)", "C"), (SIGNS, "C++", "B"),
    (SIGNS, "The answer is C++.", "B"), (YES_NO, "Yes, there is no cat", "B"),
    (YES_NO, "No, it is not a yes.", "A"), (YES_NO, "A. No", "A"), (YES_NO, "Unclear", None),
])  # fmt: skip
def test_letters_of_options_that_are_letters_or_yes_and_no(options, given, letter):
    assert letter_of(given, options, True) == letter


def test_every_way_of_saying_a_letter_is_read_as_the_reference_does_or_better():
    """528 predictions: the reference finds 376 of them."""
    ways, right = REFERENCE["choice"]["ways"], []
    for name, options in REFERENCE["choice"]["options"].items():
        for letter, option in options.items():
            other = "BCDA"["ABCD".index(letter)]
            low = option[0].lower() + option[1:].rstrip(".")
            forms = {"L": letter, "l": letter.lower(), "M": other, "T": option, "t": low}
            for way, theirs in zip(ways, REFERENCE["choice"]["reference"][name][letter]):
                said = way.format(**forms, U=option.upper())
                assert letter_of(said, options, True) == letter, (options, said)
                right.append(theirs == letter)
    assert (len(right), sum(right)) == (528, 376)


@pytest.mark.parametrize("given,theirs,ours", REFERENCE["yes/no"])
def test_yes_or_no_is_read_as_the_reference_does_or_better(given, theirs, ours):
    assert yes_or_no(given, True) == (None if ours == "-" else ours)
    assert theirs in (ours, "-")


def test_votes_are_counted_as_the_reference_does():
    for people, given, theirs in REFERENCE["votes"]:
        assert soft(given, people) == pytest.approx(theirs, abs=1e-12), (people, given)


@pytest.mark.parametrize("name", ["POPE", "MME"])
def test_measures_of_yes_and_no_are_the_reference_s(name):
    """A question in several of POPE's sets counts in each of them."""
    rows, theirs = REFERENCE[name]["rows"], REFERENCE[name]["reference"]
    questions = [
        Question(Example([], [("?", true)], category), "yes/no", [true], {}, path)
        for category, true, _, path in rows
    ]
    got = score(questions, [given for *_, given, _ in rows])
    of, overall = got["lenient: categories"], {k[9:]: x for k, x in got.items()}
    assert got["questions"] == len(rows)
    if name == "MME":
        ours = {category: numbers["MME score"] for category, numbers in of.items()}
        ours["perception"], ours["reasoning"] = overall["MME perception"], overall["MME cognition"]
    else:
        ours = {
            split: {measure: 100 * {**of, "Overall": overall}[split][measure] for measure in scores}
            for split, scores in theirs.items()
        }
    assert ours == theirs


@pytest.mark.parametrize("n,worth", [
    (1, 1), (2, 1), (3, 1), (5, 1), (9, 8 / 27), (10, 0.3), (11, 10 / 33), (20, 1),
])  # fmt: skip
def test_only_about_ten_answers_are_votes(n, worth):
    """A right answer that one of n gave: fewer are spellings of it, more are synonyms."""
    others = [f"other {k}" for k in range(1, n)]
    assert soft("Red", ["red", *others]) == pytest.approx(worth) and soft("blue", others) == 0


@pytest.mark.parametrize("same,one,other", [
    *((True, *pair) for pair in (
        ('"5"', "5"), ("Answer: 5", "5"), ("**5**", "5"), ("The answer is 5.", "5"), ("５", "5"),
        ("`5`", "5"), ("**Answer:** five", "5"), ("caf\u00e9", "cafe\u0301"), ("U.S.", "us"),
        ("don't", "dont"), ("1,000", "1000"), ("T-shirt", "t shirt"), ("two", "2"), ("none", "0"),
        ("ten dogs", "10 dogs"), ("the red", "red"),
    )),
    *((False, *pair) for pair in (
        ("-5", "5"), ("3.5", "35"), ("1,2", "12"), ("+", "-"), ("", "+"), ("C*", "C"),
        ("a", "the"), ("two", "3"), ("someone", "some1"), ("redder", "red"),
    )),
])  # fmt: skip
def test_short_answers_are_equal_in_what_they_say(same, one, other):
    assert soft(one, [other]) == soft(other, [one]) == same
