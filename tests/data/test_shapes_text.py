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
from data.shapes.scenes import CELLS, COLOUR, GRID, NAMES, SHAPE
from data.shapes.text import ShapesText

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


@pytest.mark.parametrize("stage,step", [("pt", 3), ("sft", 0), ("sft", 1500)])
def test_every_turn_says_what_is_so_of_a_training_scene(stage, step):
    """Stage 1 looks up names and places, those that are there once, and asks, in turn."""
    for example in ShapesText().draw(stage, step, 40, 6, 0):
        cells, first = read(example.turns[0][0])
        assert not example.images and int(split_of(torch.tensor([cells]))) in SPLITS["train"]
        turns = [(first, example.turns[0][1]), *example.turns[1:]]
        names = [NAMES[kind] for kind in cells if kind != EMPTY]
        places = [turn for turn in turns if re.fullmatch("[1-4] [1-4]", turn[0])]
        things = [turn for turn in turns if turn[0] in names]
        asked = [turn for turn in turns if turn[0].endswith("?")]
        assert all(NAMES[cells[cell(*place.split())]] == name for place, name in places)
        assert all(NAMES[cells[cell(*place.split())]] == name for name, place in things)
        assert all(oracle(cells, question) == answer for question, answer in asked)
        if stage == "sft":
            assert asked == turns and len(asked) == 6
            continue
        once = [name for name in names if names.count(name) == 1]
        assert {name for name, _ in things} <= {*once} and len({*things}) == min(6, len(once))
        assert len({*places}) == 6 and len(asked) == 3 and len(turns) == 9 + len(things)
        assert turns[:3] == [places[0], *things[:1], asked[0]][: len(turns[:3])]


def test_what_is_held_out_asks_what_is_asked_about_the_pictures():
    pairs = list(zip(ShapesText().heldout("val", 120), Shapes().heldout("val", 120), strict=True))
    for example, seen in pairs:
        cells, question = read(example.turns[0][0])
        assert not example.images and int(split_of(torch.tensor([cells]))) in SPLITS["val"]
        assert "<image>" + question == seen.turns[0][0] and example.family == seen.family
        assert example.turns[0][1] == seen.turns[0][1] == oracle(cells, question)


@pytest.mark.usefixtures("no_drawing")
def test_a_run_that_read_alone_is_not_asked_about_a_picture(tmp_path, capsys):
    train.main([*TINY, "--data", "shapes-text", "--out", str(tmp_path / "run")])
    assert "Ask it" not in capsys.readouterr().out
    for option in ("--image", "--audio"):
        ask = [option, str(tmp_path / "x"), "--question", "is there a red circle?"]
        with pytest.raises(SystemExit, match="was trained on text alone .* lab.talk"):
            evaluation.main([str(tmp_path / "run"), "--device", "cpu", *ask])
