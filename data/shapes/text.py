"""The built-in world in words alone: a scene written out, then questions about it. No pictures.

    python train.py --data shapes-text --mask causal

What a language model learns from before it gets eyes (lab/eyes.py). Scenes, splits and questions
are those of Shapes: val and test ask what they ask about the pictures. A scene is written once
and all its questions follow, turn by turn; val and test ask one question. Stage 1 teaches to look
things up, what stands at a place and at which place a thing stands, and asks a few questions, many
of them about places: before a model can find a thing by its name, questions teach it next to
nothing. Relations are asked one way at first, in all of stage 1: no run that was asked both ways
from the start learned any (docs/log.md).
"""

from itertools import zip_longest

import torch

from data.families import EMPTY
from data.prompt import IMAGE_TOKEN, Example
from data.shapes import QUESTIONS, Shapes, share_both_ways
from data.shapes.scenes import GRID, NAMES


def objects(cells: list[int]) -> list[tuple[str, str]]:
    """Place, as row and column in the words of answers, and name of all that stands there, in
    reading order."""
    return [
        (f"{i // GRID + 1} {i % GRID + 1}", NAMES[kind])
        for i, kind in enumerate(cells)
        if kind != EMPTY
    ]


def scene_text(cells: list[int]) -> str:
    """Everything in reading order, each after its place ("2 3 red circle"): its last word then
    comes when all is known of it, as of a patch."""
    return " ".join(f"{place} {name}" for place, name in objects(cells))


def look_ups(cells: list[int], asked: list, n: int, g: torch.Generator) -> list[tuple[str, str]]:
    """Turns of stage 1, in turn: place -> name, name -> place, of up to n things each, those that
    are there once for the second; and the questions asked."""
    there = objects(cells)
    names = [name for _, name in there]
    once = [(name, place) for place, name in there if names.count(name) == 1]
    some = [[x[i] for i in torch.randperm(len(x), generator=g)[:n].tolist()] for x in (there, once)]
    return [turn for turns in zip_longest(*some, asked) for turn in turns if turn]


class ShapesText(Shapes):
    """The interface of data.Folder; the pictures of a step are scenes."""

    families_of_stage_1 = (*Shapes.first_families, "spatial", "counting")
    # Found before that of the pictures, and kept
    training_families = (
        "existence counting counting attribute comparison place spatial spatial".split()
    )

    def texts(self):
        yield from super().texts()
        facts, _ = self.drawn("train", 200, 0)
        yield from map(scene_text, facts.layout.tolist())

    def families_of(self, stage: str, step: int) -> list[str]:
        return self.families_of_stage_1 if stage == "pt" else super().families_of(stage, step)

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        facts, _ = self.drawn("train", pictures, "text", stage, seed, step)
        facts.both_ways = share_both_ways(stage, step)
        questions = self.questions(facts, per_picture, self.families_of(stage, step))
        examples = []
        for cells, asked in zip(facts.layout.tolist(), questions):
            turns = [tuple(qa) for _, *qa in asked]
            if stage == "pt":
                turns = look_ups(cells, turns[: per_picture // 2], per_picture, facts.generator)
            turns[0] = f"{scene_text(cells)} {turns[0][0]}", turns[0][1]
            examples.append(Example([], turns))
        return examples

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The questions of Shapes.heldout, each after its scene in words."""
        texts, examples = list(map(scene_text, self.layouts(split))), []
        for i, example in enumerate(super().heldout(split, limit)):
            ((question, answer),) = example.turns
            turn = f"{texts[i // QUESTIONS]} {question.removeprefix(IMAGE_TOKEN)}", answer
            examples.append(Example([], [turn], example.family, example.id))
        return examples
