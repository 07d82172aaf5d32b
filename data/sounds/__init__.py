"""The built-in world of sound: captions of eight beats of notes and rests, and questions with exact
answers.

    python -m data.sounds                what the question alone can tell, by family, and the speed
    python -m data.sounds --wav FILE     one sound, to hear; its notes are printed
    python -m data.sounds --png FILE     a sheet of spectrograms

A sound (sounds_notes.py) reaches the model as a picture of 64 x 64 (audio.py): the encoder, the
roles, the mask and the prompts are those of pictures. A beat is 8 columns of it, half of a patch.

Like shapes.py: the sounds of a step are a function of (seed, stage, step), and the notes decide the
split. Answers are drawn first, and all rules are the same for every pitch and instrument.

Shapes:  S sounds   BEATS = 8   KINDS = 12
"""

import argparse
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data import audio, families
from data.families import EMPTY, QA, SPLITS, existence, rows, scenes
from data.folder import seed_of
from data.prompt import IMAGE_TOKEN, Example
from data.sounds.notes import (
    BEATS,
    BLOCK,
    INSTRUMENT,
    KINDS,
    LOUDNESS,
    NAMES,
    PITCH,
    layouts,
    pictures_of,
    render,
)


def caption(notes: list[int]) -> str:
    """Every beat in order."""
    return " ".join("rest" if n == EMPTY else f"{LOUDNESS[n % 2]} {NAMES[n // 2]}" for n in notes)


