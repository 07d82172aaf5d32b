"""The built-in world in words alone: a scene written out, then questions about it. No pictures.

    python train.py --data shapes-text --mask causal

What a language model learns from before it gets eyes (lab/eyes.py). Scenes, splits and questions
are those of shapes.py: val and test ask what they ask about the pictures. A scene is written once
and all its questions follow, turn by turn; val and test ask one question. Stage 1 asks in turn what
stands at a place, which is learned first, and where a thing stands; before a model can find a thing
by its name, other questions teach it next to nothing (docs/log.md).
"""

import torch

from data.prompt import IMAGE, Example
from data.shapes import QUESTIONS, Shapes, families_of
from data.shapes_questions import name_of, questions
from data.shapes_scenes import EMPTY, GRID


def objects(cells: list[int]) -> list[tuple[str, str]]:
    """Place, as in a spreadsheet, and name of everything that stands there, in reading order."""
    return [
        (f"{'ABCD'[i % GRID]}{i // GRID + 1}", name_of(kind))
        for i, kind in enumerate(cells)
        if kind != EMPTY
    ]


def scene_text(cells: list[int]) -> str:
    """Everything in reading order, each after its place ("B3 red circle"): its last word then comes
    when all is known of it, as of a patch."""
    return " ".join(f"{place} {name}" for place, name in objects(cells))


class ShapesText(Shapes):
    """The interface of data.Folder; the pictures of a step are scenes."""

    def texts(self):
        yield from super().texts()
        layout, _, _ = self._scenes("train", 200, 0)
        yield from map(scene_text, layout.tolist())

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        layout, _, g = self._scenes("train", pictures, "text", stage, seed, step)
        first = stage == "pt"
        mix, examples = ("place",) if first else families_of(step), []
        for cells, asked in zip(layout.tolist(), questions(layout, per_picture, g, mix)):
            turns = [(question, answer) for _, question, answer in asked]
            if first:  # in turn with what stands at a place
                there = objects(cells)
                order = torch.randperm(len(there), generator=g)[:per_picture].tolist()
                turns = [turn for i, k in enumerate(order) for turn in (there[k], turns[i])]
            turns[0] = f"{scene_text(cells)} {turns[0][0]}", turns[0][1]
            examples.append(Example([], turns))
        return examples

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The questions of Shapes.heldout, each after its scene in words."""
        texts, examples = list(map(scene_text, self.layouts(split))), []
        for i, example in enumerate(super().heldout(split, limit)):
            ((question, answer),) = example.turns
            turn = f"{texts[i // QUESTIONS]} {question.removeprefix(IMAGE)}", answer
            examples.append(Example([], [turn], example.family, example.id))
        return examples
