"""What the model looks at, causal against mma: the paper's explanation, tested on the built-in world.

    python look.py RUN [RUN ...]                       print the shares
    python look.py RUN [RUN ...] --results results     and write look.md, look.json and look.png there

Layer by layer, mean over heads and over test questions: the share of attention that image rows give to the question's columns
(zero under a causal mask, by construction), and the share that the row which produces the answer gives to the cells that hold what
the question asks about. Runs that differ by seed alone are pooled. Below: one picture, two questions, and where that row looks.

Shapes:  L layers   B questions   H heads   T columns
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import data
import eval as evaluation
from data import shapes
from mma import Role

COLOURS = {"mma": (240, 130, 30), "causal": (60, 100, 180)}


@torch.no_grad()
def attention(model, tokenizer, examples, turn: int = 0) -> tuple[torch.Tensor, dict]:
    """Attention weights over the prompts of the examples, up to the answer of a turn; mean over heads, [L, B, T, T]. And the batch."""
    config = model.config
    rows = [data.encode(e, tokenizer, config.n_image_tokens, upto=turn, text_first=config.text_first) for e in examples]
    batch = {k: x.to(model.embed.weight.device) for k, x in data.collate(rows, tokenizer.pad, config.image_size).items()}
    weights = []
    model(**batch, weights=weights)
    return torch.stack([w.mean(1) for w in weights]).cpu(), {k: x.cpu() for k, x in batch.items()}


def to_picture(weights: torch.Tensor, role: torch.Tensor) -> torch.Tensor:
    """What the row that produces the answer gives to each image token: [L, B, n] of weights [L, B, T, T], role [B, T]."""
    B = len(role)
    last = (role != Role.PAD).sum(1) - 1  # the token that opens the answer
    return weights[:, torch.arange(B), last][:, role == Role.IMAGE].view(len(weights), B, -1)


def attended(model, tokenizer, example: data.Example, turn: int) -> list[tuple[int, int]]:
    """[(grid, patch)]: the patches of the example's first picture that get at least twice the mean share of what the row that produces
    the answer gives to the picture; mean over layers and heads."""
    if not example.images:
        return []
    weights, batch = attention(model, tokenizer, [example], turn)
    n = model.config.n_image_tokens
    look = to_picture(weights, batch["role"]).mean(0)[0, :n]
    return [(model.config.grid, patch) for patch in (look >= 2 * look.mean()).nonzero().flatten().tolist()]


def measure(run: Path, n: int, device: str) -> dict:
    """Shares over the first n test questions that name something that is there."""
    model, tokenizer, record = evaluation.open_run(run, device)
    if record["args"]["data"] != "shapes" or model.config.n_image_tokens != shapes.CELLS:
        raise data.DataError(f"{run}: look.py needs runs on --data shapes whose image tokens are its {shapes.CELLS} cells")
    world = shapes.Shapes()
    examples, layouts = world.heldout("test"), world.layouts("test")
    asked = [shapes.asked_about(e.turns[0][0], layouts[i // 5]) for i, e in enumerate(examples)]
    some = [i for i, cells in enumerate(asked) if cells][:n]
    weights, batch = attention(model, tokenizer, [examples[i] for i in some])
    role = batch["role"]
    named = torch.zeros(len(some), shapes.CELLS)
    for row, i in zip(named, some):
        row[asked[i]] = 1
    image, question = role == Role.IMAGE, role == Role.QUESTION
    image_to_question = (weights * question[:, None]).sum(-1)[:, image].mean(1)
    picture = to_picture(weights, role)
    return {"run": str(run), "mask": record["mask"], "seed": record["seed"], "questions": len(some),
            "image_to_question": image_to_question.tolist(),
            "answer_to_asked": (picture * named).sum(-1).mean(1).tolist(),
            "answer_to_picture": picture.sum(-1).mean(1).tolist(),
            "asked_share_of_cells": named.mean().item()}


def plot(pen, left, top, title, series, W=250, H=150):
    """Lines over the layers, 0 to 100 %: series = [(colour, label, values)]."""
    pen.text((left, top - 30), title, fill="black")
    for value in range(0, 101, 25):
        y = top + H * (100 - value) / 100
        pen.line([(left, y), (left + W, y)], fill=(220, 220, 220))
        pen.text((left - 34, y - 6), f"{value:3d} %", fill="black")
    for k, (colour, label, values) in enumerate(series):
        at = [(left + W * (layer + .5) / len(values), top + H * (1 - value)) for layer, value in enumerate(values)]
        pen.line(at, fill=colour, width=3)
        for x, y in at:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        pen.text((left + 6, top + 4 + 14 * k), label, fill=colour)
    for layer in range(len(series[0][2])):
        pen.text((left + W * (layer + .5) / len(series[0][2]) - 20, top + H + 5), f"layer {layer + 1}", fill="black")


def draw(path: Path, pools: dict[str, list[dict]], device: str) -> None:
    """The figure: two plots, and one picture with two questions as each mask's first run sees it."""
    sheet = Image.new("RGB", (680, 260 + 190 * len(pools)), "white")
    pen = ImageDraw.Draw(sheet)

    def mean(runs, key):
        return [statistics.mean(values) for values in zip(*(run[key] for run in runs))]

    for left, key, title in ((60, "image_to_question", "image rows -> the question"),
                             (400, "answer_to_asked", "answer row -> the objects asked about")):
        series = [(COLOURS.get(mask, (90, 90, 90)), f"{mask} ({len(runs)} seeds)", mean(runs, key)) for mask, runs in pools.items()]
        plot(pen, left, 45, "share of attention: " + title, series)
    world = shapes.Shapes()
    examples = [e for e in world.heldout("test", 5) if e.family in ("counting", "attribute")]
    for k, (mask, runs) in enumerate(pools.items()):
        model, tokenizer, _ = evaluation.open_run(Path(runs[0]["run"]), device)
        weights, batch = attention(model, tokenizer, examples)
        looks = to_picture(weights, batch["role"]).mean(0)  # over the layers
        for q, (example, look) in enumerate(zip(examples, looks)):
            x, y, side = 20 + 330 * q, 250 + 190 * k, 140
            picture = Image.fromarray(example.images[0].permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
            light = (look / look.max()).view(shapes.GRID, shapes.GRID).mul(220).add(35).byte()
            veil = Image.fromarray(light.numpy()).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (x, y))
            sheet.paste(Image.composite(picture, Image.new("RGB", picture.size, "black"), veil), (x + side + 5, y))
            pen.text((x, y + side + 4), f"{mask}: {example.turns[0][0].replace(data.IMAGE, '')} [{example.turns[0][1]}]",
                     fill=COLOURS.get(mask, (90, 90, 90)))
    sheet.save(path)


