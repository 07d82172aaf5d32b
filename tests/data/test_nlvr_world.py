"""The world in NLVR's manner: its scenes, and sentences judged by hand."""

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


def test_pictures_show_their_scene_and_captions_say_it():
    scene = [blocks("black", "blue"), [(1, 0, 2, 70, 0)], [(2, 2, 0, 0, 90)]]
    pictures = Scenes([scene]).render()[0]
    assert pictures.shape == (3, 3, 100, 100)
    black, blue, yellow, grey = (0, 0, 0), (0, 153, 255), (255, 255, 0), (211, 211, 211)
    expected = {
        (0, 85, 50): black, (0, 65, 50): blue, (0, 79, 50): grey, (0, 58, 50): grey,
        (1, 15, 85): yellow, (1, 0, 70): grey,  # round
        (2, 98, 5): blue, (2, 91, 1): grey,  # a triangle, its point up
    }  # fmt: skip
    assert {at: tuple(pictures[at[0], :, at[1], at[2]].tolist()) for at in expected} == expected
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


# Sentences that are true or false of these scenes
TRUE_OF_SCATTER = """
there are two yellow circles; there is a box with only blue items; there is at most one black item;
there is a box with a single item which is yellow; one of the box has three items;
there is no box with exactly one item which is blue; blue circle is not touching the side;
there is a box with a triangle touching the base
"""
FALSE_OF_SCATTER = """
there are three yellow circles; there is a black item in each box; there is a box with many items;
there is a box with one item which is black; one of the box has two items which are of blue color;
there is a box with a black item closely touching the roof of a box;
there is a box with at least two items including one black circle
"""
TRUE_OF_TOWERS = """
there is a blue tower; there is a tower with two yellow blocks stacked together;
there is a blue block as the base of a tower; there are two towers with a yellow block at the top;
the top of a four blocks tower is yellow; there is a tower with a yellow block in the middle;
there is a box with a black item touching the wall and a yellow item on top of it
"""
FALSE_OF_TOWERS = """
there is a black tower; there are exactly two yellow blocks;
there is a tower with a blue block in the middle; there is a box with one block and a black base;
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
        judged = " ".join(text.split()).split("; ")
        assert {words: heard[words] for words in judged} == dict.fromkeys(judged, truth)


def test_numbers_mean_what_they_say():
    """A bare one means exactly so many."""
    means = {
        "": operator.eq, "exactly": operator.eq, "only": operator.eq, "at least": operator.ge,
        "at most": operator.le, "more than": operator.gt, "less than": operator.lt,
    }  # fmt: skip
    found, met = torch.arange(9), set()
    for seed in range(300):
        count = Speaker(Scenes(SCATTER), random.Random(seed), False).count(5)
        how, _, number = count.words.rpartition(" ")
        if number == "a":
            expected = found > 0
        else:
            expected = means[how](found, 0 if number == "no" else NUMBER.index(number))
        assert count.holds(found).tolist() == expected.tolist(), count.words
        assert count.singular == (number in ("a", "no", "one"))
        met |= {how, number}
    assert met >= {*means, "a", "no"}


def test_a_sentence_is_true_as_often_as_false_and_of_twins_where_it_can_be():
    """In training, sentence by sentence; where they are held out, family by family. The second turn
    says what that rests on: of "there is a ..." whether there is one in any box."""
    answers, n_rest, world = {}, 0, World()
    for e in [e for step in range(6) for e in world.draw("sft", step, 16, 4, 0)]:
        (words, answer), (_, why) = e.turns
        answers.setdefault(words, []).append(answer)
        of_any_box = not {"each", "every"} & {*words.split()} and e.family != "item place"
        if of_any_box and words.startswith("<image><image><image>there is a "):
            assert (answer == "true") == bool({*why.split()} - {"no", "zero"}), (words, why)
            n_rest += 1
    held = world.heldout("val", 240)
    for e in held:
        answers.setdefault(e.family, []).append(e.turns[0][1])
    assert n_rest > 50 and all(x.count("true") == x.count("false") for x in answers.values())
    for family in FAMILIES:
        assert len(answers[family]) == 240 // len(CYCLE) * CYCLE.count(family)
        # Nothing but the sentence tells the two pictures apart: they show the same items
        ink = torch.stack(
            [torch.stack(e.images).sum((0, 2, 3)) for e in held if e.family == family]
        )
        alike = (ink[::2] == ink[1::2]).all(1).float().mean()
        assert alike > 0.8 or family.endswith("count"), family
