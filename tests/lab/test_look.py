"""What the model looks at, and which cells of a picture a question asks about."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from PIL import Image

import data
import train
from data import shapes
from lab import look

pytestmark = pytest.mark.usefixtures("nothing_drawn")


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
        ("which is further left, the red square or the blue circle?", [2, 3]),
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
            assert str(len(shapes.asked_about(question, layouts[i // shapes.QUESTIONS]))) == answer


def test_look_measures_and_draws(runs, tmp_path, capsys):
    names = [str(runs / mask) for mask in ("mma", "causal")]
    look.main([*names, "--results", str(tmp_path), "--questions", "40"])
    mma, causal = json.loads((tmp_path / "look.json").read_text())
    assert [mma["run"], causal["run"]] == ["mma", "causal"] and "args" not in mma
    assert causal["image_to_question"] == [0.0] * 4 and min(mma["image_to_question"]) > 0.05
    for record in (mma, causal):
        assert record["questions"] == 40
        shares = zip(record["answer_to_asked"], record["answer_to_picture"])
        assert all(0 <= asked <= picture <= 1 for asked, picture in shares)
    assert (tmp_path / "look.md").read_text(encoding="utf-8") in capsys.readouterr().out
    picture = Image.open(tmp_path / "look.png")
    assert picture.size == (990, 924)  # the two charts, and a row of pictures for each mask
    example = shapes.Shapes().heldout("test", 1)[0].images[0]
    brightest = tuple(example.flatten(1)[:, example.sum(0).argmax()].tolist())
    for top in (400, 660):  # of a row: the pictures stand there as they are
        row = picture.convert("RGB").crop((0, top, 990, top + 260))
        assert brightest in {colour for _, colour in row.getcolors(2**24)}
    with pytest.raises(SystemExit, match="cannot be written"):
        look.main([names[0], "--results", str(tmp_path / "look.md"), "--questions", "40"])


def measured(name, mask="mma", seed=0, n_layer=4, **args):
    """A record as look.measure returns it."""
    args = {"mask": mask, "seed": seed, "n_layer": n_layer, **args}
    shares = {key: [0.5] * n_layer for key in ("image_to_question", "answer_to_picture")}
    shares |= {"answer_to_asked": [0.1] * n_layer, "asked_share_of_cells": 0.1, "questions": 9}
    return {"run": f"runs/{name}", "mask": mask, "seed": seed, "args": args, **shares}


def test_runs_that_differ_by_more_than_the_seed_are_not_pooled():
    def first_column(*records):
        rows = look.text(list(records)).split("\n\n")[0].splitlines()[2:]
        return [row.split("|")[1].strip() for row in rows]

    a, again, causal = measured("a"), measured("b", seed=1), measured("c", "causal")
    assert first_column(a, again, causal) == ["mma (2)"] * 4 + ["causal"] * 4
    rings = measured("rings", seed=1, variant="cca")
    assert first_column(a, rings) == ["a"] * 4 + ["rings"] * 4
    shallow = measured("shallow", seed=1, n_layer=2)
    assert first_column(a, again, shallow) == ["a (2)"] * 4 + ["shallow"] * 2


def test_lines_of_different_depths_are_drawn_over_the_deepest():
    from matplotlib.figure import Figure

    fig = Figure()
    look.draw_shares(fig, {"a": [measured("a")], "b": [measured("b", n_layer=2)]})
    assert [ax.get_xticks().tolist() for ax in fig.axes] == [[1, 2, 3, 4]] * 2


def test_a_picture_is_dark_where_nothing_looks():
    pixels, shares = torch.full((64, 64, 3), 200, dtype=torch.uint8).numpy(), torch.zeros(16)
    shares[6] = 0.5
    dark = look.darken(pixels, shares)
    assert (dark[16:32, 32:48] == 200).all() and (dark == 200).sum() == 16 * 16 * 3
    assert dark.min() == dark[0, 0, 0] == int(0.14 * 200)


def test_to_picture_is_the_row_that_produces_the_answer():
    role = torch.tensor([[1, 2, 2, 3, 3, 0], [1, 2, 2, 3, 3, 3]])
    weights = torch.arange(2 * 2 * 36).view(2, 2, 6, 6).float()
    expected = [[[25, 26], [67, 68]], [[97, 98], [139, 140]]]
    assert look.to_picture(weights, role).tolist() == expected


def test_attended_is_twice_the_mean_share_of_the_first_picture(monkeypatch):
    """The shares by hand: of four patches; those of a second picture, larger, do not count."""
    role = torch.tensor([[1, 2, 2, 2, 2, 2, 2, 2, 2, 3]])
    weights = torch.zeros(2, 1, 10, 10)
    for layer, shares in enumerate(([0.0, 0.3, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1])):
        weights[layer, 0, 9, 1:5], weights[layer, 0, 9, 5:9] = torch.tensor(shares), 0.9
    monkeypatch.setattr(look, "attention", lambda *args: (weights, {"role": role}))
    model = SimpleNamespace(config=SimpleNamespace(n_image_tokens=4, grid=2))
    # Means over the layers: 0.05, 0.2, 0.15, 0.1; twice their mean is 0.25
    assert look.attended(model, None, data.Example([1, 2], []), 0) == []
    weights[:, 0, 9, 2] += 0.2  # 0.05, 0.4, 0.15, 0.1: the mean is 0.175
    assert look.attended(model, None, data.Example([1, 2], []), 0) == [(2, 1)]
    assert look.attended(model, None, data.Example([], []), 0) == []


def test_look_wants_runs_of_the_built_in_world(easy_vqa, tmp_path):
    source = ["--data", "easy_vqa", "--source", str(easy_vqa)]
    train.main([*TINY, *source, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="needs runs on --data shapes"):
        look.main([str(tmp_path / "run")])
