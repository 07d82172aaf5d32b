"""A playground: the model itself in a page, to build a scene, ask, and see what each mask answers.

    python -m lab.playground RUN [RUN] --out playground.html

Two runs stand side by side, each under its own mask, and the page opens with a question that they
answer differently; of one run alone, the same weights with the mask's rectangle open and shut. The
page is one file without a network: playground.html with its scripts. playground_model.js is mma.py
and model.py, playground_data.js the tokenizer, the prompt and the pictures; weights are in half
precision, as lab/weights.py keeps them. It holds runs on --data shapes of the model of model.py, no
variants.
"""

import base64
import re
import zlib
from dataclasses import asdict
from pathlib import Path

import torch

import data
from data import shapes
from data.shapes import scenes as shapes_scenes
from engine.options import Parser
from engine.run import check_writable, one_line_errors, read_record
from eval import ask, open_run
from lab.explore import page_of
from lab.weights import half
from mma import EXTRA_PAIRS, Role
from model import MLLM

TEMPLATE = Path(__file__).with_name("playground.html")
SCENES = 60  # of the test split, with their questions
# What render draws anew for each picture, fixed: 1 of 3 sizes, and the middle of what it may draw
SIZE, BRIGHTNESS, BACKGROUND = 1, 0.925, 40
PALETTE = (shapes_scenes.PALETTE * BRIGHTNESS).to(torch.uint8)
WORD = re.compile(r"\w+|[^\w\s]")


def opened(run: Path) -> tuple[MLLM, data.Tokenizer]:
    """A run that the page can hold. DataError says why another cannot."""
    args = read_record(run)["args"]
    if args["data"] != "shapes":
        raise data.DataError(f"{run}: the page draws scenes of --data shapes, not {args['data']}")
    if args.get("variant") or args.get("template"):
        what = args.get("variant") or "pretrained weights"
        raise data.DataError(f"{run}: playground_model.js mirrors model.py alone, not {what}")
    model, tokenizer = open_run(run, "cpu")
    side, size = shapes_scenes.GRID * shapes_scenes.CELL, model.config.image_size
    if size != side:
        raise data.DataError(f"{run}: the page draws pictures of {side} pixels, not {size}")
    return model, tokenizer


# --- What the page holds


def text64(weights: dict) -> str:
    """All numbers in half precision, deflated and as base64: first the low byte of each, then the
    high bytes. These, sign and exponent, shrink by a quarter, so that two runs fit 6 MB."""
    numbers = torch.cat([w.flatten() for w in half(weights).values()])
    planes = numbers.view(torch.uint8).view(-1, 2).T.contiguous()
    return base64.b64encode(zlib.compress(planes.numpy().tobytes(), 9)).decode()


def about_tokenizer(tokenizer: data.Tokenizer) -> dict:
    """Of each piece its text, its score, and its type: n, may be merged; c, control; b, a byte; u,
    unknown."""
    sp, ids = tokenizer.sp, range(len(tokenizer))
    kinds = {"c": sp.is_control, "b": sp.is_byte, "u": sp.is_unknown, "n": lambda i: True}
    type_of = lambda i: next(kind for kind, is_kind in kinds.items() if is_kind(i))
    special = {name: getattr(tokenizer, name) for name in ("bos", "eos", "image", "answer")}
    return {
        "pieces": [sp.id_to_piece(i) for i in ids],
        "scores": [sp.get_score(i) for i in ids],
        "types": "".join(map(type_of, ids)),
        "special": special,
    }


