"""The built-in world of sound: captions of eight beats of notes and rests, and questions with exact
answers.

A sound (notes.py) reaches the model as a picture of 64 x 64 (audio.py): the encoder, the
roles, the mask and the prompts are those of pictures. A beat is 8 columns of it, half of a patch.

All rules are the same for every pitch and instrument.

Shapes:  S sounds   BEATS = 8   KINDS = 12
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data import audio, families
from data.families import EMPTY, QA, World, existence, possible, rows
from data.prompt import Example
from data.sounds import notes
from data.sounds.notes import BEATS, BLOCK, INSTRUMENT, KINDS, LOUDNESS, NAMES, PITCH, pictures_of


def caption(beats: list[int]) -> str:
    """Every beat in order."""
    return " ".join("rest" if n == EMPTY else f"{LOUDNESS[n % 2]} {NAMES[n // 2]}" for n in beats)


class SoundFacts(families.Facts):
    """The same of loudness and time, layout int64 [S, BEATS]: see notes.layouts. All but `once` are
    of kinds that are heard once, and mean nothing of the others."""

    names = NAMES

    def __init__(self, layout: Tensor, generator: torch.Generator):
        kind = torch.where(layout == EMPTY, EMPTY, layout // 2)
        heard = kind[:, :, None] == torch.arange(KINDS)  # bool [S, BEATS, KINDS]
        count = heard.sum(1)
        of_two_words = possible(count.view(-1, len(PITCH), len(INSTRUMENT)))
        super().__init__(layout, generator, count, of_two_words)
        self.once = count == 1  # bool [S, KINDS], as the next two: in the second half; loud
        self.late = heard[:, BEATS // 2 :].any(1)
        self.loud = (heard & (layout % 2 == 1)[:, :, None]).any(1)
        rests_last = (kind == EMPTY).int().argsort(dim=1, stable=True)
        around = F.pad(kind.gather(1, rests_last), (1, 1), value=EMPTY)  # [S, 1 + BEATS + 1]
        note = around[:, 1:-1, None] == torch.arange(KINDS)
        beside = [
            torch.where(note, kinds[:, :, None] - EMPTY, 0).sum(1) + EMPTY
            for kinds in (around[:, :-2], around[:, 2:])
        ]
        # int64 [S, 2, KINDS]: the kind of the note before it, and after it, or EMPTY
        self.beside = torch.stack(beside, 1)


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
QUESTIONS = len(FAMILIES)  # about each sound of val and test


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


class Sounds(World):
    """The world as a data set."""

    key = ("sounds",)
    some_layouts, known_answers = staticmethod(notes.layouts), staticmethod(known_answers)
    facts, families = SoundFacts, FAMILIES
    answers = {"yes", "no", *"012", *HALF, *NAMES}
    training_families = (*FAMILIES, "order")  # twice what is learned last

    def render(self, layout, g):
        """Nothing yet: a thousand sounds take seconds, so only what is asked about is played."""

    def captions(self, scene, g):
        return [caption(scene)]

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        facts, _ = self.drawn("train", pictures, stage, step, seed)
        heard = pictures_of(facts.layout, facts.generator)[:, None]
        if stage == "pt":
            return self.captioned(heard, map(caption, facts.layout.tolist()))
        return self.asked(facts, heard, per_picture, self.families_of(stage, step))

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        facts, _ = self.held_out(split)
        asked, per_block = self.questions(facts, QUESTIONS), BLOCK * QUESTIONS
        blocks = facts.layout.split(BLOCK)[: limit and -(-limit // per_block)]
        heard = pictures_of(torch.cat(blocks), facts.generator)[:, None]
        return self.examples(heard, asked, split)[:limit]

    def write_example(self, file) -> str:
        """Write the first test sound as a WAV file; returns its caption."""
        facts, _ = self.held_out("test")
        self.questions(facts, QUESTIONS)  # drawn before the sounds are, as in heldout
        audio.write(file, notes.render(facts.layout[:BLOCK], facts.generator)[0])
        return caption(facts.layout[0].tolist())
