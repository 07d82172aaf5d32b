"""A finite data set: what a step draws, what cannot be used, what is left out and reported."""

import io
import json

import pytest
import torch
from PIL import Image

import data
from data import DataError
from data.families import SPLITS
from data.folder import Folder, SkippedEntries


def test_easy_vqa_is_seen_whole_in_each_epoch_in_another_order(easy_vqa):
    """Every question of a picture gets its turn; a step follows its number and the seed alone."""
    folder = data.load("easy_vqa", easy_vqa)
    train, val, test = ({e.images[0] for e in folder.heldout(split)} for split in SPLITS)
    assert train and val and not train & val and len(train | val) == 40 and len(test) == 5
    assert folder.answers == {"red", "blue", "yes", "no"}
    assert {e.family for e in folder.heldout("test")} == {"color", "yes/no"}
    n = len(train)
    asked = [e for step in range(2 * n) for e in folder.draw("sft", step, 1, 1, 0)]
    first, second = ([e.images[0] for e in some] for some in (asked[:n], asked[n:]))
    assert {*first} == {*second} == train and first != second
    assert 0.25 < sum("color" in e.turns[0][0] for e in asked) / len(asked) < 0.75
    one = folder.draw("sft", 5, 7, 2, 0)  # straddles two epochs
    assert len(one) == 14 and folder.draw("sft", 5, 7, 2, 1) != one
    assert data.load("easy_vqa", easy_vqa).draw("sft", 5, 7, 2, 0) == one


@pytest.mark.parametrize("damage,message", [
    (lambda file: file.write_text('[["a", "b", 0], ["a", 3, 0]]'), r"entry 1: expected \[question"),
    (lambda file: (file.parent / "images" / "3.png").unlink(),
     r"questions.json: entry 6: no such picture .*3.png"),
])  # fmt: skip
def test_easy_vqa_damaged(easy_vqa, damage, message):
    damage(easy_vqa / "train" / "questions.json")
    with pytest.raises(DataError, match=message):
        data.load("easy_vqa", easy_vqa)


def test_damaged_entries_are_reported_by_number_kind_and_first_examples(llava):
    entries = json.loads(llava.read_text())
    for i in (3, 5, 7, 9):
        entries[i]["image"] = f"missing{i}.png"
    entries[11]["conversations"].pop()
    (llava.parent / "2.png").write_bytes(b"broken")  # shown by two entries
    llava.write_text(json.dumps(entries))
    folder = data.load("llava", llava)
    report = folder.read_pictures(32).replace(f"{llava}: ", "").splitlines()
    assert [line.strip().split(": ")[0] for line in report] == [
        "7 of 32 entries are damaged and left out (train.py --strict makes them an error):",
        "4 missing picture, such as", "entry 3 (id '3')", "entry 5 (id '5')", "entry 7 (id '7')",
        "2 unreadable picture, such as", "entry 2 (id '2')", "entry 30 (id 'two')",
        "1 malformed, such as", "entry 11 (id '11')",
    ]  # fmt: skip
    kinds = "(4 missing picture, 2 unreadable picture, 1 malformed)"
    brief = f"7 of 32 entries are damaged and left out {kinds}"
    assert folder.skipped.report(32, brief=True) == brief
    left = [e for split in SPLITS for e in folder.heldout(split)]
    assert len(left) == 25 and not any(path.name == "2.png" for e in left for path in e.images)
    with pytest.raises(DataError, match="entry 3 "):
        data.load("llava", llava, strict=True)


def test_copies_of_training_pictures_that_are_held_out_are_counted(easy_vqa):
    """Where the splits are as published; the pictures of the fixture are of two contents."""
    for i, file in enumerate(sorted((easy_vqa / "train" / "images").iterdir())):
        Image.new("RGB", (64, 64), (i, 2 * i, 200)).save(file)
    assert data.load("easy_vqa", easy_vqa).read_pictures(32) == ""
    folder = data.load("easy_vqa", easy_vqa)
    copied, held = (folder.heldout(split)[0].images[0] for split in ("train", "test"))
    held.write_bytes(copied.read_bytes())
    said = "1 of 7 held-out pictures are also in training"
    assert folder.read_pictures(32) == said and folder.read_pictures(32, brief=True) == said


@pytest.mark.parametrize("read_first", [0, 8192])
def test_pictures_may_be_in_memory(read_first, tmp_path, monkeypatch):
    """Tensors, and bytes of a file: those that are no pictures are left out; of very many only the
    heads of files are read."""
    monkeypatch.setattr("data.folder.READ_FIRST", read_first)
    Image.effect_noise((64, 64), 50).save(file := io.BytesIO(), "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:1500])  # its head is whole
    (tmp_path / "broken.png").write_bytes(b"broken")
    images = [torch.zeros(shape, dtype=torch.uint8) for shape in ((3, 8, 8), (3, 8, 4))]
    images += [file.getvalue(), tmp_path / "cut.png", tmp_path / "broken.png"]
    group = [data.Example([x], [("<image>?", "a")], id=str(i)) for i, x in enumerate(images)]
    folder = Folder({"train": [group]}, skipped=SkippedEntries(strict=False))
    report = folder.read_pictures(8)
    assert ("1: a tensor that is a picture must be" in report) == bool(read_first)
    left = [example.id for example in folder.heldout("train")]
    assert left == (["0", "2"] if read_first else ["0", "1", "2", "3"])


def test_unusable_rows_are_counted_and_left_out(tokenizer):
    """A long answer is cut; a long question leaves no answer."""
    many = " word" * 200
    turns = [("red?", "yes"), ("red?" + many, "yes"), ("red?", "yes" + many)]
    folder = Folder({"train": [[data.Example([], [turn])] for turn in turns]})
    assert folder.drop_unusable(tokenizer, 4, 128) == (2, 1)
    assert [e.turns for e in folder.heldout("train")] == [[turns[0]], [turns[2]]]
    with pytest.raises(DataError, match="raise --max-tokens"):
        folder.drop_unusable(tokenizer, 4, 3)
