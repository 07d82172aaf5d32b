"""The sounds of the built-in world of sound: what is played, and how it sounds.

A sound is 2 s: eight beats of a quarter of a second, each a note or a rest. A note has a pitch, an
instrument (its timbre) and a loudness; a kind is a pitch and an instrument. Questions: __init__.py.

Shapes:  S sounds   N notes   BEATS = 8   KINDS = 12
"""

import torch
from torch import Tensor

from data import audio
from data.families import EMPTY

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
