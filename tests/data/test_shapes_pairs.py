"""Two pictures a row against a slow reading of both."""

import re

import torch

from data.families import EMPTY
from data.shapes import STEPS_WITHOUT_PLACES
from data.shapes.pairs import FAMILIES, WHICH, PairFacts, Pairs, captions, pairs
from data.shapes.scenes import NAMES


def counts(pair, words) -> list[int]:
    """In each picture. words: "red circle", "red object" or "circle"."""
    *colour, shape = words.split()
    there = [[NAMES[k].split() for k in cells if k != EMPTY] for cells in pair]
    return [
        sum(colour in ([], [c]) and shape in ("object", s) for c, s in things) for things in there
    ]


def oracle(pair, question):
    """The answer, by reading both scenes cell by cell."""

    def one(some):
        """The only picture of which that is so."""
        assert sum(some) == 1, question
        return WHICH[some.index(True)]

    if m := re.fullmatch(r"is there a (\w+ \w+) in the (\w+) picture\?", question):
        return "yes" if counts(pair, m[1])[WHICH.index(m[2])] else "no"
    if m := re.fullmatch(r"in which picture is there a (\w+ \w+)\?", question):
        return one([n > 0 for n in counts(pair, m[1])])
    if m := re.fullmatch(r"is there a (\w+ \w+) in both pictures\?", question):
        return "yes" if all(counts(pair, m[1])) else "no"
    if m := re.fullmatch(r"how many (\w+ \w+)s are there in the (\w+) picture\?", question):
        return str(counts(pair, m[1])[WHICH.index(m[2])])
    if m := re.fullmatch(r"which picture has more ([\w ]+)s\?", question):
        return one([n > min(counts(pair, m[1])) for n in counts(pair, m[1])])
    raise AssertionError(question)


def test_the_other_picture_alone_does_not_tell():
    """What the question names is in one picture where it asks about one, so that the two must be
    told apart; of what there is more of, the other picture often has some too."""
    g, in_both = torch.Generator().manual_seed(1), 0
    facts = PairFacts(pairs("train", 400, g), g)
    asked = Pairs().questions(facts, 2, ("existence", "more"))
    for pair, questions in zip(facts.layout.tolist(), asked):
        for family, question, answer in questions:
            if family == "existence":
                which, other = WHICH if "first" in question else WHICH[::-1]
                assert oracle(pair, question.replace(which, other)) != answer
            else:
                item = question.removeprefix("which picture has more ").removesuffix("s?")
                in_both += all(counts(pair, item))
    assert 0.4 < in_both / 400 < 0.8


def test_captions_say_which_picture_has_what_the_other_has_not():
    g = torch.Generator().manual_seed(3)
    facts, in_order = PairFacts(pairs("train", 200, g), g), 0
    for pair, said in zip(facts.layout.tolist(), captions(facts)):
        first, second = ({NAMES[k] for k in cells if k != EMPTY} for cells in pair)
        words = said.split()
        found = [(" ".join(words[i : i + 2]), words[i + 2]) for i in range(0, len(words), 3)]
        expected = {(name, "first") for name in first - second}
        assert set(found) == expected | {(name, "second") for name in second - first}
        assert len(found) == len(set(found))
        in_order += found == sorted(found)
    assert in_order < 20  # but in a random one


def test_half_of_the_pictures_of_stage_1_come_to_stand_in_pairs():
    early = STEPS_WITHOUT_PLACES - 1
    for step, n, shown in ((early, 32, 32 * [1]), (early + 1, 3, 3 * [1])):
        assert [len(e.images) for e in Pairs().draw("pt", step, n, 6, 0)] == shown
    drawn = Pairs().draw("pt", early + 1, 32, 6, 0)
    assert [len(e.images) for e in drawn] == 16 * [1] + 8 * [2]


def test_pictures_stand_in_their_order():
    """The first picture of a row is the first scene of its layout: its colours are there."""
    layouts = Pairs().layouts("val")
    for i, e in enumerate(Pairs().heldout("val", 40)):
        for image, cells in zip(e.images, layouts[i // len(FAMILIES)]):
            squares = image.float().amax(0).unflatten(0, (4, 16)).unflatten(2, (4, 16))
            assert (squares.amax((1, 3)) > 100).flatten().tolist() == [k != EMPTY for k in cells]
