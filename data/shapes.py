"""The built-in world: 4 x 4 cells with coloured shapes, captions, and questions with exact answers in five families.

    python -m data.shapes                what the question alone can tell, by family, and how fast pictures are made
    python -m data.shapes --png FILE     a sheet of pictures

The scenes of a step are a function of (seed, stage, step), those of val and test are always the same, and a scene's layout
decides the split it may stand in, so that no layout of val or test is ever trained on. Answers are balanced by construction:
for each question the answer is drawn first, uniformly, then a question about the scene that has it. The rules are symmetric in
colours, shapes and places, so the words of a question tell nothing about its answer; what little chance leaves is measured by
`question_only`.

Shapes:  S scenes   CELLS = 16 cells in reading order   KINDS = 24 kinds (colour x shape)
"""

import argparse
import re
import time
from collections import Counter, defaultdict

import torch
from torch import Tensor

from data import IMAGE, Example, seed_of

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (50, 90, 220),
    "yellow": (235, 200, 40),
    "purple": (150, 60, 180),
    "cyan": (70, 200, 210),
}
COLOUR, SHAPE = list(COLOURS), ["circle", "square", "triangle", "diamond"]
GRID, CELL = 4, 16  # cells along a side, pixels along a cell
KINDS = len(COLOUR) * len(SHAPE)
CELLS, EMPTY = GRID * GRID, -1
SPLITS = {
    "train": range(0, 8),
    "val": range(8, 9),
    "test": range(9, 10),
}  # by layout hash modulo 10

# How many objects of each kind a scene holds. Every scene has a kind three times, one twice and one once, so questions with
# the answers 0, 1, 2, 3 exist everywhere; the last two are the only object of their colour and of their shape.
MULTIPLICITY = torch.tensor(
    [[3, 2, 1, 0, 1, 1], [3, 2, 1, 1, 1, 1], [3, 2, 2, 1, 1, 1], [3, 3, 2, 1, 1, 1]]
)


def sprites() -> Tensor:
    """bool [shape, size, CELL, CELL]: each shape in three sizes, centred."""
    at = torch.arange(CELL) - (CELL - 1) / 2
    y, x = at[:, None], at[None, :]
    out = []
    for name in SHAPE:
        for r in (4.0, 4.75, 5.5):
            out.append(
                {
                    "circle": x * x + y * y <= (r + 0.3) ** 2,
                    "square": (x.abs() <= r - 0.5) & (y.abs() <= r - 0.5),
                    "triangle": (y <= r) & (y >= -r) & (x.abs() <= (y + r) / 2 + 0.5),
                    "diamond": x.abs() + y.abs() <= r + 0.5,
                }[name]
            )
    return torch.stack(out).view(len(SHAPE), 3, CELL, CELL)


SPRITES = sprites()
PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)


def _permutation(S: int, n: int, g: torch.Generator) -> Tensor:
    return torch.rand(S, n, generator=g).argsort(1)


