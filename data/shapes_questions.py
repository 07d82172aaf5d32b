"""What is said about the scenes of the built-in world: captions, and questions in five families.

Answers are balanced by construction: for each question the answer is drawn first, uniformly, then a
question about the scene that has it. The rules are symmetric in colours, shapes and places, so the
words of a question tell nothing about its answer.

Shapes:  S scenes   CELLS = 16 cells in reading order   KINDS = 24 kinds (colour x shape)
"""

import re

import torch
from torch import Tensor

from data.shapes_scenes import CELLS, COLOUR, EMPTY, GRID, KINDS, SHAPE


def caption(cells: list[int]) -> str:
    """Every cell in reading order."""
    return " ".join("nothing" if kind == EMPTY else name_of(kind) for kind in cells)


def name_of(kind: int) -> str:
    return f"{COLOUR[kind // len(SHAPE)]} {SHAPE[kind % len(SHAPE)]}"


def _pick(ok: Tensor, g: torch.Generator) -> Tensor:
    """Index [S] of a random True of each row of ok [S, X]; each row must have one."""
    return (torch.rand(ok.shape, generator=g) + ok).argmax(1)


class Facts:
    """What is true of S scenes, and the random numbers with which questions about them are drawn.
    A family of questions is a method: (question, answer) for each scene."""

    def __init__(self, layout: Tensor, g: torch.Generator):
        self.S, self.g = len(layout), g
        count = torch.zeros(self.S, KINDS + 1, dtype=torch.int64)
        count.scatter_add_(1, layout % (KINDS + 1), torch.ones_like(layout))
        self.count = count[:, :KINDS]  # [S, KINDS]: objects of each kind
        self.table = self.count.view(self.S, len(COLOUR), len(SHAPE))
        self.of_colour, self.of_shape = self.table.sum(2), self.table.sum(1)  # [S, 6], [S, 4]
        both = (self.of_colour > 0)[:, :, None] & (self.of_shape > 0)[:, None, :]
        self.possible = both.view(self.S, KINDS)  # its colour is there, and its shape
        stands = layout[:, :, None] == torch.arange(KINDS)  # [S, CELLS, KINDS]
        # [S, KINDS]: the cell of a kind that stands once
        self.cell = torch.where(stands, torch.arange(CELLS)[:, None], 0).sum(1)

    def pick(self, ok: Tensor) -> Tensor:
        return _pick(ok, self.g)

    def coin(self) -> Tensor:
        return torch.rand(self.S, generator=self.g) < 0.5

    def existence(self):
        yes = self.coin()
        absent = self.possible & (self.count == 0)
        kind = self.pick(torch.where(yes[:, None], self.count > 0, absent))
        return [
            (f"is there a {name_of(k)}?", "yes" if y else "no")
            for k, y in zip(kind.tolist(), yes.tolist())
        ]

    def counting(self):
        n = torch.randint(4, (self.S,), generator=self.g)
        kind = self.pick(self.possible & (self.count == n[:, None]))
        return [
            (f"how many {name_of(k)}s are there?", str(n))
            for k, n in zip(kind.tolist(), n.tolist())
        ]

    def attribute(self):
        colour, shape = self.pick(self.of_colour == 1), self.pick(self.of_shape == 1)
        scene = torch.arange(self.S)
        its_shape = self.table[scene, colour].argmax(1)
        its_colour = self.table[scene, :, shape].argmax(1)
        columns = (self.coin(), colour, its_shape, shape, its_colour)
        return [
            (f"what shape is the {COLOUR[c]} object?", SHAPE[its_shape])
            if by_colour
            else (f"what color is the {SHAPE[s]}?", COLOUR[its_colour])
            for by_colour, c, its_shape, s, its_colour in zip(*(x.tolist() for x in columns))
        ]

    def comparison(self):
        def pairs(n: Tensor) -> Tensor:
            """Of two that are there and differ in number: more * len + less."""
            return self.pick(((n[:, :, None] > n[:, None, :]) & (n[:, None, :] > 0)).flatten(1))

        columns = (self.coin(), self.coin(), pairs(self.of_colour), pairs(self.of_shape))
        asked = []
        for yes, by_colour, colours, shapes in zip(*(x.tolist() for x in columns)):
            names, noun = (COLOUR, " objects") if by_colour else (SHAPE, "s")
            more, less = divmod(colours if by_colour else shapes, len(names))
            a, b = (more, less) if yes else (less, more)
            question = f"are there more {names[a]}{noun} than {names[b]}{noun}?"
            asked.append((question, "yes" if yes else "no"))
        return asked

    def spatial(self):
        once, down = self.count == 1, self.coin()
        before = [
            once[:, :, None] & once[:, None, :] & (at[:, :, None] < at[:, None, :])
            for at in (self.cell % GRID, self.cell // GRID)
        ]
        # All in one row: then they are not all in one column, and the other way round
        down ^= ~torch.where(down, before[1].any((1, 2)), before[0].any((1, 2)))
        pair = self.pick(torch.where(down[:, None, None], before[1], before[0]).flatten(1))
        columns = (pair, self.coin(), down, self.coin())
        asked = []
        for pair, yes, down, turned in zip(*(x.tolist() for x in columns)):
            first, second = divmod(pair, KINDS)
            word = WORDS[down][turned]
            a, b = (first, second) if yes != turned else (second, first)
            asked.append((f"is the {name_of(a)} {word} the {name_of(b)}?", "yes" if yes else "no"))
        return asked


WORDS = (("left of", "right of"), ("above", "below"))
FAMILIES = ["existence", "counting", "attribute", "comparison", "spatial"]


def questions(layout: Tensor, per_scene: int, g: torch.Generator):
    """[(family, question, answer), ...], per_scene for each scene: the families in turn, starting
    at a random one."""
    facts, rounds = Facts(layout, g), -(-per_scene // len(FAMILIES))
    asked = [
        [(family, *row) for row in getattr(facts, family)()]
        for _ in range(rounds)
        for family in FAMILIES
    ]
    starts = torch.randint(len(FAMILIES), (len(layout),), generator=g).tolist()
    return [
        [asked[(start + i) % len(asked)][scene] for i in range(per_scene)]
        for scene, start in enumerate(starts)
    ]


def known_answers(question: str):
    """The answers that make sense for a question."""
    if question.startswith("how many"):
        return "0", "1", "2", "3"
    if question.startswith("what color"):
        return COLOUR
    return SHAPE if question.startswith("what shape") else ("yes", "no")


def asked_about(question: str, cells: list[int]) -> list[int]:
    """The cells, in reading order, that hold what the question names; cells: one row of a layout.
    "right of" names nothing."""
    words = [word.rstrip("s") for word in re.findall(r"[a-z]+", question)]
    found = set()
    for before, word, after in zip(["", *words], words, [*words[1:], ""]):
        if word in COLOUR or word in SHAPE and before not in COLOUR:
            colours = [COLOUR.index(word)] if word in COLOUR else range(len(COLOUR))
            shape = after if word in COLOUR else word
            shapes = [SHAPE.index(shape)] if shape in SHAPE else range(len(SHAPE))
            kinds = {c * len(SHAPE) + s for c in colours for s in shapes}
            found |= {i for i, kind in enumerate(cells) if kind in kinds}
    return sorted(found)