def pool(records: list[dict]) -> dict[str, list[dict]]:
    """mask -> its records, one for each seed."""
    pools = {}
    for record in records:
        pools.setdefault(record["mask"], []).append(record)
    return pools


def text(records: list[dict]) -> str:
    """The table, as Markdown."""
    layers = len(records[0]["image_to_question"])
    rows = [["mask (seeds)", "layer", "image rows to question", "answer row to picture", "answer row to asked objects"]]
    rows += [[f"{mask} ({len(runs)})", str(layer + 1), *(evaluation.spread([100 * run[key][layer] for run in runs]) + " %"
             for key in ("image_to_question", "answer_to_picture", "answer_to_asked"))]
             for mask, runs in pool(records).items() for layer in range(layers)]
    return (f"{evaluation.markdown(rows)}\n\nThe objects asked about fill {records[0]['asked_share_of_cells']:.0%} of the cells; "
            f"{records[0]['questions']:,} test questions, mean ± standard deviation over seeds.")


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="runs of train.py on --data shapes")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write look.md, look.json and look.png here")
    parser.add_argument("--questions", type=int, default=1000, help="test questions to measure on (default: 1000)")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        records = [measure(run, args.questions, args.device) for run in args.runs]
        print(text(records))
        if args.results:
            args.results.mkdir(parents=True, exist_ok=True)
            (args.results / "look.md").write_text(text(records) + "\n", encoding="utf-8")
            (args.results / "look.json").write_text(json.dumps(records, indent=1) + "\n")
            draw(args.results / "look.png", pool(records), args.device)
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
