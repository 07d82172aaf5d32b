"""Charts and pictures show what they are given."""

import json
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFont

import data
from lab import curves, experiments, recording, watch
from mma import EXTRA_PAIRS

ORANGE, BLUE = (240, 140, 40), (74, 111, 181)


def colours_in(picture) -> set:
    return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}


@pytest.fixture
def drawn(monkeypatch):
    """The charts that a test draws."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda fig, file: figures.append(fig) or save(fig, file))
    return figures


def test_the_figures_of_masks(tmp_path, drawn):
    """Blue is read, orange opened: patches x question, under mma alone."""
    files = [tmp_path / "f.png", tmp_path / "m.png"]
    curves.main(["--figure", str(files[0]), "--masks", str(files[1])])
    cells = [torch.tensor(ax.collections[0].get_array()) for ax in drawn[0].axes[1:]]
    causal, mma = cells
    patches, question = ((mma == 2).nonzero()[:, k].unique().tolist() for k in (0, 1))
    assert not (causal == 2).any() and (mma == 2).sum() == len(patches) * len(question)
    assert patches == list(range(patches[0], patches[0] + 16))
    assert question[0] > patches[-1] and len(question) > 5
    assert all(torch.equal(some == 1, torch.ones_like(some).tril() == 1) for some in cells)
    assert sum(len(ax.collections) for ax in drawn[1].axes) == len(EXTRA_PAIRS)
    assert all({ORANGE, BLUE} <= colours_in(Image.open(file)) for file in files)


def points_of(ax):
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in ax.lines}


@pytest.mark.parametrize("not_asked, label, style", [
    (["spatial"], "spatial: not asked yet", "--"), ([], "spatial: 0.0 %", "-"),
])  # fmt: skip
def test_the_curves_of_a_training(tmp_path, drawn, not_asked, label, style):
    """From the first step on, whatever is there; a family that was not asked yet is said and
    dashed."""
    families = {"place": {"accuracy": 0.5, "n": 2}, "spatial": {"accuracy": 0, "n": 2}}
    look = {"accuracy": 0.25, "loss": 0.5, "families": families}
    records = [{"stage": "pt", "step": 10, "loss": 2.0}]
    for step, said in ((10, ["spatial"]), (20, not_asked)):
        val = look | {"not_asked": said}
        records.append({"stage": "sft", "step": step, "loss": 1.0, "val": val})
    for upto in range(4):
        watch.write_curves(tmp_path / "c.png", records[:upto])
    assert Image.open(tmp_path / "c.png").size == (1210, 440)
    left, right = drawn[-1].axes
    assert points_of(left) == {
        "stage 1": [(10, 2)],
        "stage 2: questions": [(10, 1), (20, 1)],
        "stage 2: validation": [(10, 0.5), (20, 0.5)],
    }
    assert points_of(right) == {
        "overall: 25.0 %": [(10, 25), (20, 25)],
        "place: 50.0 %": [(10, 50), (20, 50)],
        label: [(10, 0), (20, 0)],
    }
    assert [line.get_linestyle() for line in right.lines] == ["-", "-", style]
    for ax in (left, right):
        assert ax.get_xlabel() and ax.get_ylabel() and ax.get_legend()
        assert all(line.get_marker() == "o" for line in ax.lines)  # one point alone is no line
    assert not {ORANGE, BLUE} & colours_in(Image.open(tmp_path / "c.png"))  # those are mma, causal


def test_the_command_draws_finished_runs(tmp_path, drawn, capsys):
    """Means over seeds, the arm in its colour, with axes and a legend."""
    runs, png = [tmp_path / name for name in "abc"], tmp_path / "new" / "c.png"
    said = (("mma", 0, 0.5, 0.9), ("mma", 1, 0.6, 0.8), ("causal", 0, 0.4, 0.5))
    for run, (mask, seed, *accuracies) in zip(runs, said):
        run.mkdir()
        record = {"args": {"data": "shapes", "mask": mask}, "mask": mask, "seed": seed}
        (run / "run.json").write_text(json.dumps(record))
        looks = ({"step": step, "val": {"accuracy": a}} for step, a in enumerate(accuracies, 1))
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, looks)))
    call = [*map(str, runs), "--png", str(png)]
    curves.main(call)
    (ax,) = drawn[-1].axes
    assert ax.get_xlabel() and ax.get_ylabel() and str(png) in capsys.readouterr().out
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mma (2 seeds)", "causal"]
    points = points_of(ax)
    assert [points[name] for name in labels] == [[(1, 55), (2, 85)], [(1, 40), (2, 50)]]
    assert {ORANGE, BLUE} <= colours_in(Image.open(png))
    (runs[2] / "metrics.jsonl").unlink()
    for words, why in ((call, "metrics.jsonl is missing"), (call[:1], "belong together")):
        with pytest.raises(SystemExit, match=why):
            curves.main(words)
    with pytest.raises(data.DataError, match="no curves to draw"):
        curves.write_curves(png, {"a": [{}]})


def test_arms_have_colours_and_values_of_an_option_shades():
    """mma is orange and causal is blue, wherever a label has these names."""
    colours = curves.colours_of(["mma (3 seeds)", "shapes-causal-0 (3 seeds)", "new"]).values()
    mma, causal, other = (tuple(round(255 * c) for c in colour) for colour in colours)
    assert (mma, causal) == (ORANGE, BLUE) and other not in (ORANGE, BLUE)
    shades = curves.colours_of(["mma@2", "mma@4"])
    assert sum(shades["mma@2"]) > sum(shades["mma@4"])
    assert len({*curves.colours_of([*experiments.ARMS]).values()}) == len(experiments.ARMS)


def test_without_matplotlib_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch, "told", False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for _ in range(2):
        watch.write_curves(tmp_path / "curves.png", [])
    said = capsys.readouterr().err
    assert said.count("pip install matplotlib") == 1 and not list(tmp_path.iterdir())


# --- The sheet

COLOURED = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
WHITE = (255, 255, 255)
TOP = watch.LINE + 3 * watch.GAP // 2  # of a sheet: where its first pictures begin


def plain(*messages, turn=0, **said):
    """A result of eval.answer_all about plain pictures, as many as the messages show."""
    images = [
        torch.tensor(c, dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
        for c in COLOURED[: sum(message.count("<image>") for message in messages)]
    ]
    example = data.Example(images, [(message, "yes") for message in messages])
    known = {"id": "", "question": "q", "given": "yes", "answer": "no", "correct": False}
    return {"prompt": (example, turn), **known, **said}


@pytest.mark.parametrize("said", [
    {"question": "which is further to the right, the green diamond or the purple circle? " * 4},
    {"given": "hohoho" * 20},
])  # fmt: skip
def test_text_of_a_sheet_stays_whole_below_its_own_picture(said):
    """However long it is: the pictures of the next line begin below it."""
    ((name, text),) = said.items()
    font = ImageFont.load_default(watch.LETTERS)
    lines = watch.wrapped(text, font, watch.SIDE)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= watch.SIDE for line in lines)
    sheet = watch.draw_sheet([plain("<image>", **said), *[plain("<image>")] * 6], 8, [[]] * 7)
    column = [sheet.getpixel((86, y)) for y in range(sheet.height)]
    assert column.count(COLOURED[0]) == 2 * watch.SIDE
    between = column[column.index(COLOURED[0]) + watch.SIDE :]
    assert between.index(COLOURED[0]) >= watch.LINE * (len(lines) + 2)
    beside = sheet.crop((167, watch.SIDE + 50, 177, sheet.height))  # between two answers
    assert colours_in(beside) == {WHITE}
    text = colours_in(sheet.crop((0, watch.SIDE + 50, 160, watch.SIDE + 100)))
    assert any(r > 150 and max(g, b) < 100 for r, g, b in text)  # wrong answers are red


@pytest.mark.parametrize("messages, turn, shown", [
    (["<image><image><image>all?"], 0, [0, 1, 2]),
    (["<image>this?", "<image>and this?"], 0, [0]),
    (["<image>this?", "<image>and this?"], 1, [1]),
    (["<image>this?", "more?", "<image>and this?"], 1, [0]),
    (["hello?", "<image>this?"], 0, []),
])  # fmt: skip
def test_a_sheet_shows_the_pictures_of_the_turn(messages, turn, shown):
    """And frames of the first picture only where it stands alone."""
    sheet = watch.draw_sheet([plain(*messages, turn=turn)], 8, [[(4, 5)]])
    middles = [sheet.getpixel((6 + 160 * k + 80, TOP + 80)) for k in range(3)]
    assert middles == ([COLOURED[i] for i in shown] + [WHITE] * 3)[:3]
    framed = sheet.getpixel((6 + 40 + 2, TOP + 40 + 20)) == WHITE  # the left side of the frame
    assert framed == (shown in ([0], []))  # without a picture all is white


def test_a_sheet_is_spread_over_all_answers(tmp_path, model, tokenizer, pictures, monkeypatch):
    """24 of them, evenly, each framed where the model looks; the first of their pictures is left to
    ask about. Who does not write takes part in the forward passes."""
    framed, sheets, drawn, real = [], [], watch.draw_sheet, recording.attended
    monkeypatch.setattr(recording, "attended", lambda *a: framed.append(a[2]) or real(*a))
    monkeypatch.setattr(watch, "draw_sheet", lambda *args: sheets.append(args) or drawn(*args))
    shown = [data.Example([], [("", "")])]  # the first has no picture
    shown += [data.Example([pictures[k % 4]], [("<image>", "")]) for k in range(1, 60)]
    results = [plain() | {"prompt": (example, 0)} for example in shown]
    for write in (False, True):
        watch.write_sheet(tmp_path, model, tokenizer, results, write)
        files = {path.name for path in tmp_path.iterdir()}
        assert files == ({"example.png", "sheet.png"} if write else set())
    ((some, size, frames),) = sheets
    assert [r["prompt"][0] for r in some] == [shown[k * 60 // 24] for k in range(24)]
    assert framed == [r["prompt"][0] for r in [*some, *some]] and size == 16
    assert frames[:2] == [[], real(model, tokenizer, *some[1]["prompt"])]
    example = data.pixels_of(tmp_path / "example.png", 16, "")
    assert torch.equal(example, pictures[60 // 24 % 4])
