"""The built-in world: 4 x 4 cells with coloured shapes, captions, and questions with exact answers.

scenes.py       what stands where, and pictures of it
questions.py    what is said about it
pairs.py        two pictures a row, and questions about both
text.py         scenes in words alone
"""

import torch

from data.draws import drawn_in_epochs
from data.errors import DataError
from data.families import HELD_OUT, World
from data.prompt import Example
from data.shapes import questions
from data.shapes.questions import FAMILIES, SceneFacts, caption, caption_of_places
from data.shapes.scenes import CELLS, COLOUR, GRID, NAMES, SHAPE, layouts, render

__all__ = ["CELLS", "GRID", "Shapes"]

# Stage 1 begins with captions in reading order: a model that does not know what a cell holds yet
# learns nothing from captions that name places (docs/log.md).
STEPS_WITHOUT_PLACES = 120
# Relations are asked one way ("further left", never "further right") up to the first of these steps
# of stage 2, then more and more of them both ways, from the second on all as in val and test.
# Asked both ways from the start they are learned late, or by no run at all (docs/log.md).
ONE_WAY_UNTIL, BOTH_WAYS_FROM = 800, 1200
BLOCK = 16  # scenes that are drawn together where training has a number of them
QUESTIONS = len(FAMILIES)  # about each scene of val and test


def share_both_ways(stage: str, step: int) -> float:
    """The share of the relations that a training step asks both ways."""
    share = (step - ONE_WAY_UNTIL) / (BOTH_WAYS_FROM - ONE_WAY_UNTIL)
    return 0.0 if stage == "pt" else min(1.0, max(0.0, share))


class Shapes(World):
    """The world as a data set. With `scenes`, training has that many, each with its picture, its
    captions and its questions, and comes to them again and again; which these are depends on its
    seed."""

    some_layouts, known_answers = staticmethod(layouts), staticmethod(questions.known_answers)
    facts, families = SceneFacts, FAMILIES
    answers = {"yes", "no", *"01234", *COLOUR, *SHAPE, *NAMES}
    # Stage 2 begins with places, every second question: without that some seeds never learn to find
    # a thing by both words of its name (docs/log.md). Then twice what is learned last.
    first_steps = 400
    first_families = "place existence place counting place attribute place comparison".split()
    training_families = (
        "existence counting attribute comparison place place spatial spatial".split()
    )
    seed = 0  # of the run whose scenes heldout("train") asks about

    def __init__(self, scenes: int | None = None):
        if scenes and scenes % BLOCK:
            raise DataError(f"--scenes {scenes}: must be a multiple of {BLOCK}")
        self.n_blocks = scenes and scenes // BLOCK

    def render(self, layout, g):
        return render(layout, g)[:, None]

    def captions(self, scene, g):
        return [caption(scene), caption_of_places(scene, g)]

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        if self.n_blocks is None:
            return self._examples(stage, step, per_picture, pictures, seed, step, stage == "pt")
        if pictures % BLOCK:
            advice = f"set --pictures and --pt-pictures to multiples of {BLOCK}"
            raise DataError(f"--scenes: a step has {pictures} pictures; {advice}")
        blocks = drawn_in_epochs(self.n_blocks, step, pictures // BLOCK, stage, seed, "blocks")
        args = stage, step, per_picture, BLOCK, seed
        return [e for block in blocks for e in self._examples(*args, block, "block")]

    def _examples(self, stage: str, step: int, per_picture: int, S: int, *key) -> list[Example]:
        """About S training scenes drawn for the key: a caption each, every second of which names
        places from some step on, or per_picture questions."""
        facts, pictures = self.drawn("train", S, *key)
        if stage == "sft":
            facts.both_ways = share_both_ways(stage, step)
            return self.asked(facts, pictures, per_picture, self.families_of(stage, step))
        said = [
            caption_of_places(scene, facts.generator)
            if step >= STEPS_WITHOUT_PLACES and i % 2
            else caption(scene)
            for i, scene in enumerate(facts.layout.tolist())
        ]
        return self.captioned(pictures, said)

    def held_out(self, split):
        """With a number of scenes, those of "train" are the first that training has, or all, so
        that memorising can be measured."""
        if split != "train" or self.n_blocks is None:
            return super().held_out(split)
        blocks = range(min(self.n_blocks, -(-HELD_OUT // BLOCK)))
        drawn = [self.drawn("train", BLOCK, self.seed, block, "block") for block in blocks]
        facts, pictures = zip(*drawn)
        layout = torch.cat([f.layout for f in facts])[:HELD_OUT]
        return SceneFacts(layout, facts[0].generator), torch.cat(pictures)[:HELD_OUT]
