"""What is special to the built-in world, its pairs of pictures and its scenes in words; what it
shares with other worlds stands in test_worlds.py."""

import re

import oracles
import pytest
import torch
from helpers import TINY
from oracles import found, generator, questions_of, words_of

import eval as evaluation
import train
from data.errors import DataError
from data.families import EMPTY
from data.shapes import BOTH_WAYS_FROM, ONE_WAY_UNTIL, STEPS_WITHOUT_PLACES, Shapes
from data.shapes.pairs import FAMILIES, PairFacts, Pairs, captions, pairs
from data.shapes.questions import caption_of_places
from data.shapes.scenes import CELLS, COLOUR, GRID, NAMES, PALETTE, layouts, render
from data.shapes.text import ShapesText


def bright(picture: torch.Tensor) -> list[torch.Tensor]:
    """The bright pixels of each cell, float [3, pixels], in reading order."""
    cells = picture.float().unfold(1, 16, 16).unfold(2, 16, 16).flatten(1, 2).flatten(2)
    return [cell[:, cell.amax(0) > 100] for cell in cells.unbind(1)]


def test_pictures_show_their_layout_and_captions_say_it():
    colours = PALETTE / PALETTE.float().norm(dim=1, keepdim=True)
    for example in Shapes().draw("pt", 3, 50, 1, 0):
        ((message, caption),) = example.turns
        said = re.findall(r"nothing|(?!nothing)[a-z]+ (?!nothing)[a-z]+", caption)
        assert message == "<image>" and len(said) == CELLS and " ".join(said) == caption
        for pixels, words in zip(bright(example.images[0]), said, strict=True):
            seen = COLOUR[(colours @ pixels.mean(1)).argmax()] if pixels.numel() else "nothing"
            assert seen == words.split()[0]
    layout = torch.full((4, CELLS), EMPTY)
    layout[:, 5] = torch.arange(4)  # the shapes look different
    assert len({int((p > 120).sum()) for p in render(layout, generator())}) == 4


