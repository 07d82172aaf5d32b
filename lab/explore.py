"""An attention explorer: what each token reads and who reads it, as one page for a browser.

    python -m lab.explore RUN [RUN ...] --out page.html
    python -m lab.explore RUN [RUN ...] --out page.html --image FILE --question "..."

The first shows ten held-out pictures with two questions each; the second a picture of yours: give
--question twice to compare.

The page is explore.html with panels.css, panels.js and one block of JSON in it, and needs no
network. Of each run, picture, question and turn of its dialogue it holds the row (the prompt, in
which earlier turns stand with true answers, then the run's own greedy answer), the mask, and the
attention of every layer and head, where the mask lets there be any, in steps of 1/255. "change" is
what a question does to the picture: how far the hidden state of each image token after each layer
lies from where the first question puts it, |a - b| / mean(|a|, |b|), rounded to 1e-4. Under a
causal mask that is 0, unless the question comes first.

Shapes:  L layers   H heads   T tokens of a row   n image tokens of all its pictures
         Q questions about one picture
"""

import argparse
import base64
import io
import json
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
from engine.asking import check_asked, check_sees, examples_of
from engine.options import Parser, add_run_options, positive
from engine.precision import check_device
from engine.run import check_writable, one_line_errors, read_record
from eval import normalise, open_run
from lab.recording import recorded
from mma import EXTRA_PAIRS, IMAGE, Role
from model import MLLM

TEMPLATE = Path(__file__).with_name("explore.html")
PICTURES, QUESTIONS = 10, 2  # by default; questions about each
LIMIT = 2_000_000  # bytes of a page
LONGEST = 32  # tokens of an answer


def pairs(examples: list[data.Example], n: int = PICTURES) -> list[list[data.Example]]:
    """Examples that show the same picture and ask different things, up to QUESTIONS (the last) for
    each of n pictures; first those that have as many, then what else there is."""
    groups = {}
    for i, e in enumerate(examples):
        messages = tuple(message for message, _ in e.turns)
        groups.setdefault(tuple(e.images) or i, {}).setdefault(messages, e)
    asked = [list(group.values())[-QUESTIONS:] for group in groups.values()]
    return sorted(asked, key=lambda some: -len(some))[:n]


def until(example: data.Example, turn: int) -> data.Example:
    """The dialogue up to a turn, counted from 0, or to its last one if that comes before."""
    turns = example.turns[: turn + 1]
    pictures = sum(message.count(data.IMAGE_TOKEN) for message, _ in turns)
    return replace(example, turns=turns, images=example.images[:pictures])


@torch.no_grad()
def trace(model: MLLM, tokenizer: data.Tokenizer, asked: list[data.Example]) -> dict:
    """What one run does with the questions about one picture, the last ones of dialogues. Tensors
    by question: ids, role, turn [T], mask bool [T, T], weights [L, H, T, T], change [L, n] (None
    where there is no picture, or not as many as in the first); and `given`, the answers as text."""
    config, device, states = model.config, model.embed.weight.device, []

    def batch_of(rows):
        batch = data.collate(rows, tokenizer.pad, config.image_size)
        return {name: x.to(device) for name, x in batch.items()}

    rows = [data.encode(e, tokenizer, config.n_image_tokens, upto=len(e.turns) - 1) for e in asked]
    answers = model.generate(**batch_of(rows), eos=tokenizer.ends, max_new_tokens=LONGEST)
    for row, answer in zip(rows, answers):
        row.add(answer, Role.ANSWER, row.turn[-1])
    batch = batch_of(rows)
    with ExitStack() as hooks:
        weights = hooks.enter_context(recorded(model))
        for block in model.blocks:
            hook = block.register_forward_hook(lambda block, inputs, output: states.append(output))
            hooks.enter_context(hook)
        model(**batch)
    mask = model.context_of(config.mask, batch["role"], batch["turn"]).attention_mask[:, 0].cpu()
    weights = torch.stack(weights, 1).cpu()  # [Q, L, H, T, T]
    states = torch.stack(states, 1).float().cpu()  # [Q, L, T, D]
    lengths, is_image = [len(row.ids) for row in rows], batch["role"].cpu() == IMAGE
    pictures = [states[q][:, is_image[q]] for q in range(len(rows))]  # each [L, n, D]
    return {
        **{name: [torch.tensor(getattr(row, name)) for row in rows]
           for name in ("ids", "role", "turn")},
        "mask": [mask[q, :T, :T] for q, T in enumerate(lengths)],
        "weights": [weights[q, :, :, :T, :T] for q, T in enumerate(lengths)],
        "change": [change(pictures[0], other) for other in pictures],
        "given": [tokenizer.decode(answer) for answer in answers],
    }  # fmt: skip


