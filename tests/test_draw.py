"""Pictures show what they are given."""

import pytest
from PIL import Image

import data
import draw
from data import shapes

ORANGE, BLUE = (240, 140, 40), (74, 111, 181)


def test_the_figure_shows_the_masks(tmp_path, tokenizer):
    example = next(e for e in shapes.Shapes().heldout("test", 50) if e.family == "counting")
    cell = 13
    draw.write_figure(tmp_path / "f.png", example, tokenizer, 4, 64, cell)
    picture = Image.open(tmp_path / "f.png").convert("RGB")
    question = len(tokenizer.encode(example.turns[0][0].replace(data.IMAGE, ""))) + 1
    counts = {colour: n for n, colour in picture.getcolors(2**24)}
    assert counts[ORANGE] == 16 * question * (cell - 1) ** 2               # patches x question, once: under mma alone
    left = picture.crop((0, 0, picture.width // 2, picture.height)).getcolors(2**24)
    assert ORANGE not in {colour for _, colour in left} and BLUE in {colour for _, colour in left}


def test_the_curves_of_a_training(tmp_path):
    records = [{"stage": "pt", "step": 10, "loss": 2.0}, {"stage": "sft", "step": 10, "loss": 1.0, "val": {"accuracy": 0.5}}]
    for upto in (1, 2):
        draw.write_training(tmp_path / "c.png", records[:upto])
        assert Image.open(tmp_path / "c.png").size == (900, 330)
    with pytest.raises(data.DataError, match="no curves to draw"):
        draw.write_curves(tmp_path / "x.png", {"a": [{}]})


def test_patches_are_framed(tmp_path):
    example = shapes.Shapes().heldout("test", 1)[0]
    result = {"prompt": (example, 0), "id": "", "question": "q", "given": "yes", "answer": "no", "correct": False}
    draw.write_sheet(tmp_path / "s.png", [result], 64, [[(4, 5)]])
    picture = Image.open(tmp_path / "s.png").convert("RGB")
    assert picture.getpixel((6 + 40 + 2, 4 + 40 + 20)) == (255, 255, 255)   # the left side of the frame around the sixth patch
    text = picture.crop((0, 166, 160, 226)).getcolors(2**24)
    assert any(r > 150 and max(g, b) < 100 for _, (r, g, b) in text)          # wrong answers are red
