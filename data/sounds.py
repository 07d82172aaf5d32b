"""The built-in world of sound: eight beats of notes and rests, captions, and questions with exact
answers.

    python -m data.sounds                what the question alone can tell, by family, and the speed
    python -m data.sounds --wav FILE     one sound, to hear; its notes are printed
    python -m data.sounds --png FILE     a sheet of spectrograms

A sound is 2 s: eight beats of a quarter of a second, each a note or a rest. A note has a pitch, an
instrument (its timbre) and a loudness; a kind is a pitch and an instrument. A sound reaches the
model as a picture of 64 x 64 (audio.py): the encoder, the roles, the mask and the prompts are those
of pictures. A beat is 8 columns of it, half of a patch.

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
from data.families import QA, existence, rows
from data.folder import seed_of
from data.prompt import IMAGE, Example
from data.shapes_scenes import EMPTY, SPLITS, scenes

PITCH, INSTRUMENT = ["low", "middle", "high"], ["drum", "bell", "flute", "horn"]
LOUDNESS = ["quiet", "loud"]
NAMES = [f"{pitch} {instrument}" for pitch in PITCH for instrument in INSTRUMENT]
KINDS, BEATS = len(NAMES), 8
BEAT = audio.SAMPLES // BEATS  # samples
BLOCK = 64  # sounds that are made together

# How many notes there are of each of a sound's five kinds: six or seven, beside two rests or one.
# There are always kinds with two, one and no notes to ask about.
MULTIPLICITY = torch.tensor([[2, 1, 1, 1, 1], [2, 2, 1, 1, 1]])

# What the notes sound like. Frequencies in Hz; of each instrument six partials, as multiples of the
# note's frequency, and how strong they are. A drum's lie so close together that they are a thud.
FREQUENCY = torch.tensor([150.0, 420.0, 1150.0])
PARTIALS = torch.tensor([
    [0.74, 0.85, 0.96, 1.07, 1.18, 1.29],  # drum
    [1.00, 2.76, 1.00, 1.00, 1.00, 1.00],  # bell: not a multiple
    [1.00, 2.00, 1.00, 1.00, 1.00, 1.00],  # flute: nearly one pure tone
    [1.00, 2.00, 3.00, 4.00, 5.00, 6.00],  # horn
])  # fmt: skip
STRENGTH = torch.tensor([
    [1.5, 1.5, 1.5, 1.5, 1.5, 1.5],
    [1.3, 1.2, 0.0, 0.0, 0.0, 0.0],
    [1.0, 0.1, 0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, 0.8, 0.7, 0.6, 0.5],
])  # fmt: skip
ATTACK = torch.tensor([0.004, 0.004, 0.03, 0.015])  # s until it is there
DECAY = torch.tensor([0.03, 0.09, 9.0, 9.0])  # s until 1/e is left
QUIET = -15  # dB


def layouts(S: int, g: torch.Generator) -> Tensor:
    """int64 [S, BEATS]: 2 * kind + loudness of each note, or EMPTY for a rest."""
    kind = torch.rand(S, KINDS, generator=g).argsort(1)[:, :5]
    repeats = MULTIPLICITY[torch.randint(len(MULTIPLICITY), (S,), generator=g)]
    owner = (torch.arange(BEATS)[None, :, None] >= repeats.cumsum(1)[:, None]).sum(-1)  # 5: nobody
    loud = torch.randint(2, (S, BEATS), generator=g)
    # The last two notes stand alone of their kind: one is loud, the other quiet
    last = repeats.sum(1, keepdim=True) - 1
    loud.scatter_(1, last - 1, 1 - loud.gather(1, last))
    notes = 2 * torch.cat([kind, kind[:, :1]], 1).gather(1, owner) + loud
    notes = torch.where(owner == 5, EMPTY, notes)
    return notes.gather(1, torch.rand(S, BEATS, generator=g).argsort(1))


def render(layout: Tensor, g: torch.Generator) -> Tensor:
    """float32 [S, SAMPLES], from -1 to 1. Tuning, beginning, length and exact loudness of a note
    vary and mean nothing; so does the noise."""
    S, heard = len(layout), layout != EMPTY
    sound = torch.zeros(S, BEATS, BEAT)
    sound[heard] = render_notes(layout[heard], g)
    noise = torch.randn(S, audio.SAMPLES, generator=g)
    sound = sound.flatten(1) + uniform(0.003, 0.02, g, S, 1) * noise
    return 0.9 * sound / sound.abs().amax(1, keepdim=True)


def render_notes(notes: Tensor, g: torch.Generator) -> Tensor:
    """float32 [N, BEAT], a beat each, of notes [N] as they stand in a layout."""
    N, instrument = len(notes), notes // 2 % len(INSTRUMENT)
    hertz = FREQUENCY[notes // 2 // len(INSTRUMENT)] * 2 ** uniform(-1 / 12, 1 / 12, g, N)
    begin, length = uniform(0, 0.02, g, N, 1), uniform(0.16, 0.22, g, N, 1)
    t = torch.arange(BEAT) / audio.RATE - begin  # s since the note began
    tones = torch.zeros(N, BEAT)
    for ratio, strength in zip(PARTIALS[instrument].unbind(1), STRENGTH[instrument].unbind(1)):
        partial, phase = hertz * ratio, uniform(0, 1, g, N)
        some = (strength > 0) & (partial < 0.48 * audio.RATE)  # more, 8 kHz cannot hold
        cycles = partial[some, None] * t[some] + phase[some, None]
        tones[some] += strength[some, None] * torch.sin(2 * torch.pi * cycles)
    decibel = torch.where(notes % 2 == 1, 0, QUIET) + uniform(-1.5, 1.5, g, N)
    rise = (t / ATTACK[instrument, None]).clamp(0, 1)
    end = ((length - t) / 0.015).clamp(0, 1)
    fall = torch.exp(-t.clamp(min=0) / DECAY[instrument, None])
    return tones * rise * end * fall * 10 ** (decibel[:, None] / 20)


def uniform(low: float, high: float, g: torch.Generator, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


def pictures_of(layout: Tensor, g: torch.Generator) -> Tensor:
    """uint8 [S, 3, 64, 64], made BLOCK at a time: a thousand at once would fill the caches of
    a CPU."""
    return torch.cat([audio.picture_of(render(some, g)) for some in layout.split(BLOCK)])


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
                Example([image], [(IMAGE, caption(notes))], "caption")
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
    import engine.terminal  # noqa: F401 - so that `| head` ends it without a traceback

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
        print(f"  {question.replace(IMAGE, '')} -> {answer}")
    if args.wav:
        print(f"{args.wav}: {caption(world.write_example(args.wav))}")
    if args.png:
        from torchvision.utils import save_image

        pictures = torch.stack([e.images[0] for e in world.heldout("test")[::QUESTIONS][:32]])
        save_image(pictures.float() / 255, args.png, nrow=8)
