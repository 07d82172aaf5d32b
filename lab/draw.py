"""Pictures: of a training its curves and a sheet of answers; and the figure of the README. Pillow comes with torchvision.

    python draw.py results/figure.png    the causal mask and mma's over one example of the built-in world
"""

import statistics
import sys
import textwrap

from PIL import Image, ImageDraw

import data
from mma import Role, attention_mask

COLOURS = [(240, 130, 30), (60, 100, 180), (60, 150, 80), (170, 60, 150), (120, 120, 120), (190, 40, 40), (0, 150, 160), (150, 120, 40)]


def chart(pen, left: int, top: int, W: int, H: int, title: str, lines: dict[str, list[tuple[float, list[float]]]], most: float, form: str,
          first: int = 0, legend: int = 12) -> None:
    """Lines over x from 0: label -> [(x, the values of each seed)]. Drawn are the means and, shaded, the reach from the lowest to the
    highest. most: the top of the y axis; form: how its numbers are written; first: the first colour; legend: how far from the left."""
    last = max(points[-1][0] for points in lines.values())

    def at(x, value):
        return left + W * x / last, top + H * (1 - min(value, most) / most)

    for k in range(6):
        pen.line([at(0, most * k / 5), at(last, most * k / 5)], fill=(215, 215, 215))
        pen.text((left - 40, at(0, most * k / 5)[1] - 6), form.format(most * k / 5), fill="black")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    for x in ticks if len(ticks) < 6 else [last * k / 4 for k in range(5)]:
        pen.text((at(x, 0)[0] - 10, top + H + 6), f"{x:,.0f}" if x >= 10 else f"{x:g}", fill="black")
    pen.text((left + W // 2 - 90, top + H + 22), title, fill="black")
    groups = [label.split("@")[0] for label in lines]  # mma@2, mma@4: shades of one colour, the last the darkest
    for k, (label, points) in enumerate(lines.items()):
        base = COLOURS[(first + list(dict.fromkeys(groups)).index(groups[k])) % len(COLOURS)]
        pale = 0.7 * groups[k + 1:].count(groups[k]) / groups.count(groups[k])
        colour = tuple(round(c + pale * (255 - c)) for c in base)
        if any(len(y) > 1 for _, y in points):
            pen.polygon([at(x, max(y)) for x, y in points] + [at(x, min(y)) for x, y in reversed(points)], fill=(*colour, 50))
        middle = [at(x, statistics.mean(y)) for x, y in points]
        pen.line(middle, fill=colour, width=3)
        for x, y in middle if len(middle) < 6 else ():
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        pen.text((left + legend, top + 8 + 16 * k), label, fill=colour)


def write_curves(path, groups: dict[str, list[dict[int, float]]], title: str = "step of stage 2 (validation accuracy)") -> None:
    """A PNG of accuracy (0 to 1) over the steps of stage 2. groups: label -> for each seed, step -> accuracy."""
    curves = {label: [(x, [100 * c[x] for c in runs if x in c]) for x in sorted(set().union(*runs))] for label, runs in groups.items()}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        raise data.DataError("no run looked at its validation split (--eval-every), so there are no curves to draw")
    sheet = Image.new("RGB", (786, 454), "white")
    chart(ImageDraw.Draw(sheet, "RGBA"), 46, 14, 720, 400, title, curves, 100, "{:.0f} %")
    sheet.save(path)


def write_training(path, records: list[dict]) -> None:
    """A PNG of the loss of both stages, and of validation accuracy, from the lines of metrics.jsonl so far."""
    stages = {"stage 1: captions": "pt", "stage 2: questions": "sft"}
    loss = {label: [(r["step"], [r["loss"]]) for r in records if r["stage"] == stage] for label, stage in stages.items()}
    loss = {label: points for label, points in loss.items() if points}
    accuracy = [(r["step"], [100 * r["val"]["accuracy"]]) for r in records if "val" in r]
    sheet = Image.new("RGB", (900, 330), "white")
    pen = ImageDraw.Draw(sheet, "RGBA")
    if loss:
        most = min(3, max(y[0] for points in loss.values() for _, y in points) or 1)  # the first steps' losses would flatten the rest
        chart(pen, 50, 14, 380, 270, "step of its stage (loss)", loss, most, "{:.2f}", legend=230)
    if accuracy:
        last = f"{accuracy[-1][1][0]:.1f} %"
        chart(pen, 500, 14, 380, 270, "step of stage 2 (validation accuracy)", {last: accuracy}, 100, "{:.0f} %", 1)
    sheet.save(path)


def write_sheet(path, results: list[dict], image_size: int, outlined: list[list[int]] | None = None, side: int = 160) -> None:
    """A PNG of answers: picture, question, answer given, true answer; green right, red wrong. outlined: for each, the patches of its
    picture, in reading order, that have a frame: [(grid, index), ...]."""
    columns, height = 6, side + 62
    sheet = Image.new("RGB", (columns * (side + 12), -(-len(results) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, r in enumerate(results):
        x, y = k % columns * (side + 12) + 6, k // columns * height + 4
        if r["prompt"][0].images:
            picture = data.pixels_of(r["prompt"][0].images[0], image_size, r["id"])
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for grid, patch in outlined[k] if outlined else ():
            u, v, cell = x + side * (patch % grid) / grid, y + side * (patch // grid) / grid, side / grid
            pen.rectangle((u + 1, v + 1, u + cell - 2, v + cell - 2), outline=(255, 255, 255), width=2)
        text = textwrap.wrap(r["question"], 27) or [""]
        text = "\n".join(text[:2]) + f"\n{r['given'][:24] or '(nothing)'}" + ("" if r["correct"] else f"   [{r['answer'][:24]}]")
        pen.text((x, y + side + 2), text, fill=(0, 120, 40) if r["correct"] else (190, 20, 20))
    sheet.save(path)


def write_figure(path, example: data.Example, tokenizer: data.Tokenizer, grid: int, image_size: int, cell: int = 13) -> None:
    """A PNG of an example's picture and the masks over its row, rows = queries, columns = keys: blue reads the past, orange opened."""
    row = data.encode(example, tokenizer, grid * grid)
    count, words = iter(range(1, grid * grid + 1)), []
    for token, role in zip(row.ids, row.role):
        piece = tokenizer.piece(token).strip()
        words.append(f"patch {next(count)}" if role == Role.IMAGE else {"<s>": "<bos>", "</s>": "<eos>"}.get(piece, piece))
    batch = data.collate([row], tokenizer.pad, image_size)
    T, side, label, top = len(words), 240, 62, 90
    width, panel = side + 40 + 2 * (len(words) * cell + label + 20), len(words) * cell
    sheet = Image.new("RGB", (width, top + panel + 34), "white")
    pen = ImageDraw.Draw(sheet)
    picture = Image.fromarray(data.pixels_of(example.images[0], image_size, "").permute(1, 2, 0).numpy())
    sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (12, top))
    for k in range(grid * grid):  # the patches are numbered as the tokens are
        x, y = 12 + side * (k % grid) / grid, top + side * (k // grid) / grid
        pen.rectangle((x, y, x + side / grid, y + side / grid), outline="white")
        pen.text((x + 3, y + 1), str(k + 1), fill="white")
    question, answer = example.turns[0]
    pen.text((12, top + side + 12), f"{question.replace(data.IMAGE, '')}\n{answer}", fill="black", font_size=15)
    colour = {int(Role.IMAGE): "#4a6fb5", int(Role.QUESTION): "#c06010", int(Role.ANSWER): "#2a8a4a"}
    for m, (kind, title) in enumerate((("causal", "causal: the picture never learns what was asked"),
                                       ("mma", "mma: image rows read the question's columns"))):
        left = side + 40 + m * (panel + label + 20) + label
        mask = attention_mask(kind, batch["role"], batch["turn"])[0, 0].tolist()
        pen.text((left, top + panel + 8), title, fill="black", font_size=15)
        for i, word in enumerate(words):
            ink = colour.get(row.role[i], "black")
            pen.text((left - 4, top + i * cell + cell / 2), word, fill=ink, anchor="rm", font_size=10)
            upright = Image.new("RGB", (label, cell), "white")
            ImageDraw.Draw(upright).text((2, cell / 2), word, fill=ink, anchor="lm", font_size=10)
            sheet.paste(upright.rotate(90, expand=True), (left + i * cell, top - label - 2))
            for j in range(T):
                x, y = left + j * cell, top + i * cell
                pen.rectangle((x, y, x + cell - 2, y + cell - 2), fill="#e8e8e8" if not mask[i][j] else "#f08c28" if j > i else "#4a6fb5")
    sheet.save(path)


if __name__ == "__main__":
    world = data.load("shapes")
    some = next(e for e in world.heldout("test") if e.family == "counting" and e.turns[0][1] == "2")
    write_figure(sys.argv[1], some, data.Tokenizer.train(world.texts(), 4096), 4, 64)