def layouts(S: int, g: torch.Generator) -> Tensor:
    """Scenes: int64 [S, CELLS], colour * len(SHAPE) + shape of the object in each cell, or EMPTY."""
    colour, shape = _permutation(S, len(COLOUR), g), _permutation(S, len(SHAPE), g)
    # kinds 0..3: four distinct ones of three colours x three shapes; kind 4: a fourth colour; kind 5: the fourth shape
    main = _permutation(S, 9, g)[:, :4]
    c = torch.cat([main // 3, torch.full((S, 1), 3), torch.randint(3, (S, 1), generator=g)], 1)
    s = torch.cat([main % 3, torch.randint(3, (S, 1), generator=g), torch.full((S, 1), 3)], 1)
    kind = colour.gather(1, c) * len(SHAPE) + shape.gather(1, s)  # [S, 6]
    many = MULTIPLICITY[torch.randint(len(MULTIPLICITY), (S,), generator=g)]  # [S, 6]
    slot = torch.arange(CELLS)[None, :, None]
    owner = (slot >= many.cumsum(1)[:, None]).sum(-1)  # [S, CELLS]: 6 = nobody
    objects = torch.cat([kind, torch.full((S, 1), EMPTY)], 1).gather(1, owner)
    return objects.gather(1, _permutation(S, CELLS, g))


def split_of(layout: Tensor) -> Tensor:
    """Layout hash modulo 10, int64 [S]: the scene's split (see SPLITS)."""
    h = torch.zeros(len(layout), dtype=torch.int64)
    for cell in (layout + 1).unbind(1):
        h = (h * 31 + cell) % 1_000_003
    return h * 7919 % 1_000_003 % 10


def scenes(S: int, split: str, g: torch.Generator) -> Tensor:
    """S layouts of the split, int64 [S, CELLS]."""
    kept, n = [], 0
    while n < S:
        some = layouts(max(64, int(1.5 * S * 10 / len(SPLITS[split]))), g)
        mine = split_of(some)
        some = some[(mine >= SPLITS[split].start) & (mine < SPLITS[split].stop)]
        kept.append(some)
        n += len(some)
    return torch.cat(kept)[:S]


def render(layout: Tensor, g: torch.Generator) -> Tensor:
    """Pictures uint8 [S, 3, 64, 64]; size, place within the cell, brightness and background vary and mean nothing."""
    S = len(layout)
    size = torch.randint(3, (S, CELLS), generator=g)
    shift = torch.randint(-2, 3, (S, CELLS, 2), generator=g)
    at = torch.arange(CELL)
    y = (at - shift[..., :1]).clamp(0, CELL - 1)  # [S, CELLS, CELL]
    x = (at - shift[..., 1:]).clamp(0, CELL - 1)
    shape, colour = layout.clamp(min=0) % len(SHAPE), layout.clamp(min=0) // len(SHAPE)
    ink = (
        SPRITES[shape[..., None, None], size[..., None, None], y[..., :, None], x[..., None, :]]
        & (layout >= 0)[..., None, None]
    )
    light = 0.85 + 0.15 * torch.rand(S, CELLS, 1, generator=g)
    back = torch.randint(20, 60, (S, 1, 1, 1, 1), generator=g)
    pixels = torch.where(
        ink[:, :, None], (PALETTE[colour] * light)[..., None, None], back
    )  # [S, CELLS, 3, CELL, CELL]
    pixels = pixels + torch.randint(-8, 9, (S, 1, 1, GRID * CELL, GRID * CELL), generator=g).view(
        S, CELLS, 1, CELL, CELL
    )
    return (
        pixels.view(S, GRID, GRID, 3, CELL, CELL)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(S, 3, GRID * CELL, GRID * CELL)
        .clamp(0, 255)
        .to(torch.uint8)
    )


# --------------------------------------------------------------------------------------------------------------------
# Words


def caption(cells: list[int]) -> str:
    """Every cell in reading order."""
    return " ".join("nothing" if k == EMPTY else f"{COLOUR[k // 4]} {SHAPE[k % 4]}" for k in cells)


def _pick(ok: Tensor, g: torch.Generator) -> Tensor:
    """Index [S] of a random True of each row of ok [S, X]; each row must have one."""
    return (torch.rand(ok.shape, generator=g) + ok).argmax(1)


def questions(
    layout: Tensor, per_scene: int, g: torch.Generator
) -> list[list[tuple[str, str, str]]]:
    """(family, question, answer), per_scene for each scene: the families in turn, starting at a random one."""
    S = len(layout)
    kind_count = torch.zeros(S, KINDS + 1, dtype=torch.int64).scatter_add_(
        1, layout % (KINDS + 1), torch.ones_like(layout)
    )[:, :KINDS]
    table = kind_count.view(S, len(COLOUR), len(SHAPE))
    n_colour, n_shape = table.sum(2), table.sum(1)  # [S, 6], [S, 4]
    both = ((n_colour > 0)[:, :, None] & (n_shape > 0)[:, None, :]).view(
        S, KINDS
    )  # its colour and its shape are there
    stands = layout[:, :, None] == torch.arange(KINDS)  # [S, CELLS, KINDS]
    where = torch.where(stands, torch.arange(CELLS)[:, None], 0).sum(
        1
    )  # [S, KINDS]: the cell of a kind that stands once

    def name(k):
        return f"{COLOUR[k // len(SHAPE)]} {SHAPE[k % len(SHAPE)]}"

    def coin():
        return (torch.rand(S, generator=g) < 0.5).tolist()

    def existence():
        yes = torch.rand(S, generator=g) < 0.5
        k = _pick(torch.where(yes[:, None], kind_count > 0, both & (kind_count == 0)), g)
        return [
            (f"is there a {name(k)}?", "yes" if y else "no")
            for k, y in zip(k.tolist(), yes.tolist())
        ]

    def counting():
        n = torch.randint(4, (S,), generator=g)
        k = _pick(both & (kind_count == n[:, None]), g)
        return [(f"how many {name(k)}s are there?", str(n)) for k, n in zip(k.tolist(), n.tolist())]

    def attribute():
        c, s, scene = _pick(n_colour == 1, g), _pick(n_shape == 1, g), torch.arange(S)
        its_shape, its_colour = table[scene, c].argmax(1), table[scene, :, s].argmax(1)
        return [
            (f"what shape is the {COLOUR[c]} object?", SHAPE[its_shape])
            if by_colour
            else (f"what color is the {SHAPE[s]}?", COLOUR[its_colour])
            for by_colour, c, its_shape, s, its_colour in zip(
                coin(), *(x.tolist() for x in (c, its_shape, s, its_colour))
            )
        ]

    def comparison():
        def pairs(n):  # more * len + less
            return _pick(
                ((n[:, :, None] > n[:, None, :]) & (n[:, None, :] > 0)).flatten(1), g
            ).tolist()

        rows = []
        for y, by_colour, of_colours, of_shapes in zip(
            coin(), coin(), pairs(n_colour), pairs(n_shape)
        ):
            names, noun = (COLOUR, " objects") if by_colour else (SHAPE, "s")
            more, less = divmod(of_colours if by_colour else of_shapes, len(names))
            a, b = (more, less) if y else (less, more)
            rows.append(
                (f"are there more {names[a]}{noun} than {names[b]}{noun}?", "yes" if y else "no")
            )
        return rows

    def spatial():
        once, down = kind_count == 1, torch.rand(S, generator=g) < 0.5
        before = [
            once[:, :, None] & once[:, None, :] & (at[:, :, None] < at[:, None, :])
            for at in (where % GRID, where // GRID)
        ]
        down ^= ~torch.where(
            down, before[1].any((1, 2)), before[0].any((1, 2))
        )  # all in one row: then not all in one column
        pair = _pick(torch.where(down[:, None, None], before[1], before[0]).flatten(1), g)
        rows = []
        for p, y, d, turned in zip(pair.tolist(), coin(), down.tolist(), coin()):
            first, second = divmod(p, KINDS)
            word = ("below" if d else "right of") if turned else ("above" if d else "left of")
            a, b = (first, second) if y != turned else (second, first)
            rows.append((f"is the {name(a)} {word} the {name(b)}?", "yes" if y else "no"))
        return rows

    families = [existence, counting, attribute, comparison, spatial]
    rounds = -(-per_scene // len(families))
    asked = [[(f.__name__, *row) for row in f()] for _ in range(rounds) for f in families]
    return [
        [asked[(start + i) % len(asked)][s] for i in range(per_scene)]
        for s, start in enumerate(torch.randint(len(families), (S,), generator=g).tolist())
    ]


FAMILIES = ["existence", "counting", "attribute", "comparison", "spatial"]


class Shapes:
    """The world as a data set (the interface of data.Folder). Training scenes never run out: each step has new ones."""

    answers = {"yes", "no", *"0123", *COLOUR, *SHAPE}
    final_split = "test"

    def split_names(self) -> list[str]:
        return list(SPLITS)

    def _world(self, split: str, S: int, *key: int) -> tuple[Tensor, Tensor, torch.Generator]:
        g = torch.Generator().manual_seed(seed_of(split, *key))
        layout = scenes(S, split, g)
        return layout, render(layout, g), g

    def texts(self):
        layout, _, g = self._world("train", 2000, 0)
        for cells, asked in zip(layout.tolist(), questions(layout, 10, g)):
            yield caption(cells)
            for _, question, answer in asked:
                yield question
                yield answer

    def draw(
        self, stage: str, step: int, pictures: int, per_picture: int, seed: int
    ) -> list[Example]:
        layout, images, g = self._world("train", pictures, seed, step, stage == "pt")
        if stage == "pt":
            return [
                Example([image], [(IMAGE, caption(cells))], "caption")
                for image, cells in zip(images, layout.tolist())
            ]
        return [
            Example([image], [(IMAGE + question, answer)], family)
            for image, asked in zip(images, questions(layout, per_picture, g))
            for family, question, answer in asked
        ]

    def layouts(self, split: str) -> list[list[int]]:
        """The layout of each scene of `heldout`, five questions a scene."""
        return self._world(split, 1000, 0)[0].tolist()

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,000 scenes with five questions each, whatever the run's seed."""
        layout, images, g = self._world(split, 1000, 0)
        return [
            Example([image], [(IMAGE + question, answer)], family, f"{split}-{i}")
            for i, (image, asked) in enumerate(zip(images, questions(layout, 5, g)))
            for family, question, answer in asked
        ][:limit]


def asked_about(question: str, cells: list[int]) -> list[int]:
    """The cells, in reading order, that hold what the question names; cells: one row of a layout. "right of" names nothing."""
    words = re.findall(r"[a-z]+", question)
    out = set()
    for k, word in enumerate(words):
        if word in COLOUR:
            named = next(
                (s for s in SHAPE if words[k + 1 : k + 2] and words[k + 1].rstrip("s") == s), None
            )
            out |= {
                i
                for i, o in enumerate(cells)
                if o >= 0
                and o // len(SHAPE) == COLOUR.index(word)
                and (named is None or o % len(SHAPE) == SHAPE.index(named))
            }
        elif word.rstrip("s") in SHAPE and words[k - 1] not in COLOUR:
            out |= {
                i
                for i, o in enumerate(cells)
                if o >= 0 and o % len(SHAPE) == SHAPE.index(word.rstrip("s"))
            }
    return sorted(out)


def question_only(n_scenes: int = 20_000) -> dict[str, tuple[float, float]]:
    """family -> (accuracy of the best answer to each question, known from half of the scenes, on the other half; chance)."""
    g = torch.Generator().manual_seed(1)
    asked = questions(scenes(n_scenes, "train", g), 5, g)
    known, out = defaultdict(Counter), {}
    for rows in asked[::2]:
        for family, question, answer in rows:
            known[family, question][answer] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in known.items()}
    for family in FAMILIES:
        rows = [r for rows in asked[1::2] for r in rows if r[0] == family]
        kinds = [len(known_answers(q)) for _, q, _ in rows]
        out[family] = (
            sum(best.get((f, q)) == a for f, q, a in rows) / len(rows),
            sum(1 / k for k in kinds) / len(kinds),
        )
    return out


def known_answers(question: str):
    """The answers that make sense for a question."""
    return (
        ("0", "1", "2", "3")
        if question.startswith("how many")
        else COLOUR
        if question.startswith("what color")
        else SHAPE
        if question.startswith("what shape")
        else ("yes", "no")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="The built-in world: question-only ceilings, speed, a sheet of pictures."
    )
    parser.add_argument("--png", metavar="FILE", help="write 32 pictures here")
    args = parser.parse_args()
    print(f"{'family':<12}{'question only':>14}{'chance':>8}")
    for family, (ceiling, chance) in question_only().items():
        print(f"{family:<12}{ceiling:>13.1%}{chance:>8.1%}")
    world, start = Shapes(), time.perf_counter()
    rows = sum(len(world.draw("sft", step, 64, 4, 0)) for step in range(50))
    print(f"{rows / (time.perf_counter() - start):,.0f} questions with pictures a second")
    for example in world.heldout("test", 5):
        print(f"  {example.turns[0][0]} {example.turns[0][1]}")
    if args.png:
        from torchvision.utils import save_image

        save_image(
            torch.stack([e.images[0] for e in world.heldout("test")[:160:5]]).float() / 255,
            args.png,
            nrow=8,
        )
