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
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from data import IMAGE, Example, seed_of

COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
COLOUR, SHAPE, SIZE = list(COLOURS), ["circle", "square", "triangle"], [10, 20, 30]
NUMBER = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
BOX, GREY, ITEMS = 100, 211, 8
TURNS = 5  # sentences about one scene in a row of stage 1, and as many phrases
TOWER_X, TOWER_Y = 40, (80, 59, 38, 17)  # the blocks of a tower, from the base up; they stand one pixel apart
FAMILIES = ["tower count", "tower box", "tower order", "item count", "item box", "item place"]


def sprites() -> Tensor:
    """uint8 [colour, shape, size, 3, 30, 30]: every item at its upper left, smooth at its edge, on the grey of a box."""
    fine = 8  # samples along a pixel
    out = torch.full((len(COLOUR), len(SHAPE), len(SIZE), 3, 30, 30), GREY, dtype=torch.uint8)
    for k, size in enumerate(SIZE):
        at = (torch.arange(size * fine) + .5) / fine
        y, x = at[:, None], at[None, :]
        for s, ink in enumerate([(x - size / 2) ** 2 + (y - size / 2) ** 2 <= (size / 2) ** 2, (x >= 0) & (y >= 0),
                                 (x - size / 2).abs() <= y / 2]):
            share = ink.view(size, fine, size, fine).float().mean((1, 3))
            for c, colour in enumerate(COLOURS.values()):
                pixels = share * torch.tensor(colour)[:, None, None] + (1 - share) * GREY
                out[c, s, k, :, :size, :size] = pixels.round().to(torch.uint8)
    return out


SPRITES = sprites()


def tower(r: random.Random) -> list[tuple]:
    return [(r.randrange(3), 1, 1, TOWER_X, y) for y in TOWER_Y[:r.randint(1, 4)]]


def scatter(r: random.Random) -> list[tuple]:
    """One to seven items that do not touch each other. What would stick out stands at the right wall, or on the bottom."""
    items = []
    for _ in range(r.randint(1, 7)):
        for _ in range(50):
            k = r.randrange(3)
            x, y, size = min(r.randrange(BOX), BOX - SIZE[k]), min(r.randrange(BOX), BOX - SIZE[k]), SIZE[k]
            if all(x > u + SIZE[j] or u > x + size or y > v + SIZE[j] or v > y + size for _, _, j, u, v in items):
                items.append((r.randrange(3), r.randrange(3), k, x, y))
                break
    return items


class Scenes:
    """S scenes as lists, boxes[s][b] = [(colour, shape, size, x, y), ...], and the same as integer tensors [S, 3, 8], one for
    each property, with `there` True where there is an item. Items of a tower are listed from the base up."""

    def __init__(self, boxes: list[list[list[tuple]]]):
        self.boxes = boxes
        table = torch.tensor([[box + [(-1,) * 5] * (ITEMS - len(box)) for box in scene] for scene in boxes])
        self.colour, self.shape, self.size, self.x, self.y = table.unbind(-1)
        self.there = self.colour >= 0
        pixels = torch.tensor(SIZE)[self.size]
        self.right, self.bottom = self.there & (self.x + pixels == BOX), self.there & (self.y + pixels == BOX)
        self.left, self.top = self.there & (self.x == 0), self.there & (self.y == 0)
        nearly = [((at <= 2) | (at + pixels >= BOX - 2)) for at in (self.x, self.y)]  # NLVR's people are not strict about corners
        self.corner = self.there & nearly[0] & nearly[1]

    def render(self) -> Tensor:
        """uint8 [S, 3, 3, 100, 100]: the three boxes of every scene."""
        out = torch.full((len(self.boxes), 3, 3, BOX, BOX), GREY, dtype=torch.uint8)
        for s, scene in enumerate(self.boxes):
            for b, box in enumerate(scene):
                for c, shape, k, x, y in box:
                    n = SIZE[k]
                    out[s, b, :, y:y + n, x:x + n] = SPRITES[c, shape, k, :, :n, :n]
        return out


