"""Pictures of masks over an example, by matplotlib: `python -m lab.curves --figure FILE`.

Shapes:  T tokens of a row   n image tokens of a picture
"""

import torch

import data
import mma
from lab.watch import COLOURS, figure
from mma import EXTRA_PAIRS, IMAGE, QUESTION, attention_mask

BLOCKED = "#e4e4e4"
INK = {IMAGE: COLOURS["causal"], QUESTION: "#c06010", mma.ANSWER: "#2a8a4a"}


def draw_mask(ax, kind: str, role, turn, words, title: str, size: float) -> None:
    """Rows = queries, columns = keys: blue reads the past, orange is opened, grey is blocked. role,
    turn: int64 [1, T]. words: what stands at each column. size: of their letters, in points."""
    from matplotlib.colors import ListedColormap

    may, T = attention_mask(kind, role, turn)[0, 0], len(words)
    cells = may.int() + may.triu(1).int()  # 1 if it is read, 2 if it is a later one
    colours = ListedColormap([BLOCKED, COLOURS["causal"], COLOURS["mma"]])
    ax.pcolormesh(cells.numpy(), cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=0.6)
    ax.set_title(title, fontsize=size + 3, y=-0.1)
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
    """Every kind on mma.py's example row as one picture, three a line, and a key."""
    role, turn = mma.example()
    lines = len(EXTRA_PAIRS) // 3 + 1  # with room for the key
    fig, _ = figure(9, 3.3 * lines, columns=0)
    for number, kind in enumerate(EXTRA_PAIRS, 1):
        ax = fig.add_subplot(lines, 3, number)
        draw_mask(ax, kind, role, turn, mma.EXAMPLE, kind, 7)
    write_key(fig.add_subplot(lines, 3, number + 1))
    fig.savefig(path)


def write_key(ax) -> None:
    """What the colours, and the letters of mma.py's example row, mean."""
    from matplotlib.patches import Patch

    said = {
        "reads itself or an earlier column": COLOURS["causal"],
        "opened: reads a later column": COLOURS["mma"],
        "blocked": BLOCKED,
    }
    patches = [Patch(color=colour, label=label) for label, colour in said.items()]
    letters = "Rows read columns.\nV image, Q question, A answer,\nt other text, - padding"
    ax.set_axis_off()
    ax.legend(handles=patches, title=letters, alignment="left", frameon=False, loc="center")


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
    fig, _ = figure(13, 5.7, columns=0)
    picture, *masks = fig.subplots(1, 3, width_ratios=[2.1, 3, 3])
    draw_example(picture, example, grid)
    titles = {
        "causal": "causal: the picture never learns what was asked",
        "mma": "mma: image rows read the question's columns",
    }
    role, turn = torch.tensor([row.role]), torch.tensor([row.turn])
    for ax, (kind, title) in zip(masks, titles.items()):
        draw_mask(ax, kind, role, turn, words_of(row, tokenizer), title, 9.5)
    fig.savefig(path)


def draw_example(ax, example: data.Example, grid: int) -> None:
    """The picture with its patches numbered as the tokens are, the question and the answer."""
    pixels = example.images[0].permute(1, 2, 0).numpy()
    ax.imshow(pixels, extent=(0, grid, grid, 0))
    ax.set_xticks(range(grid + 1), [])
    ax.set_yticks(range(grid + 1), [])
    ax.grid(color="white")
    for k in range(grid * grid):
        ax.text(k % grid + 0.05, k // grid + 0.22, str(k + 1), color="white", fontsize=11)
    question, answer = example.turns[0]
    ax.set_xlabel(f"{question.replace(data.IMAGE_TOKEN, '')}\n{answer}", fontsize=11)
