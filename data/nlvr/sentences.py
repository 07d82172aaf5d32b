"""The sentences of the world in NLVR's manner, in families, and whether they are true of a scene.

A sentence is made of phrases (phrases.py), and its truth is computed on the scene.

Shapes:  S scenes   3 boxes of a scene
"""

from torch import Tensor

from data.nlvr.phrases import NUMBER, Phrases, Thing, at_least_one
from data.nlvr.scenes import COLOUR


class Speaker(Phrases):
    """Draws sentences about scenes with the random numbers of r. A family (world.FAMILIES) is
    a method. It returns the words, their truth (bool [S]), and what that rests on, of every box
    [S, 3]: how many there are (int64), or whether there is one (bool)."""

    def boxes(self, content: tuple[str, Tensor], noun: str):
        """'there are two boxes with ...', 'one of the grey box has ...'"""
        (words, holds), form = content, self.r.random()
        nouns = noun + ("es" if noun.endswith("box") else "s")
        n, with_ = holds.sum(1), self.pick(*5 * ["with"], "which has", "that has", "containing")
        if form < 0.82 and "grey" not in noun:
            count = at_least_one("a" if form < 0.5 else "at least one")
            count = self.count(2) if 0.5 <= form < 0.78 else count
            noun, with_ = (noun, with_) if count.singular else (nouns, with_.replace("has", "have"))
            return count.there(f"{count.words} {noun} {with_} {words}"), count.holds(n), holds
        has, have = self.pick(("has", "have"), ("contains", "contain"))
        sentence, truth = self.pick(
            *4 * [(f"one of the {self.pick(noun, noun, nouns)} {has} {words}", n >= 1)],
            (f"one {noun} {has} {words}", n >= 1),
            (f"at least one {noun} {has} {words}", n >= 1),
            (f"two {nouns} {self.pick(has, have)} {words}", n == 2),
            (f"{self.pick('each', 'every')} {noun} {has} {words}", n == 3),
            (f"all {self.pick('the ', '')}{nouns} {self.pick(has, have)} {words}", n == 3),
        )
        return sentence, truth, holds

    def tower_box(self):
        return self.boxes(self.content(), self.pick("box", "tower", "tower"))

    def item_box(self):
        return self.boxes(self.content(), self.pick(*6 * ["box"], "grey box", "grey square"))

    def item_count(self):
        count, thing = self.count(5), self.item()
        box = self.pick("box", "box", "tower" if self.towers else "box")
        one = f"{self.pick('a', 'at least one')} {thing.one}"
        n = thing.mask.sum(2)
        if self.chance(0.2):
            each = self.pick("each", "every")
            words = self.pick(f"there is {one} in {each} {box}", f"{each} {box} has {one}")
            return words, (n > 0).all(1), n
        return count.there(count.of(thing)), count.holds(n.sum(1)), n

    tower_count = item_count

    def item_place(self):
        thing, count, (place, at), form = self.item(), self.count(3), self.place(), self.r.random()
        n = (thing.mask & at).sum(2)
        if form < 0.75:
            return count.there(f"{count.of(thing)} {place}"), count.holds(n.sum(1)), n
        sentence, truth = self.pick(
            (f"none of the {thing.many} are {place}", n.sum(1) == 0),
            (f"{self.pick('', 'the ')}{thing.one} is {place}", n.sum(1) > 0),
            (f"there is a box with {count.of(thing)} {place}", count.holds(n).any(1)),
        )
        return sentence, truth, n

    def tower_order(self):
        c, form, count = self.r.randrange(3), self.r.randrange(11), self.count(2)
        at, end = self.pick(("top", self.top == c), ("base", self.base == c))
        height, fits = self.height()
        if form < 2:
            of = self.pick("a tower", "a tower", "a tower", "at least one tower")
            words = f"{count.of(Thing(f'{COLOUR[c]} block', end))} as the {at} of {of}"
            words, has = (words, end) if form == 0 else (f"{words} with {height}", end & fits)
            return count.there(words), count.holds(has.sum(1)), has
        if form == 2:
            return self.tall_tower(c, at, end)
        if form == 3:
            words, times = self.over()
            count = at_least_one() if not count.singular or "below" in words else count
            return f"there is {count.words} {words}", count.holds(times.sum(1)), times
        if form == 4:
            only = ((self.s.colour == c) == self.s.there).all(2)
            words, has = self.pick(("", only), (f" with {height}", only & fits))
            return f"there is a {COLOUR[c]} tower{words}", has.any(1), has
        if form == 5:
            words, has = self.nth_block(c)
            return words, has.any(1), has
        if form == 6:
            return self.boxes(self.stacked(), "tower")
        if form == 7:
            words, times = self.over()
            content = self.pick(("a " + words, times > 0), self.base_and_next())
        else:
            content = self.ends()
        return self.boxes(content, self.pick("box", "tower", "tower", "tower"))

    def nth_block(self, c: int) -> tuple[str, Tensor]:
        """'the second block from the base of a tower is blue', and which towers' is."""
        n, k = self.pick(1, 1, 2), self.r.randint(1, 4)
        nth, is_c = ("", "second", "third")[n], self.s.colour == c
        side, end = self.pick(("top", self.top == c), ("base", self.base == c))
        middle = (self.n_items == 3) & is_c[..., 1]
        return self.pick(
            (f"the {nth} block from the base of a tower is {COLOUR[c]}", is_c[..., n]),
            (f"the {side} of a {NUMBER[k]} blocks tower is {COLOUR[c]}", end & (self.n_items == k)),
            (f"there is a tower with a {COLOUR[c]} block in the middle", middle),
        )

    def tall_tower(self, c: int, at: str, end: Tensor):
        """'the tower with three blocks has a blue block at the top'."""
        n = self.r.randint(1, 4)
        here = f"a {COLOUR[c]} block at the {at}", end
        words, has = here if self.chance(0.7) else self.over()
        words = words if words[:2] == "a " else f"a {words}"
        blocks, has = f"{NUMBER[n]} block{'s' if n > 1 else ''}", (self.n_items == n) & (has > 0)
        tower = f"the tower with {blocks} has", f"there is a tower with {blocks} having"
        return f"{self.pick(*tower)} {words}", has.any(1), has
