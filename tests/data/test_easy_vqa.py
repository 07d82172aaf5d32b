"""easy-VQA in its own layout."""

import shutil

import pytest

import data
from data import DataError
from data.families import SPLITS


def test_easy_vqa(easy_vqa):
    folder = data.load("easy_vqa", easy_vqa)
    pictures = {split: {e.images[0] for e in folder.heldout(split)} for split in SPLITS}
    assert len(folder.heldout("test")) == 10 and len(pictures["train"] | pictures["val"]) == 40
    assert pictures["train"] and pictures["val"] and not pictures["train"] & pictures["val"]
    assert folder.answers == {"red", "blue", "yes", "no"}
    assert {e.family for e in folder.heldout("test")} == {"color", "yes/no"}


def questions(text):
    return lambda folder: (folder / "train" / "questions.json").write_text(text)


@pytest.mark.parametrize("damage,message", [
    (questions("[[1, 2"), r"train.questions.json: not readable as JSON"),
    (questions('[["a", "b", 0], ["a", 3, 0]]'), r"entry 1: expected \[question"),
    (lambda d: (d / "train" / "images" / "3.png").unlink(),
     r"questions.json: entry 6: no such picture .*3.png"),
    (lambda d: shutil.rmtree(d / "test"), r"test.questions.json: no such file"),
])  # fmt: skip
def test_easy_vqa_damaged(easy_vqa, damage, message):
    damage(easy_vqa)
    with pytest.raises(DataError, match=message):
        data.load("easy_vqa", easy_vqa)
