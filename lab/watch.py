"""What train.py draws while it trains: curves.png at every look at validation, and at the end
sheet.png, some test answers, and example.png; of a world of sound also example.wav.

Without matplotlib there are no curves; metrics.jsonl has their numbers. The charts of comparisons
are in curves.py.
"""

import sys
import textwrap
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps  # Pillow comes with torchvision

import data
from data.errors import need
from engine.checkpoint import write_file
from engine.tables import parts_of

GREY, INK = "#9a9a9a", "#222222"
COLOURS = {"mma": "#f08c28", "causal": "#4a6fb5"}  # in all charts and figures
OTHERS = ["#3c9650", "#aa3c96", "#787878", "#be2828", "#0096a0", "#967828", "#6b4fa0", "#b39ddb",
          "#9bbb59", "#5f9ea0", "#b8860b", "#c2185b", "#00695c", "#455a64"]  # fmt: skip
RIGHT, WRONG = (0, 120, 40), (190, 20, 20)
SHOWN = 24  # answers of the sheet
SIDE, GAP, LINE = 160, 12, 17  # of the sheet, in pixels: pictures, between them, a line of text
LETTERS, LONGEST = 13, 120  # of the text: points; characters of an answer
ABOUT = "Test questions. Green: right. Red: wrong, [true answer]."
FRAMES = "White frame: <answer> reads this patch at least twice as much as the mean patch."
told = False  # that matplotlib is missing


# --- Curves


