"""The built-in world of sound against a slow reading of its notes and of its spectrograms."""

import re
import shlex
from collections import Counter

import pytest
import torch
from helpers import TINY

import eval as evaluation
import train
from data import audio
from data.families import EMPTY
from data.sounds import Sounds
from data.sounds.notes import BEATS, INSTRUMENT, NAMES, PITCH, layouts, render
from lab import watch

COLUMNS = audio.SIZE // BEATS  # of a beat


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle(notes, question):
    """The answer, by going through the notes one by one."""
    heard = [(beat, NAMES[n // 2], n % 2) for beat, n in enumerate(notes) if n != EMPTY]

    def only(name):
        (found,) = [i for i, note in enumerate(heard) if note[1] == name]
        return found

    if m := re.fullmatch(r"is there a (\w+ \w+)\?", question):
        return "yes" if any(note[1] == m[1] for note in heard) else "no"
    if m := re.fullmatch(r"how many (\w+ \w+)s are there\?", question):
        return str(sum(note[1] == m[1] for note in heard))
    if m := re.fullmatch(r"in which half is the (\w+ \w+)\?", question):
        return "first" if heard[only(m[1])][0] < 4 else "second"
    if m := re.fullmatch(r"what comes (after|before) the (\w+ \w+)\?", question):
        i = only(m[2]) + (1 if m[1] == "after" else -1)
        assert 0 <= i < len(heard), question
        return heard[i][1]
    if m := re.fullmatch(r"which is louder, the (\w+ \w+) or the (\w+ \w+)\?", question):
        a, b = (heard[only(name)][2] for name in m.groups())
        assert a != b
        return m[1] if a > b else m[2]
    raise AssertionError(question)


def test_captions_say_every_beat_of_what_can_be_asked_about():
    drawn = Sounds().drawn("train", 200, "pt", 3, 0)[0].layout.tolist()
    for example, notes in zip(Sounds().draw("pt", 3, 200, 1, 0), drawn, strict=True):
        words = [
            "rest" if n == EMPTY else f"{('quiet', 'loud')[n % 2]} {NAMES[n // 2]}" for n in notes
        ]
        assert example.turns == [("<image>", " ".join(words))]
        kinds = Counter(n // 2 for n in notes if n != EMPTY)
        assert len(kinds) == 5 and notes.count(EMPTY) in (1, 2) and {1, 2} == set(kinds.values())
        assert {n % 2 for n in notes if n != EMPTY and kinds[n // 2] == 1} == {0, 1}


# --- What is heard


def decibel(layout: torch.Tensor) -> torch.Tensor:
    """[S, bands, BEATS, COLUMNS]"""
    power = audio.spectrogram(render(layout, generator(2)))
    return (10 * power.log10()).unflatten(2, (BEATS, COLUMNS))


def test_notes_sound_where_the_layout_says():
    """Every note is louder than every rest of its sound, at the beat and in the band of its
    pitch."""
    layout = layouts(200, generator(4))
    spectrum = decibel(layout)
    peaks, bands = spectrum[..., 1:7].amax(3).max(1)  # [S, BEATS]; a window is wider than a column
    registers = (range(0, 10), range(10, 23), range(23, 64))
    for i, notes in enumerate(layout.tolist()):
        rests = [peaks[i, beat].item() for beat in range(BEATS) if notes[beat] == EMPTY]
        for beat, n in enumerate(notes):
            if n != EMPTY:
                assert peaks[i, beat] > max(rests) + 3, (notes, beat)
            if n != EMPTY and n // 2 % 4 in (0, 2):  # a drum or a flute: nearly one pitch
                assert bands[i, beat] in registers[n // 2 // 4], (notes, beat)


def test_loud_is_louder_than_quiet_whatever_the_note():
    """Beside the same loud note, because a sound's level is that of its loudest moment."""
    layout = torch.full((20, BEATS), EMPTY)
    layout[:, 6], peaks = 2 * NAMES.index("middle horn") + 1, []
    for n in range(2 * len(NAMES)):
        layout[:, 3] = n
        spectrum = decibel(layout).amax((1, 3))
        peaks.append(spectrum[:, 3] - spectrum[:, 6])
    quiet, loud = torch.stack(peaks[::2]), torch.stack(peaks[1::2])
    assert loud.min() > quiet.max() and 12 < (loud - quiet).mean() < 18


@pytest.mark.parametrize("pitch", PITCH)
def test_instruments_differ_in_their_partials_and_in_how_they_end(pitch):
    layout = torch.full((50, BEATS), EMPTY)
    partials, fall = {}, {}
    for instrument in INSTRUMENT:
        layout[:, 3] = 2 * NAMES.index(f"{pitch} {instrument}") + 1
        spectrum = decibel(layout)[:, :, 3]  # [S, bands, COLUMNS]
        beginning = spectrum[:, :, 1:3].amax(2)
        edges = beginning > beginning.amax(1, keepdim=True) - 15
        partials[instrument] = ((edges[:, 1:] & ~edges[:, :-1]).sum(1) + edges[:, 0]).float().mean()
        fall[instrument] = (beginning.amax(1) - spectrum[:, :, 4].amax(1)).mean()
    assert partials["horn"] > partials["bell"] > partials["flute"] + 0.5
    assert abs(partials["flute"] - 1) < 0.2
    assert fall["drum"] > fall["bell"] + 5 > fall["flute"] + 8 and abs(fall["horn"]) < 3


def test_train_on_it_then_ask_about_the_sound_that_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "write_curves", lambda path, records: None)  # seconds of matplotlib
    out = tmp_path / "run"
    train.main([*TINY, "--data", "sounds", "--limit", "12", "--val-limit", "9", "--out", str(out)])
    *_, hint = capsys.readouterr().out.splitlines()
    assert hint == f'Ask it: python eval.py {out} --audio FILE --question "..."'
    sound, done = audio.read(out / "example.wav")
    assert done == ""
    first = Sounds().heldout("test", 1)[0].images[0].int()
    assert (audio.picture_of(sound[None])[0].int() - first).abs().float().mean() < 1
    command = hint.replace("FILE", str(out / "example.wav")).split("eval.py ")[1]
    evaluation.main([*shlex.split(command), "--device", "cpu"])
    assert capsys.readouterr().out.strip()
