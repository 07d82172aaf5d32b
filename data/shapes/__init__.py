"""The built-in world: 4 x 4 cells with coloured shapes, captions, and questions with exact answers.

    python -m data.shapes                what the question alone can tell, by family, and the speed
    python -m data.shapes --png FILE     a sheet of pictures

The scenes of a step are a function of (seed, stage, step), those of val and test are always the
same, and a scene's layout decides the split it may stand in, so that no layout of val or test is
ever trained on. Scenes: shapes_scenes.py; words: shapes_questions.py. What little chance leaves to
be guessed from a question is measured by `question_only`.

Shapes:  S scenes
"""

import argparse
import time

import torch
from torch import Tensor

from data import families
from data.errors import DataError
from data.folder import seed_of
from data.prompt import IMAGE_TOKEN, Example
from data.shapes.questions import (
    FAMILIES,
    asked_about,
    caption,
    caption_of_places,
    known_answers,
    name_of,
    questions,
)
from data.shapes.scenes import CELLS, COLOUR, GRID, KINDS, SHAPE, layouts, render

__all__ = ["CELLS", "GRID", "Shapes", "asked_about", "question_only"]

# Stage 1 begins with captions in reading order: a model that does not know what a cell holds yet
# learns nothing from captions that name places (docs/log.md).
STEPS_WITHOUT_PLACES = 120
# What training asks, in turn. Stage 2 begins with places, every second question: without that some
# seeds never learn to find a thing by both words of its name (docs/log.md). Then twice what is
# learned last. Val and test ask each family once.
STEPS_OF_PLACES = 400
FIRST_FAMILIES = (
    *("place", "existence", "place", "counting"),
    *("place", "attribute", "place", "comparison"),
)
TRAINING_FAMILIES = (
    *("existence", "counting", "counting", "attribute"),
    *("comparison", "place", "spatial", "spatial"),
)
BLOCK = 16  # scenes that are drawn together where training has a number of them
HELD_OUT = 1000  # scenes of val and test
QUESTIONS = len(FAMILIES)  # about each of them


def families_of(step: int) -> tuple[str, ...]:
    """What a training step of stage 2 asks, in turn."""
    return FIRST_FAMILIES if step < STEPS_OF_PLACES else TRAINING_FAMILIES


class Shapes:
    """The world as a data set (the interface of data.Folder). Training scenes never run out: each
    step has new ones. With n_scenes, training has that many, each with its picture, its captions
    and its questions, and comes to them again and again; which these are depends on its seed."""

    answers = {"yes", "no", *"01234", *COLOUR, *SHAPE, *map(name_of, range(KINDS))}
    final_split = "test"
    seed = 0  # of the run whose n_scenes heldout("train") asks about

    def __init__(self, scenes: int | None = None):
        if scenes and scenes % BLOCK:
            raise DataError(f"--scenes {scenes}: must be a multiple of {BLOCK}")
        self.n_blocks = scenes and scenes // BLOCK

    def split_names(self) -> list[str]:
        return list(families.SPLITS)

    def _scenes(self, split: str, S: int, *key: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """S scenes drawn for the key: layout, pictures, the generator to go on with."""
        g = torch.Generator().manual_seed(seed_of(split, *key))
        layout = families.scenes(S, split, g, layouts)
        return layout, render(layout, g), g

    def texts(self):
        layout, _, g = self._scenes("train", 2000, 0)
        for cells, asked in zip(layout.tolist(), questions(layout, 2 * QUESTIONS, g)):
            yield caption(cells)
            yield caption_of_places(cells, g)
            for _, question, answer in asked:
                yield question
                yield answer

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        if self.n_blocks is None:
            return self._examples(stage, step, per_picture, pictures, seed, step, stage == "pt")
        if pictures % BLOCK:
            advice = f"set --pictures and --pt-pictures to multiples of {BLOCK}"
            raise DataError(f"--scenes: a step has {pictures} pictures; {advice}")
        n, examples = pictures // BLOCK, []
        for i in range(step * n, (step + 1) * n):  # blocks, in a random order of each epoch
            order = torch.Generator().manual_seed(
                seed_of(stage, seed, i // self.n_blocks, "blocks")
            )
            block = torch.randperm(self.n_blocks, generator=order)[i % self.n_blocks].item()
            examples += self._examples(stage, step, per_picture, BLOCK, seed, block, "block")
        return examples

    def _examples(self, stage: str, step: int, per_picture: int, S: int, *key) -> list[Example]:
        """About S training scenes drawn for the key: a caption each, or per_picture questions."""
        layout, images, g = self._scenes("train", S, *key)
        if stage == "pt":  # every second caption names places
            return [
                Example([image], [(IMAGE_TOKEN, self._caption(step, i, cells, g))], "caption")
                for i, (image, cells) in enumerate(zip(images, layout.tolist()))
            ]
        asked = questions(layout, per_picture, g, families_of(step))
        return families.examples(images[:, None], asked)

    def _caption(self, step: int, i: int, cells: list[int], g: torch.Generator) -> str:
        if step < STEPS_WITHOUT_PLACES or i % 2 == 0:
            return caption(cells)
        return caption_of_places(cells, g)

    def layouts(self, split: str) -> list[list[int]]:
        """The layout of each scene of `heldout`, QUESTIONS questions a scene."""
        return self._heldout_scenes(split)[0].tolist()

    def _heldout_scenes(self, split: str) -> tuple[Tensor, Tensor, torch.Generator]:
        """The scenes of `heldout`, as `_scenes` gives them: with n_scenes, those of "train" are
        the first that training has, or all, so that memorising can be measured."""
        if split != "train" or self.n_blocks is None:
            return self._scenes(split, HELD_OUT, 0)
        blocks = range(min(self.n_blocks, -(-HELD_OUT // BLOCK)))
        some = [self._scenes("train", BLOCK, self.seed, block, "block") for block in blocks]
        layout, images, (g, *_) = zip(*some)
        return torch.cat(layout)[:HELD_OUT], torch.cat(images)[:HELD_OUT], g

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,000 scenes with QUESTIONS questions each, whatever the run's seed. With
        n_scenes, "train" is about those of training; see _heldout_scenes."""
        layout, images, g = self._heldout_scenes(split)
        asked = questions(layout, QUESTIONS, g)
        return families.examples(images[:, None], asked, split)[:limit]


def question_only(n_scenes: int = 20_000) -> dict[str, tuple[float, float]]:
    """What the question alone tells of its answer, by family; see families.question_only."""
    g = torch.Generator().manual_seed(1)
    asked = questions(families.scenes(n_scenes, "train", g, layouts), QUESTIONS, g)
    return families.question_only(asked, known_answers, FAMILIES)


if __name__ == "__main__":
    about = "The built-in world: question-only ceilings, speed, a sheet of pictures."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--png", metavar="FILE", help="write 32 pictures here")
    args = parser.parse_args()
    families.show(question_only())
    world, start = Shapes(), time.perf_counter()
    rows = sum(len(world.draw("sft", step, 64, 4, 0)) for step in range(50))
    print(f"{rows / (time.perf_counter() - start):,.0f} questions with pictures a second")
    for example in world.heldout("test", 5):
        question, answer = example.turns[0]
        print(f"  {question.replace(IMAGE_TOKEN, '')} -> {answer}")
    if args.png:
        from torchvision.utils import save_image

        pictures = torch.stack([e.images[0] for e in world.heldout("test")[::QUESTIONS][:32]])
        save_image(pictures.float() / 255, args.png, nrow=8)
