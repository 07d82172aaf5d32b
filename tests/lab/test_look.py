"""What the model looks at, and which cells of a picture a question asks about."""

import json

import pytest
import torch
from trials import TINY

import train
from data import shapes
from lab import look


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of mma and one of causal."""
    folder = tmp_path_factory.mktemp("runs")
    for mask in ("mma", "causal"):
        train.main([*TINY, "--mask", mask, "--out", str(folder / mask)])
    return folder


def test_the_cells_asked_about():
    red_circle, red_square, blue_circle = 0, 1, 2 * len(shapes.SHAPE)
    cells = [red_circle, -1, red_square, blue_circle] + [-1] * 12
    for question, expected in (
        ("is there a red circle?", [0]),
        ("how many circles are there?", [0, 3]),
        ("what shape is the blue object?", [3]),
        ("are there more red objects than blue objects?", [0, 2, 3]),
        ("are there more squares than circles?", [0, 2, 3]),
        ("is the red square left of the blue circle?", [2, 3]),
        ("what color is the square?", [2]),
        ("how many green diamonds are there?", []),
    ):
        assert shapes.asked_about(question, cells) == expected, question


def test_layouts_are_those_of_the_held_out_pictures():
    world = shapes.Shapes()
    layouts = world.layouts("test")
    for i, e in enumerate(world.heldout("test", 200)):
        if e.family == "counting":
            question, answer = e.turns[0]
            assert str(len(shapes.asked_about(question, layouts[i // 5]))) == answer


def test_look_measures_and_draws(runs, tmp_path, capsys):
    names = [str(runs / mask) for mask in ("mma", "causal")]
    look.main([*names, "--results", str(tmp_path), "--questions", "40"])
    mma, causal = json.loads((tmp_path / "look.json").read_text())
    assert causal["image_to_question"] == [0.0] * 3 and min(mma["image_to_question"]) > 0.05
    for record in (mma, causal):
        assert record["questions"] == 40
        shares = zip(record["answer_to_asked"], record["answer_to_picture"])
        assert all(0 <= asked <= picture <= 1 for asked, picture in shares)
    assert capsys.readouterr().out == (tmp_path / "look.md").read_text(encoding="utf-8")
    assert (tmp_path / "look.png").stat().st_size > 5000


def test_to_picture_is_the_row_that_produces_the_answer():
    role = torch.tensor([[1, 2, 2, 3, 3, 0], [1, 2, 2, 3, 3, 3]])
    weights = torch.arange(2 * 2 * 36).view(2, 2, 6, 6).float()
    expected = [[[25, 26], [67, 68]], [[97, 98], [139, 140]]]
    assert look.to_picture(weights, role).tolist() == expected


def test_look_wants_runs_of_the_built_in_world(easy_vqa, tmp_path):
    source = ["--data", "easy_vqa", "--source", str(easy_vqa)]
    train.main([*TINY, *source, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="needs runs on --data shapes"):
        look.main([str(tmp_path / "run")])