@dataclass
class SoundFacts(families.Facts):
    """The same of loudness and time. All but `once` are of kinds that are heard once, and mean
    nothing of the others."""

    once: Tensor  # bool [S, KINDS]: is heard once
    late: Tensor  # bool [S, KINDS]: in the second half
    loud: Tensor  # bool [S, KINDS]
    beside: Tensor  # int64 [S, 2, KINDS]: the kind of the note before it, and after it, or EMPTY

    @classmethod
    def of(cls, layout: Tensor, generator: torch.Generator) -> "SoundFacts":
        """layout: int64 [S, BEATS], see layouts."""
        kind = torch.where(layout == EMPTY, EMPTY, layout // 2)
        heard = kind[:, :, None] == torch.arange(KINDS)  # [S, BEATS, KINDS]
        count = heard.sum(1)
        table = count.view(-1, len(PITCH), len(INSTRUMENT))
        possible = (table.sum(2) > 0)[:, :, None] & (table.sum(1) > 0)[:, None, :]
        loud = (heard & (layout % 2 == 1)[:, :, None]).any(1)
        rests_last = (kind == EMPTY).int().argsort(dim=1, stable=True)
        around = F.pad(kind.gather(1, rests_last), (1, 1), value=EMPTY)  # [S, 1 + BEATS + 1]
        note = around[:, 1:-1, None] == torch.arange(KINDS)
        beside = [
            torch.where(note, kinds[:, :, None] - EMPTY, 0).sum(1) + EMPTY
            for kinds in (around[:, :-2], around[:, 2:])
        ]
        facts = count == 1, heard[:, BEATS // 2 :].any(1), loud, torch.stack(beside, 1)
        return cls(generator, NAMES, count, possible.flatten(1), *facts)


def counting(facts: SoundFacts) -> list[QA]:
    return families.counting(facts, most=2)


def half(facts: SoundFacts) -> list[QA]:
    """In which half a note is heard that is the only one of its kind."""
    late = facts.coin()[:, None]
    there = facts.once & (facts.late == late)
    kind = facts.pick(torch.where(there.any(1, keepdim=True), there, facts.once))
    late = facts.late.gather(1, kind[:, None])[:, 0]
    return [(f"in which half is the {NAMES[k]}?", HALF[second]) for k, second in rows(kind, late)]


def order(facts: SoundFacts) -> list[QA]:
    """The note before or after one that is the only one of its kind; rests do not count."""
    after = facts.coin()
    beside = facts.beside[torch.arange(len(after)), after.long()]  # [S, KINDS]
    kind = facts.pick(facts.once & (beside != EMPTY))
    answer = beside.gather(1, kind[:, None])[:, 0]
    return [
        (f"what comes {'after' if later else 'before'} the {NAMES[k]}?", NAMES[n])
        for k, n, later in rows(kind, answer, after)
    ]


def louder(facts: SoundFacts) -> list[QA]:
    """Which of two notes, each the only one of its kind, is louder."""
    loud, quiet = facts.once & facts.loud, facts.once & ~facts.loud
    pair = facts.pick((loud[:, :, None] & quiet[:, None, :]).flatten(1))
    asked = []
    for pair_index, turned in rows(pair, facts.coin()):
        answer, other = (NAMES[kind] for kind in divmod(pair_index, KINDS))
        a, b = (other, answer) if turned else (answer, other)
        asked.append((f"which is louder, the {a} or the {b}?", answer))
    return asked


HALF = ("first", "second")
FAMILIES = {f.__name__: f for f in (existence, counting, half, louder, order)}
# What training asks, in turn: twice what is learned last. Val and test ask each family once.
TRAINING_FAMILIES = (*FAMILIES, "order")
QUESTIONS = len(FAMILIES)  # about each sound of val and test


def questions(layout: Tensor, per_sound: int, g: torch.Generator, names=tuple(FAMILIES)):
    """[(family, question, answer), ...], per_sound for each sound; see families.ask."""
    return families.ask(SoundFacts.of(layout, g), FAMILIES, names, per_sound)


def known_answers(question: str):
    """The answers that make sense for a question."""
    named = [name for name in NAMES if name in question]
    if question.startswith("what comes"):
        return [name for name in NAMES if name not in named]
    if question.startswith("which"):
        return named
    if question.startswith("in which"):
        return HALF
    return ("0", "1", "2") if question.startswith("how many") else ("yes", "no")


class Sounds:
    """The world as a data set (the interface of data.Folder). Training sounds never run out."""

    answers = {"yes", "no", *"012", *HALF, *NAMES}
    final_split = "test"

    def split_names(self) -> list[str]:
        return list(SPLITS)

    def layouts(self, split: str, S: int, *key) -> tuple[Tensor, torch.Generator]:
        """The notes of S sounds drawn for the key, and the generator to go on with."""
        g = torch.Generator().manual_seed(seed_of("sounds", split, *key))
        return scenes(S, split, g, layouts), g

    def texts(self):
        layout, g = self.layouts("train", 2000, 0)
        for notes, asked in zip(layout.tolist(), questions(layout, 2 * QUESTIONS, g)):
            yield caption(notes)
            for _, question, answer in asked:
                yield question
                yield answer

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        layout, g = self.layouts("train", pictures, stage, step, seed)
        images = pictures_of(layout, g)
        if stage == "pt":
            return [
                Example([image], [(IMAGE_TOKEN, caption(notes))], "caption")
                for image, notes in zip(images, layout.tolist())
            ]
        asked = questions(layout, per_picture, g, TRAINING_FAMILIES)
        return families.examples(images[:, None], asked)

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The same 1,000 sounds with QUESTIONS questions each, whatever the run's seed."""
        layout, asked, g = self._heldout(split)
        blocks = layout.split(BLOCK)[: limit and -(-limit // (BLOCK * QUESTIONS))]
        images = pictures_of(torch.cat(blocks), g)  # of those alone that are asked about
        return families.examples(images[:, None], asked, split)[:limit]

    def _heldout(self, split: str) -> tuple[Tensor, list, torch.Generator]:
        layout, g = self.layouts(split, 1000, 0)
        return layout, questions(layout, QUESTIONS, g), g

    def write_example(self, file) -> list[int]:
        """Write the first test sound as a WAV file; returns its notes."""
        layout, _, g = self._heldout("test")
        audio.write(file, render(layout[:BLOCK], g)[0])
        return layout[0].tolist()


def question_only(n_sounds: int = 20_000) -> dict[str, tuple[float, float]]:
    """What the question alone tells of its answer, by family; see families.question_only."""
    g = torch.Generator().manual_seed(1)
    asked = questions(scenes(n_sounds, "train", g, layouts), QUESTIONS, g)
    return families.question_only(asked, known_answers, FAMILIES)


if __name__ == "__main__":
    about = "The built-in world of sound: question-only ceilings, speed, a sound, a sheet."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--wav", metavar="FILE", help="write the first test sound here")
    parser.add_argument("--png", metavar="FILE", help="write 32 spectrograms here")
    args = parser.parse_args()
    families.show(question_only())
    world, start = Sounds(), time.perf_counter()
    made = sum(len(world.draw("sft", step, 64, 4, 0)) for step in range(20))
    print(f"{made / (time.perf_counter() - start):,.0f} questions with sounds a second")
    for example in world.heldout("test", 5):
        question, answer = example.turns[0]
        print(f"  {question.replace(IMAGE_TOKEN, '')} -> {answer}")
    if args.wav:
        print(f"{args.wav}: {caption(world.write_example(args.wav))}")
    if args.png:
        from torchvision.utils import save_image

        pictures = torch.stack([e.images[0] for e in world.heldout("test")[::QUESTIONS][:32]])
        save_image(pictures.float() / 255, args.png, nrow=8)