def caption(scene: list[list[tuple]], towers: bool) -> str:
    """Box by box; towers from the base up, scattered items from the left to the right."""
    def words(item):
        c, s, k, x, y = item
        walls = [w for w, at in (("left", x == 0), ("right", x + SIZE[k] == BOX), ("top", y == 0), ("bottom", y + SIZE[k] == BOX)) if at]
        return COLOUR[c] if towers else " ".join([("small", "medium", "big")[k], COLOUR[c], SHAPE[s], *walls])
    return " / ".join(", ".join(words(i) for i in (box if towers else sorted(box, key=lambda i: i[3:]))) for box in scene)


# --------------------------------------------------------------------------------------------------------------------
# Sentences. A noun phrase is a Thing: its words and, for every scene, which items it means. A Count is "exactly two" and what that
# asks of a number. `Speaker` puts them together; every method of it that FAMILIES names returns words and truth [S].

@dataclass
class Thing:
    one: str
    many: str
    mask: Tensor  # bool [S, 3, 8]


@dataclass
class Count:
    words: str
    holds: object     # an integer tensor -> bool tensor
    singular: bool

    def of(self, thing: Thing) -> str:
        return f"{self.words} {thing.one if self.singular else thing.many}"

    @property
    def there(self) -> str:
        return "there is" if self.singular else "there are"


