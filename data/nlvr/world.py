"""A world drawn in NLVR's manner: three grey boxes, and sentences that are true or false.

Scenes: scenes.py; sentences: sentences.py, made of the phrases of phrases.py. A sentence is asked
twice: of a scene where it is true and of one where it is false. So the words of a sentence tell
nothing about its truth, by construction.

Shapes:  S scenes   3 boxes of a scene
"""

import random
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from data.draws import seed_of
from data.nlvr.phrases import NUMBER
from data.nlvr.scenes import Scenes, caption, scatter, tower, twin
from data.nlvr.sentences import Speaker
from data.prompt import IMAGE_TOKEN, Example

WHY = "in each box?"  # the second turn of a dialogue
FAMILIES = ["tower count", "tower box", "tower order", "item count", "item box", "item place"]
# As often as people ask them
CYCLE = [*FAMILIES, "tower box", "item box", "tower order", "item place", "tower order", "item box"]
TRIES = 5  # sentences drawn until one tells twins apart


class World:
    """The world as a data set (the interface of data.Folder). Scenes never run out: each step has
    new ones."""

    answers = {"true", "false"}

    def _scenes(self, n: int, *key) -> tuple[list[tuple[Scenes, Tensor]], random.Random]:
        """Two pools of scenes with their pictures: towers and scattered items, half of n scenes
        each, every second one the twin of the one before; never so few that no sentence tells them
        apart. Then the generator to go on with."""
        r, kinds = random.Random(seed_of("nlvr world", *key)), []
        for box in (tower, scatter):
            boxes = []
            while len(boxes) < max(6, n // 2):
                scene = [box(r) for _ in range(3)]
                boxes += [scene, twin(scene, r, box is tower)]
            kinds.append(Scenes(boxes))
        return [(scenes, scenes.render()) for scenes in kinds], r

    def _sentence(self, family: str, scenes: Scenes, r: random.Random):
        """Words, what their truth rests on, and two scenes: one of which they are true, one of
        which they are false. These are twins, where a few draws find such words: then nothing but
        the sentence tells the pictures apart. (A count of all items is the same for twins.)"""
        found, method = None, family.replace(" ", "_")
        for tries in count(1):
            words, holds, basis = getattr(Speaker(scenes, r, family[0] == "t"), method)()
            truth = holds.tolist()
            true, false = (
                [k for k, t in enumerate(truth) if t == which] for which in (True, False)
            )
            if twins := [k for k in true if not truth[k ^ 1]]:
                k = r.choice(twins)
                return words, basis, (k, k ^ 1)
            if true and false and not found:
                found = words, basis, (r.choice(true), r.choice(false))
            if found and (tries >= TRIES or family.endswith("count")):
                return found

    def _sentences(self, pools, r: random.Random, n: int) -> list[Example]:
        """n rows: a sentence of a scene where it is true, then the same of one where it is false. A
        second turn asks what the sentence's truth rests on: that teaches the pictures' tokens what
        to look for, many times faster than true and false alone."""
        rows = []
        while len(rows) < n:
            family = CYCLE[len(rows) // 2 % len(CYCLE)]
            scenes, pictures = pools[0 if family.startswith("tower") else 1]
            words, basis, two = self._sentence(family, scenes, r)
            names = ("no", "yes") if basis.dtype == torch.bool else NUMBER
            for answer, scene in zip(("true", "false"), two):
                why = " ".join(names[k] for k in basis[scene].tolist())
                turns = [(IMAGE_TOKEN * 3 + words, answer), (WHY, why)]
                rows.append(Example(list(pictures[scene]), turns, family))
        return rows[:n]

    def texts(self):
        pools, r = self._scenes(400, "texts")
        for p, (scenes, _) in enumerate(pools):
            yield from (caption(scene, p == 0) for scene in scenes.boxes)
        for example in self._sentences(pools, r, 6000):
            for words, answer in example.turns:
                yield words.replace(IMAGE_TOKEN, "")
                yield answer

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        pools, r = self._scenes(pictures, seed, step, stage)
        if stage == "sft":
            return self._sentences(pools, r, pictures * per_picture)
        return [
            Example(list(boxes), [(IMAGE_TOKEN * 3, caption(scene, p == 0))], "caption")
            for p, (scenes, images) in enumerate(pools)
            for scene, boxes in zip(scenes.boxes, images)
        ]

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,200 sentences, whatever the run's seed, without the second turn."""
        pools, r = self._scenes(600, "heldout", split)
        examples = self._sentences(pools, r, 1200)[:limit]
        return [replace(example, turns=example.turns[:1]) for example in examples]