def figure(width: float, height: float, columns: int = 1):
    """A figure and its axes side by side (columns=0: none yet), drawn without a window. DataError
    if matplotlib is missing."""
    need("matplotlib", "charts")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, columns, squeeze=False)[0] if columns else []
    for ax in axes:
        ax.grid(color="#dddddd", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def write_curves(path: Path, records: list[dict]) -> None:
    """The curves of a training, from the lines of metrics.jsonl so far; once a word where there is
    no matplotlib."""
    global told
    try:
        fig, (left, right) = figure(11, 4, columns=2)
    except data.DataError as error:
        if not told:
            print(f"no {path.name}: {error}; metrics.jsonl has the numbers", file=sys.stderr)
        told = True
        return
    draw_losses(left, records)
    draw_accuracy(right, [record for record in records if "val" in record])
    for ax in (left, right):
        ax.set_xlim(left=0)  # at the end: it fixes the right side as well
    fig.savefig(path)


def draw_losses(ax, records: list[dict]) -> None:
    """Of training in both stages, and of the true answers to validation questions."""
    losses = {
        "stage 1": [(r["step"], r["loss"]) for r in records if r["stage"] == "pt"],
        "stage 2: questions": [(r["step"], r["loss"]) for r in records if r["stage"] == "sft"],
        "stage 2: validation": [
            (r["step"], r["val"]["loss"]) for r in records if "loss" in r.get("val", {})
        ],
    }
    last, highest = 0.1, 0.1
    for (label, points), colour in zip(losses.items(), (GREY, INK, OTHERS[3])):
        if points:
            draw_line(ax, points, label, color=colour)
            last, highest = max(last, points[-1][1]), max([highest, *(y for _, y in points)])
    # The first steps' losses would flatten the rest, but where each curve has come to is shown
    top = min(highest, max(3, 1.1 * last))
    ax.set(xlabel="step of its stage", ylabel="loss, nats per answer token", ylim=(0, top))


def draw_accuracy(ax, looks: list[dict]) -> None:
    """Of validation: overall and by family. What training has not asked yet is dashed and said."""
    ax.set(xlabel="step of stage 2", ylabel="validation accuracy, %", ylim=(0, 100))
    if not looks:
        return
    last, parts = looks[-1]["val"], [parts_of(r["val"].get("families", {})) for r in looks]
    draw_line(ax, [(r["step"], 100 * r["val"]["accuracy"]) for r in looks],
              f"overall: {100 * last['accuracy']:.1f} %", color=INK, linewidth=2.5)  # fmt: skip
    families = parts[-1] if 1 < len(parts[-1]) <= len(OTHERS) else {}
    for (name, family), colour in zip(families.items(), OTHERS):
        points = [(r["step"], 100 * of[name]["accuracy"]) for r, of in zip(looks, parts)]
        label, style = f"{name}: {100 * family['accuracy']:.1f} %", {"linestyle": "-"}
        if name in last.get("not_asked", ()):
            label, style = f"{name}: not asked yet", {"linestyle": "--"}
        draw_line(ax, points, label, color=colour, linewidth=1, **style)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_line(ax, points: list[tuple[int, float]], label: str, **style) -> None:
    """Points (step, value); few of them are marked: one alone is no line."""
    ax.plot(*zip(*points), label=label, marker="o" if len(points) < 6 else None, **style)
    ax.legend(frameon=False)


# --- Answers


def write_sheet(
    out: Path, model, tokenizer, results: list[dict], write: bool = True, source=None
) -> None:
    """sheet.png and example.png in the folder `out`, and example.wav, if the data set, source, can
    write one; results: as eval.answer_all gives them. All processes of a sharded model call it, one
    with write."""
    from lab.recording import attended

    some = results = [r for r in results if not r.get("unread")]
    if len(results) > SHOWN:
        some = [results[k * len(results) // SHOWN] for k in range(SHOWN)]
    framed = [attended(model, tokenizer, *r["prompt"]) for r in some]
    if not write or not results:
        return
    draw_sheet(some, model.config.image_size, framed).save(out / "sheet.png")
    pictures = [image for r in some for image in r["prompt"][0].images]
    if pictures:  # one to ask about, as the model takes it
        size = model.config.image_size
        picture = to_image(data.pixels_of(pictures[0], size, ""), size)
        write_file(out / "example.png", lambda file: picture.save(file, "PNG"))
    if hasattr(source, "write_example"):
        write_file(out / "example.wav", source.write_example)


def draw_sheet(results: list[dict], image_size: int, framed: list) -> Image.Image:
    """Answers: the pictures asked about, question, answer given, true answer. framed: for each, the
    framed patches of its example's first picture, [(grid, index), ...]; drawn where that picture
    alone is shown."""
    shown = [pictures_asked_about(*r["prompt"]) for r in results]
    across = min(3, max([1, *map(len, shown)]))  # an answer is as many pictures wide
    columns, width = 6 // across, across * SIDE
    framed = [boxes if asked == range(1) else () for boxes, asked in zip(framed, shown)]
    answers = [draw_answer(*answer, image_size, width) for answer in zip(results, shown, framed)]
    about = f"{ABOUT} {FRAMES if any(framed) else ''}"
    head = written([about], columns * (width + GAP) - GAP, "black")
    rows = [stack(answers[k : k + columns], GAP) for k in range(0, len(answers), columns)]
    return ImageOps.expand(stack([head, *rows], GAP, down=True), GAP // 2, "white")


def draw_answer(result: dict, shown: range, framed, image_size: int, width: int) -> Image.Image:
    """The pictures of an example that a turn asks about, and below them what was said."""
    images, side = result["prompt"][0].images, min(SIDE, width // max(1, len(shown)))
    pixels = [data.pixels_of(images[i], image_size, result["id"]) for i in shown]
    top = Image.new("RGB", (width, SIDE), "white")
    top.paste(stack([to_image(picture, side) for picture in pixels]))
    for grid, patch in framed:
        (row, column), cell = divmod(patch, grid), side / grid
        box = (column * cell + 1, row * cell + 1, (column + 1) * cell - 2, (row + 1) * cell - 2)
        ImageDraw.Draw(top).rectangle(box, outline="white", width=2)
    said = [result["question"], result["given"][:LONGEST] or "(nothing)"]
    said += [] if result["correct"] else [f"[{result['answer'][:LONGEST]}]"]
    return stack([top, written(said, width, RIGHT if result["correct"] else WRONG)], down=True)


def stack(pictures: list[Image.Image], gap: int = 0, down: bool = False) -> Image.Image:
    """Pictures side by side, or one below the other, on white."""
    lengths = [picture.size[down] + gap for picture in pictures]
    broadest = max([picture.size[not down] for picture in pictures], default=0)
    size = sum(lengths), broadest
    sheet = Image.new("RGB", size[::-1] if down else size, "white")
    for picture, start in zip(pictures, accumulate(lengths, initial=0)):
        sheet.paste(picture, (0, start) if down else (start, 0))
    return sheet


def written(texts: list[str], width: int, colour) -> Image.Image:
    """Texts below each other, their lines at most `width` pixels wide."""
    font = ImageFont.load_default(LETTERS)
    lines = [line for text in texts for line in wrapped(text, font, width)]
    image = Image.new("RGB", (width, LINE * len(lines)), "white")
    for k, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, LINE * k), line, font=font, fill=colour)
    return image


def wrapped(text: str, font, width: int) -> list[str]:
    """Its lines, each at most so many pixels wide."""
    fits = lambda n: all(font.getlength(line) <= width for line in textwrap.wrap(text, n))
    return textwrap.wrap(text, next((n for n in range(len(text), 1, -1) if fits(n)), 1))


def to_image(pixels: torch.Tensor, side: int) -> Image.Image:
    """uint8 [3, size, size] as a picture of side x side, its pixels seen."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((side, side), Image.Resampling.NEAREST)


def pictures_asked_about(example: data.Example, turn: int) -> range:
    """Which of the example's pictures a turn asks about: those of its message, or of the last one
    before it that shows any."""
    counts = [message.count(data.IMAGE_TOKEN) for message, _ in example.turns[: turn + 1]]
    last = max((t for t, n in enumerate(counts) if n), default=0)
    first = sum(counts[:last])
    return range(first, first + counts[last])
