"""Rows, labels and batches, whatever people write: what the prompt format promises."""

import pickle
import random

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from properties import for_all, tries

import data
from data import DataError, Example, Row, Tokenizer, collate, encode, pixels_of
from mma import Role

NAMES = (  # of special tokens, of bytes, of what templates have
    "<answer>", "<pad>", "<unk>", "<s>", "</s>", "<bos>", "<eos>", "<0x41>", "<0x0A>", "<|end|>",
    "<|user|>", "<|assistant|>", "[INST]", "[/INST]", "USER:", "ASSISTANT:", data.IMAGE_TOKEN,
)  # fmt: skip
PIECES = st.text(max_size=6) | st.sampled_from(
    (*NAMES, " ", "\n", "is there a red", "色は？", "🙂")
)
TEXT = st.lists(PIECES, max_size=5).map("".join)


@st.composite
def written(draw):
    """Turns, each: the texts before, between and after its pictures; its answer. In a message
    <image> is a picture."""
    text = TEXT.map(lambda text: text.replace(data.IMAGE_TOKEN, " "))
    return [
        (draw(st.lists(text, min_size=1, max_size=3)), draw(TEXT))
        for _ in range(draw(st.integers(1, 3)))
    ]


def example_of(turns) -> Example:
    """Its pictures are numbers."""
    messages = [(data.IMAGE_TOKEN.join(texts), answer) for texts, answer in turns]
    return Example(list(range(sum(len(texts) - 1 for texts, _ in turns))), messages)


def tokens_of(row: Row) -> list[tuple]:
    return list(zip(row.ids, row.role, row.turn, strict=True))


@tries(60, 5000)
def test_text_comes_back_and_never_becomes_a_special_token(tokenizer, n):
    """Also from a tokenizer that was sent to a worker. A word of the data is one token."""
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    assert len(tokenizer.encode("how many purple triangles are there?")) == 7

    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(list(ids)) == text.replace("\u2581", " ")
        assert not any(tokenizer.sp.is_control(i) or tokenizer.sp.is_unknown(i) for i in ids)

    for_all(check, n, text=TEXT)


