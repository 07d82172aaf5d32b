"""The built-in world against a slow reading of its pictures."""

import re

import pytest
import torch

from data.errors import DataError
from data.families import EMPTY, layouts_in
from data.shapes import BOTH_WAYS_FROM, ONE_WAY_UNTIL, STEPS_WITHOUT_PLACES, Shapes
from data.shapes.questions import SceneFacts, caption_of_places
from data.shapes.scenes import CELLS, COLOUR, GRID, PALETTE, SHAPE, layouts, render
from data.shapes.text import ShapesText


def oracle(cells, question):
    """The answer, by reading the scene cell by cell."""
    there = [(i, k) for i, k in enumerate(cells) if k != EMPTY]
    things = [(COLOUR[k // 4], SHAPE[k % 4], i // GRID, i % GRID) for i, k in there]

    def of(colour=None, shape=None):
        return [t for t in things if colour in (None, t[0]) and shape in (None, t[1])]

    def only(found):
        assert len(found) == 1, (question, found)
        return found[0]

    if m := re.fullmatch(r"is there a (\w+) (\w+)\?", question):
        assert of(colour=m[1]) and of(shape=m[2])
        return "yes" if of(*m.groups()) else "no"
    if m := re.fullmatch(r"how many (\w+) (\w+)s are there\?", question):
        return str(len(of(*m.groups())))
    if m := re.fullmatch(r"what shape is the (\w+) object\?", question):
        return only(of(colour=m[1]))[1]
    if m := re.fullmatch(r"what color is the (\w+)\?", question):
        return only(of(shape=m[1]))[0]
    if m := re.fullmatch(r"are there more (\w+)( objects|s) than (\w+)( objects|s)\?", question):
        key = "colour" if m[2] == " objects" else "shape"
        more, less = (len(of(**{key: name})) for name in (m[1], m[3]))
        assert more and less, question
        return "yes" if more > less else "no"
    if m := re.fullmatch(r"in which (row|column) is the (\w+) (\w+)\?", question):
        return str(only(of(m[2], m[3]))[2 if m[1] == "row" else 3] + 1)
    if m := re.fullmatch(r"which is ([a-z ]+), the (\w+) (\w+) or the (\w+) (\w+)\?", question):
        a, b = only(of(m[2], m[3])), only(of(m[4], m[5]))
        sides = ("higher up", "lower down", "further left", "further right")
        side, sign = 2 + sides.index(m[1]) // 2, (1, -1)[sides.index(m[1]) % 2]
        assert a[side] != b[side]
        return " ".join(min(a, b, key=lambda thing: sign * thing[side])[:2])
    raise AssertionError(question)


def test_places_often_need_both_words_of_a_name():
    g, needed = torch.Generator().manual_seed(3), []
    facts = SceneFacts(layouts_in("train", 2000, g, layouts), g)
    asked = Shapes().questions(facts, 1, ("place",))
    for cells, ((_, question, _),) in zip(facts.layout.tolist(), asked):
        colour, shape = re.fullmatch(r"in which \w+ is the (\w+) (\w+)\?", question).groups()
        there = [(COLOUR[k // 4], SHAPE[k % 4]) for k in cells if k != EMPTY]
        alike = sum(c == colour for c, _ in there), sum(s == shape for _, s in there)
        needed.append(min(alike) > 1)
    # 57 % of the scenes have such an object; of all that are the only one of their kind, 20 % are
    assert 0.3 < sum(needed) / len(needed) < 0.5


def test_pictures_show_their_layout_and_captions_say_it():
    colours = PALETTE / PALETTE.float().norm(dim=1, keepdim=True)
    for example in Shapes().draw("pt", 3, 50, 1, 0):
        message, caption = example.turns[0]
        said = re.findall(r"nothing|(?!nothing)[a-z]+ (?!nothing)[a-z]+", caption)
        assert message == "<image>" and len(said) == CELLS and " ".join(said) == caption
        cells = example.images[0].unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2).flatten(2)
        for cell, words in zip(cells.transpose(0, 1).float(), said):
            bright = cell[:, cell.max(0).values > 100]
            assert (bright.shape[1] == 0) == (words == "nothing")
            if words != "nothing":
                assert COLOUR[(colours @ bright.mean(1)).argmax()] == words.split()[0]
    layout = torch.full((4, CELLS), EMPTY)
    layout[:, 5] = torch.arange(4)  # the shapes look different
    pictures = render(layout, torch.Generator().manual_seed(0))
    assert len({int((p[0] > 120).sum()) for p in pictures}) == 4


def test_captions_of_places_name_what_is_the_only_one_of_its_kind():
    g = torch.Generator().manual_seed(0)
    for cells in layouts(50, g).tolist():
        words, named = caption_of_places(cells, g).split(), {}
        for i in range(0, len(words), 6):
            colour, shape, *sides = words[i : i + 6]
            at = dict(zip(sides[::2], map(int, sides[1::2])))
            named[COLOUR.index(colour) * 4 + SHAPE.index(shape)] = at["row"], at["column"]
        only = [i for i, kind in enumerate(cells) if kind != EMPTY and cells.count(kind) == 1]
        assert named == {cells[i]: (i // GRID + 1, i % GRID + 1) for i in only}
        assert len(words) == 6 * len(only)


def test_places_come_into_every_second_caption_after_the_first_steps():
    for step, n in ((STEPS_WITHOUT_PLACES - 1, 0), (STEPS_WITHOUT_PLACES, 2)):
        said = [example.turns[0][1] for example in Shapes().draw("pt", step, 4, 1, 0)]
        assert ["row" in words for words in said] == [False, n > 0] * 2


@pytest.mark.parametrize("world", [Shapes, ShapesText])
def test_relations_are_asked_one_way_first(world):
    """Then, half-way, a quarter of them the other way; in the end half, as in val and test."""

    def other_way(stage: str, step: int) -> float:
        turns = [turn for e in world().draw(stage, step, 120, 8, 0) for turn in e.turns]
        asked = [way for q, _ in turns for way in re.findall("left|higher|right|lower", q)]
        return sum(way in ("right", "lower") for way in asked) / max(1, len(asked))

    assert other_way("pt", BOTH_WAYS_FROM) == other_way("sft", ONE_WAY_UNTIL) == 0
    assert 0.15 < other_way("sft", (ONE_WAY_UNTIL + BOTH_WAYS_FROM) // 2) < 0.35
    assert 0.4 < other_way("sft", BOTH_WAYS_FROM) < 0.6


def test_a_number_of_scenes_come_again_with_their_pictures_and_questions():
    """Which of them are asked about, of a run that is there: tests/test_eval.py."""
    world = Shapes(64)

    def epoch(n: int, stage: str = "sft", seed: int = 0) -> list:
        draws = [world.draw(stage, step, 32, 6, seed) for step in (2 * n, 2 * n + 1)]
        return sorted((e.images[0].numpy().tobytes(), e.turns) for draw in draws for e in draw)

    first = epoch(0)
    assert len({picture for picture, _ in first}) == 64 and len(first) == 6 * 64
    assert epoch(1) == first and epoch(7) == first and epoch(0, seed=1) != first
    assert {picture for picture, _ in epoch(3, "pt")} == {picture for picture, _ in first}
    orders = {world.draw("sft", 2 * n, 32, 6, 0)[0].images[0].sum().item() for n in range(8)}
    assert len(orders) > 1  # each epoch has its own
    assert [len(Shapes(n).layouts("train")) for n in (64, 2000)] == [64, 1000]
    with pytest.raises(DataError, match="--scenes 40: must be a multiple of 16"):
        Shapes(40)
    advice = "a step has 20 pictures; set --pictures and --pt-pictures to multiples of 16"
    with pytest.raises(DataError, match=advice):
        world.draw("sft", 0, 20, 6, 0)
