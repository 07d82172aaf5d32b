"""Two pictures of the built-in world a row, and questions about both or about one of them.

The scenes and their splits are those of Shapes: a scene of val or test is in no pair that is
trained on. The pictures of a row are announced: "first <image> second <image> which picture has
more red circles?". A training step of N pictures has N pairs in stage 2. In stage 1 it has shapes'
captions of one picture and, once these have begun to be learned, captions of pairs for half of its
pictures.

Shapes:  S pairs   CELLS = 16 cells in reading order   KINDS = 24 kinds (colour x shape)
"""

import torch
from torch import Tensor

from data.families import QA, Facts, World, layouts_in, rows, yes_no
from data.prompt import IMAGE_TOKEN, Example
from data.shapes import STEPS_WITHOUT_PLACES, Shapes
from data.shapes.questions import SceneFacts
from data.shapes.questions import counting as counting_in_one
from data.shapes.scenes import CELLS, COLOUR, KINDS, NAMES, SHAPE, layouts, render

WHICH = ("first", "second")
# Before every question. Without the two words one seed of mma never told the pictures apart
PAIR = f"first {IMAGE_TOKEN} second {IMAGE_TOKEN} "
ITEMS = [
    *(f"{name}s" for name in NAMES),
    *(f"{c} objects" for c in COLOUR),
    *(f"{s}s" for s in SHAPE),
]


def contents(layout: Tensor) -> Tensor:
    """bool [S, 2, KINDS]: the kinds in each picture of the pairs, int64 [S, 2, CELLS]."""
    return (layout[..., None] == torch.arange(KINDS)).any(2)


def pairs(split: str, S: int, g: torch.Generator) -> Tensor:
    """S pairs of the split's scenes, int64 [S, 2, CELLS], with a kind that both pictures have, and
    a kind of its own in each, so that all families have all answers."""
    kept, n = [], 0
    while n < S:
        some = layouts_in(split, 4 * S, g, layouts).view(-1, 2, CELLS)
        a, b = contents(some).unbind(1)
        kept.append(some[(a & b).any(1) & (a & ~b).any(1) & (b & ~a).any(1)])
        n += len(kept[-1])
    return torch.cat(kept)[:S]


