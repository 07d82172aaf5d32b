"""The world in NLVR's manner against a slow reading of its scenes."""

import operator
import random
from itertools import combinations

import pytest
import torch

from data.nlvr.scenes import COLOUR, SIZE, TOWER_X, TOWER_Y, Scenes, caption, scatter, tower, twin
from data.nlvr.sentences import NUMBER, Speaker
from data.nlvr.world import CYCLE, FAMILIES, World


def blocks(*colours):
    return [(COLOUR.index(c), 1, 1, TOWER_X, y) for c, y in zip(colours, TOWER_Y)]


def items_of(scene):
    return sorted(item[:3] for box in scene for item in box)


@pytest.mark.parametrize("box,most", [(tower, 4), (scatter, 7)])
def test_scenes_are_as_nlvrs_and_a_twin_has_the_same_items_elsewhere(box, most):
    r, standing = random.Random(1), [(1, 1, 40, y) for y in (80, 59, 38, 17)]
    scenes = [[box(r) for _ in range(3)] for _ in range(60)]
    twins = [twin(scene, r, box is tower) for scene in scenes]
    assert sum(a == b for a, b in zip(scenes, twins)) < 6
    assert list(map(items_of, scenes)) == list(map(items_of, twins))
    for some in (some for scene in scenes + twins for some in scene):
        assert 1 <= len(some) <= most
        assert all(0 <= min(x, y) <= max(x, y) <= 100 - SIZE[k] for _, _, k, x, y in some)
        for (_, _, k, x, y), (_, _, j, u, v) in combinations(some, 2):  # a pixel apart at least
            assert max(x - u - SIZE[j], u - x - SIZE[k], y - v - SIZE[j], v - y - SIZE[k]) >= 1
        assert box is scatter or [i[1:] for i in some] == standing[: len(some)]


def test_a_sentence_is_asked_of_twins_where_it_can_be():
    """Nothing but what the sentence says tells the true scene from the false one."""
    pools, r = World()._scenes(24, "test")
    alike = {}
    for n in range(120):
        family = FAMILIES[n % len(FAMILIES)]
        scenes = pools[0 if family.startswith("tower") else 1][0]
        words, basis, (yes, no) = World()._sentence(family, scenes, r)
        same = items_of(scenes.boxes[yes]) == items_of(scenes.boxes[no])
        alike.setdefault(family, []).append(same)
    for family in ("tower box", "tower order", "item box", "item place"):
        assert sum(alike[family]) > 16, family


def test_pictures_show_their_scene():
    scene = [blocks("black", "blue"), [(1, 0, 2, 70, 0)], [(2, 2, 0, 0, 90)]]
    pictures = Scenes([scene]).render()[0]
    assert pictures.shape == (3, 3, 100, 100)
    black, blue, yellow, grey = (0, 0, 0), (0, 153, 255), (255, 255, 0), (211, 211, 211)
    expected = {
        (0, 85, 50): black, (0, 65, 50): blue, (0, 79, 50): grey, (0, 58, 50): grey,
        (1, 15, 85): yellow, (1, 0, 70): grey,  # round
        (2, 98, 5): blue, (2, 91, 1): grey,  # a triangle, its point up
    }  # fmt: skip
    for (box, y, x), colour in expected.items():
        assert tuple(pictures[box, :, y, x].tolist()) == colour
    assert caption(scene[:1], True) == "black, blue"
    items = [scene[1] + scene[2]]  # from the left to the right
    assert caption(items, False) == "small blue triangle left bottom, big yellow circle right top"


SCATTER = [[
    [(0, 1, 2, 70, 70), (1, 0, 0, 5, 5)],
    [(1, 0, 1, 80, 30)],
    [(2, 2, 2, 10, 20), (2, 0, 0, 60, 50), (2, 2, 0, 80, 90)],
]]  # fmt: skip
TOWERS = [[
    blocks("black", "yellow", "yellow"), blocks("blue"), blocks("black", "blue", "black", "yellow"),
]]  # fmt: skip


