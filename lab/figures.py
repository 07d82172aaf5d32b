"""Pictures: masks over an example, by matplotlib; a sheet of answers, by Pillow, which comes with
torchvision. Charts are in curves.py.

Shapes:  T tokens of a row   n image tokens of a picture
"""

import textwrap

import torch
from PIL import Image, ImageDraw

import data
import mma
from lab.curves import COLOURS, figure
from mma import EXTRA_PAIRS, IMAGE, QUESTION, attention_mask

BLOCKED = "#e4e4e4"
INK = {IMAGE: COLOURS["causal"], QUESTION: "#c06010", mma.ANSWER: "#2a8a4a"}
RIGHT, WRONG = (0, 120, 40), (190, 20, 20)


def draw_mask(ax, kind: str, role, turn, words, title: str, size: float) -> None:
    """Rows = queries, columns = keys: blue reads the past, orange is opened, grey is blocked. role,
    turn: int64 [1, T]. words: what stands at each column. size: of their letters, in points."""
    from matplotlib.colors import ListedColormap

    may, T = attention_mask(kind, role, turn)[0, 0], len(words)
    cells = may.int() + may.triu(1).int()  # 1 if it is read, 2 if it is a later one
    colours = ListedColormap([BLOCKED, COLOURS["causal"], COLOURS["mma"]])
    ax.pcolormesh(cells.numpy(), cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=0.6)
    ax.set_title(title, fontsize=size + 3, y=-0.08)
    ax.set(aspect="equal", ylim=(T, 0), frame_on=False)
    ax.xaxis.tick_top()
    middles = [column + 0.5 for column in range(T)]
    ax.set_xticks(middles, words, rotation=90 * (len(max(words, key=len)) > 1), fontsize=size)
    ax.set_yticks(middles, words, fontsize=size)
    ax.tick_params(length=0)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, r in zip(labels, role[0].tolist()):
            label.set_color(INK.get(r, "black"))


def write_masks(path) -> None:
    """Every kind on mma.py's example row as one picture, three a line."""
    role, turn = mma.example()
    lines = -(-len(EXTRA_PAIRS) // 3)
    fig, _ = figure(9, 3.2 * lines, columns=0)
    for number, kind in enumerate(EXTRA_PAIRS, 1):
        ax = fig.add_subplot(lines, 3, number)
        draw_mask(ax, kind, role, turn, mma.EXAMPLE, kind, 5)
    fig.savefig(path)


def words_of(row: data.Row, tokenizer: data.Tokenizer) -> list[str]:
    """What stands at each column: the patches numbered, the tokens as text."""
    words, patch, named = [], 0, {"<s>": "<bos>", "</s>": "<eos>"}
    for token, role in zip(row.ids, row.role):
        patch += role == IMAGE
        piece = tokenizer.piece(token).strip()
        words.append(f"patch {patch}" if role == IMAGE else named.get(piece, piece))
    return words


def write_figure(path) -> None:
    """The figure of the README: an example of the built-in world, and the masks causal and mma over
    its row."""
    world, grid = data.load("shapes"), 4
    tokenizer = data.Tokenizer.train(world.texts(), 4096)
    counted = (e for e in world.heldout("test") if e.family == "counting")
    example = next(e for e in counted if e.turns[0][1] == "2")
    row = data.encode(example, tokenizer, grid * grid)
    fig, _ = figure(13, 5.2, columns=0)
    picture, *masks = fig.subplots(1, 3, width_ratios=[2, 3, 3])
    draw_example(picture, example, grid)
    titles = {
        "causal": "causal: the picture never learns what was asked",
        "mma": "mma: image rows read the question's columns",
    }
    role, turn = torch.tensor([row.role]), torch.tensor([row.turn])
    for ax, (kind, title) in zip(masks, titles.items()):
        draw_mask(ax, kind, role, turn, words_of(row, tokenizer), title, 7)
    fig.savefig(path)


def draw_example(ax, example: data.Example, grid: int) -> None:
    """The picture with its patches numbered as the tokens are, the question and the answer."""
    pixels = example.images[0].permute(1, 2, 0).numpy()
    ax.imshow(pixels, extent=(0, grid, grid, 0))
    ax.set_xticks(range(grid + 1), [])
    ax.set_yticks(range(grid + 1), [])
    ax.grid(color="white")
    for k in range(grid * grid):
        ax.text(k % grid + 0.05, k // grid + 0.2, str(k + 1), color="white", fontsize=7)
    question, answer = example.turns[0]
    ax.set_xlabel(f"{question.replace(data.IMAGE_TOKEN, '')}\n{answer}", fontsize=10)


def to_image(pixels: torch.Tensor, side: int) -> Image.Image:
    """uint8 [3, size, size] as a picture of side x side, its pixels seen."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((side, side), Image.Resampling.NEAREST)


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
