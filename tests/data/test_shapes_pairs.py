"""Two pictures a row against a slow reading of both."""

import re
from collections import Counter

import torch

from data.families import EMPTY
from data.shapes import STEPS_WITHOUT_PLACES
from data.shapes.pairs import FAMILIES, WHICH, PairFacts, Pairs, captions, pairs
from data.shapes.scenes import NAMES


def oracle(pair, question):
    """The answer, by reading both scenes cell by cell."""
    there = [[NAMES[k].split() for k in cells if k != EMPTY] for cells in pair]

    def count(which, words):
        """words: "red circle", "red object" or "circle"."""
        *colour, shape = words.split()
        return sum(
            colour in ([], [c]) and shape in ("object", s) for c, s in there[WHICH.index(which)]
        )

    if m := re.fullmatch(r"is there a (\w+ \w+) in the (\w+) picture\?", question):
        return "yes" if count(m[2], m[1]) else "no"
    if m := re.fullmatch(r"in which picture is there a (\w+ \w+)\?", question):
        assert [count(which, m[1]) > 0 for which in WHICH].count(True) == 1
        return WHICH[count("second", m[1]) > 0]
    if m := re.fullmatch(r"is there a (\w+ \w+) in both pictures\?", question):
        return "yes" if all(count(which, m[1]) for which in WHICH) else "no"
    if m := re.fullmatch(r"how many (\w+ \w+)s are there in the (\w+) picture\?", question):
        return str(count(m[2], m[1]))
    if m := re.fullmatch(r"which picture has more ([\w ]+)s\?", question):
        first, second = (count(which, m[1]) for which in WHICH)
        assert first != second
        return WHICH[second > first]
    raise AssertionError(question)


def asked_about(S: int, per_pair: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    facts = PairFacts(pairs("train", S, g), g)
    return zip(facts.layout.tolist(), Pairs().questions(facts, per_pair))


def test_the_other_picture_alone_does_not_tell():
    """What the question names is in one picture where it asks about one, so that the two must be
    told apart; of what there is more of, the other picture often has some too."""
    some_in_both = 0
    for pair, asked in asked_about(400, len(FAMILIES), 1):
        for family, question, answer in asked:
            if family == "existence":
                which = "first" if "first" in question else "second"
                other = question.replace(which, WHICH[1 - WHICH.index(which)])
                assert oracle(pair, other) != answer
            if family == "more":
                item = question.removeprefix("which picture has more ").removesuffix("s?")
                words = item.removesuffix(" object").split()
                in_both = all(
                    any(set(words) <= set(NAMES[k].split()) for k in cells if k != EMPTY)
                    for cells in pair
                )
                some_in_both += in_both
    assert 0.4 < some_in_both / 400 < 0.8


def test_training_begins_with_the_picture_that_a_thing_is_in():
    world = Pairs()
    asked = [[e.family for e in world.draw("sft", step, 16, 8, 0)] for step in (399, 400)]
    assert Counter(asked[0]) == {"which": 64} | dict.fromkeys(
        ["existence", "counting", "both", "more"], 16
    )
    assert set(asked[1]) == set(FAMILIES)
    assert Counter(asked[1])["more"] > 1.5 * Counter(asked[1])["which"]


def test_captions_say_which_picture_has_what_the_other_has_not():
    g = torch.Generator().manual_seed(3)
    facts, orders = PairFacts(pairs("train", 200, g), g), Counter()
    for pair, said in zip(facts.layout.tolist(), captions(facts)):
        first, second = ({NAMES[k] for k in cells if k != EMPTY} for cells in pair)
        words = said.split()
        found = [(" ".join(words[i : i + 2]), words[i + 2]) for i in range(0, len(words), 3)]
        expected = {(name, "first") for name in first - second}
        assert set(found) == expected | {(name, "second") for name in second - first}
        assert len(found) == len(set(found))
        orders[found == sorted(found)] += 1
    assert orders[False] > 180  # in random order


def test_half_of_the_pictures_of_stage_1_come_to_stand_in_pairs():
    world, early = Pairs(), STEPS_WITHOUT_PLACES - 1
    assert [len(e.images) for e in world.draw("pt", early, 32, 6, 0)] == [1] * 32
    drawn = world.draw("pt", early + 1, 32, 6, 0)
    assert [len(e.images) for e in drawn] == [1] * 16 + [2] * 8
    assert [len(e.images) for e in world.draw("pt", early + 1, 3, 6, 0)] == [1] * 3


def test_pictures_stand_in_their_order():
    """The first picture of a row is the first scene of its layout: its colours are there."""
    world = Pairs()
    layouts = world.layouts("val")
    for i, e in enumerate(world.heldout("val", 40)):
        for image, cells in zip(e.images, layouts[i // len(FAMILIES)]):
            squares = image.float().amax(0).unflatten(0, (4, 16)).unflatten(2, (4, 16))
            bright = (squares.amax((1, 3)) > 100).flatten()
            assert bright.tolist() == [k != EMPTY for k in cells]