def test_the_pictures_of_a_pair_stand_in_their_order():
    scenes = Pairs().layouts("val")
    for i, e in enumerate(Pairs().heldout("val", 40)):
        for image, cells in zip(e.images, scenes[i // len(FAMILIES)], strict=True):
            assert [cell.numel() > 0 for cell in bright(image)] == [k != EMPTY for k in cells]


@pytest.mark.parametrize("world,family,least,most,needs_both", [
    # 57 % of the scenes have such an object; of all that are the only one of their kind, 20 % are
    (Shapes(), "place", 0.3, 0.5,
     lambda cells, words: all(len(found(cells, word)) > 1 for word in words[-2:])),
    (Pairs(), "more", 0.4, 0.8,
     lambda pair, words: all(found(cells, *words[4:]) for cells in pair)),
])  # fmt: skip
def test_often_one_word_or_one_picture_does_not_tell(world, family, least, most, needs_both):
    """Of a name's two words both have other things, and both pictures have some of what is asked
    for."""
    scenes, asked = questions_of(world, 1000, 1, 3, (family,))
    words = [words_of(question) for ((_, question, _),) in asked]
    needed = map(needs_both, scenes, words)
    assert least < sum(needed) / 1000 < most


def test_captions_of_places_name_what_is_the_only_one_of_its_kind():
    g = generator()
    for cells in layouts(50, g).tolist():
        words, named = caption_of_places(cells, g).split(), {}
        for i in range(0, len(words), 6):
            colour, shape, *sides = words[i : i + 6]
            at = dict(zip(sides[::2], map(int, sides[1::2])))
            named[f"{colour} {shape}"] = at["row"], at["column"]
        only = [i for i, kind in enumerate(cells) if kind != EMPTY and cells.count(kind) == 1]
        assert named == {NAMES[cells[i]]: (i // GRID + 1, i % GRID + 1) for i in only}
        assert len(words) == 6 * len(only)


def test_places_and_pairs_come_into_captions_after_the_first_steps():
    """Places into every second one; half of the pictures then stand in pairs."""
    for step, later in ((STEPS_WITHOUT_PLACES - 1, False), (STEPS_WITHOUT_PLACES, True)):
        said = [example.turns[0][1] for example in Shapes().draw("pt", step, 4, 1, 0)]
        assert ["row" in words for words in said] == [False, later] * 2
        for pictures, shown in ((3, [1, 1, 1]), (32, 16 * [1] + 8 * [2] if later else 32 * [1])):
            assert [len(e.images) for e in Pairs().draw("pt", step, pictures, 6, 0)] == shown


def test_captions_of_pairs_say_which_picture_has_what_the_other_has_not():
    g, in_order = generator(3), 0
    facts = PairFacts(pairs("train", 200, g), g)
    for pair, said in zip(facts.layout.tolist(), captions(facts)):
        first, second = ({NAMES[k] for k in cells if k != EMPTY} for cells in pair)
        expected = [f"{name} first" for name in first - second]
        expected += [f"{name} second" for name in second - first]
        parts = re.findall(r"\w+ \w+ \w+", said)
        assert sorted(parts) == sorted(expected) and " ".join(parts) == said
        in_order += parts == sorted(parts)
    assert in_order < 20  # but in a random one


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
    world, first_pictures = Shapes(64), set()

    def epoch(n: int, stage: str = "sft", seed: int = 0) -> list:
        draws = [world.draw(stage, step, 32, 6, seed) for step in (2 * n, 2 * n + 1)]
        drawn = [(e.images[0].numpy().tobytes(), e.turns) for draw in draws for e in draw]
        first_pictures.add(drawn[0][0])
        return sorted(drawn)

    first = epoch(0)
    shown = {picture for picture, _ in first}
    assert len(shown) == 64 and len(first) == 6 * 64
    assert all(epoch(n) == first for n in (1, 2, 3, 7)) and epoch(0, seed=1) != first
    assert {picture for picture, _ in epoch(3, "pt")} == shown
    assert len(first_pictures) > 3  # each epoch has an order of its own
    assert [len(Shapes(n).layouts("train")) for n in (64, 2000)] == [64, 1000]
    with pytest.raises(DataError, match="--scenes 40: must be a multiple of 16"):
        Shapes(40)
    advice = "a step has 20 pictures; set --pictures and --pt-pictures to multiples of 16"
    with pytest.raises(DataError, match=advice):
        world.draw("sft", 0, 20, 6, 0)


# --- In words


def read(text: str) -> tuple[list[int], str]:
    """The scene that a message writes out, and what it asks."""
    cells, thing = [EMPTY] * CELLS, re.compile(r"([1-4] [1-4]) ([a-z]+ [a-z]+) ?")
    while match := thing.match(text):
        cells[cell(match[1])] = NAMES.index(match[2])
        text = text[match.end() :]
    return cells, text


def cell(place: str) -> int:
    row, column = map(int, place.split())
    return (row - 1) * GRID + column - 1


@pytest.mark.parametrize("stage,step", [("pt", 3), ("sft", 0), ("sft", 1500)])
def test_every_turn_says_what_is_so_of_the_scene(stage, step):
    """Stage 1 looks up names and places, those that are there once, and asks, in turn."""
    for example in ShapesText().draw(stage, step, 40, 6, 0):
        cells, first = read(example.turns[0][0])
        turns = [(first, example.turns[0][1]), *example.turns[1:]]
        names = [NAMES[kind] for kind in cells if kind != EMPTY]
        places = [turn for turn in turns if re.fullmatch("[1-4] [1-4]", turn[0])]
        things = [turn for turn in turns if turn[0] in names]
        asked = [turn for turn in turns if turn[0].endswith("?")]
        for place, name in [*places, *(turn[::-1] for turn in things)]:
            assert NAMES[cells[cell(place)]] == name
        assert all(oracles.of_shapes(cells, question) == answer for question, answer in asked)
        if stage == "sft":
            assert asked == turns and len(asked) == 6
            continue
        once = {name for name in names if names.count(name) == 1}
        assert {name for name, _ in things} <= once and len({*things}) == min(6, len(once))
        assert len({*places}) == 6 and len(asked) == 3 and len(turns) == 9 + len(things)
        assert turns[:3] == [places[0], *things[:1], asked[0]][:3]


def test_what_is_held_out_in_words_is_what_is_asked_about_the_pictures():
    scenes, n = Shapes().layouts("val"), len(Shapes.families)
    pairs = zip(ShapesText().heldout("val", 120), Shapes().heldout("val", 120), strict=True)
    for i, (example, seen) in enumerate(pairs):
        ((message, answer),) = example.turns
        cells, question = read(message)
        assert cells == scenes[i // n] and not example.images and example.family == seen.family
        assert [("<image>" + question, answer)] == seen.turns


@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_read_alone_is_not_asked_about_a_picture(tmp_path, capsys):
    train.main([*TINY, "--data", "shapes-text", "--out", str(tmp_path / "run")])
    assert "Ask it" not in capsys.readouterr().out
    for option in ("--image", "--audio"):
        ask = [option, str(tmp_path / "x"), "--question", "is there a red circle?"]
        with pytest.raises(SystemExit, match="was trained on text alone .* lab.talk"):
            evaluation.main([str(tmp_path / "run"), "--device", "cpu", *ask])