def change(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """How far the states a, b [L, n, D] of image tokens lie apart: [L, n]."""
    if not a.numel() or a.shape != b.shape:
        return None
    return 2 * (a - b).norm(dim=-1) / (a.norm(dim=-1) + b.norm(dim=-1))


# --- What the page holds


def page_of(template: Path, content) -> str:
    """A template with `content` as JSON at {{DATA}}, and the file NAME beside it at {{NAME}}."""
    block = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end it

    def part(match) -> str:
        name = match[1]
        return block if name == "DATA" else template.with_name(name).read_text(encoding="utf-8")

    return re.sub(r"\{\{([\w.]+)\}\}", part, template.read_text(encoding="utf-8"))


def text64(values: np.ndarray) -> str:
    """uint8 as base64."""
    return base64.b64encode(values.tobytes()).decode()


def png(image, size: int, side: int) -> str:
    """A picture as the model gets it, as a data URI; side: how many pixels of each line are in a
    patch."""
    file, pixels = io.BytesIO(), data.pixels_of(image, size, "")[:, :side, :side]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def record(runs: list[tuple[str, MLLM, data.Tokenizer]], asked: list[data.Example]) -> dict:
    """One picture, or row of pictures, with its questions, each with the turns of its dialogue: an
    example of the page."""
    config, questions = runs[0][1].config, [{"turns": []} for _ in asked]
    for t in range(max(len(e.turns) for e in asked)):
        cut = [until(e, t) for e in asked]
        seen = [(trace(model, tokenizer, cut), tokenizer) for _, model, tokenizer in runs]
        for q, e in enumerate(asked):
            if t >= len(e.turns):
                continue
            message, answer = e.turns[t]
            text = message.replace(data.IMAGE_TOKEN, " ").strip()
            rows = [record_row({name: values[q] for name, values in run.items()}, tokenizer, answer)
                    for run, tokenizer in seen]  # fmt: skip
            questions[q]["turns"].append({"text": text, "answer": answer, "rows": rows})
    side = config.image_size // config.patch_size * config.patch_size
    pictures = [png(image, config.image_size, side) for image in asked[0].images]
    return {"pictures": pictures, "questions": questions}


def record_row(row: dict, tokenizer: data.Tokenizer, answer: str) -> dict:
    """One run's row for one question; row: as trace gives it."""
    roles, mask, moved = row["role"].tolist(), row["mask"], row["change"]
    ids = row["ids"].tolist()
    weights = (row["weights"][:, :, mask] * 255).round().to(torch.uint8)
    return {
        "tokens": ["" if r == IMAGE else tokenizer.piece(i) for i, r in zip(ids, roles)],
        "role": roles,
        "turn": row["turn"].tolist(),
        "given": row["given"],
        "correct": normalise(row["given"]) == normalise(answer) if answer else None,
        "mask": text64(np.packbits(mask.numpy(), bitorder="little")),
        "weights": text64(weights.numpy()),
        "change": None if moved is None else (moved.double() * 1e4).round().div(1e4).tolist(),
    }


def write(path: Path, runs: list[tuple[str, MLLM, data.Tokenizer]], groups: list[list]) -> str:
    """The page; runs: name, model and tokenizer of each. Returns what to print: what is in it, and
    what had to be left out."""
    examples, size = [], len(page_of(TEMPLATE, None).encode()) + 1000 * len(runs)
    for asked in groups:
        example = record(runs, asked)
        size += len(json.dumps(example))
        if examples and size > LIMIT:
            break
        examples.append(example)
    page = page_of(TEMPLATE, {"runs": [about_run(*run) for run in runs], "examples": examples})
    path.write_text(page, encoding="utf-8")
    asked, left_out = sum(len(e["questions"]) for e in examples), len(groups) - len(examples)
    said = f"wrote {path}: {asked} question{'s' * (asked != 1)}, {len(page.encode()) / 1e6:.2f} MB"
    why = f"; {left_out} of {len(groups)} examples left out, to stay below {LIMIT / 1e6:.0f} MB"
    return said + why * (left_out > 0)


def about_run(name: str, model: MLLM, tokenizer: data.Tokenizer) -> dict:
    """What the page says of a run."""
    config = model.config
    text_first = tokenizer.arrange([data.IMAGE_TOKEN, "?"])[0] != data.IMAGE_TOKEN
    sizes = {"layers": config.n_layer, "heads": config.n_head, "grid": config.grid}
    return {"name": name, "mask": config.mask, "text_first": text_first, **sizes}


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_run_options(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the page")
    add("--image", type=Path, metavar="FILE", help="a picture of yours")
    add("--question", action="append", help="about it; may be given again")
    add("--mask", choices=list(EXTRA_PAIRS), metavar="KIND", help="another than in training")
    add("--limit", type=positive, default=PICTURES, metavar="N", help="pictures (default: 10)")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        check_device(args.device)
        check_writable(args.out)
        check_asked(args)
        records = [read_record(run)["args"] for run in args.runs]
        runs = [(run.resolve().name, *open_run(run, args.device, args.mask)) for run in args.runs]
        if args.image:
            for run, trained in zip(args.runs, records):
                check_sees(trained, run, "pictures", "the page shows held-out ones without --image")
            turns = [(data.about_picture(question), "") for question in args.question]
            groups = [[data.Example([args.image], [turn]) for turn in turns]]
        else:
            pictures, args.limit = args.limit, None
            _, examples, _ = examples_of(records[0], args, runs[0][1].config.image_size)
            groups = pairs(examples, pictures)
        print(write(args.out, runs, groups))


if __name__ == "__main__":
    main()