class Speaker:
    def __init__(self, scenes: Scenes, r: random.Random):
        self.s, self.r = scenes, r

    def pick(self, *options):
        return self.r.choice(options)

    # Words

    def count(self, most: int = 3, no: bool = True) -> Count:
        n = min(self.r.randint(1, most), self.r.randint(1, most + 2))
        kind = self.pick("", "", "", "exactly", "exactly", "only", "at least", "at least", "at most", "more than", "less than", "a", "a", "no")
        if kind == "a" or kind == "no" and not no:
            return Count("a", lambda x: x >= 1, True)
        if kind == "no":
            return Count("no", lambda x: x == 0, True)
        if kind == "less than":
            n += 1
        holds = {"at least": lambda x: x >= n, "at most": lambda x: x <= n, "more than": lambda x: x > n,
                 "less than": lambda x: x < n}.get(kind, lambda x: x == n)
        return Count(f"{kind} {NUMBER[n]}".strip(), holds, n == 1)

    def colour(self) -> tuple[str, Tensor]:
        c = self.r.randrange(3)
        return COLOUR[c], self.s.colour == c

    def item(self, noun: str | None = None) -> Thing:
        """A yellow block, a small circle, an item ..."""
        words, mask, shaped = "", self.s.there, False
        if noun is None:
            noun = self.pick("item", "item", "object", "shape", "shape", "shape")
        if noun == "shape":
            k = self.r.randrange(3)
            noun, mask, shaped = SHAPE[k], mask & (self.s.shape == k), True
        if self.r.random() < (.75 if shaped else .9):
            name, of = self.colour()
            words, mask = name + " ", mask & of
        if shaped and self.r.random() < .1:
            k = self.pick(0, 2)
            words, mask = ("small " if k == 0 else "big ") + words, mask & (self.s.size == k)
        return Thing(words + noun, words + noun + "s", mask)

    def block(self) -> Thing:
        name, of = self.colour()
        noun = self.pick("block", "block", "block", "item", "square")
        return Thing(f"{name} {noun}", f"{name} {noun}s", of)

    def boxes(self, holds: Tensor, content: str, tower: bool) -> tuple[str, Tensor]:
        """'there are two boxes with ...': holds [S, 3] says of which boxes `content` is true."""
        n, r = holds.sum(1), self.r
        noun = self.pick("tower") if tower else self.pick("box", "box", "box", "box", "grey box", "grey square")
        nouns = noun + ("es" if noun.endswith("box") else "s")
        with_ = self.pick("with", "with", "with", "with", "with", "which has", "that has", "containing")
        have = {"with": "with", "containing": "containing"}.get(with_, with_.replace("has", "have"))
        form = r.random()
        if form < .5:
            return f"there is a {noun} {with_} {content}", n >= 1
        if form < .85:
            count = Count("at least one", lambda x: x >= 1, True) if r.random() < .2 else self.count(2)
            return (f"{count.there} {count.words} {noun if count.singular else nouns} {with_ if count.singular else have} {content}",
                    count.holds(n))
        if form < .95:
            words, need = self.pick((f"one of the {nouns} has", 1), (f"at least one {noun} has", 1),
                                    (f"two {nouns} have", 2), (f"one {noun} has", 1))
            return f"{words} {content}", n == need if words.startswith(("two", f"one {noun}")) else n >= need
        return self.pick(f"each {noun} has {content}", f"all the {nouns} have {content}", f"all three {nouns} have {content}"), n == 3

    def phrase(self, tower: bool) -> tuple[str, Tensor]:
        """Part of a sentence and what it comes to in each box: how many [S, 3], or whether at all (bool)."""
        form = self.r.random()
        if form < .3:
            return self.content(tower)
        if not tower:
            thing, (place, at) = self.item(), self.place()
            return (thing.many, thing.mask.sum(2)) if form < .6 else (f"{thing.many} {place}", (thing.mask & at).sum(2))
        if form < .5:
            thing = self.block()
            return thing.many, thing.mask.sum(2)
        words, holds = self.over() if form < .75 else self.end()
        return words, holds.sum(2) if holds.dim() == 3 else holds

    # Families: words and truth [S]

    def tower_count(self):
        thing, r = self.block(), self.r
        if r.random() < .25:
            holds, content = thing.mask.any(2), thing.one
            return self.pick(f"there is a {content} in each {self.pick('box', 'tower')}",
                             f"each {self.pick('box', 'tower')} has at least one {content}"), holds.all(1)
        count = self.count(6)
        return f"{count.there} {count.of(thing)}", count.holds(thing.mask.sum((1, 2)))

    def height(self) -> tuple[str, Tensor]:
        """'exactly three blocks', 'only one item': of every box."""
        count = self.count(4, no=False)
        if count.words == "a":
            count = Count("two", lambda x: x == 2, False)
        noun = self.pick("block", "block", "item", "object")
        return count.of(Thing(noun, noun + "s", self.s.there)), count.holds(self.s.there.sum(2))

    def ends(self) -> tuple[Tensor, Tensor]:
        """The colour of every tower's base and top: [S, 3] each."""
        last = self.s.there.sum(2, keepdim=True) - 1
        return self.s.colour[..., 0], self.s.colour.gather(2, last)[..., 0]

    def end(self) -> tuple[str, Tensor]:
        """'a blue block at the top': of every box."""
        (base, top), c, noun = self.ends(), self.r.randrange(3), self.pick("block", "block", "block", "item")
        if self.r.random() < .5:
            return f"a {COLOUR[c]} {noun} at the top" if self.r.random() < .7 else f"a {COLOUR[c]} {noun} on top", top == c
        return f"a {COLOUR[c]} {noun} at {self.pick('the base', 'the base', 'base', 'the bottom')}", base == c

    def over(self) -> tuple[str, Tensor]:
        """'a blue block over a black block', one right above the other: bool [S, 3, 7], by the lower one's place."""
        low, high = self.r.randrange(3), self.r.randrange(3)
        holds = (self.s.colour[..., :-1] == low) & (self.s.colour[..., 1:] == high)
        noun, a = self.pick("block", "block", "block", "item"), self.pick("a", "a", "the")
        if self.r.random() < .15:
            return f"{COLOUR[low]} {noun} {self.pick('below', 'bellow', 'under')} {a} {COLOUR[high]} {noun}", holds
        return f"{COLOUR[high]} {noun} {self.pick('on', 'above', 'over', 'over', 'above', 'on top of')} {a} {COLOUR[low]} {noun}", holds

    def stacked(self, mask: Tensor, n: int) -> Tensor:
        """Do n blocks of the mask stand on one another? bool [S, 3]"""
        return mask.unfold(2, n, 1).all(3).any(2)

    def content(self, tower: bool) -> tuple[str, Tensor]:
        """What a box may have, and which boxes have it."""
        r, s = self.r, self.s
        item = self.block if tower else self.item
        noun = self.pick("items", "items", "objects", "blocks" if tower else "items")
        some = s.there.sum(2)
        first, second = r.sample(range(3), 2)
        form = r.randrange(9)
        if form == 0:
            return self.height()
        if form == 1:
            return f"only {COLOUR[first]} {noun}", ((s.colour == first) == s.there).all(2)
        if form == 2:
            has = [(s.colour == c) for c in (first, second)]
            both, m = ((has[0] | has[1]) == s.there).all(2) & has[0].any(2) & has[1].any(2), r.randint(2, 4)
            names = f"{COLOUR[first]} and {COLOUR[second]}"
            return self.pick((f"only {names} {noun}", both), (f"only {names} {noun}", both), (f"{names} {noun}", has[0].any(2) & has[1].any(2)),
                             (f"{noun} of only {names} color", both),
                             (f"{NUMBER[m]} {noun} of {self.pick('', 'only ')}{names} color", both & (some == m)))
        if form == 3:
            n = r.randint(1, 3)
            colours = torch.stack([(s.colour == c).any(2) for c in range(3)]).sum(0)
            if n == 3:
                return f"{noun} of {self.pick('all three', 'three different', 'all three different')} colors", colours == 3
            m, exact = r.randint(2, 4), r.random() < .5
            size = (f"{NUMBER[m]} " if exact else "") + noun
            what = (f"{size} of {'only ' if r.random() < .3 else ''}two different colors" if n == 2 else
                    f"{size} of the same {self.pick('color', 'colour')}")
            return what, (colours == n) & ((some == m) if exact else (some > 1))
        if form == 4:
            total, part = r.randint(2, 5), self.count(2, no=False)
            if not tower and r.random() < .3:
                thing = self.item("shape")
                number = "at least one" if part.words == "a" else part.words
                return (f"{NUMBER[total]} {noun} of which {number} {f'is a {thing.one}' if part.singular else f'are {thing.many}'}",
                        (some == total) & part.holds(thing.mask.sum(2)))
            thing = item()
            word = self.pick("of which", "of which", "and")
            part_of = part.words if part.words != "a" else "at least one"
            middle = f"the {part_of}" if word == "and" else part_of
            colour = thing.one.split()[0]
            if colour not in COLOUR:
                colour, thing = COLOUR[first], Thing("", "", s.colour == first)
            else:
                thing = Thing("", "", s.colour == COLOUR.index(colour))
            return (f"{NUMBER[total]} {noun} {word} {middle} {'is' if part.singular else 'are'} {colour}",
                    (some == total) & part.holds(thing.mask.sum(2)))
        if form == 5:
            a, b = self.count(2, no=False), self.count(2, no=False)
            x, y = item(), item()
            words = f"{a.of(x)} and {b.of(y)}"
            if x.one.split()[0] in COLOUR and x.one.split()[1:] == y.one.split()[1:] and "a" not in (a.words, b.words) and r.random() < .5:
                words = f"{a.words} {x.one.split()[0]} and {b.of(y)}"  # two black and one blue item
            return words, a.holds(x.mask.sum(2)) & b.holds(y.mask.sum(2)) & (x.mask != y.mask).any()
        if form == 6 and tower:  # from the wall up, or from the top down
            (base, top), name = self.ends(), self.pick("item", "item", "item", "block", "square")
            floor = f"a {COLOUR[first]} {name} touching the wall"
            other, holds = r.randrange(3), base == first
            count, above = self.count(2, no=False), (s.colour[..., 1:] == other).sum(2)
            of = Thing(f"{COLOUR[other]} {name}", f"{COLOUR[other]} {name}s", s.there)
            height, fits = self.height()
            below = s.colour.gather(2, (s.there.sum(2, keepdim=True) - 2).clamp(min=0))[..., 0]
            return self.pick(
                (floor, holds), (f"{height} and {floor}", holds & fits), (f"{height} and a {COLOUR[first]} {name} on top", fits & (top == first)),
                (f"{floor} and a {COLOUR[other]} {name} on top", holds & (top == other) & (some > 1)),
                (f"{floor} and {count.of(of)} on top of it", holds & count.holds(above)),
                (f"a {COLOUR[first]} {name} on top and a {COLOUR[other]} {name} right beneath it", (top == first) & (below == other) & (some > 1)))
        if form == 6 and not tower:
            x, y, z = self.item("shape"), self.item("shape"), self.item()
            b = self.count(2, no=False)
            return (f"a {x.one}, a {y.one} and {b.of(z)}",
                    x.mask.any(2) & y.mask.any(2) & b.holds(z.mask.sum(2)) & (x.mask != y.mask).any())
        count, x = self.count(3), item()
        if x.mask is s.there:
            count = Count("two", lambda n: n == 2, False)
        return count.of(x), count.holds(x.mask.sum(2))

    def tower_box(self):
        content, holds = self.content(True)
        return self.boxes(holds, content, self.r.random() < .7)

    def item_box(self):
        content, holds = self.content(False)
        return self.boxes(holds, content, False)

    def tower_order(self):
        r, s = self.r, self.s
        base, top = self.ends()
        c, at = r.randrange(3), self.pick("top", "base")
        ends = {"top": top, "base": base}[at] == c
        form = r.randrange(11)
        if form < 2:
            words, holds = self.end()
            return self.boxes(holds, words, r.random() < .8)
        if form == 2:
            height, fits = self.height()
            height = height.replace("item", "block").replace("object", "block")
            count = self.pick(Count("a", lambda x: x >= 1, True), Count("a", lambda x: x >= 1, True), self.count(2))
            block = Thing(f"{COLOUR[c]} block", f"{COLOUR[c]} blocks", s.there)
            if r.random() < .35:
                return f"{count.there} {count.of(block)} as the {at} of a tower", count.holds(ends.sum(1))
            return f"{count.there} {count.of(block)} as the {at} of a tower with {height}", count.holds((ends & fits).sum(1))
        if form == 3:
            n = r.randint(1, 4)
            fits = s.there.sum(2) == n
            words = f"{NUMBER[n]} block{'s' if n > 1 else ''}"
            return self.pick(f"the tower with {words} has a {COLOUR[c]} block at the {at}", f"the {at} of a {NUMBER[n]} blocks tower is {COLOUR[c]}",
                             f"there is a tower with {words} having a {COLOUR[c]} block at the {at}"), (fits & ends).any(1)
        if form == 10:
            n, (words, holds) = r.randint(2, 4), self.over()
            return f"the tower with {NUMBER[n]} blocks has a {words}", ((s.there.sum(2) == n) & holds.any(2)).any(1)
        if form == 4:
            words, holds = self.over()
            return self.boxes(holds.any(2), "a " + words, r.random() < .9)
        if form == 5:
            words, holds = self.over()
            count = self.count(2)
            if " below " in words or "bellow" in words or not count.singular:
                count = Count("a", lambda x: x >= 1, True)
            return f"{count.there} {count.words} {words}", count.holds(holds.sum((1, 2)))
        if form == 6:
            n = r.randint(2, 3)
            words = f"{self.pick('', 'at least ')}{NUMBER[n]} {COLOUR[c]} blocks {self.pick('stacked together', 'touching each other', 'attached with each other')}"
            return self.boxes(self.stacked(s.colour == c, n), words, True)
        if form == 7:
            n = r.randint(2, 3)
            return self.pick(f"the {('second', 'third')[n - 2]} block from the base of a tower is {COLOUR[c]}",
                             f"there is a tower that the {('second', 'third')[n - 2]} block from the base is {COLOUR[c]}"), (s.colour[..., n - 1] == c).any(1)
        if form == 8:
            only = ((s.colour == c) == s.there).all(2)
            height, fits = self.height()
            return self.pick((f"there is a {COLOUR[c]} tower", only.any(1)), (f"there is a tower with {height} which is of {COLOUR[c]} color", (only & fits).any(1)), (f"there is a {COLOUR[c]} tower with {height}", (only & fits).any(1)),
                             (f"there is a tower with {height} and the color is {COLOUR[c]}", (only & fits).any(1)),
                             (f"there is a tower with blocks of {COLOUR[c]} color only", only.any(1)))
        inner = (s.colour == c) & s.there
        middle = inner[..., 1:-1] & s.there[..., 2:]
        if r.random() < .5:
            return self.boxes(middle.any(2), f"a {COLOUR[c]} block in the middle", True)
        other = {"top": top, "base": base}[at]
        same = (other[:, :1] == other).all(1)
        return self.pick((f"all the towers have the same {at} color", same), (f"the {at} color of all the towers is the same", same),
                         (f"all three towers have different {at} colors", torch.stack([(other == k).any(1) for k in range(3)]).all(0)))

    def item_count(self):
        count, thing = self.count(5), self.item()
        if self.r.random() < .2:
            return (self.pick(f"there is at least one {thing.one} in each box", f"each box has at least one {thing.one}",
                              f"there is a {thing.one} in each box", f"there is a {thing.one} in every box"), thing.mask.any(2).all(1))
        if self.r.random() < .15:
            other, more = self.item(), self.count(3)
            return (f"{count.there} {count.of(thing)} and {more.of(other)}",
                    count.holds(thing.mask.sum((1, 2))) & more.holds(other.mask.sum((1, 2))) & (thing.mask != other.mask).any())
        return f"{count.there} {count.of(thing)}", count.holds(thing.mask.sum((1, 2)))

    def place(self) -> tuple[str, Tensor]:
        """'touching the wall', and which items do."""
        s, edge, closely = self.s, self.s.left | self.s.right | self.s.top | self.s.bottom, self.pick("", "closely ", "closely ")
        place, at = self.pick(("touching the edge", edge), ("touching any edge", edge), ("touching the wall", edge), ("touching the side", edge),
                              ("touching the base", s.bottom), ("touching the bottom base", s.bottom),
                              *2 * [(f"{closely}touching the bottom of a box", s.bottom), (f"{closely}touching right wall of a box", s.right)],
                              (f"{closely}touching a corner", s.corner), ("touching the corner", s.corner),
                              (f"{closely}touching a corner of a box", s.corner), (f"{closely}touching a wall of a box", edge))
        return (f"not {place}", ~edge) if at is edge and self.r.random() < .4 else (place, at)

    def item_place(self):
        thing, count, (place, at), form = self.item(), self.count(3), self.place(), self.r.random()
        found, verb = thing.mask & at, "is" if count.singular else "are"
        if form < .72:
            return f"there {verb} {count.of(thing)} {place}", count.holds(found.sum((1, 2)))
        if form < .8:
            return f"none of the {thing.many} are {place}", ~found.any((1, 2))
        if form < .9:
            return f"{self.pick('', 'the ')}{thing.one} is {place}", found.any((1, 2))
        return f"there is a box with {count.of(thing)} {place}", count.holds(found.sum(2)).any(1)