class PairFacts(Facts):
    """The same of S pairs, layout int64 [S, 2, CELLS]; count is of both pictures together."""

    names = NAMES

    def __init__(self, layout: Tensor, generator: torch.Generator):
        first, second = (SceneFacts(picture, generator) for picture in layout.unbind(1))
        self.there = contents(layout)  # bool [S, 2, KINDS]: in each picture
        # int64 [S, 2, ITEMS]: how many of each kind, objects of a colour, objects of a shape
        items = [torch.cat([f.count, f.of_colour, f.of_shape], 1) for f in (first, second)]
        self.items = torch.stack(items, 1)
        count, possible = first.count + second.count, first.possible | second.possible
        super().__init__(layout, generator, count, possible)

    def one_and_other(self, values: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Of values [S, 2, X], those of the picture that is asked about, and of the other one."""
        pair = torch.arange(len(second))
        return values[pair, second.long()], values[pair, 1 - second.long()]


def existence(facts: PairFacts) -> list[QA]:
    """A kind that one of the pictures has."""
    yes, second = facts.coin(), facts.coin()
    here, elsewhere = facts.one_and_other(facts.there, second)
    only = torch.where(yes[:, None], here & ~elsewhere, elsewhere & ~here)
    return [
        (f"is there a {NAMES[k]} in the {WHICH[s]} picture?", yes_no(y))
        for k, y, s in rows(facts.pick(only), yes, second)
    ]


def which(facts: PairFacts) -> list[QA]:
    """The one of the pictures that has a kind; the other one lacks it."""
    second = facts.coin()
    here, elsewhere = facts.one_and_other(facts.there, second)
    kind = facts.pick(here & ~elsewhere)
    columns = rows(kind, second)
    return [(f"in which picture is there a {NAMES[k]}?", WHICH[s]) for k, s in columns]


def both(facts: PairFacts) -> list[QA]:
    """A kind that both of the pictures have, or one of them."""
    yes, (a, b) = facts.coin(), facts.there.unbind(1)
    kind = facts.pick(torch.where(yes[:, None], a & b, a ^ b))
    return [(f"is there a {NAMES[k]} in both pictures?", yes_no(y)) for k, y in rows(kind, yes)]


def more(facts: PairFacts) -> list[QA]:
    """Of which there are more in one picture; half of the time, if it can be, there are some in the
    other one too, so that they have to be counted."""
    second = facts.coin()
    here, elsewhere = facts.one_and_other(facts.items, second)
    larger, counted = here > elsewhere, (here > elsewhere) & (elsewhere > 0)
    chosen = (facts.coin() & counted.any(1))[:, None]
    item = facts.pick(torch.where(chosen, counted, larger))
    return [(f"which picture has more {ITEMS[i]}?", WHICH[s]) for i, s in rows(item, second)]


def counting(facts: PairFacts) -> list[QA]:
    """shapes' question about one of the pictures."""
    second = facts.coin()
    asked, _ = facts.one_and_other(facts.layout, second)
    answered = counting_in_one(SceneFacts(asked, facts.generator))
    return [
        (question.replace("?", f" in the {WHICH[s]} picture?"), answer)
        for (question, answer), s in zip(answered, second.tolist())
    ]


FAMILIES = {f.__name__: f for f in (which, existence, both, more, counting)}


def known_answers(question: str):
    """The answers that make sense for a question."""
    if "which" in question:
        return WHICH
    return ("0", "1", "2", "3") if question.startswith("how many") else ("yes", "no")


def captions(facts: PairFacts) -> list[str]:
    """What only one of the pictures has, in random order, and which picture that is: "red circle
    second green square first"."""
    said = []
    for kinds in facts.there.transpose(1, 2).tolist():
        only = [k for k, (first, second) in enumerate(kinds) if first != second]
        order = torch.randperm(len(only), generator=facts.generator).tolist()
        said.append(" ".join(f"{NAMES[only[n]]} {WHICH[kinds[only[n]][1]]}" for n in order))
    return said


class Pairs(World):
    """The world as a data set."""

    key, before = ("pairs",), PAIR
    facts, families, known_answers = PairFacts, FAMILIES, staticmethod(known_answers)
    answers = {"yes", "no", *"0123", *WHICH}
    one = Shapes()
    # As shapes begins with places, stage 2 begins with the picture that a thing is in, every second
    # question; then twice what is learned last. Without that beginning, or without captions of
    # pairs, mma learns slowly or not to tell the pictures apart (docs/log.md).
    first_steps, training_families = 400, (*FAMILIES, "more", "counting")
    first_families = "which existence which counting which both which more".split()

    def new_layouts(self, split, S, g):
        return pairs(split, S, g)

    def render(self, layout, g):
        return render(layout.flatten(0, 1), g).unflatten(0, layout.shape[:2])

    def captions(self, scene, g):
        return [words for cells in scene for words in self.one.captions(cells, g)]

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        if stage == "pt":
            return self._captions(step, pictures, seed)
        facts, shown = self.drawn("train", pictures, stage, seed, step)
        return self.asked(facts, shown, per_picture, self.families_of(stage, step))

    def _captions(self, step: int, pictures: int, seed: int) -> list[Example]:
        """Captions of a step of stage 1; from step STEPS_WITHOUT_PLACES on, half of the pictures
        stand in pairs."""
        S = pictures // 4 if step >= STEPS_WITHOUT_PLACES else 0
        singles = self.one.draw("pt", step, pictures, 1, seed)[: pictures - 2 * S]
        if S == 0:
            return singles
        facts, shown = self.drawn("train", S, "pt", seed, step)
        return singles + self.captioned(shown, captions(facts))
