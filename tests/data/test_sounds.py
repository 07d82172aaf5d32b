"""What is special to the built-in world of sound: its captions, and what is heard."""

import shlex

import torch
from helpers import TINY
from oracles import generator

import eval as evaluation
import train
from data import audio
from data.families import EMPTY
from data.sounds import Sounds
from data.sounds.notes import BEATS, INSTRUMENT, NAMES, PITCH, render

NOTES = torch.arange(2 * len(NAMES))


def test_captions_say_every_beat_of_what_can_be_asked_about():
    drawn = Sounds().drawn("train", 200, "pt", 3, 0)[0].layout.tolist()
    for example, notes in zip(Sounds().draw("pt", 3, 200, 1, 0), drawn, strict=True):
        words = [
            "rest" if n == EMPTY else f"{('quiet', 'loud')[n % 2]} {NAMES[n // 2]}" for n in notes
        ]
        assert example.turns == [("<image>", " ".join(words))]


def spectra(layout: torch.Tensor, seed: int) -> torch.Tensor:
    """In decibel, [S, BEATS, bands, columns of a beat]."""
    power = audio.spectrogram(render(layout, generator(seed)))
    return (10 * power.log10()).unflatten(2, (BEATS, -1)).movedim(2, 1)


def test_every_note_can_be_told_by_its_sound():
    """At its beat: pitch, instrument and loudness are those of the most similar of other sounds.
    Beside the same loud note, because a sound's level is that of its loudest moment."""
    layout = torch.full((len(NOTES) + 1, 20, BEATS), EMPTY)  # each note and, at last, a rest
    layout[:, :, 6] = 2 * NAMES.index("middle horn") + 1
    layout[:-1, :, 3] = NOTES[:, None]
    known, heard = (spectra(layout.flatten(0, 1), seed)[:, 3] for seed in (1, 2))
    most_similar = torch.cdist(heard.amax(2), known.amax(2)).argmin(1)
    labels = torch.arange(len(layout)).repeat_interleave(20)
    assert (labels[most_similar] == labels).float().mean() > 0.95
    mean = known.view(len(layout), 20, audio.SIZE, -1).mean(1)[:-1]
    mean = mean.view(len(PITCH), len(INSTRUMENT), 2, audio.SIZE, -1)
    quiet, loud = mean.amax((3, 4)).unbind(2)
    assert 9 < (loud - quiet).min() and (loud - quiet).max() < 18
    low, middle, high = mean.amax(4).argmax(3)  # the loudest band
    assert low.max() < middle.min() and middle.max() < high.min()
    fall = (mean[..., 1:3].amax((3, 4)) - mean[..., 4].amax(3))[:, :, 1].mean(0)
    drum, bell, flute, horn = fall.tolist()
    assert drum > bell + 5 > flute + 8 and abs(horn) < 3


def test_train_on_it_then_ask_about_the_sound_that_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lab.watch.write_curves", lambda path, records: None)  # takes seconds
    out = tmp_path / "run"
    train.main([*TINY, "--data", "sounds", "--limit", "12", "--val-limit", "9", "--out", str(out)])
    *_, hint = capsys.readouterr().out.splitlines()
    assert hint == f'Ask it: python eval.py {out} --audio FILE --question "..."'
    sound, done = audio.read(out / "example.wav")
    first = Sounds().heldout("test", 1)[0].images[0].int()
    assert (audio.picture_of(sound[None])[0].int() - first).abs().float().mean() < 1 and not done
    command = hint.replace("FILE", str(out / "example.wav")).split("eval.py ")[1]
    evaluation.main([*shlex.split(command), "--device", "cpu"])
    assert capsys.readouterr().out.strip()
