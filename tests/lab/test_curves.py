"""Charts and pictures show what they are given."""

import subprocess
import sys

import pytest
from PIL import Image

import data
from data import shapes
from lab import curves, figures, tables, watch

ORANGE, BLUE = (240, 140, 40), (74, 111, 181)
RECORDS = [
    {"stage": "pt", "step": 10, "loss": 2.0},
    {"stage": "sft", "step": 10, "loss": 1.0, "val": {"accuracy": 0.5}},
]


def colours_in(picture) -> set:
    return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}


def test_the_figure_shows_the_masks(tmp_path):
    cell = 13
    figures.write_figure(tmp_path / "f.png", cell)
    picture = Image.open(tmp_path / "f.png").convert("RGB")
    counts = {colour: n for n, colour in picture.getcolors(2**24)}
    opened = counts[ORANGE] / (cell - 1) ** 2  # patches x question, once: under mma alone
    assert opened % 16 == 0 and opened >= 16 * 4
    left = picture.crop((0, 0, picture.width // 2, picture.height))
    assert ORANGE not in colours_in(left) and BLUE in colours_in(left)


def test_the_masks_are_all_there(tmp_path):
    figures.write_masks(tmp_path / "m.png")
    assert {ORANGE, BLUE} <= colours_in(Image.open(tmp_path / "m.png"))


def test_the_curves_of_a_training(tmp_path):
    for upto in (1, 2):
        curves.write_training(tmp_path / "c.png", RECORDS[:upto])
        assert Image.open(tmp_path / "c.png").width > 800


def test_curves_have_axes_and_a_legend(tmp_path, monkeypatch):
    drawn, figure = [], curves.figure

    def keep(*args, **options):
        fig, axes = figure(*args, **options)
        drawn.extend(axes)
        return fig, axes

    monkeypatch.setattr(curves, "figure", keep)
    runs = {"mma (2 seeds)": [{1: 0.5, 2: 0.9}, {1: 0.6, 2: 0.8}], "causal": [{1: 0.4, 2: 0.5}]}
    curves.write_curves(tmp_path / "c.png", runs)
    (ax,) = drawn
    assert ax.get_xlabel() and ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(runs)
    assert [list(line.get_ydata()) for line in ax.lines] == [[55.0, 85.0], [40.0, 50.0]]
    with pytest.raises(data.DataError, match="no curves to draw"):
        curves.write_curves(tmp_path / "x.png", {"a": [{}]})


def test_mma_is_orange_and_causal_is_blue():
    for labels in (["causal", "mma"], ["mma (3 seeds)", "causal (3 seeds)"], ["new", "mma@4"]):
        found = curves.colours_of(labels)
        for label, (red, _, blue) in found.items():
            assert not label.startswith("mma") or red > blue
            assert not label.startswith("causal") or blue > red
    shades = curves.colours_of(["mma@2", "mma@4"])
    assert sum(shades["mma@2"]) > sum(shades["mma@4"])


def test_without_matplotlib_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "told", False)
    find = tables.importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    monkeypatch.setattr(tables.importlib.util, "find_spec", hidden)
    for _ in range(2):
        watch.write_curves(tmp_path / "curves.png", RECORDS)
    said = capsys.readouterr().err
    assert said.count("pip install matplotlib") == 1 and not list(tmp_path.iterdir())


def test_training_and_answering_import_no_matplotlib():
    code = "import train, eval, lab.watch, lab.variants, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_patches_are_framed(tmp_path):
    example = shapes.Shapes().heldout("test", 1)[0]
    result = {"prompt": (example, 0), "id": "", "question": "q", "given": "yes", "answer": "no"}
    figures.write_sheet(tmp_path / "s.png", [result | {"correct": False}], 64, [[(4, 5)]])
    picture = Image.open(tmp_path / "s.png").convert("RGB")
    # The left side of the frame around the sixth patch
    assert picture.getpixel((6 + 40 + 2, 4 + 40 + 20)) == (255, 255, 255)
    text = colours_in(picture.crop((0, 166, 160, 226)))
    assert any(r > 150 and max(g, b) < 100 for r, g, b in text)  # wrong answers are red


def test_an_example_is_left_to_ask_about(tmp_path):
    image = shapes.Shapes().heldout("test", 1)[0].images[0]
    watch.write_example(tmp_path / "example.png", image, 64)
    assert (data.pixels_of(tmp_path / "example.png", 64, "") == image).all()
