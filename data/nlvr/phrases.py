"""The phrases of the world in NLVR's manner, and what they mean in a scene.

A phrase is drawn from a grammar written after reading NLVR's training sentences. A Thing is a noun
phrase and the items it means; a Count is "exactly two" and what that asks of a number. Whatever
words a method of Phrases returns come with where they are true: for every box, [S, 3], or for every
item, [S, 3, 8].

Shapes:  S scenes   3 boxes of a scene   8 items of a box at most
"""

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from data.nlvr.scenes import COLOUR, SHAPE, Scenes

NUMBER = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
KINDS_OF_COUNT = (
    *8 * [""], *4 * ["exactly"], "only", "only", *4 * ["at least"], "at most", "at most",
    "more than", "less than", *6 * ["a"], "no", "no",
)  # fmt: skip
COMPARE = {
    "at least": operator.ge, "at most": operator.le, "more than": operator.gt,
    "less than": operator.lt,
}  # fmt: skip
MANY = 6  # from here on people call a box's items many: 80 % of 55 labels agree


@dataclass
class Thing:
    """A noun phrase in the singular, and which items it means."""

    one: str
    mask: Tensor  # bool [S, 3, 8]

    @property
    def many(self) -> str:
        return self.one + "s"


@dataclass
class Count:
    """Words for a number, of which numbers they hold, and whether their noun is singular."""

    words: str
    holds: Callable[[Tensor], Tensor]
    singular: bool

    def of(self, thing: Thing) -> str:
        return f"{self.words} {thing.one if self.singular else thing.many}"

    def there(self, words: str) -> str:
        return f"there {'is' if self.singular else 'are'} {words}"


def at_least_one(words: str = "a") -> Count:
    return Count(words, lambda x: x >= 1, True)


TWO = Count("two", lambda x: x == 2, False)