# --------------------------------------------------------------------------------------------------------------------

class World:
    """The world as a data set (the interface of data.Folder). Scenes never run out: each step has new ones."""
    answers = {"true", "false"}

    def _scenes(self, n: int, *key) -> tuple[list[tuple[Scenes, Tensor]], random.Random]:
        """Towers and scattered items, half of n scenes each, with their pictures."""
        r = random.Random(seed_of("nlvr world", *key))
        some = [Scenes([[box(r) for _ in range(3)] for _ in range(max(2, n // 2))]) for box in (tower, scatter)]
        return [(scenes, scenes.render()) for scenes in some], r

    def _sentences(self, pools, r: random.Random, n: int, seldom: bool = False) -> list[tuple[str, int, int, str, str]]:
        """n of (family, pool, scene, words, answer): a sentence of a scene where it is true, then the same of one where it is false.
        seldom: of the scenes that will do, one that was asked about least."""
        out, asked = [], Counter()
        while len(out) < n:
            family = FAMILIES[len(out) // 2 % len(FAMILIES)]
            pool = int(not family.startswith("tower"))
            truth = ()
            while not any(truth) or all(truth):
                words, holds = getattr(Speaker(pools[pool][0], r), family.replace(" ", "_"))()
                truth = holds.tolist()
            for answer in (True, False):
                scene = min((k for k, t in enumerate(truth) if t == answer), key=lambda k: (seldom and asked[pool, k], r.random()))
                asked[pool, scene] += 1
                out.append((family, pool, scene, words, str(answer).lower()))
        return out[:n]

    def _examples(self, pools, sentences) -> list[Example]:
        return [Example(list(pools[p][1][s]), [(IMAGE * 3 + words, answer)], family) for family, p, s, words, answer in sentences]

    def texts(self):
        pools, r = self._scenes(400, "texts")
        for p, (scenes, _) in enumerate(pools):
            yield from (caption(scene, p == 0) for scene in scenes.boxes)
        for *_, words, answer in self._sentences(pools, r, 6000):
            yield words
            yield answer
        yield from 10 * (*NUMBER, "yes", "no")

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int) -> list[Example]:
        """Stage 1: a third of the scenes with a caption, the others with TURNS sentences or so in one row, which is much cheaper
        than a row for each, and TURNS phrases ("blue circles touching the wall") whose answers say what is true of each box ("two zero
        one", "yes no yes"). Stage 2: a row for each sentence."""
        pools, r = self._scenes(pictures, seed, step, stage)
        if stage == "sft":
            return self._examples(pools, self._sentences(pools, r, pictures * per_picture))
        out, talk = [], []
        for p, (scenes, images) in enumerate(pools):
            told, rest = range(0, len(images), 3), [s for s in range(len(images)) if s % 3]
            out += [Example(list(images[s]), [(IMAGE * 3, caption(scenes.boxes[s], p == 0))], "caption") for s in told]
            talk.append((Scenes([scenes.boxes[s] for s in rest]), images[rest]))
        turns = defaultdict(list)
        for _, p, s, *turn in self._sentences(talk, r, TURNS * sum(len(images) for _, images in talk), seldom=True):
            turns[p, s].append(tuple(turn))
        for (p, s), some in turns.items():
            for words, worth in (Speaker(Scenes([talk[p][0].boxes[s]]), r).phrase(p == 0) for _ in range(TURNS)):
                some.append((words, " ".join(("no", "yes")[x] if worth.dtype == torch.bool else NUMBER[x] for x in worth[0].tolist())))
            r.shuffle(some)
            (words, answer), *more = some
            out.append(Example(list(talk[p][1][s]), [(IMAGE * 3 + words, answer), *more], "talk"))
        return out

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,200 sentences, whatever the run's seed."""
        pools, r = self._scenes(600, "heldout", split)
        return self._examples(pools, self._sentences(pools, r, 1200)[:limit])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A world drawn in NLVR's manner: sentences, speed, a sheet of pictures.")
    parser.add_argument("--png", metavar="FILE", help="write 12 pictures here")
    args = parser.parse_args()
    world, start = World(), time.perf_counter()
    rows = sum(len(world.draw("sft", step, 32, 4, 0)) for step in range(20))
    print(f"{rows / (time.perf_counter() - start):,.0f} sentences with pictures a second")
    for e in world.heldout("val", 120)[::2]:
        print(f"{e.family:<12} {e.turns[0][0].replace(IMAGE, '')}")
    print(world.draw("pt", 0, 4, 1, 0)[-1].turns[0][1])
    if args.png:
        from torchvision.utils import save_image
        some = [image for e in world.draw("sft", 0, 32, 4, 0)[::10] for image in e.images][:36]
        save_image(torch.stack(some).float() / 255, args.png, nrow=6, pad_value=.5)
