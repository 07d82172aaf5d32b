"""What the built-in worlds share: facts that questions are drawn from, questions in families, and
how much the words of a question tell of its answer.

A scene holds objects; what can be asked about is their kinds: a colour and a shape, a pitch and an
instrument. For each question the answer is drawn first, uniformly, then a question that has it.

Shapes:  S scenes   K kinds
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from data.prompt import IMAGE_TOKEN, Example

QA = tuple[str, str]  # a question and its answer
EMPTY = -1  # what is in a cell of a layout that holds nothing
# By the hash of a scene's layout modulo 10: no layout of val or test is ever trained on
SPLITS = {"train": range(0, 8), "val": range(8, 9), "test": range(9, 10)}


def split_of(layout: Tensor) -> Tensor:
    """Layout hash modulo 10, int64 [S]: the scene's split (see SPLITS)."""
    h = torch.zeros(len(layout), dtype=torch.int64)
    for cell in (layout + 1).unbind(1):
        h = (h * 31 + cell) % 1_000_003
    return h * 7919 % 1_000_003 % 10


def scenes(S: int, split: str, g: torch.Generator, draw) -> Tensor:
    """S layouts of the split, int64 [S, CELLS]. draw(S, g): makes those it chooses from."""
    kept, n, wanted = [], 0, SPLITS[split]
    while n < S:
        layout = draw(max(64, int(1.5 * S * 10 / len(wanted))), g)
        found = split_of(layout)
        kept.append(layout[(found >= wanted.start) & (found < wanted.stop)])
        n += len(kept[-1])
    return torch.cat(kept)[:S]


@dataclass
class Facts:
    """What is true of S scenes, and the generator with which questions about them are drawn."""

    generator: torch.Generator
    names: list[str]  # of the kinds
    count: Tensor  # int64 [S, K]: objects of each kind
    possible: Tensor  # bool [S, K]: both words of the kind's name fit something that is there

    def pick(self, allowed: Tensor) -> Tensor:
        """int64 [S]: the index of a random True in each row of allowed [S, X]; each has one."""
        return (torch.rand(allowed.shape, generator=self.generator) + allowed).argmax(1)

    def coin(self) -> Tensor:
        """bool [S]: a fair coin for each scene."""
        return torch.rand(len(self.count), generator=self.generator) < 0.5


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


def ask(facts: Facts, families: dict, names, per_scene: int) -> list:
    """[(family, question, answer), ...], per_scene for each scene: the named families in turn,
    starting at a random one. families: name -> function of the facts that gives a QA a scene."""
    S, rounds = len(facts.count), -(-per_scene // len(names))
    asked = [[(name, *qa) for qa in families[name](facts)] for _ in range(rounds) for name in names]
    starts = torch.randint(len(names), (S,), generator=facts.generator).tolist()
    return [
        [asked[(start + i) % len(asked)][scene] for i in range(per_scene)]
        for scene, start in enumerate(starts)
    ]


def examples(
    shown: Tensor, asked: list, split: str = "", before: str = IMAGE_TOKEN
) -> list[Example]:
    """An Example for each question (see `ask`) about each scene. shown: its pictures, uint8
    [S, pictures a row, 3, size, size]; before: what stands before a question, with one IMAGE_TOKEN
    for each of them. The questions of a scene share its picture as one object, so that a batch
    encodes it once."""
    return [
        Example(
            images,
            [(before + question, answer)],
            family,
            split and f"{split}-{i}",
        )
        for i, (images, some) in enumerate(zip(map(list, shown), asked))
        for family, question, answer in some
    ]


def question_only(asked: list, known_answers, families) -> dict[str, tuple[float, float]]:
    """family -> (accuracy of the best answer to each question, known from half of the scenes, on
    the other half; chance). asked: the rows (family, question, answer) of each scene;
    known_answers(question): the answers that make sense."""
    answer_counts, ceilings = defaultdict(Counter), {}
    for family, question, answer in (row for rows in asked[::2] for row in rows):
        answer_counts[family, question][answer] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in answer_counts.items()}
    for family in families:
        rows = [row for rows in asked[1::2] for row in rows if row[0] == family]
        right = sum(best.get((family, question)) == answer for _, question, answer in rows)
        chance = sum(1 / len(known_answers(question)) for _, question, _ in rows)
        ceilings[family] = right / len(rows), chance / len(rows)
    return ceilings


def show(ceilings: dict[str, tuple[float, float]]) -> None:
    """Print what question_only found."""
    print(f"{'family':<12}{'question only':>14}{'chance':>8}")
    for family, (ceiling, chance) in ceilings.items():
        print(f"{family:<12}{ceiling:>13.1%}{chance:>8.1%}")
