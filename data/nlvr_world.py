"""A world drawn in NLVR's manner: three grey boxes with towers of blocks or scattered shapes, and sentences that are true or false.

    python -m data.nlvr_world               sentences of every family; how fast they are made
    python -m data.nlvr_world --png FILE    a sheet of pictures, one line each

Half of the pictures show towers, half scattered items, both distributed as NLVR's own are. A sentence is drawn from a grammar
written after reading NLVR's training sentences, and its truth is computed on the scene. It is asked twice: of a scene where it
is true and of one where it is false. So the words of a sentence tell nothing about its truth, by construction.

Shapes:  S scenes   3 boxes of a scene   8 items of a box at most
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data import IMAGE, Example, seed_of

COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
COLOUR, SHAPE, SIZE = list(COLOURS), ["circle", "square", "triangle"], [10, 20, 30]
NUMBER = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
BOX, GREY, ITEMS = 100, 211, 8
TOWER_X, TOWER_Y = (
    40,
    (80, 59, 38, 17),
)  # the blocks of a tower, from the base up; they stand one pixel apart
WHY = "in each box?"
FAMILIES = ["tower count", "tower box", "tower order", "item count", "item box", "item place"]


def sprites() -> Tensor:
    """uint8 [colour, shape, size, 3, 30, 30]: every item at its upper left, smooth at its edge, on the grey of a box."""
    fine = 8  # samples along a pixel
    out = torch.full((len(COLOUR), len(SHAPE), len(SIZE), 3, 30, 30), GREY, dtype=torch.uint8)
    for k, size in enumerate(SIZE):
        at = (torch.arange(size * fine) + 0.5) / fine
        y, x = at[:, None], at[None, :]
        for s, ink in enumerate(
            [
                (x - size / 2) ** 2 + (y - size / 2) ** 2 <= (size / 2) ** 2,
                (x >= 0) & (y >= 0),
                (x - size / 2).abs() <= y / 2,
            ]
        ):
            share = ink.view(size, fine, size, fine).float().mean((1, 3))
            for c, colour in enumerate(COLOURS.values()):
                pixels = share * torch.tensor(colour)[:, None, None] + (1 - share) * GREY
                out[c, s, k, :, :size, :size] = pixels.round().to(torch.uint8)
    return out


SPRITES = sprites()


def tower(r: random.Random) -> list[tuple]:
    return [(r.randrange(3), 1, 1, TOWER_X, y) for y in TOWER_Y[: r.randint(1, 4)]]


def scatter(r: random.Random) -> list[tuple]:
    """One to seven items that do not touch each other. What would stick out stands at the right wall, or on the bottom."""
    items = []
    for _ in range(r.randint(1, 7)):
        for _ in range(50):
            k = r.randrange(3)
            x, y, size = (
                min(r.randrange(BOX), BOX - SIZE[k]),
                min(r.randrange(BOX), BOX - SIZE[k]),
                SIZE[k],
            )
            if all(
                x > u + SIZE[j] or u > x + size or y > v + SIZE[j] or v > y + size
                for _, _, j, u, v in items
            ):
                items.append((r.randrange(3), r.randrange(3), k, x, y))
                break
    return items


class Scenes:
    """S scenes as lists, boxes[s][b] = [(colour, shape, size, x, y), ...], and the same as integer tensors [S, 3, 8], one for
    each property, with `there` True where there is an item. Items of a tower are listed from the base up."""

    def __init__(self, boxes: list[list[list[tuple]]]):
        self.boxes = boxes
        table = torch.tensor(
            [[box + [(-1,) * 5] * (ITEMS - len(box)) for box in scene] for scene in boxes]
        )
        self.colour, self.shape, self.size, self.x, self.y = table.unbind(-1)
        self.there = self.colour >= 0
        pixels = torch.tensor(SIZE)[self.size]
        self.right, self.bottom = (
            self.there & (self.x + pixels == BOX),
            self.there & (self.y + pixels == BOX),
        )
        self.left, self.top = self.there & (self.x == 0), self.there & (self.y == 0)
        nearly = [
            ((at <= 2) | (at + pixels >= BOX - 2)) for at in (self.x, self.y)
        ]  # NLVR's people are not strict about corners
        self.corner = self.there & nearly[0] & nearly[1]

    def render(self) -> Tensor:
        """uint8 [S, 3, 3, 100, 100]: the three boxes of every scene."""
        out = torch.full((len(self.boxes), 3, 3, BOX, BOX), GREY, dtype=torch.uint8)
        for s, scene in enumerate(self.boxes):
            for b, box in enumerate(scene):
                for c, shape, k, x, y in box:
                    n = SIZE[k]
                    out[s, b, :, y : y + n, x : x + n] = SPRITES[c, shape, k, :, :n, :n]
        return out


def caption(scene: list[list[tuple]], towers: bool) -> str:
    """Box by box; towers from the base up, scattered items from the left to the right."""

    def words(item):
        c, s, k, x, y = item
        walls = [
            w
            for w, at in (
                ("left", x == 0),
                ("right", x + SIZE[k] == BOX),
                ("top", y == 0),
                ("bottom", y + SIZE[k] == BOX),
            )
            if at
        ]
        return (
            COLOUR[c]
            if towers
            else " ".join([("small", "medium", "big")[k], COLOUR[c], SHAPE[s], *walls])
        )

    return " / ".join(
        ", ".join(words(i) for i in (box if towers else sorted(box, key=lambda i: i[3:])))
        for box in scene
    )


# --------------------------------------------------------------------------------------------------------------------
# Sentences. A Thing is a noun phrase and the items it means; a Count is "exactly two" and what that asks of a number. Whatever a
# method of Speaker says comes with what it is worth: of every scene, [S], or of every box, [S, 3].


@dataclass
class Thing:
    one: str
    mask: Tensor  # bool [S, 3, 8]

    @property
    def many(self) -> str:
        return self.one + "s"


@dataclass
class Count:
    words: str
    holds: Callable[[Tensor], Tensor]
    singular: bool

    def of(self, thing: Thing) -> str:
        return f"{self.words} {thing.one if self.singular else thing.many}"

    def there(self, words: str) -> str:
        return f"there {'is' if self.singular else 'are'} {words}"


class Speaker:
    def __init__(self, scenes: Scenes, r: random.Random, towers: bool):
        self.s, self.r, self.towers = scenes, r, towers
        self.some = scenes.there.sum(2)  # [S, 3]: how many items
        self.base, self.top = (
            scenes.colour.gather(2, at[..., None])[..., 0] for at in (self.some * 0, self.some - 1)
        )

    def pick(self, *options):
        return self.r.choice(options)

    def chance(self, p: float) -> bool:
        return self.r.random() < p

    # Noun phrases

    def count(self, most: int = 3, no: bool = True) -> Count:
        """A bare number means exactly so many: that is what NLVR's people mean by it."""
        kind = self.pick(
            "",
            "",
            "",
            "",
            "exactly",
            "exactly",
            "only",
            "at least",
            "at least",
            "at most",
            "more than",
            *3 * ["a"],
            "no",
        )
        if kind == "a" or kind == "no" and not no:
            return Count("a", lambda x: x >= 1, True)
        if kind == "no":
            return Count("no", lambda x: x == 0, True)
        n = min(self.r.randint(1, most), self.r.randint(1, most + 2))
        holds = {
            "at least": lambda x: x >= n,
            "at most": lambda x: x <= n,
            "more than": lambda x: x > n,
        }.get(kind, lambda x: x == n)
        return Count(f"{kind} {NUMBER[n]}".strip(), holds, n == 1)

    def item(self) -> Thing:
        """A yellow block; a small circle; an object."""
        mask, c, k = self.s.there, self.r.randrange(3), self.r.randrange(3)
        noun = self.pick(
            *(
                ("block", "block", "block", "item", "square")
                if self.towers
                else ("item", "item", "object", *3 * [SHAPE[k]])
            )
        )
        if noun in SHAPE and not self.towers:
            mask = mask & (self.s.shape == k)
        if self.chance(0.85):
            noun, mask = f"{COLOUR[c]} {noun}", mask & (self.s.colour == c)
        if not self.towers and self.chance(0.08):
            size = self.pick(0, 2)
            noun, mask = f"{('small', '', 'big')[size]} {noun}", mask & (self.s.size == size)
        return Thing(noun, mask)

    def place(self) -> tuple[str, Tensor]:
        """'touching the wall', and which items do: [S, 3, 8]."""
        s, closely = self.s, self.pick("", "closely ", "closely ")
        edge = s.left | s.right | s.top | s.bottom
        of_a_box = [
            (f"{closely}touching the bottom of a box", s.bottom),
            (f"{closely}touching right wall of a box", s.right),
        ]
        place, at = self.pick(
            *[
                (f"touching {wall}", edge)
                for wall in ("the edge", "any edge", "the wall", "the side")
            ],
            ("touching the base", s.bottom),
            ("touching the bottom base", s.bottom),
            *2 * of_a_box,
            ("touching the corner", s.corner),
            (f"{closely}touching a corner{self.pick('', ' of a box')}", s.corner),
        )
        return (f"not {place}", ~edge) if at is edge and self.chance(0.4) else (place, at)

    # What a box may have: words and which boxes have it, [S, 3]

    def height(self) -> tuple[str, Tensor]:
        count, noun = (
            self.count(4, no=False),
            self.pick(*(("block", "block", "item") if self.towers else ("item", "item", "object"))),
        )
        if count.words == "a":
            count = Count("two", lambda x: x == 2, False)
        return count.of(Thing(noun, self.s.there)), count.holds(self.some)

    def colours(self) -> tuple[str, Tensor]:
        """'only black items', 'items of two different colors'."""
        noun = self.pick("items", "items", "blocks" if self.towers else "objects")
        (a, b), n = self.r.sample(range(3), 2), self.r.randint(2, 4)
        has = [(self.s.colour == c).any(2) for c in range(3)]
        kinds, both, names = (
            sum(h.int() for h in has),
            has[a] & has[b] & ~has[3 - a - b],
            f"{COLOUR[a]} and {COLOUR[b]}",
        )
        return self.pick(
            (f"only {COLOUR[a]} {noun}", has[a] & (kinds == 1)),
            (f"only {names} {noun}", both),
            (f"{names} {noun}", has[a] & has[b]),
            (f"{NUMBER[n]} {noun} of {names} color", both & (self.some == n)),
            (f"{noun} of all three different colors", kinds == 3),
            (f"{NUMBER[n]} {noun} of two different colors", (kinds == 2) & (self.some == n)),
            (
                f"{NUMBER[n]} {noun} of the same {self.pick('color', 'colour')}",
                (kinds == 1) & (self.some == n),
            ),
        )

    def part(self) -> tuple[str, Tensor]:
        """'four items of which two are black', 'three items and one of them is a circle'."""
        n, part, thing, noun = (
            self.r.randint(2, 5),
            self.count(2, no=False),
            self.item(),
            self.pick("items", "items", "objects"),
        )
        number, what = (
            "at least one" if part.words == "a" else part.words,
            "is" if part.singular else "are",
        )
        if thing.one.count(" ") == 1 and thing.one.split()[0] in COLOUR and self.chance(0.7):
            thing = Thing(thing.one.split()[0], self.s.colour == COLOUR.index(thing.one.split()[0]))
            what += f" {thing.one}"
        else:
            what += f" a {thing.one}" if part.singular else f" {thing.many}"
        return f"{NUMBER[n]} {noun} {self.pick('of which', 'and the')} {number} {what}", (
            self.some == n
        ) & part.holds(thing.mask.sum(2))

    def several(self) -> tuple[str, Tensor]:
        """'a yellow square and two circles', 'two black and one blue item'."""
        counts, things = (
            [self.count(2, no=False) for _ in range(2)],
            [self.item() for _ in range(2)],
        )
        words = [count.of(thing) for count, thing in zip(counts, things)]
        fits = [count.holds(thing.mask.sum(2)) for count, thing in zip(counts, things)]
        holds = fits[0] & fits[1] & (things[0].mask != things[1].mask).any()
        if not self.towers and self.chance(0.3):
            third = self.item()
            return f"a {third.one}, {words[0]} and {words[1]}", holds & third.mask.any(2)
        return " and ".join(words), holds

    def ends(self) -> tuple[str, Tensor]:
        """'a blue block at the top'."""
        c, noun = self.r.randrange(3), self.pick("block", "block", "block", "item")
        base = ("at the base", "at the base", "at base", "at the bottom", "touching the wall")
        where, end = self.pick(
            *[(words, self.top) for words in ("at the top", "at the top", "on top")],
            *[(words, self.base) for words in base],
        )
        return f"a {COLOUR[c]} {noun} {where}", end == c

    def over(self) -> tuple[str, Tensor]:
        """'a blue block over a black block', right above it: how often, in each box."""
        (low, high), noun, a = (
            self.r.choices(range(3), k=2),
            self.pick("block", "block", "block", "item"),
            self.pick("a", "a", "the"),
        )
        times = ((self.s.colour[..., :-1] == low) & (self.s.colour[..., 1:] == high)).sum(2)
        if self.chance(0.12):
            return (
                f"{COLOUR[low]} {noun} {self.pick('below', 'bellow')} {a} {COLOUR[high]} {noun}",
                times,
            )
        return (
            f"{COLOUR[high]} {noun} {self.pick('on', 'above', 'above', 'over', 'over', 'on top of')} {a} {COLOUR[low]} {noun}",
            times,
        )

    def stacked(self) -> tuple[str, Tensor]:
        c, n = self.r.randrange(3), self.r.randint(2, 3)
        how = self.pick(
            "stacked together",
            "stacked together",
            "touching each other",
            "attached with each other",
        )
        return f"{self.pick('', 'at least ')}{NUMBER[n]} {COLOUR[c]} blocks {how}", (
            self.s.colour == c
        ).unfold(2, n, 1).all(3).any(2)

    def content(self) -> tuple[str, Tensor]:
        count, thing, form = self.count(3), self.item(), self.r.randrange(10)
        if form < 4:
            return (self.height, self.colours, self.part, self.several)[form]()
        if self.towers and form == 4:
            words, holds = self.ends()
            height, fits = self.height()
            return f"{height} and {words}", holds & fits
        if thing.mask is self.s.there and count.words in ("a", "no"):
            count = Count("two", lambda x: x == 2, False)
        return count.of(thing), count.holds(thing.mask.sum(2))

    # Families: words, truth [S], and what it rests on: of every box how many, or whether at all (bool), [S, 3]

    def boxes(self, content: tuple[str, Tensor], noun: str):
        """'there are two boxes with ...'"""
        (words, holds), form, nouns = (
            content,
            self.r.random(),
            noun + ("es" if noun.endswith("box") else "s"),
        )
        n, with_ = holds.sum(1), self.pick(*5 * ["with"], "which has", "that has", "containing")
        count = (
            self.count(2)
            if 0.5 <= form < 0.75
            else Count("a" if form < 0.5 else "at least one", lambda x: x >= 1, True)
        )
        if form < 0.82:
            noun, with_ = (noun, with_) if count.singular else (nouns, with_.replace("has", "have"))
            return count.there(f"{count.words} {noun} {with_} {words}"), count.holds(n), holds
        has, have = self.pick(("has", "have"), ("contains", "contain"))
        return *self.pick(
            (f"one of the {nouns} {has} {words}", n >= 1),
            (f"one of the {nouns} {has} {words}", n >= 1),
            (f"one {noun} {has} {words}", n >= 1),
            (f"at least one {noun} {has} {words}", n >= 1),
            (f"two {nouns} {have} {words}", n == 2),
            (f"each {noun} {has} {words}", n == 3),
            (f"all the {nouns} {have} {words}", n == 3),
        ), holds

    def tower_box(self):
        return self.boxes(self.content(), self.pick("box", "tower", "tower"))

    def item_box(self):
        return self.boxes(self.content(), self.pick("box", "box", "box", "grey box", "grey square"))

    def item_count(self):
        count, thing = self.count(5), self.item()
        box, one = (
            self.pick("box", "box", "tower" if self.towers else "box"),
            f"{self.pick('a', 'at least one')} {thing.one}",
        )
        n = thing.mask.sum(2)
        if self.chance(0.2):
            return (
                self.pick(f"there is {one} in each {box}", f"each {box} has {one}"),
                (n > 0).all(1),
                n,
            )
        return count.there(count.of(thing)), count.holds(n.sum(1)), n

    tower_count = item_count

    def item_place(self):
        thing, count, (place, at), form = self.item(), self.count(3), self.place(), self.r.random()
        n = (thing.mask & at).sum(2)
        if form < 0.75:
            return count.there(f"{count.of(thing)} {place}"), count.holds(n.sum(1)), n
        return *self.pick(
            (f"none of the {thing.many} are {place}", n.sum(1) == 0),
            (f"{self.pick('', 'the ')}{thing.one} is {place}", n.sum(1) > 0),
            (f"there is a box with {count.of(thing)} {place}", count.holds(n).any(1)),
        ), n

    def tower_order(self):
        c, form, count = self.r.randrange(3), self.r.randrange(9), self.count(2)
        at, end = self.pick(("top", self.top == c), ("base", self.base == c))
        blocks = count.of(Thing(f"{COLOUR[c]} block", end))
        height, fits = self.height()
        if form == 0:
            return count.there(f"{blocks} as the {at} of a tower"), count.holds(end.sum(1)), end
        if form == 1:
            return (
                count.there(f"{blocks} as the {at} of a tower with {height}"),
                count.holds((end & fits).sum(1)),
                end & fits,
            )
        if form == 2:
            n = self.r.randint(1, 4)
            words, has = (
                (f"a {COLOUR[c]} block at the {at}", end) if self.chance(0.7) else self.over()
            )
            words, blocks = (
                words if words[:2] == "a " else f"a {words}",
                f"{NUMBER[n]} block{'s' if n > 1 else ''}",
            )
            has = (self.some == n) & (has > 0)
            return (
                self.pick(f"the tower with {blocks} has", f"there is a tower with {blocks} having")
                + f" {words}",
                has.any(1),
                has,
            )
        if form == 3:
            words, times = self.over()
            if not count.singular or " bel" in words:
                count = Count("a", lambda x: x >= 1, True)
            return f"there is {count.words} {words}", count.holds(times.sum(1)), times
        if form == 4:
            only = ((self.s.colour == c) == self.s.there).all(2)
            words, has = self.pick(("", only), (f" with {height}", only & fits))
            return f"there is a {COLOUR[c]} tower{words}", has.any(1), has
        if form == 5:
            n = self.pick(1, 1, 2)
            nth, has = ("second", "third")[n - 1], self.s.colour[..., n] == c
            return f"the {nth} block from the base of a tower is {COLOUR[c]}", has.any(1), has
        if form == 6:
            return self.boxes(self.stacked(), "tower")
        if form == 7:
            words, times = self.over()
            return self.boxes(
                ("a " + words, times > 0), self.pick("box", "tower", "tower", "tower")
            )
        return self.boxes(self.ends(), self.pick("box", "tower", "tower", "tower"))