class Phrases:
    """Draws phrases about scenes with the random numbers of r. towers: whether their boxes hold
    towers or scattered items."""

    def __init__(self, scenes: Scenes, r: random.Random, towers: bool):
        self.s, self.r, self.towers = scenes, r, towers
        self.n_items = scenes.there.sum(2)  # [S, 3]
        # [S, 3]: the colours of the first and the last item of a box
        ends = (self.n_items * 0, self.n_items - 1)
        self.base, self.top = (scenes.colour.gather(2, i[..., None])[..., 0] for i in ends)

    def pick(self, *options):
        return self.r.choice(options)

    def chance(self, p: float) -> bool:
        return self.r.random() < p

    # --- Noun phrases

    def count(self, most: int = 3, no: bool = True) -> Count:
        """A bare number means exactly so many: that is what NLVR's people mean by it."""
        kind = self.pick(*KINDS_OF_COUNT)
        if kind == "a" or kind == "no" and not no:
            return at_least_one()
        if kind == "no":
            return Count("no", lambda x: x == 0, True)
        n = min(self.r.randint(1, most), self.r.randint(1, most + 2))
        n = max(n, 2) if kind == "less than" else n
        compare = COMPARE.get(kind, operator.eq)
        return Count(f"{kind} {NUMBER[n]}".strip(), lambda x: compare(x, n), n == 1)

    def item(self) -> Thing:
        """A yellow block; a small circle; an object."""
        mask, c, k = self.s.there, self.r.randrange(3), self.r.randrange(3)
        nouns = ("item", "item", "object", *3 * [SHAPE[k]])
        if self.towers:
            nouns = ("block", "block", "block", "item", "square")
        noun = self.pick(*nouns)
        if noun in SHAPE and not self.towers:
            mask = mask & (self.s.shape == k)
        if self.chance(0.85):
            noun, mask = f"{COLOUR[c]} {noun}", mask & (self.s.colour == c)
        if not self.towers and self.chance(0.08):
            size = self.pick(0, 0, 1, 2)
            noun, mask = f"{('small', 'medium', 'big')[size]} {noun}", mask & (self.s.size == size)
        return Thing(noun, mask)

    def place(self) -> tuple[str, Tensor]:
        """'touching the wall', and which items do: [S, 3, 8]."""
        s, closely = self.s, self.pick("", "closely ", "closely ")
        edge, of_a_box = s.left | s.right | s.top | s.bottom, self.pick("", " of a box")
        walls = ("the edge", "the edge", "any edge", "an edge", "the wall", "the side")
        at_bottom = ("closely touching the bottom of a box", s.bottom)
        place, at = self.pick(
            *[(f"touching {wall}", edge) for wall in walls],
            *3 * [at_bottom],
            *2 * [("touching the base", s.bottom)],
            ("touching the bottom base", s.bottom),
            (f"{closely}touching the bottom of a box", s.bottom),
            *2 * [(f"{closely}touching right wall of a box", s.right)],
            (f"{closely}touching {self.pick('a wall', 'the wall')} of a box", edge),
            ("closely touching the roof of a box", s.top),
            ("touching the corner", s.corner),
            (f"{closely}touching a corner{of_a_box}", s.corner),
        )
        return (f"not {place}", ~edge) if at is edge and self.chance(0.4) else (place, at)

    # --- What a box may have: words and which boxes have it, [S, 3]

    def height(self) -> tuple[str, Tensor]:
        """'at least three items'."""
        nouns = ("block", "block", "item") if self.towers else ("item", "item", "object")
        noun, within = self.pick(*nouns), self.pick("", "", "", " in it")
        if not self.towers and self.chance(0.08):
            return f"many {noun}s", self.n_items >= MANY
        count = self.count(4 if self.towers else 7, no=False)
        count = TWO if count.words == "a" else count
        return count.of(Thing(noun, self.s.there)) + within, count.holds(self.n_items)

    def colours(self) -> tuple[str, Tensor]:
        """'only black items', 'items of two different colors'."""
        noun = self.pick("items", "items", "blocks" if self.towers else "objects")
        (a, b), n = self.r.sample(range(3), 2), self.r.randint(2, 4)
        has = [(self.s.colour == c).any(2) for c in range(3)]
        kinds, both = sum(h.int() for h in has), has[a] & has[b] & ~has[3 - a - b]
        names, exactly = f"{COLOUR[a]} and {COLOUR[b]}", self.n_items == n
        how = self.count(4, no=False)
        how = TWO if how.singular else how
        number, these = NUMBER[n], how.holds(self.n_items)
        some = f"{how.words} {noun}"
        return self.pick(
            (f"{some} of {self.pick('', 'only ')}{names} color", both & these),
            (f"{some} of all three different colors", (kinds == 3) & these),
            (f"{some} of the same color", (kinds == 1) & these),
            (f"{noun} of only {names} color", both),
            (f"{noun} of {names} color", both),
            (f"only {COLOUR[a]} color {noun}", has[a] & (kinds == 1)),
            (f"{COLOUR[a]} {noun} only", has[a] & (kinds == 1)),
            (f"{noun} of only two different colors", kinds == 2),
            (f"only {COLOUR[a]} {noun}", has[a] & (kinds == 1)),
            (f"only {names} {noun}", both),
            (f"{names} {noun}", has[a] & has[b]),
            (f"{number} {noun} of {names} color", both & exactly),
            (f"{noun} of all three different colors", kinds == 3),
            (f"{number} {noun} of two different colors", (kinds == 2) & exactly),
            (f"{number} {noun} of the same color", (kinds == 1) & exactly),
        )

    def of_which(self) -> tuple[str, Tensor]:
        """'four items of which two are black', 'three items and one of them is a circle'."""
        n, part, thing = self.r.randint(2, 5), self.count(2, no=False), self.item()
        noun, link = self.pick("items", "items", "objects"), self.pick("of which", "and the")
        size, fits = f"{NUMBER[n]} {noun}", self.n_items == n
        if self.chance(0.3):
            n = self.pick(2, 3)
            size, fits = f"at least {NUMBER[n]} {noun}", self.n_items >= n
        if self.chance(0.2):
            words = f"{size} including {part.of(thing)}"
            return words, fits & part.holds(thing.mask.sum(2))
        number = "at least one" if part.words == "a" else part.words
        what, (first, *others) = "is" if part.singular else "are", thing.one.split()
        if len(others) == 1 and first in COLOUR and self.chance(0.7):
            thing = Thing(first, self.s.colour == COLOUR.index(first))
            what += f" {thing.one}"
        else:
            what += f" a {thing.one}" if part.singular else f" {thing.many}"
        return f"{size} {link} {number} {what}", fits & part.holds(thing.mask.sum(2))

    def one_colour(self) -> tuple[str, Tensor]:
        """'exactly one item which is blue': people mean that nothing else is in the box."""
        c, n, how = self.r.randrange(3), self.r.randint(1, 3), self.pick("", "exactly ", "only ")
        number = self.pick(f"{how}one", f"{how}one", "a single") if n == 1 else how + NUMBER[n]
        noun = self.pick("item", "block") if self.towers else "item"
        of = self.pick(f"of {COLOUR[c]} color", f"{COLOUR[c]} in color", COLOUR[c])
        things = f"{noun} which is" if n == 1 else f"{noun}s which are"
        all_of_it = (self.n_items == n) & ((self.s.colour == c) == self.s.there).all(2)
        return f"{number} {things} {of}", all_of_it

    def shared(self) -> tuple[str, Tensor]:
        """'two black and one blue item', 'a black and a yellow item'."""
        colours, counts = self.r.sample(range(3), 2), [self.count(2, no=False) for _ in range(2)]
        noun = self.pick("item", "item", "block") if self.towers else "item"
        a, b = (n.holds((self.s.colour == c).sum(2)) for n, c in zip(counts, colours))
        words = " and ".join(f"{n.words} {COLOUR[c]}" for n, c in zip(counts, colours))
        return f"{words} {noun}{'' if counts[1].singular else 's'}", a & b

    def several(self) -> tuple[str, Tensor]:
        """'a yellow square and two circles', 'two black and one blue item'."""
        counts = [self.count(2, no=False) for _ in range(2)]
        things = [self.item() for _ in range(2)]
        words = [count.of(thing) for count, thing in zip(counts, things)]
        fits = [count.holds(thing.mask.sum(2)) for count, thing in zip(counts, things)]
        holds = fits[0] & fits[1] & (things[0].mask != things[1].mask).any()
        if not self.towers and self.chance(0.3):
            third = self.item()
            return f"a {third.one}, {words[0]} and {words[1]}", holds & third.mask.any(2)
        return " and ".join(words), holds

    def ends(self) -> tuple[str, Tensor]:
        """'a blue block at the top', 'one black block at the base'."""
        c, noun = self.r.randrange(3), self.pick("block", "block", "block", "item")
        base = ("at the base", "at the base", "at the base", "at base", "at the bottom")
        where, end = self.pick(
            *[(words, self.top) for words in ("at the top", "at the top", "at the top", "on top")],
            *[(words, self.base) for words in (*base, "touching the wall")],
        )
        form = self.r.random()
        if form < 0.06:
            side, end = self.pick(("top", self.top), ("base", self.base))
            return f"a {COLOUR[c]} {side}", end == c
        if form < 0.15:
            d = self.r.randrange(3)
            words = f"a {COLOUR[c]} {noun} at the base and a {COLOUR[d]} {noun} at the top"
            return words, (self.base == c) & (self.top == d) & (self.n_items > 1)
        article = self.pick("a ", "a ", "a ", "one ", "one ", "")
        return f"{article}{COLOUR[c]} {noun} {where}", end == c

    def base_and_next(self) -> tuple[str, Tensor]:
        """'a black item touching the wall and a blue item on top of it'."""
        (c, d), noun = self.r.choices(range(3), k=2), self.pick("block", "item", "item")
        words = f"a {COLOUR[c]} {noun} touching the wall and a {COLOUR[d]} {noun} on top"
        has = (self.base == c) & (self.s.colour[..., 1] == d)
        return words + self.pick(" of it", " of it", ""), has

    def over(self) -> tuple[str, Tensor]:
        """'a blue block over a black block', right above it: how often, in each box."""
        low, high = self.r.choices(range(3), k=2)
        noun, a = self.pick("block", "block", "block", "item"), self.pick("a", "a", "the")
        times = ((self.s.colour[..., :-1] == low) & (self.s.colour[..., 1:] == high)).sum(2)
        if self.chance(0.12):
            return f"{COLOUR[low]} {noun} below {a} {COLOUR[high]} {noun}", times
        above = self.pick("on", "above", "above", "over", "over", "on top of")
        return f"{COLOUR[high]} {noun} {above} {a} {COLOUR[low]} {noun}", times

    def stacked(self) -> tuple[str, Tensor]:
        """'two blue blocks stacked together'."""
        c, n, together = self.r.randrange(3), self.r.randint(2, 3), "stacked together"
        how = self.pick(together, together, "touching each other", "attached with each other")
        words = f"{self.pick('', 'at least ')}{NUMBER[n]} {COLOUR[c]} blocks {how}"
        return words, (self.s.colour == c).unfold(2, n, 1).all(3).any(2)

    def content(self) -> tuple[str, Tensor]:
        """Anything that a box may have."""
        count, thing, form = self.count(3), self.item(), self.r.randrange(12)
        if form < 8:
            kinds = (self.height, self.height, self.colours, self.of_which)
            kinds += (self.several, self.several, self.shared, self.one_colour)
            return kinds[form]()
        if self.towers and form == 8:
            words, holds = self.ends()
            height, fits = self.height()
            return f"{height} and {words}", holds & fits
        if thing.mask is self.s.there and count.words in ("a", "no"):
            count = TWO
        return count.of(thing), count.holds(thing.mask.sum(2))
