"""The world in words: what is written is what stands there, and the questions are the pictures'."""

import re

import pytest
import torch
from helpers import TINY
from test_shapes import oracle

import eval as evaluation
import train
from data.families import EMPTY, SPLITS, split_of
from data.shapes import Shapes
from data.shapes.scenes import CELLS, COLOUR, GRID, NAMES, SHAPE, layouts
from data.shapes.text import ShapesText, scene_text

OBJECT = re.compile(r"([1-4]) ([1-4]) ([a-z]+) ([a-z]+) ?")


def cell(row: str, column: str) -> int:
    return (int(row) - 1) * GRID + int(column) - 1


def read(text: str) -> tuple[list[int], str]:
    """The scene that a message writes out, and what it asks."""
    cells = [EMPTY] * CELLS
    while match := OBJECT.match(text):
        row, column, colour, shape = match.groups()
        cells[cell(row, column)] = 4 * COLOUR.index(colour) + SHAPE.index(shape)
        text = text[match.end() :]
    return cells, text


def test_a_scene_in_words_is_the_scene():
    for cells in layouts(50, torch.Generator().manual_seed(0)).tolist():
        assert read(scene_text(cells)) == (cells, "")


def dialogue(example) -> tuple[list[int], list[tuple[str, str]]]:
    """The scene, and the turns without it."""
    assert not example.images
    cells, first = read(example.turns[0][0])
    return cells, [(first, example.turns[0][1]), *example.turns[1:]]


def test_every_answer_of_a_training_step_is_exact():
    for stage, step in (("pt", 3), ("sft", 0), ("sft", 1500)):
        for example in ShapesText().draw(stage, step, 40, 6, 0):
            cells, turns = dialogue(example)
            for question, answer in turns:
                assert not question.endswith("?") or oracle(cells, question) == answer


def test_stage_1_looks_up_names_and_places_and_asks():
    for example in ShapesText().draw("pt", 3, 40, 6, 0):
        cells, turns = dialogue(example)
        names = [NAMES[kind] for kind in cells if kind != EMPTY]
        once = [name for name in names if names.count(name) == 1]
        places = [turn for turn in turns if re.fullmatch("[1-4] [1-4]", turn[0])]
        things = [turn for turn in turns if turn[0] in names]
        asked = [turn for turn in turns if turn[0].endswith("?")]
        assert len({*places}) == 6 and len({*things}) == min(6, len(once)) and len(asked) == 3
        assert len(turns) == len(places) + len(things) + len(asked)
        for place, answer in places:
            assert NAMES[cells[cell(*place.split())]] == answer
        for name, answer in things:
            assert name in once and NAMES[cells[cell(*answer.split())]] == name
        assert turns[:3] == [places[0], *things[:1], asked[0]][: len(turns[:3])]  # in turn


def test_the_splits_are_disjoint_and_ask_what_is_asked_about_the_pictures():
    world = ShapesText()
    for split in ("val", "test"):
        pairs = list(zip(world.heldout(split, 120), Shapes().heldout(split, 120)))
        assert len(pairs) == 120
        for example, seen in pairs:
            cells, question = read(example.turns[0][0])
            assert not example.images and int(split_of(torch.tensor([cells]))) in SPLITS[split]
            assert "<image>" + question == seen.turns[0][0] and example.family == seen.family
            assert example.turns[0][1] == seen.turns[0][1] == oracle(cells, question)
    trained = [read(e.turns[0][0])[0] for s in ("pt", "sft") for e in world.draw(s, 0, 40, 2, 1)]
    assert {int(h) for h in split_of(torch.tensor(trained))} <= {*SPLITS["train"]}


@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_read_alone_is_not_asked_about_a_picture(tmp_path, capsys):
    train.main([*TINY, "--data", "shapes-text", "--out", str(tmp_path / "run")])
    assert "Ask it" not in capsys.readouterr().out
    for option in ("--image", "--audio"):
        ask = [option, str(tmp_path / "x"), "--question", "is there a red circle?"]
        with pytest.raises(SystemExit, match="was trained on text alone .* lab.talk"):
            evaluation.main([str(tmp_path / "run"), "--device", "cpu", *ask])
