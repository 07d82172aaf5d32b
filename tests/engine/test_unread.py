"""Pictures that cannot be read: a training goes on without them, counts them and says so; what is
asked about them is not answered; and they may be repaired."""

import shutil

import pytest
from helpers import TINY, at_steps, evaluated, own_data, record_of, train_and_crash, train_tiny

import data
import eval as evaluation
from data.pictures import reader
from engine.checkpoint import fingerprint

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def large(llava, monkeypatch):
    """Options of a run on a set too large for every picture to be read at the start, and the files
    of pictures that only one example shows."""
    monkeypatch.setattr("data.folder.READ_FIRST", 5)
    splits = data.load("llava", llava).splits
    alone = {s: [g[0].images[0] for g in splits[s] if len(g) == 1 and g[0].images] for s in splits}
    return [*own_data(llava), "--limit", "4"], alone


def cut_short(file) -> bytes:
    """Cut the file's end off, which is returned: its head is whole."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    reader.cache_clear()
    with pytest.raises(data.DataError):
        data.pixels_of(file, 32, "")
    return whole[-40:]


@pytest.mark.parametrize("read_first", [5, 8192])
def test_training_goes_on_without_a_picture_and_counts_it(
    large, tmp_path, capsys, monkeypatch, read_first
):
    """A run that was stopped is the same and counts the same, with a worker or without one, also
    where a picture of it was repaired meanwhile."""
    options, alone = large
    monkeypatch.setattr("data.folder.READ_FIRST", read_first)
    ends = {file: cut_short(file) for file in (*alone["train"][:2], alone["val"][0])}
    options += ["--pt-steps", "8", "--steps", "3", "--save-every", "2"]  # more than an epoch
    train_tiny(tmp_path / "whole", *options, "--workers", 1)
    out, unread = capsys.readouterr().out, record_of(tmp_path / "whole")["unread"]
    if read_first == 5:  # else they are left out before
        assert unread["pictures"] == 2 and 2 < unread["rows"] < 10
        for file in alone["train"][:2]:
            assert out.count(f"left out of training: {file}: not a readable picture") == 1
        assert f"{unread['rows']} rows of 2 unreadable pictures were left out of training" in out
    for name in ("parts", "repaired"):
        train_and_crash(tmp_path / name, 6, *TINY, *options)
        for file, end in ends.items() if name == "repaired" else ():
            file.write_bytes(file.read_bytes() + end)
        train_tiny(tmp_path / name, *options, "--resume")
    models = [(tmp_path / name / "model.pt").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]
    assert record_of(tmp_path / "parts")["unread"] == unread
    assert record_of(tmp_path / "repaired")["n"] == 6  # four dialogues


@pytest.mark.parametrize("workers", [0, 1])
def test_with_strict_it_is_one_clear_error(large, tmp_path, workers):
    options, alone = large
    for file in alone["train"]:
        cut_short(file)
    with pytest.raises(SystemExit, match=r"entry \d+ \(id '\d+'\): .*: not a readable picture"):
        train_tiny(tmp_path / "run", *options, "--strict", "--workers", workers)


def test_a_run_whose_pictures_are_gone_ends(large, tmp_path, monkeypatch):
    """When none can be read it is not the pictures that are damaged."""
    options, alone = large
    folder = alone["train"][0].parent
    at_steps(monkeypatch, lambda step: step == 2, lambda model: folder.rename(tmp_path / "away"))
    monkeypatch.setattr("data.pictures.CACHE_BYTES", 0)
    reader.cache_clear()
    message = r"no such picture; nor can a picture of the next 8 steps be read"
    with pytest.raises(SystemExit, match=message):
        train_tiny(tmp_path / "run", *options, "--pt-steps", 5)


def test_the_fingerprint_is_of_texts_and_of_which_pictures(llava, tokenizer, tmp_path):
    """Where the data lie does not matter, nor what a picture's file holds."""

    def swap(one, other):
        one.images[:], other.images[:] = list(other.images), list(one.images)

    def ask(one, other):
        one.turns[0] = ("<image>Why?", one.turns[0][1])

    prints = []
    for change in (lambda *_: None, lambda one, other: cut_short(one.images[0]), swap, ask):
        folder = shutil.copytree(llava.parent, tmp_path / str(len(prints)))
        source = data.load("llava", folder / "data.json")
        change(*[group[0] for group in source.splits["train"] if group[0].images][:2])
        source.read_pictures(32)
        prints.append(fingerprint(source, tokenizer, []))
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_what_is_asked_about_it_is_not_answered_and_said(large, tmp_path, capsys):
    options, alone = large
    bad = {split: alone[split][0] for split in ("val", "test")}
    for picture in bad.values():
        cut_short(picture)
    train_tiny(tmp_path, *options, "--val-limit", 100, "--limit", 100)
    said, record = capsys.readouterr().out, record_of(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count('"unanswered": 2') == 2  # at each look
    assert record["unanswered"] == 2 <= record["unparsed"]
    for picture in bad.values():  # once, not at every look
        assert said.count(f"such as {picture}: not a readable picture") == 1
    assert evaluated(tmp_path)[0]["unanswered"] == 2
    assert f"2 of {record['n']} questions are not answered" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"^error: {bad['test']}: not a readable picture"):
        ask = ["--image", str(bad["test"]), "--question", "What is this?"]
        evaluation.main([str(tmp_path), "--device", "cpu", *ask])
