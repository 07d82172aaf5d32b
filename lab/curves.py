"""Charts, by matplotlib: validation accuracy over the steps of finished runs; and figures of masks.

    python -m lab.curves RUN [RUN ...] --png FILE     accuracy of finished runs; seeds are pooled
    python -m lab.curves --figure FILE                causal and mma over one example of the world
    python -m lab.curves --masks FILE                 every mask

mma is orange and causal is blue, in all of them. FILE of --png may end in .pdf or .svg, too.
Training draws its own curves (watch.py).
"""

import re
from pathlib import Path

import torch

import data
import mma
from data.errors import need
from engine.options import Parser
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import pool
from lab.results import curve_of
from lab.watch import COLOURS, OTHERS, figure
from mma import EXTRA_PAIRS, IMAGE, QUESTION, attention_mask

BLOCKED = "#e4e4e4"
INK = {IMAGE: COLOURS["causal"], QUESTION: "#c06010", mma.ANSWER: "#2a8a4a"}

# --- Curves


def arm_of(label: str) -> str:
    """The arm that a label begins with. A run is called DATA-ARM-SEED where nothing else tells it
    apart."""
    name = label.split(" ")[0].split("@")[0]
    run = re.fullmatch(r"[^-]+-(.+)-\d+'*", name)
    return run[1] if run and name not in COLOURS else name


def colours_of(labels: list[str]) -> dict[str, tuple]:
    """A colour for each label, by the arm that it begins with; mma@2, mma@4: shades of one colour,
    the last the darkest."""
    from matplotlib.colors import to_rgb

    arms = [arm_of(label) for label in labels]
    unknown = [arm for arm in dict.fromkeys(arms) if arm not in COLOURS]
    base = COLOURS | {arm: OTHERS[k % len(OTHERS)] for k, arm in enumerate(unknown)}
    colours = {}
    for k, (label, arm) in enumerate(zip(labels, arms)):
        pale = 0.7 * arms[k + 1 :].count(arm) / arms.count(arm)
        colours[label] = tuple(c + pale * (1 - c) for c in to_rgb(base[arm]))
    return colours


def write_curves(path, groups: dict[str, list[dict]]) -> None:
    """A PNG of validation accuracy (0 to 1) over the steps of stage 2: means and, shaded, from the
    lowest to the highest seed. groups: label -> for each seed, step -> accuracy."""
    need("pandas", "curves of several runs")
    import pandas as pd

    frames = {label: 100 * pd.DataFrame(runs).sort_index(axis=1)
              for label, runs in groups.items() if any(runs)}  # fmt: skip
    if not frames:
        raise data.DataError(
            "no run looked at its validation split (--eval-every), so there are no curves to draw"
        )
    (fig, (ax,)), colours = figure(7.2, 4.2), colours_of(list(frames))
    for label, seeds in frames.items():
        style = dict(color=colours[label], marker="o" if len(seeds.columns) < 6 else None)
        ax.plot(seeds.columns, seeds.mean(), label=label, linewidth=2, **style)
        if len(seeds) > 1:
            reach = dict(color=colours[label], alpha=0.18, linewidth=0)
            ax.fill_between(seeds.columns, seeds.min(), seeds.max(), **reach)
    ax.set(xlabel="step of stage 2", ylabel="validation accuracy, %")
    ax.set_ylim(top=100)
    ax.legend(frameon=False, loc="best")
    fig.savefig(path)


def write_curves_of(path, runs: list[Path]) -> None:
    """The curves of finished runs."""
    groups = pool([{**read_record(run), "run": str(run)} for run in runs])
    curves = {label: [curve_of(Path(r["run"])) for r in some] for label, some in groups.items()}
    write_curves(path, curves)


# --- Masks over an example


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


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="finished runs")
    add("--png", type=Path, metavar="FILE", help="their validation accuracy")
    add("--figure", type=Path, metavar="FILE", help="two masks over an example")
    add("--masks", type=Path, metavar="FILE", help="every mask")
    args = parser.parse_args(argv)
    with one_line_errors():
        if bool(args.runs) != bool(args.png) or not (args.runs or args.figure or args.masks):
            raise data.DataError("RUN and --png belong together; else --figure or --masks")
        check_writable(args.png, args.figure, args.masks)
        if args.png:
            write_curves_of(args.png, args.runs)
        if args.figure:
            write_figure(args.figure)
        if args.masks:
            write_masks(args.masks)
        for file in filter(None, (args.png, args.figure, args.masks)):
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
