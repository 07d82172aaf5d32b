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
    ("B", "B", "B"), ("(B)", "B", "B"), ("B.", "B", "B"), (" D: ", "D", "D"),
    ("The answer is B.", None, "B"), ("b", None, "B"), ("two dogs", None, "B"),
    ("A cat", None, "A"), ("A or B", None, None), ("E", None, None), ("", None, None),
    ("I think B", None, "B"), ("A dog runs", None, None), ("Answer: D. blue", None, "D"),
    ("Blue.", None, "D"), ("**B**", "B", "B"), ("Ｂ。", "B", "B"), ("B. A cat", None, "B"),
    ("The answer is B. Note that A is wrong.", None, "B"), ("option d", None, "D"),
    ("The answer is A or B.", None, None), ("B, C", None, None), ("Not A, but B.", None, "B"),
    ("B because A is too small", None, "B"), ("A dog, so D", None, "D"), ("B12", None, None),
    ("I see two dogs and a cat", None, None), ("I see two dogs, not one.", None, "B"),
    ("There are cats", None, "A"), ("concatenated", None, None), ("A cat, that is B", None, "B"),
    ("The answer is A cat.", None, "A"), ("A is wrong; the rest is unclear.", None, None),
    ("So the answer is $\\boxed{B}$, for A and C are not.", None, "B"), ("答案是B", None, "B"),
    ("'B'", None, "B"), ("option (b)", None, "B"), ("The answer is B's colour.", None, None),
    ("It is not a cat.", None, None), ("It isn't a cat, it is blue.", None, "D"),
    ("It can't be D.", None, None), ("A. a cat\nB. two dogs\nC. A\nD. bl", None, None),
    ("Option A: a cat, Option B: two dogs", None, None),
    ("A. a cat B. two dogs C. A D. blue\nAnswer: D", None, "D"),
])  # fmt: skip
def test_letters(given, strict, lenient):
    assert letter_of(given, OPTIONS, False) == strict
    assert letter_of(given, OPTIONS, True) == lenient


@pytest.mark.parametrize("given,letter", [
    ("C", "C"), ("The answer is C.", "C"), ("(c)", "C"), ("C++", "B"), ("The answer is C++.", "B"),
])  # fmt: skip
def test_a_letter_is_not_taken_for_a_text_that_differs_in_its_signs(given, letter):
    assert letter_of(given, {"A": "C", "B": "C++", "C": "CC", "D": "D"}, True) == letter


@pytest.mark.parametrize("given,letter", [
    ("Yes, there is no cat", "B"), ("No, it is not a yes.", "A"), ("A. No", "A"), ("Unclear", None),
])  # fmt: skip
def test_options_that_are_yes_and_no_are_read_as_such(given, letter):
    assert letter_of(given, {"A": "No", "B": "Yes."}, True) == letter


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


@pytest.mark.parametrize("one,other", [
    ('"5"', "5"), ("Answer: 5", "5"), ("**5**", "5"), ("The answer is 5.", "5"), ("５", "5"),
    ("`5`", "5"), ("**Answer:** five", "5"), ("caf\u00e9", "cafe\u0301"), ("U.S.", "us"),
    ("don't", "dont"), ("1,000", "1000"), ("T-shirt", "t shirt"), ("two", "2"), ("none", "0"),
    ("ten dogs", "10 dogs"), ("the red", "red"),
])  # fmt: skip
def test_one_short_answer_written_in_two_ways(one, other):
    assert soft(one, [other]) == soft(other, [one]) == 1


@pytest.mark.parametrize("one,other", [
    ("-5", "5"), ("3.5", "35"), ("1,2", "12"), ("+", "-"), ("", "+"), ("C*", "C"), ("a", "the"),
    ("two", "3"), ("someone", "some1"), ("redder", "red"),
])  # fmt: skip
def test_short_answers_that_differ(one, other):
    assert soft(one, [other]) == soft(other, [one]) == 0
