"""A world drawn in NLVR's manner: three grey boxes, and sentences that are true or false.

    python -m data.nlvr_world               sentences of every family; how fast they are made
    python -m data.nlvr_world --png FILE    a sheet of pictures, one line each

Scenes: nlvr_scenes.py; sentences: nlvr_sentences.py, made of the phrases of nlvr_phrases.py. A
sentence is asked twice: of a scene where it is true and of one where it is false. So the words of a
sentence tell nothing about its truth, by construction.

Shapes:  S scenes   3 boxes of a scene
"""

import argparse
import random
import time
from dataclasses import replace

import torch
from torch import Tensor

from data.folder import seed_of
from data.nlvr_phrases import NUMBER
from data.nlvr_scenes import Scenes, caption, scatter, tower
from data.nlvr_sentences import Speaker
from data.prompt import IMAGE, Example

WHY = "in each box?"  # the second turn of a dialogue
FAMILIES = ["tower count", "tower box", "tower order", "item count", "item box", "item place"]


class World:
    """The world as a data set (the interface of data.Folder). Scenes never run out: each step has
    new ones."""

    answers = {"true", "false"}

    def _scenes(self, n: int, *key) -> tuple[list[tuple[Scenes, Tensor]], random.Random]:
        """Two pools of scenes with their pictures: towers and scattered items, half of n scenes
        each; never so few that no sentence tells them apart. Then the generator to go on with."""
        r, n = random.Random(seed_of("nlvr world", *key)), max(6, n // 2)
        kinds = [Scenes([[box(r) for _ in range(3)] for _ in range(n)]) for box in (tower, scatter)]
        return [(scenes, scenes.render()) for scenes in kinds], r

    def _sentences(self, pools, r: random.Random, n: int) -> list[Example]:
        """n rows: a sentence of a scene where it is true, then the same of one where it is false. A
        second turn asks what the sentence's truth rests on: that teaches the pictures' tokens what
        to look for, many times faster than true and false alone."""
        rows = []
        while len(rows) < n:
            family = FAMILIES[len(rows) // 2 % len(FAMILIES)]
            towers, truth = family.startswith("tower"), ()
            scenes, pictures = pools[0 if towers else 1]
            while not any(truth) or all(truth):
                speaker = Speaker(scenes, r, towers)
                words, holds, basis = getattr(speaker, family.replace(" ", "_"))()
                truth = holds.tolist()
            names = ("no", "yes") if basis.dtype == torch.bool else NUMBER
            for answer in (True, False):
                scene = r.choice([k for k, t in enumerate(truth) if t == answer])
                why = " ".join(names[k] for k in basis[scene].tolist())
                turns = [(IMAGE * 3 + words, str(answer).lower()), (WHY, why)]
                rows.append(Example(list(pictures[scene]), turns, family))
        return rows[:n]

    def texts(self):
        pools, r = self._scenes(400, "texts")
        for p, (scenes, _) in enumerate(pools):
            yield from (caption(scene, p == 0) for scene in scenes.boxes)
        for example in self._sentences(pools, r, 6000):
            for words, answer in example.turns:
                yield words.replace(IMAGE, "")
                yield answer

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
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
        examples = self._sentences(pools, r, 1200)[:limit]
        return [replace(example, turns=example.turns[:1]) for example in examples]


if __name__ == "__main__":
    import engine.terminal  # noqa: F401 - so that `| head` ends it without a traceback

    about = "A world drawn in NLVR's manner: sentences, speed, a sheet of pictures."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--png", metavar="FILE", help="write 12 pictures here")
    args = parser.parse_args()
    world, start = World(), time.perf_counter()
    rows = sum(len(world.draw("sft", step, 24, 4, 0)) for step in range(20))
    print(f"{rows / (time.perf_counter() - start):,.0f} sentences with pictures a second")
    for e in world.draw("sft", 0, 24, 4, 0)[::2]:
        (words, answer), (_, why) = e.turns
        print(f"{e.family:<12} {words.replace(IMAGE, '')} {answer}; {WHY} {why}")
    for e in world.draw("pt", 0, 12, 4, 0)[::6]:
        print(f"caption      {e.turns[0][1]}")
    if args.png:
        from torchvision.utils import save_image

        pictures = [image for e in world.draw("pt", 0, 12, 4, 0) for image in e.images]
        save_image(torch.stack(pictures).float() / 255, args.png, nrow=6, pad_value=0.5)
