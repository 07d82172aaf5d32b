"""Pictures of pixels, by Pillow (it comes with torchvision): masks over an example, a sheet of
answers. Charts are in curves.py.

Shapes:  T tokens of a row   n image tokens of a picture
"""

import textwrap

import torch
from PIL import Image, ImageDraw

import data
import mma
from mma import EXTRA_PAIRS, IMAGE, QUESTION, attention_mask

PAST, OPENED, BLOCKED = "#4a6fb5", "#f08c28", "#e4e4e4"
RIGHT, WRONG = (0, 120, 40), (190, 20, 20)


def cell_colour(may: bool, later: bool) -> str:
    return BLOCKED if not may else OPENED if later else PAST


def draw_mask(pen, mask: list[list[bool]], left: int, top: int, cell: int) -> None:
    """Rows = queries, columns = keys: blue reads the past, orange opened, grey blocked."""
    for i, row in enumerate(mask):
        for j, may in enumerate(row):
            x, y = left + j * cell, top + i * cell
            pen.rectangle((x, y, x + cell - 2, y + cell - 2), fill=cell_colour(may, j > i))


def write_masks(path, cell: int = 12) -> None:
    """Every kind on mma.py's example row as one picture, three a line."""
    role, turn = mma.example()
    side = (len(mma.EXAMPLE) + 3) * cell
    lines = -(-len(EXTRA_PAIRS) // 3)
    sheet = Image.new("RGB", (3 * side, lines * side), "white")
    pen = ImageDraw.Draw(sheet)
    for n, kind in enumerate(EXTRA_PAIRS):
        left, top = n % 3 * side + 2 * cell, n // 3 * side + 2 * cell
        pen.text((left, top - 2 * cell + 2), kind, fill="black")
        for i, letter in enumerate(mma.EXAMPLE):
            pen.text((left - cell + 3, top + i * cell + 1), letter, fill="black")
            pen.text((left + i * cell + 4, top - cell + 2), letter, fill="black")
        draw_mask(pen, attention_mask(kind, role, turn)[0, 0].tolist(), left, top, cell)
    sheet.save(path)


def to_image(pixels: torch.Tensor, side: int) -> Image.Image:
    """uint8 [3, size, size] as a picture of side x side, its pixels seen."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((side, side), Image.Resampling.NEAREST)


def words_of(row: data.Row, tokenizer: data.Tokenizer) -> list[str]:
    """What stands at each column: the patches numbered, the tokens as text."""
    words, patch, named = [], 0, {"<s>": "<bos>", "</s>": "<eos>"}
    for token, role in zip(row.ids, row.role):
        patch += role == IMAGE
        piece = tokenizer.piece(token).strip()
        words.append(f"patch {patch}" if role == IMAGE else named.get(piece, piece))
    return words


def write_figure(path, cell: int = 13) -> None:
    """The figure of the README: an example of the built-in world, and the masks causal and mma over
    its row."""
    world, grid, side, label, top = data.load("shapes"), 4, 240, 62, 90
    tokenizer = data.Tokenizer.train(world.texts(), 4096)
    counted = (e for e in world.heldout("test") if e.family == "counting")
    example = next(e for e in counted if e.turns[0][1] == "2")
    row = data.encode(example, tokenizer, grid * grid)
    words = words_of(row, tokenizer)
    panel = len(words) * cell
    width = side + 40 + 2 * (panel + label + 20)
    sheet = Image.new("RGB", (width, top + panel + 34), "white")
    draw_example(sheet, example, grid, side, top)
    titles = {
        "causal": "causal: the picture never learns what was asked",
        "mma": "mma: image rows read the question's columns",
    }
    for m, (kind, title) in enumerate(titles.items()):
        left = side + 40 + m * (panel + label + 20) + label
        ImageDraw.Draw(sheet).text((left, top + panel + 8), title, fill="black", font_size=15)
        draw_labels(sheet, words, row.role, left, top, cell, label)
        mask = attention_mask(kind, torch.tensor([row.role]), torch.tensor([row.turn]))
        draw_mask(ImageDraw.Draw(sheet), mask[0, 0].tolist(), left, top, cell)
    sheet.save(path)


def draw_example(sheet, example: data.Example, grid: int, side: int, top: int) -> None:
    """The picture with its patches numbered as the tokens are, the question and the answer."""
    pen, step = ImageDraw.Draw(sheet), side / grid
    sheet.paste(to_image(example.images[0], side), (12, top))
    for k in range(grid * grid):
        x, y = 12 + step * (k % grid), top + step * (k // grid)
        pen.rectangle((x, y, x + step, y + step), outline="white")
        pen.text((x + 3, y + 1), str(k + 1), fill="white")
    question, answer = example.turns[0]
    text = f"{question.replace(data.IMAGE_TOKEN, '')}\n{answer}"
    pen.text((12, top + side + 12), text, fill="black", font_size=15)


def draw_labels(sheet, words, roles, left: int, top: int, cell: int, label: int) -> None:
    """The words at the left of a mask and, upright, above it."""
    ink_of = {IMAGE: PAST, QUESTION: "#c06010", mma.ANSWER: "#2a8a4a"}
    pen = ImageDraw.Draw(sheet)
    for i, (word, role) in enumerate(zip(words, roles)):
        ink, middle = ink_of.get(role, "black"), top + i * cell + cell / 2
        pen.text((left - 4, middle), word, fill=ink, anchor="rm", font_size=10)
        upright = Image.new("RGB", (label, cell), "white")
        ImageDraw.Draw(upright).text((2, cell / 2), word, fill=ink, anchor="lm", font_size=10)
        sheet.paste(upright.rotate(90, expand=True), (left + i * cell, top - label - 2))


def write_sheet(path, results: list[dict], image_size: int, framed=None, side: int = 160) -> None:
    """A PNG of answers, as eval.answer_all gives them: the pictures asked about, question, answer
    given, true answer; green right, red wrong. framed: for each, the framed patches of its
    example's first picture, [(grid, index), ...]; drawn where that picture alone is shown.
    """
    shown = [pictures_asked_about(*r["prompt"]) for r in results]
    across = min(3, max([1, *map(len, shown)]))  # an answer is as many pictures wide
    columns, width, height = 6 // across, across * side, side + 62
    lines = -(-len(results) // columns)
    sheet = Image.new("RGB", (columns * (width + 12), lines * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, r in enumerate(results):
        x, y = k % columns * (width + 12) + 6, k // columns * height + 4
        small = min(side, width // max(1, len(shown[k])))
        for place, i in enumerate(shown[k]):
            pixels = data.pixels_of(r["prompt"][0].images[i], image_size, r["id"])
            sheet.paste(to_image(pixels, small), (x + place * small, y))
        for grid, patch in framed[k] if framed and shown[k] == range(1) else ():
            cell = side / grid
            u, v = x + cell * (patch % grid), y + cell * (patch // grid)
            pen.rectangle((u + 1, v + 1, u + cell - 2, v + cell - 2), outline="white", width=2)
        given = r["given"][:24] or "(nothing)"
        given += "" if r["correct"] else f"   [{r['answer'][:24]}]"
        text = "\n".join([*(textwrap.wrap(r["question"], 27 * across) or [""])[:2], given])
        pen.text((x, y + side + 2), text, fill=RIGHT if r["correct"] else WRONG)
    sheet.save(path)


def pictures_asked_about(example: data.Example, turn: int) -> range:
    """Which of the example's pictures a turn asks about: those of its message, or of the last one
    before it that shows any."""
    counts = [message.count(data.IMAGE_TOKEN) for message, _ in example.turns[: turn + 1]]
    last = max((t for t, n in enumerate(counts) if n), default=0)
    first = sum(counts[:last])
    return range(first, first + counts[last])