# --------------------------------------------------------------------------------------------------------------------


class World:
    """The world as a data set (the interface of data.Folder). Scenes never run out: each step has new ones."""

    answers = {"true", "false"}

    def _scenes(self, n: int, *key) -> tuple[list[tuple[Scenes, Tensor]], random.Random]:
        """Towers and scattered items, half of n scenes each, with their pictures; never so few that no sentence tells them apart."""
        r = random.Random(seed_of("nlvr world", *key))
        some = [
            Scenes([[box(r) for _ in range(3)] for _ in range(max(6, n // 2))])
            for box in (tower, scatter)
        ]
        return [(scenes, scenes.render()) for scenes in some], r

    def _sentences(self, pools, r: random.Random, n: int) -> list[Example]:
        """n rows: a sentence of a scene where it is true, then the same of one where it is false. A second turn asks what the sentence's
        truth rests on: that teaches the pictures' tokens what to look for, many times faster than true and false alone."""
        out = []
        while len(out) < n:
            family = FAMILIES[len(out) // 2 % len(FAMILIES)]
            pool, truth = int(not family.startswith("tower")), ()
            while not any(truth) or all(truth):
                words, holds, worth = getattr(
                    Speaker(pools[pool][0], r, pool == 0), family.replace(" ", "_")
                )()
                truth = holds.tolist()
            names = ("no", "yes") if worth.dtype == torch.bool else NUMBER
            for answer in (True, False):
                scene = r.choice([k for k, t in enumerate(truth) if t == answer])
                out.append(
                    Example(
                        list(pools[pool][1][scene]),
                        [
                            (IMAGE * 3 + words, str(answer).lower()),
                            (WHY, " ".join(names[k] for k in worth[scene].tolist())),
                        ],
                        family,
                    )
                )
        return out[:n]

    def texts(self):
        pools, r = self._scenes(400, "texts")
        for p, (scenes, _) in enumerate(pools):
            yield from (caption(scene, p == 0) for scene in scenes.boxes)
        for example in self._sentences(pools, r, 6000):
            for words, answer in example.turns:
                yield words.replace(IMAGE, "")
                yield answer

    def draw(
        self, stage: str, step: int, pictures: int, per_picture: int, seed: int
    ) -> list[Example]:
        pools, r = self._scenes(pictures, seed, step, stage)
        if stage == "sft":
            return self._sentences(pools, r, pictures * per_picture)
        return [
            Example(list(boxes), [(IMAGE * 3, caption(scene, p == 0))], "caption")
            for p, (scenes, images) in enumerate(pools)
            for scene, boxes in zip(scenes.boxes, images)
        ]

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,200 sentences, whatever the run's seed, without the second turn."""
        pools, r = self._scenes(600, "heldout", split)
        return [
            replace(example, turns=example.turns[:1])
            for example in self._sentences(pools, r, 1200)[:limit]
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A world drawn in NLVR's manner: sentences, speed, a sheet of pictures."
    )
    parser.add_argument("--png", metavar="FILE", help="write 12 pictures here")
    args = parser.parse_args()
    world, start = World(), time.perf_counter()
    rows = sum(len(world.draw("sft", step, 24, 4, 0)) for step in range(20))
    print(f"{rows / (time.perf_counter() - start):,.0f} sentences with pictures a second")
    for e in world.draw("sft", 0, 24, 4, 0)[::2]:
        print(
            f"{e.family:<12} {e.turns[0][0].replace(IMAGE, '')} {e.turns[0][1]}; {WHY} {e.turns[1][1]}"
        )
    for e in world.draw("pt", 0, 12, 4, 0)[::6]:
        print(f"caption      {e.turns[0][1]}")
    if args.png:
        from torchvision.utils import save_image

        some = [image for e in world.draw("pt", 0, 12, 4, 0) for image in e.images]
        save_image(torch.stack(some).float() / 255, args.png, nrow=6, pad_value=0.5)
