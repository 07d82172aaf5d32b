"""Pictures that cannot be read: a training goes on without them, counts them and says so; what is
asked about them is not answered; and they may be repaired."""

import json
import shutil

import pytest
import torch
from helpers import TINY, Crash, at_steps, crash, lines_of, weights_of

import data
import eval as evaluation
import train
from data.pictures import reader
from engine.checkpoint import fingerprint

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.fixture
def large(llava, monkeypatch):
    """Options of a run on a set too large for every picture to be read at the start, and the files
    of pictures that only one example shows."""
    monkeypatch.setattr("data.folder.READ_FIRST", 5)
    options = ["--data", "llava", "--source", str(llava), "--image-size", "32"]
    splits = data.load("llava", llava).splits
    alone = {s: [g[0].images[0] for g in splits[s] if len(g) == 1 and g[0].images] for s in splits}
    return [*TINY, *options, "--limit", "4"], alone


def cut_short(file) -> bytes:
    """Cut the file's end off: its head is whole."""
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 40])
    reader.cache_clear()
    with pytest.raises(data.DataError):
        data.pixels_of(file, 32, "")
    return whole


def record_of(out) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("read_first", [5, 8192])
def test_training_goes_on_without_a_picture_and_counts_it(
    large, tmp_path, capsys, monkeypatch, read_first
):
    """A run that was stopped is the same and counts the same, with a worker or without one, also
    where a picture of it was repaired meanwhile."""
    options, alone = large
    monkeypatch.setattr("data.folder.READ_FIRST", read_first)
    bad = [*alone["train"][:2], alone["val"][0]]
    whole = {file: cut_short(file) for file in bad}
    options += ["--pt-steps", "8", "--steps", "3", "--save-every", "2"]  # more than an epoch
    train.main([*options, "--workers", "1", "--out", str(tmp_path / "whole")])
    out, unread = capsys.readouterr().out, record_of(tmp_path / "whole")["unread"]
    if read_first == 5:  # else they are left out before
        assert unread["pictures"] == 2 and 2 <= unread["rows"] < 10
        for file in bad[:2]:
            assert out.count(f"left out of training: {file}: not a readable picture") == 1
        assert f"{unread['rows']} rows of 2 unreadable pictures were left out of training" in out
    for name, repaired in (("parts", {}), ("repaired", whole)):
        with pytest.MonkeyPatch.context() as patch:
            at_steps(patch, lambda step: step == 6, crash)
            with pytest.raises(Crash):
                train.main([*options, "--out", str(tmp_path / name)])
        for file, content in repaired.items():
            file.write_bytes(content)
        train.main([*options, "--out", str(tmp_path / name), "--resume"])
    weights, parts = (weights_of(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(weights[name], parts[name]) for name in weights)
    assert record_of(tmp_path / "parts")["unread"] == unread
    assert record_of(tmp_path / "repaired")["n"] == 6  # four dialogues


@pytest.mark.parametrize("workers", ["0", "1"])
def test_with_strict_it_is_one_clear_error(large, tmp_path, workers):
    options, alone = large
    for file in alone["train"]:
        cut_short(file)
    options += ["--strict", "--workers", workers, "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"entry \d+ \(id '\d+'\): .*: not a readable picture"):
        train.main(options)


def test_a_run_whose_pictures_are_gone_ends(large, tmp_path, monkeypatch):
    """When none can be read it is not the pictures that are damaged."""
    options, alone = large
    folder = alone["train"][0].parent
    away = lambda model: folder.rename(tmp_path / "away") if folder.exists() else None
    at_steps(monkeypatch, lambda step: step == 2, away)
    monkeypatch.setattr("data.pictures.CACHE_BYTES", 0)
    reader.cache_clear()
    message = r"no such picture; nor can a picture of the next 8 steps be read"
    with pytest.raises(SystemExit, match=message):
        train.main([*options, "--pt-steps", "5", "--out", str(tmp_path / "run")])


def test_the_fingerprint_is_of_texts_and_of_which_pictures(llava, tokenizer, tmp_path):
    """Where the data lie does not matter, nor what a picture's file holds."""

    def print_of(name: str, change=lambda one, other: None):
        folder = shutil.copytree(llava.parent, tmp_path / name)
        source = data.load("llava", folder / "data.json")
        shown = [group[0] for group in source.splits["train"] if group[0].images]
        change(*shown[:2])
        source.read_pictures(32)
        return fingerprint(source, tokenizer, [])

    def swap(one, other):
        one.images[:], other.images[:] = list(other.images), list(one.images)

    def ask(one, other):
        one.turns[0] = ("<image>Why?", one.turns[0][1])

    first = print_of("first")
    assert (
        print_of("elsewhere") == print_of("damaged", lambda e, _: cut_short(e.images[0])) == first
    )
    assert first != print_of("swapped", swap) != print_of("asked", ask) != first


def test_what_is_asked_about_it_is_not_answered_and_said(large, tmp_path, capsys):
    options, alone = large
    out, file = tmp_path / "run", tmp_path / "r.json"
    bad = {split: alone[split][0] for split in ("val", "test")}
    for picture in bad.values():
        cut_short(picture)
    train.main([*options, "--val-limit", "100", "--limit", "100", "--out", str(out)])
    said = capsys.readouterr().out
    looks = [line["val"] for line in lines_of(out) if "val" in line]
    record = record_of(out)
    assert [look["unanswered"] for look in looks] == [2, 2] and record["unanswered"] == 2
    assert looks[0]["n"] > 2 and record["unparsed"] >= 2
    for picture in bad.values():  # once, not at every look
        assert said.count(f"such as {picture}: not a readable picture") == 1
    evaluation.main([str(out), "--device", "cpu", "--json", str(file)])
    said = capsys.readouterr().out
    assert f"2 of {record['n']} questions are not answered" in said
    assert json.loads(file.read_text())["runs"][0]["unanswered"] == 2
    with pytest.raises(SystemExit, match=f"^error: {bad['test']}: not a readable picture"):
        ask = ["--image", str(bad["test"]), "--question", "What is this?"]
        evaluation.main([str(out), "--device", "cpu", *ask])