def about_run(name: str, model: MLLM, tokenizer: data.Tokenizer) -> dict:
    weights = model.state_dict()
    return {
        "name": name,
        "config": asdict(model.config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokenizer": about_tokenizer(tokenizer),
        "names": [[name, list(w.shape)] for name, w in weights.items()],
        "weights": text64(weights),
    }


def picture_of(cells: list[int]) -> torch.Tensor:
    """uint8 [3, 64, 64]: what `render` of playground_data.js draws."""
    layout, grid, cell = torch.tensor(cells), shapes_scenes.GRID, shapes_scenes.CELL
    kind = layout.clamp(min=0)
    shape, colour = kind % len(shapes_scenes.SHAPE), kind // len(shapes_scenes.SHAPE)
    ink = shapes_scenes.SPRITES[shape, SIZE] & (layout >= 0)[:, None, None]  # [cells, cell, cell]
    pixels = torch.where(ink[:, None], PALETTE[colour][..., None, None], BACKGROUND)
    pixels = pixels.view(grid, grid, 3, cell, cell).permute(2, 0, 3, 1, 4)
    return pixels.reshape(3, grid * cell, grid * cell)


def opening(scenes: list[dict], runs: list[tuple[str, MLLM, data.Tokenizer]]) -> dict:
    """What the page opens with: the first question, in the order of the test split, that two runs
    answer differently; the first of all, if there is none, or one run. "differ" says which."""
    for number, scene in enumerate(scenes) if len(runs) > 1 else ():
        picture, questions = picture_of(scene["cells"]), scene["questions"]
        answers = [ask(model, tokenizer, picture, questions) for _, model, tokenizer in runs]
        for question, *given in zip(questions, *answers):
            if given[0] != given[1]:
                return {"scene": number, "question": question, "differ": True}
    return {"scene": 0, "question": scenes[0]["questions"][0], "differ": False}


def about_world() -> dict:
    """What the page needs of data/shapes/scenes.py, some scenes with their questions, and all words
    of the training text."""
    world = shapes.Shapes()
    asked = [e.turns[0][0].replace(data.IMAGE_TOKEN, "") for e in world.heldout("test")]
    scenes = [
        {"cells": cells, "questions": asked[i * shapes.QUESTIONS : (i + 1) * shapes.QUESTIONS]}
        for i, cells in enumerate(world.layouts("test")[:SCENES])
    ]
    rows = shapes_scenes.SPRITES[:, SIZE].tolist()
    sprites = [["".join(".#"[ink] for ink in row) for row in sprite] for sprite in rows]
    objects = shapes_scenes.MULTIPLICITY.sum(1)
    return {
        "colours": shapes_scenes.COLOUR,
        "shapes": shapes_scenes.SHAPE,
        "grid": shapes_scenes.GRID,
        "cell": shapes_scenes.CELL,
        "sprites": sprites,
        "palette": PALETTE.tolist(),
        "background": BACKGROUND,
        "objects": [int(objects.min()), int(objects.max())],
        "scenes": scenes,
        "words": sorted({word for text in world.texts() for word in WORD.findall(text)}),
    }


def opens(kind: str) -> list[list[bool]]:
    """What EXTRA_PAIRS[kind] says of every pair of roles: [role_i][role_j]."""
    role_i, role_j = torch.meshgrid(*[torch.tensor([*map(int, Role)])] * 2, indexing="ij")
    return EXTRA_PAIRS[kind](role_i, role_j).tolist()


def page(runs: list[tuple[str, MLLM, data.Tokenizer]]) -> str:
    """The page as HTML; runs: name, model and tokenizer of each."""
    kinds, world = {"causal", "mma", *(model.config.mask for _, model, _ in runs)}, about_world()
    content = {
        "runs": [about_run(*run) for run in runs],
        "pairs": {kind: opens(kind) for kind in sorted(kinds)},
        "world": world,
        "opening": opening(world["scenes"], runs),
    }
    return page_of(TEMPLATE, content)


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="one folder that train.py wrote, or two")
    add("--out", type=Path, required=True, metavar="FILE", help="the page")
    args = parser.parse_args(argv)
    if len(args.runs) > 2:
        parser.error(f"the page shows one run or two, not {len(args.runs)}")
    with one_line_errors():
        check_writable(args.out)
        text = page([(run.resolve().name, *opened(run)) for run in args.runs])
        args.out.write_text(text, encoding="utf-8")
        print(f"wrote {args.out}: {len(args.runs)} runs, {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
