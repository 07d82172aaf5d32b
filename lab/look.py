"""What the model looks at, causal against mma: the paper's explanation, in the built-in world.

    python -m lab.look RUN [RUN ...]                            print the shares
    python -m lab.look RUN [RUN ...] --results runs/results     write look.md, look.json, look.png

Layer by layer, mean over heads and over test questions: the share of attention that image rows give
to the question's columns (zero under a causal mask, by construction), and the share that the row
which produces the answer gives to the cells that hold what the question asks about. Runs that
differ by seed alone are pooled (engine.tables.pool). Below the two charts of look.png: one picture,
two questions, and where that row looks, for the first run of each pool.

Shapes:  L layers   B questions   H heads   T columns   n image tokens of a picture
"""

import argparse
import json
from pathlib import Path

import torch

import data
from data import shapes
from engine.options import Parser, positive
from engine.precision import check_device
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import markdown, pool, spread
from eval import open_run
from lab.recording import recorded
from mma import IMAGE, PAD, QUESTION


@torch.no_grad()
def attention(model, tokenizer, examples, turn: int = 0) -> tuple[torch.Tensor, dict]:
    """Attention weights over the prompts of the examples, up to the answer of a turn; mean over
    heads, [L, B, T, T]. And the batch."""
    config, device = model.config, model.embed.weight.device
    rows = [data.encode(e, tokenizer, config.n_image_tokens, upto=turn) for e in examples]
    batch = data.collate(rows, tokenizer.pad, config.image_size)
    with recorded(model) as weights:
        model(**{name: x.to(device) for name, x in batch.items()})
    return torch.stack([w.mean(1) for w in weights]).cpu(), batch


def to_picture(weights: torch.Tensor, role: torch.Tensor) -> torch.Tensor:
    """What the row that produces the answer gives to each image token: [L, B, n] of weights
    [L, B, T, T], role [B, T]."""
    B = len(role)
    last = (role != PAD).sum(1) - 1  # the token that opens the answer
    return weights[:, torch.arange(B), last][:, role == IMAGE].view(len(weights), B, -1)


def attended(model, tokenizer, example: data.Example, turn: int) -> list[tuple[int, int]]:
    """[(grid, patch)]: the patches of the example's first picture that get at least twice the mean
    share of what the row that produces the answer gives to it; mean over layers and heads."""
    if not example.images:
        return []
    weights, batch = attention(model, tokenizer, [example], turn)
    shares = to_picture(weights, batch["role"]).mean(0)[0, : model.config.n_image_tokens]
    patches = (shares >= 2 * shares.mean()).nonzero().flatten().tolist()
    return [(model.config.grid, patch) for patch in patches]


