"""What the built-in worlds share: scenes in splits, and questions in families.

A scene is a layout of cells; what can be asked about is the kinds of what stands in them: a colour
and a shape, a pitch and an instrument. For each question the answer is drawn first, uniformly, then
a question that has it. A family of questions is a function of Facts that gives each scene one.

Shapes:  S scenes   K kinds   P pictures of a row
"""

from collections.abc import Callable

import torch
from torch import Tensor

from data.draws import generator_of
from data.prompt import IMAGE_TOKEN, Example

QA = tuple[str, str]  # a question and its answer
EMPTY = -1  # what is in a cell of a layout that holds nothing
HELD_OUT = 1000  # scenes of val and test
# By the hash of a scene's layout modulo 10: no layout of val or test is ever trained on
SPLITS = {"train": range(0, 8), "val": range(8, 9), "test": range(9, 10)}


def split_of(layout: Tensor) -> Tensor:
    """Layout hash modulo 10, int64 [S]: the scene's split (see SPLITS)."""
    h = torch.zeros(len(layout), dtype=torch.int64)
    for cell in (layout + 1).unbind(1):
        h = (h * 31 + cell) % 1_000_003
    return h * 7919 % 1_000_003 % 10


def layouts_in(split: str, S: int, g: torch.Generator, draw) -> Tensor:
    """S layouts of the split, int64 [S, cells]. draw(S, g): makes those it chooses from."""
    kept, n, wanted = [], 0, SPLITS[split]
    while n < S:
        layout = draw(max(64, int(1.5 * S * 10 / len(wanted))), g)
        found = split_of(layout)
        kept.append(layout[(found >= wanted.start) & (found < wanted.stop)])
        n += len(kept[-1])
    return torch.cat(kept)[:S]


class Facts:
    """What is true of S scenes, and the generator with which questions about them are drawn. A
    world's own facts are made of layouts, int64 [S, ...], and a generator."""

    names: list[str]  # of the kinds

    def __init__(
        self, layout: Tensor, generator: torch.Generator, count: Tensor, possible: Tensor
    ):  # fmt: skip
        self.layout, self.generator = layout, generator
        self.count = count  # int64 [S, K]: objects of each kind
        self.possible = possible  # bool [S, K]: see `possible`

    def pick(self, allowed: Tensor) -> Tensor:
        """int64 [S]: the index of a random True in each row of allowed [S, X]; each has one."""
        return (torch.rand(allowed.shape, generator=self.generator) + allowed).argmax(1)

    def coin(self, p: float = 0.5) -> Tensor:
        """bool [S]: a coin for each scene, True with probability p."""
        return torch.rand(len(self.count), generator=self.generator) < p


def possible(table: Tensor) -> Tensor:
    """bool [S, K]: is there something that each word of the kind's name fits? table: the count of
    the kinds, int64 [S, first words, second words]."""
    return ((table.sum(2) > 0)[:, :, None] & (table.sum(1) > 0)[:, None, :]).flatten(1)


def yes_no(yes: bool) -> str:
    return "yes" if yes else "no"


def rows(*columns: Tensor):
    """The values [S] of each column, scene by scene."""
    return zip(*(column.tolist() for column in columns))


def existence(facts: Facts) -> list[QA]:
    yes = facts.coin()
    absent = facts.possible & (facts.count == 0)
    kind = facts.pick(torch.where(yes[:, None], facts.count > 0, absent))
    return [(f"is there a {facts.names[k]}?", yes_no(y)) for k, y in rows(kind, yes)]


def counting(facts: Facts, most: int = 3) -> list[QA]:
    """0 to `most`: each scene has a kind of each number."""
    number = torch.randint(most + 1, (len(facts.count),), generator=facts.generator)
    kind = facts.pick(facts.possible & (facts.count == number[:, None]))
    return [(f"how many {facts.names[k]}s are there?", str(n)) for k, n in rows(kind, number)]