# Sentences that are true or false of these scenes, judged by hand
TRUE_OF_SCATTER = """
there are two yellow circles; there is a box with only blue items; there is at most one black item;
there is a box with a single item which is yellow; there is a box with blue items only;
one of the box has three items; there is no box with exactly one item which is blue;
there is a box with a triangle touching the base; blue circle is not touching the side;
none of the blue items are closely touching the roof of a box
"""
FALSE_OF_SCATTER = """
there are three yellow circles; there is a black item in each box; there are two black items;
there is a box with one item which is black; there is a box with many items;
one of the box has two items which are of blue color;
there is a box with a black item closely touching the roof of a box;
there is a box with at least two items including one black circle
"""
TRUE_OF_TOWERS = """
there is a blue tower; there is a tower with two yellow blocks stacked together;
there is a blue block as the base of a tower; there are two towers with a yellow block at the top;
there are three yellow blocks; the top of a four blocks tower is yellow;
there is a tower with a yellow block in the middle; there is a tower with a blue base;
there is a box with a black item touching the wall and a yellow item on top of it
"""
FALSE_OF_TOWERS = """
there is a black tower; there are exactly two yellow blocks;
there is a tower with a blue block in the middle; there is a tower with a yellow base;
there is a box with one block and a black base;
there is a tower with two blocks and a blue block at the top
"""
RESTS_ON = {"there are two yellow circles": [1, 1, 0], "there are three yellow blocks": [2, 0, 1]}


@pytest.mark.parametrize("boxes,families,true,false", [
    (SCATTER, ["item_count", "item_box", "item_place"], TRUE_OF_SCATTER, FALSE_OF_SCATTER),
    (TOWERS, ["tower_count", "tower_box", "tower_order"], TRUE_OF_TOWERS, FALSE_OF_TOWERS),
])  # fmt: skip
def test_what_the_world_says_of_a_scene_is_so(boxes, families, true, false):
    heard, scenes = {}, Scenes(boxes)
    for seed in range(4_000):
        speaker = Speaker(scenes, random.Random(seed), boxes is TOWERS)
        words, holds, basis = getattr(speaker, families[seed % 3])()
        assert holds.shape == (1,) and holds.dtype == torch.bool and basis.shape == (1, 3)
        assert heard.setdefault(words, bool(holds)) == bool(holds), words
        assert words not in RESTS_ON or basis[0].tolist() == RESTS_ON[words]
    for text, truth in ((true, True), (false, False)):
        for sentence in " ".join(text.split()).split("; "):
            assert heard[sentence] == truth, sentence


def test_numbers_mean_what_they_say():
    """A bare one means exactly so many."""
    means = {
        "": operator.eq, "exactly": operator.eq, "only": operator.eq, "at least": operator.ge,
        "at most": operator.le, "more than": operator.gt, "less than": operator.lt,
    }  # fmt: skip
    found, met = torch.arange(9), set()
    for seed in range(300):
        count = Speaker(Scenes(SCATTER), random.Random(seed), False).count(5)
        *how, number = count.words.split()
        compare, n = means.get(" ".join(how)), NUMBER.index(number) if number in NUMBER else 0
        expected = {"a": found > 0, "no": found == 0}.get(number)
        expected = compare(found, n) if expected is None else expected
        assert count.holds(found).tolist() == expected.tolist(), count.words
        assert count.singular == (number in ("a", "no", "one"))
        met.add(" ".join(how) or number)
    assert met >= {*means, "a", "no"} - {""}


def test_a_sentence_is_true_as_often_as_false():
    """In training, sentence by sentence; where they are held out, family by family. The second turn
    says what that rests on: of "there is a ..." whether there is one in any box."""
    answers, n_rest = {}, 0
    drawn = [e for step in range(6) for e in World().draw("sft", step, 16, 4, 0)]
    for e in drawn:
        (words, answer), (_, why) = e.turns
        answers.setdefault(words, []).append(answer)
        of_any_box = not {"each", "every"} & {*words.split()} and e.family != "item place"
        if of_any_box and words.startswith("<image><image><image>there is a "):
            assert (answer == "true") == bool({*why.split()} - {"no", "zero"}), (words, why)
            n_rest += 1
    for e in World().heldout("val", 240):
        answers.setdefault(e.family, []).append(e.turns[0][1])
    assert all(said.count("true") == said.count("false") for said in answers.values())
    for family in FAMILIES:
        assert len(answers[family]) == 240 // len(CYCLE) * CYCLE.count(family)
    assert n_rest > 50