@tries(40, 3000)
def test_a_row_is_the_dialogue_with_roles_and_turns_and_a_prompt_its_beginning(tokenizer, n):
    def check(turns):
        example, expected = example_of(turns), [(tokenizer.bos, Role.TEXT, 0)]
        for t, (texts, answer) in enumerate(turns, 1):
            asks = len(texts) > 1 and any(text.strip() for text in texts)
            role = Role.QUESTION if asks else Role.TEXT
            for k, text in enumerate(texts):
                expected += [(tokenizer.image, Role.IMAGE, t)] * 2 * (k > 0)
                expected += [(i, role, t) for i in tokenizer.encode(text.strip())]
            expected.append((tokenizer.answer, role, t))
            prompt = encode(example, tokenizer, 2, upto=t - 1)
            assert tokens_of(prompt) == expected
            assert prompt.images == example.images[: prompt.role.count(Role.IMAGE) // 2]
            answer_ids = (*tokenizer.encode(answer.strip()), tokenizer.eos)
            expected += [(i, Role.ANSWER, t) for i in answer_ids]
        row = encode(example, tokenizer, 2)
        assert tokens_of(row) == expected and row.images == example.images

    for_all(check, n, turns=written())


@tries(15, 500)
def test_no_row_is_longer_than_it_may_be_and_no_picture_is_cut(tokenizer, n):
    """Of a dialogue and of its prompts, at every number of tokens: as much as fits, or, where that
    would cut a picture, what comes before its turn."""

    def check(turns, n_image_tokens):
        for upto in (None, *range(len(turns))):
            whole = encode(example_of(turns), tokenizer, n_image_tokens, upto=upto)
            for limit in range(2, len(whole.ids) + 2):
                row = encode(example_of(turns), tokenizer, n_image_tokens, limit, upto)
                kept = len(row.ids)
                assert kept <= limit and tokens_of(row) == tokens_of(whole)[:kept]
                assert row.images == whole.images[: len(row.images)]
                assert row.role.count(Role.IMAGE) == n_image_tokens * len(row.images)
                if kept < min(limit, len(whole.ids)):
                    turn = whole.turn[kept]
                    assert turn != whole.turn[kept - 1]
                    assert (Role.IMAGE, turn) in zip(whole.role[limit:], whole.turn[limit:])

    for_all(check, n, turns=written(), n_image_tokens=st.integers(1, 5))


MANY_LETTERS = "".join(chr(0x4E00 + i) for i in range(1500))


@pytest.mark.parametrize("attempt,says", [
    (lambda t: encode(Example([], [("<image>red?", "yes")], id="x"), t, 4),
     "^x: 1 <image> in the messages, but 0 pictures"),
    (lambda t: encode(Example(["a"], [("red?", "yes")]), t, 4), "^0 <image> in .*, but 1 pictures"),
    (lambda t: encode(Example([], [("red?", "yes")]), t, 4, 1),
     "^every dialogue begins with 1 tokens, .*; raise --max-tokens, 1 leaves no room for more$"),
    (lambda t: t.encode("what is \ud800?"), "is not UTF-8 text"),
    (lambda t: Tokenizer.train([MANY_LETTERS], 3),
     "^--vocab-size 3 is too small: this text needs 1763 or more$"),
    (lambda t: Tokenizer.train([""], 1000), "no text to train a tokenizer on"),
])  # fmt: skip
def test_what_no_row_can_be_made_of_is_an_error(tokenizer, attempt, says):
    with pytest.raises(DataError, match=says):
        attempt(tokenizer)


# --- Batches


def test_collate_pads_on_the_right_and_reads_each_picture_once(tokenizer, tmp_path):
    """Views of one tensor are pictures of their own: a part, the picture on its side, the next of a
    film."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    film = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).to(torch.uint8)
    x = film[0]
    shown = [tmp_path / "a.png", x, x[:, :8, :8], x.mT, film[1], x[:, 4:, 4:], film[0]]
    asked = ("red?", "blue circle?")
    rows = [encode(Example(shown, [("<image>" * 7 + q, "yes")]), tokenizer, 2) for q in asked]
    batch = collate(rows, tokenizer.pad, 16)
    assert batch["image_index"].tolist() == [0, 1, 2, 3, 4, 5, 1] * 2
    assert batch["images"].dtype == torch.uint8 and batch["images"][0, 0].min() == 255
    for seen, image in zip(batch["images"], shown):
        assert torch.equal(seen, pixels_of(image, 16, ""))
    padding = len(rows[1].ids) - len(rows[0].ids)
    for name, fill in (("ids", tokenizer.pad), ("role", Role.PAD), ("turn", 0)):
        short, long = (getattr(row, name) for row in rows)
        assert batch[name].tolist() == [short + padding * [fill], long]


def test_packed_rows_are_full_and_rows_of_like_length_stay_as_they_are():
    """Questions of 5 to 60 tokens, answers of 1 to 200, a picture of 16. tests/test_properties.py:
    packed rows teach what rows alone do."""
    r = random.Random(0)
    lengths = [18 + r.randint(5, 60) + r.randint(1, 200) for _ in range(64)]
    packed = data.pack([Row([1] * T, [int(Role.TEXT)] * T, [1] * T) for T in lengths])
    longest = max(len(row.ids) for row in packed)
    filled = sum(len(row.ids) for row in packed)
    assert sum(lengths) == filled >= 0.95 * len(packed) * longest and longest <= 3 * max(lengths)
    assert sum(row.document[-1] + 1 for row in packed) == len(lengths)
    rows = [Row([1] * n, [1] * n, [1] * n) for n in (28, 29, 30, 30)]
    assert data.pack(rows) is rows and data.pack(rows[:1]) == rows[:1]