def measure(run: Path, n: int, device: str) -> dict:
    """Shares over the first n test questions that name something that is there."""
    record = read_record(run)
    model, tokenizer = open_run(run, device)
    if record["args"]["data"] != "shapes" or model.config.n_image_tokens != shapes.CELLS:
        raise data.DataError(
            f"{run}: this needs runs on --data shapes whose image tokens are its "
            f"{shapes.CELLS} cells"
        )
    world = shapes.Shapes()
    examples, layouts = world.heldout("test"), world.layouts("test")
    named = [
        shapes.asked_about(e.turns[0][0], layouts[i // shapes.QUESTIONS])
        for i, e in enumerate(examples)
    ]
    chosen = [i for i, cells in enumerate(named) if cells][:n]
    weights, batch = attention(model, tokenizer, [examples[i] for i in chosen])
    role, asked = batch["role"], torch.zeros(len(chosen), shapes.CELLS)
    for row, i in zip(asked, chosen):
        row[named[i]] = 1
    picture, is_question = to_picture(weights, role), role == QUESTION
    image_to_question = (weights * is_question[:, None]).sum(-1)[:, role == IMAGE].mean(1)
    return {
        "run": str(run),
        "mask": record["mask"],
        "seed": record["seed"],
        "args": record["args"],
        "questions": len(chosen),
        "image_to_question": image_to_question.tolist(),
        "answer_to_asked": (picture * asked).sum(-1).mean(1).tolist(),
        "answer_to_picture": picture.sum(-1).mean(1).tolist(),
        "asked_share_of_cells": asked.mean().item(),
    }


def draw(path: Path, pools: dict[str, list[dict]], device: str) -> None:
    """look.png: the shares over the layers, and under them what each pool's first run looks at."""
    from lab.curves import figure

    fig, _ = figure(9, 3.6 + 2.4 * len(pools), columns=0)
    charts, pictures = fig.subfigures(2, 1, height_ratios=[3.6, 2.4 * len(pools)])
    draw_shares(charts, pools)
    draw_looks(pictures, {label: Path(runs[0]["run"]) for label, runs in pools.items()}, device)
    fig.savefig(path)


def draw_shares(fig, pools: dict[str, list[dict]]) -> None:
    """The shares over the layers, of each pool: mean and reach over seeds."""
    from lab.curves import draw_lines, style

    titles = {
        "image_to_question": "image rows -> the question",
        "answer_to_asked": "answer row -> the objects asked about",
    }
    for ax, (key, title) in zip(fig.subplots(1, 2), titles.items()):
        style(ax)
        lines = {}
        for label, runs in pools.items():
            of_layers = zip(*(run[key] for run in runs))
            lines[label] = [(n, [100 * x for x in shares]) for n, shares in enumerate(of_layers, 1)]
        draw_lines(ax, lines)
        ax.set(xlabel="layer", ylabel="share of attention, %", title=title)
        ax.set_xticks(range(1, max(map(len, lines.values())) + 1))
        ax.set_ylim(bottom=0)


def draw_looks(fig, runs: dict[str, Path], device: str) -> None:
    """A row for each label: one picture with two questions, each time as it is, and darkened where
    the row that produces the answer looks less; mean over layers and heads."""
    from lab.curves import colours_of

    heldout = shapes.Shapes().heldout("test", 5)
    examples = [e for e in heldout if e.family in ("counting", "attribute")]
    colours, grid = colours_of(list(runs)), fig.subplots(len(runs), 4, squeeze=False)
    for (label, run), axes in zip(runs.items(), grid):
        name = label.partition(" (")[0]  # of one run, whatever the number of seeds
        for ax in axes:
            ax.set_axis_off()
        model, tokenizer = open_run(run, device)
        weights, batch = attention(model, tokenizer, examples)
        looks = to_picture(weights, batch["role"]).mean(0)  # over the layers
        for q, (example, look) in enumerate(zip(examples, looks)):
            question, answer = example.turns[0]
            pixels = example.images[0].permute(1, 2, 0).numpy()
            axes[2 * q].imshow(pixels)
            axes[2 * q + 1].imshow(darken(pixels, look))
            title = f"{name}: {question.replace(data.IMAGE_TOKEN, '')} [{answer}]"
            axes[2 * q].set_title(title, loc="left", fontsize=9, color=colours[label])


def darken(pixels, look: torch.Tensor):
    """A picture, uint8 [size, size, 3], bright where look [n] is large."""
    light = (0.14 + 0.86 * look / look.max()).view(shapes.GRID, shapes.GRID)
    cell = len(pixels) // shapes.GRID
    light = light.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:, :, None]
    return (pixels * light.numpy()).astype("uint8")


def text(records: list[dict]) -> str:
    """The table, as Markdown."""
    head = "mask (seeds)", "layer", "image rows to question", "answer row to picture"
    rows = [[*head, "answer row to asked objects"]]
    keys = ("image_to_question", "answer_to_picture", "answer_to_asked")
    for label, runs in pool(records).items():
        label = label.replace(" seeds)", ")")  # the head says what the number is
        for layer in range(len(runs[0][keys[0]])):
            shares = [spread([100 * run[key][layer] for run in runs]) + " %" for key in keys]
            rows.append([label, str(layer + 1), *shares])
    first = records[0]
    return (
        f"{markdown(rows)}\n\nThe objects asked about fill {first['asked_share_of_cells']:.0%} of "
        f"the cells; {first['questions']:,} test questions, mean ± standard deviation over seeds."
    )


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="on --data shapes")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write look.* there")
    parser.add_argument("--questions", type=positive, default=1000, metavar="N", help="measured on")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cuda, mps or cpu (default: cpu)"
    )
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        if args.results:
            check_writable(args.results / "look.md", args.results / "look.json")
        records = [measure(run, args.questions, args.device) for run in args.runs]
        print(text(records))
        if args.results:
            (args.results / "look.md").write_text(text(records) + "\n", encoding="utf-8")
            named = [{**record, "run": Path(record["run"]).name} for record in records]
            for record in named:
                del record["args"]  # the run's own run.json has them
            (args.results / "look.json").write_text(json.dumps(named, indent=1) + "\n")
            draw(args.results / "look.png", pool(records), args.device)


if __name__ == "__main__":
    main()