class World:
    """What the built-in worlds have in common as data sets (the interface of data.Folder). Scenes
    never run out: each training step has new ones, a function of (stage, step, seed). Those of val
    and test are the same whatever the seed. A world says what follows, and how it draws."""

    some_layouts: Callable[[int, torch.Generator], Tensor]  # of any split, to choose from
    facts: Callable[[Tensor, torch.Generator], Facts]  # what is true of layouts
    families: dict[str, Callable[[Facts], list[QA]]]
    known_answers: Callable[[str], list[str]]  # those that make sense for a question
    answers: set[str]
    key = ()  # what its random numbers begin with
    before = IMAGE_TOKEN  # stands before a question: an IMAGE_TOKEN for each picture of the row
    # What training asks, in turn: in the first steps of stage 2, and from then on
    first_steps, first_families = 0, []
    training_families: list[str]
    final_split = "test"

    def families_of(self, stage: str, step: int) -> list[str]:
        """What a training step asks. Those that none of a run's steps asks are marked in its tables
        (engine.plan.not_asked)."""
        if stage == "pt":
            return []
        return self.first_families if step < self.first_steps else self.training_families

    def new_layouts(self, split: str, S: int, g: torch.Generator) -> Tensor:
        """S layouts of the split, int64 [S, ...]."""
        return layouts_in(split, S, g, self.some_layouts)

    def render(self, layout: Tensor, g: torch.Generator) -> Tensor:
        """Their pictures, uint8 [S, P, 3, size, size]."""
        raise NotImplementedError

    def captions(self, scene: list, g: torch.Generator) -> list[str]:
        """All that a caption may say of a scene, a row of a layout."""
        raise NotImplementedError

    def drawn(self, split: str, S: int, *key) -> tuple[Facts, Tensor]:
        """What is true of S scenes drawn for the key, and their pictures."""
        g = generator_of(*self.key, split, *key)
        layout = self.new_layouts(split, S, g)
        pictures = self.render(layout, g)
        return self.facts(layout, g), pictures

    def questions(self, facts: Facts, per_scene: int, names=()) -> list[list[tuple[str, str, str]]]:
        """(family, question, answer), per_scene for each scene: the named families, by default all,
        in turn, starting at a random one."""
        names, S = names or tuple(self.families), len(facts.layout)
        rounds = range(-(-per_scene // len(names)))
        asked = [
            [(name, *qa) for qa in self.families[name](facts)] for _ in rounds for name in names
        ]
        starts = torch.randint(len(names), (S,), generator=facts.generator).tolist()
        return [
            [asked[(start + i) % len(asked)][scene] for i in range(per_scene)]
            for scene, start in enumerate(starts)
        ]

    def asked(self, facts: Facts, pictures: Tensor, per_scene: int, names=(), split: str = ""):
        """`questions` as Examples. Those about a scene share its pictures as objects, so that a
        batch encodes them once."""
        return self.examples(pictures, self.questions(facts, per_scene, names), split)

    def examples(self, pictures: Tensor, asked: list, split: str = "") -> list[Example]:
        return [
            Example(images, [(self.before + question, answer)], family, split and f"{split}-{i}")
            for i, (images, of_scene) in enumerate(zip(map(list, pictures), asked))
            for family, question, answer in of_scene
        ]

    def captioned(self, pictures: Tensor, captions) -> list[Example]:
        """An Example for each scene: stage 1."""
        return self.examples(pictures, [[("caption", "", caption)] for caption in captions])

    def texts(self):
        """The text that the tokenizer is trained on."""
        facts, _ = self.drawn("train", 2000, 0)
        asked = self.questions(facts, 2 * len(self.families))
        for scene, of_scene in zip(facts.layout.tolist(), asked):
            yield from self.captions(scene, facts.generator)
            for _, *qa in of_scene:
                yield from qa

    def split_names(self) -> list[str]:
        return list(SPLITS)

    def held_out(self, split: str) -> tuple[Facts, Tensor]:
        """The scenes of `heldout`, as `drawn` gives them."""
        return self.drawn(split, HELD_OUT, 0)

    def layouts(self, split: str) -> list:
        """The layout of each scene of `heldout`, which has a question of each family about it."""
        return self.held_out(split)[0].layout.tolist()

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same scenes with a question of each family, whatever the run's seed."""
        return self.asked(*self.held_out(split), len(self.families), split=split)[:limit]
