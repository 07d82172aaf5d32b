"""Rows, labels and batches: what the prompt format promises."""

import pickle

import pytest
import torch
from helpers import LETTERS
from PIL import Image

from data import DataError, Example, collate, encode, pixels_of
from data.prompt import Tokenizer
from mma import Role

LETTER = {int(role): letter for letter, role in LETTERS.items()}


def letters(row):
    return "".join(LETTER[r] for r in row.role)


def test_roles_and_turns_of_a_dialogue(tokenizer):
    example = Example(["p"], [("<image>\nis there a red circle?", "yes"), ("blue?", "no")])
    row = encode(example, tokenizer, 4)
    assert letters(row) == "tVVVVQQQQQQQAAtttAA"
    assert "".join(map(str, row.turn)) == "0" + "1" * 13 + "2" * 5
    assert row.ids[0] == tokenizer.bos and row.ids[1:5] == [tokenizer.image] * 4
    assert row.ids[11] == row.ids[16] == tokenizer.answer
    assert row.ids[13] == row.ids[18] == tokenizer.eos
    assert tokenizer.decode(row.ids[5:11]) == "is there a red circle?"
    assert tokenizer.decode(row.ids[12:13]) == "yes"
    assert len(row.ids) == len(row.role) == len(row.turn)


def test_a_prompt_is_the_row_up_to_the_answer(tokenizer):
    example = Example(["a", "b"], [("<image>red?", "yes"), ("<image>blue?", "no"), ("is?", "yes")])
    full = encode(example, tokenizer, 3)
    for turn, n_images in ((0, 1), (1, 2), (2, 2)):
        prompt = encode(example, tokenizer, 3, upto=turn)
        n = len(prompt.ids)
        assert prompt.ids == full.ids[:n] and prompt.role == full.role[:n]
        assert full.role[n] == Role.ANSWER and prompt.ids[-1] == tokenizer.answer
        assert len(prompt.images) == n_images


def test_pictures_and_placeholders_must_agree(tokenizer):
    for images, message in (([], "<image>red?"), (["a"], "red?")):
        example = Example(images, [(message, "yes")], id="x")
        with pytest.raises(DataError, match="x: . <image> in the messages, but . pictures"):
            encode(example, tokenizer, 4)


def test_a_tokenizer_travels_and_knows_words_whole(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a red diamond") == tokenizer.encode("a red diamond")
    # A word of the data is one token
    assert len(tokenizer.encode("how many purple triangles are there?")) == 7


def test_collate_pads_on_the_right_and_reads_each_picture_once(tokenizer, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    tensor = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    asked = ("red?", "blue circle?", "is?", "?")
    rows = [
        encode(Example([image], [("<image>" + question, "yes")]), tokenizer, 2)
        for image, question in zip((tmp_path / "a.png", tensor[1]) * 2, asked)
    ]
    batch = collate(rows, tokenizer.pad, 16)
    assert batch["image_index"].tolist() == [0, 1, 0, 1] and batch["images"].shape == (2, 3, 16, 16)
    assert batch["images"][0, 0].min() == 255 and batch["images"].dtype == torch.uint8
    for b, row in enumerate(rows):
        n = len(row.ids)
        assert batch["ids"][b, :n].tolist() == row.ids
        assert (batch["ids"][b, n:] == tokenizer.pad).all()
        assert (batch["role"][b, n:] == Role.PAD).all()


def test_views_of_one_tensor_are_pictures_of_their_own(tokenizer):
    """A part of a picture, the picture on its side, the next of a film's: all share its memory."""
    film = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).to(torch.uint8)
    x = film[0]
    shown = [x, x[:, :8, :8], x.mT, film[1], x[:, 4:, 4:], film[0]]
    row = encode(Example(shown, [("<image>" * 6 + "which?", "red")]), tokenizer, 2)
    batch = collate([row, row], tokenizer.pad, 16)
    assert batch["image_index"].tolist() == [0, 1, 2, 3, 4, 0] * 2
    for seen, image in zip(batch["images"], shown):
        assert torch.equal(seen, pixels_of(image, 16, ""))


def test_text_that_no_tokenizer_fits_is_one_clear_error():
    letters = "".join(chr(0x4E00 + i) for i in range(1500))
    for size in (3, 1000):
        message = f"^--vocab-size {size} is too small: this text needs 1763 or more$"
        with pytest.raises(DataError, match=message):
            Tokenizer.train([letters], size)
    assert len(Tokenizer.train([letters], 1763)) == 1763
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        Tokenizer.train([""], 1000)
