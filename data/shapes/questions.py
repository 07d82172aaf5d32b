"""What is said about the scenes of the built-in world: captions, and questions in families.

Answers are balanced by construction: for each question the answer is drawn first, uniformly, then a
question about the scene that has it (families.py). The rules are symmetric in colours, shapes and
places, so the words of a question tell nothing about its answer.

A new family is a function of SceneFacts and its name in FAMILIES; what answers it may have is added
to `known_answers`, and to Shapes.answers if they are new.

Shapes:  S scenes   CELLS = 16 cells in reading order   KINDS = 24 kinds (colour x shape)
"""

import re

import torch
from torch import Tensor

from data.families import EMPTY, QA, Facts, counting, existence, possible, rows, yes_no
from data.shapes.scenes import CELLS, COLOUR, GRID, KINDS, NAMES, SHAPE


def caption(cells: list[int]) -> str:
    """Every cell in reading order."""
    return " ".join("nothing" if kind == EMPTY else NAMES[kind] for kind in cells)


def caption_of_places(cells: list[int], g: torch.Generator) -> str:
    """Row and column of everything that is the only one of its kind, in random order."""
    only = [i for i, kind in enumerate(cells) if kind != EMPTY and cells.count(kind) == 1]
    words = []
    for n in torch.randperm(len(only), generator=g).tolist():
        row, column = (f"{name} {n + 1}" for name, n in zip(AXES, divmod(only[n], GRID)))
        row_first = torch.rand(1, generator=g) < 0.5
        words += [NAMES[cells[only[n]]], *((row, column) if row_first else (column, row))]
    return " ".join(words)


class SceneFacts(Facts):
    """What is true of scenes, layout int64 [S, CELLS]: see scenes.layouts."""

    names = NAMES
    both_ways = 1.0  # share of the relations that are asked either way; others one way

    def __init__(self, layout: Tensor, generator: torch.Generator):
        stands = layout[:, :, None] == torch.arange(KINDS)  # bool [S, CELLS, KINDS]
        count = stands.sum(1)
        self.table = count.view(-1, len(COLOUR), len(SHAPE))
        self.of_colour, self.of_shape = self.table.sum(2), self.table.sum(1)  # objects of each
        # Where a kind that stands once stands, int64 [S, KINDS], from 0
        cell = torch.where(stands, torch.arange(CELLS)[:, None], 0).sum(1)
        self.row, self.column = cell // GRID, cell % GRID
        super().__init__(layout, generator, count, possible(self.table))


def attribute(facts: SceneFacts) -> list[QA]:
    """The shape of the only object of a colour, or the colour of the only object of a shape."""
    colour, shape = facts.pick(facts.of_colour == 1), facts.pick(facts.of_shape == 1)
    scene = torch.arange(len(colour))
    shape_there = facts.table[scene, colour].argmax(1)
    colour_there = facts.table[scene, :, shape].argmax(1)
    columns, asked = (facts.coin(), colour, shape_there, shape, colour_there), []
    for by_colour, c, s_there, s, c_there in rows(*columns):
        if by_colour:
            asked.append((f"what shape is the {COLOUR[c]} object?", SHAPE[s_there]))
        else:
            asked.append((f"what color is the {SHAPE[s]}?", COLOUR[c_there]))
    return asked


def comparison(facts: SceneFacts) -> list[QA]:
    """Two colours, or two shapes, that are there and differ in number."""

    def pairs(n: Tensor) -> Tensor:
        """more * X + less: a pair of indices of n [S, X]."""
        return facts.pick(((n[:, :, None] > n[:, None, :]) & (n[:, None, :] > 0)).flatten(1))

    asked = []
    columns = (facts.coin(), facts.coin(), pairs(facts.of_colour), pairs(facts.of_shape))
    for yes, by_colour, colour_pair, shape_pair in rows(*columns):
        names, noun = (COLOUR, " objects") if by_colour else (SHAPE, "s")
        more, less = divmod(colour_pair if by_colour else shape_pair, len(names))
        a, b = (more, less) if yes else (less, more)
        asked.append((f"are there more {names[a]}{noun} than {names[b]}{noun}?", yes_no(yes)))
    return asked


def place(facts: SceneFacts) -> list[QA]:
    """The row or the column of an object that is the only one of its kind. Half of the time, where
    there is such a one, it shares its colour with other objects and its shape with others, so that
    neither word alone finds it."""
    only = facts.count == 1
    shared = (facts.of_colour > 1)[:, :, None] & (facts.of_shape > 1)[:, None, :]
    both_needed = only & shared.flatten(1)
    chosen = (facts.coin() & both_needed.any(1))[:, None]
    kind, by_column = facts.pick(torch.where(chosen, both_needed, only)), facts.coin()
    scene = torch.arange(len(kind))
    columns = (kind, by_column, facts.row[scene, kind], facts.column[scene, kind])
    return [
        (f"in which {AXES[c]} is the {NAMES[k]}?", str((across if c else down) + 1))
        for k, c, down, across in rows(*columns)
    ]


def spatial(facts: SceneFacts) -> list[QA]:
    """Which of two objects, each the only one of its kind, is further to one side. Asked one way:
    "further left" and "higher up" alone."""
    once, vertical = facts.count == 1, facts.coin()
    left_of, above = (
        once[:, :, None] & once[:, None, :] & (place[:, :, None] < place[:, None, :])
        for place in (facts.column, facts.row)
    )  # [S, KINDS, KINDS]
    # All in one row: then they are not all in one column, and the other way round
    vertical ^= ~torch.where(vertical, above.any((1, 2)), left_of.any((1, 2)))
    pair = facts.pick(torch.where(vertical[:, None, None], above, left_of).flatten(1))
    columns, asked = (pair, facts.coin(facts.both_ways / 2), vertical, facts.coin()), []
    for pair_index, last, down, turned in rows(*columns):
        first, second = (NAMES[kind] for kind in divmod(pair_index, KINDS))
        a, b = (second, first) if turned else (first, second)
        question = f"which is {RELATIONS[down][last]}, the {a} or the {b}?"
        asked.append((question, second if last else first))
    return asked


AXES = ("row", "column")
RELATIONS = (("further left", "further right"), ("higher up", "lower down"))
FAMILIES = {
    family.__name__: family
    for family in (existence, counting, attribute, comparison, place, spatial)
}
ANSWERS = {"how many": "0123", "what color": COLOUR, "what shape": SHAPE, "in which": "1234"}


def known_answers(question: str) -> list[str]:
    """The answers that make sense for a question."""
    if question.startswith("which"):
        return re.findall("the ([a-z]+ [a-z]+)", question)
    first_words = " ".join(question.split()[:2])
    return list(ANSWERS.get(first_words, ("yes", "no")))
