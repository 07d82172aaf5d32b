"""Whatever text people write: it comes back as it was, and stays text."""

import pytest
from hypothesis import strategies as st
from properties import for_all, tries

import data
from data import DataError
from lab.variants import TextFirstTokenizer
from mma import Role

NAMES = (  # of special tokens, of bytes, of what templates have
    "<answer>", "<pad>", "<unk>", "<s>", "</s>", "<bos>", "<eos>", "<0x41>", "<0x0A>", "<|end|>",
    "<|user|>", "<|assistant|>", "[INST]", "[/INST]", "USER:", "ASSISTANT:", data.IMAGE_TOKEN,
)  # fmt: skip
PIECES = st.text(max_size=6) | st.sampled_from(
    (*NAMES, " ", "\n", "is there a red", "色は？", "🙂")
)
TEXT = st.lists(PIECES, max_size=5).map("".join)
SPACE = "\u2581"  # sentencepiece's own sign for a space


def same(text: str) -> str:
    return text.replace(SPACE, " ")


@pytest.fixture(params=[data.Tokenizer, TextFirstTokenizer])
def any_tokenizer(request, tokenizer):
    return request.param(tokenizer.model)


def special(tokenizer) -> set[int]:
    """What a text may never become."""
    sp = tokenizer.sp
    return {i for i in range(sp.get_piece_size()) if sp.is_control(i) or sp.is_unknown(i)}


@tries(60, 5000)
def test_text_comes_back_and_never_becomes_a_special_token(any_tokenizer, n):
    never = special(any_tokenizer)

    def check(text):
        ids = any_tokenizer.encode(text)
        assert any_tokenizer.decode(list(ids)) == same(text)
        assert not never & set(ids)

    for_all(check, n, text=TEXT)


@st.composite
def written(draw):
    """Turns, each: the texts before, between and after its pictures; its answer. In a message
    <image> is a picture."""
    text = TEXT.map(lambda text: text.replace(data.IMAGE_TOKEN, " "))
    return [
        (draw(st.lists(text, min_size=1, max_size=3)), draw(TEXT))
        for _ in range(draw(st.integers(1, 3)))
    ]


@tries(40, 3000)
def test_a_dialogue_comes_back_from_its_row(any_tokenizer, n):
    """Texts and answers by their roles and turns; special tokens where the format puts them and
    nowhere else."""
    tokenizer, never = any_tokenizer, special(any_tokenizer) - {any_tokenizer.image}

    def check(turns):
        n_images = sum(len(texts) - 1 for texts, _ in turns)
        messages = [(data.IMAGE_TOKEN.join(texts), answer) for texts, answer in turns]
        row = data.encode(data.Example([None] * n_images, messages), tokenizer, 2)
        format_ids = [*tokenizer.start, *(len(turns) - 1) * tokenizer.next]
        format_ids += len(turns) * [*tokenizer.opening, *tokenizer.end]
        assert sorted(never & set(row.ids)) == sorted(never & set(format_ids))
        assert sum(i in never for i in row.ids) == sum(i in never for i in format_ids)
        assert [i == tokenizer.image for i in row.ids] == [r == Role.IMAGE for r in row.role]
        assert row.role.count(Role.IMAGE) == 2 * n_images
        tokens = list(zip(row.ids, row.role, row.turn))
        for t, (texts, answer) in enumerate(turns, 1):
            ids = [i for i, role, turn in tokens if turn == t and role == Role.ANSWER]
            assert ids[-len(tokenizer.end) :] == tokenizer.end
            assert tokenizer.decode(ids[: -len(tokenizer.end)]) == same(answer.strip())
            asks = len(texts) > 1 and any(text.strip() for text in texts)
            begins = tokenizer.next if t > 1 else []
            message = [i for text in texts for i in tokenizer.encode(text.strip())]
            message = [
                (i, Role.QUESTION if asks else Role.TEXT) for i in message + tokenizer.opening
            ]
            expected = [(i, Role.TEXT) for i in begins] + message
            outside = (Role.IMAGE, Role.ANSWER)
            assert expected == [(i, r) for i, r, turn in tokens if turn == t and r not in outside]

    for_all(check, n, turns=written())


@tries(15, 500)
def test_no_row_is_longer_than_it_may_be_and_no_picture_is_cut(any_tokenizer, n):
    """Of a dialogue and of its prompts, at every number of tokens: as much as fits, or, where that
    would cut a picture, what comes before its turn. What begins a dialogue must fit."""
    n_start = len(any_tokenizer.start)

    def check(turns, n_image_tokens):
        n_images = sum(len(texts) - 1 for texts, _ in turns)
        messages = [(data.IMAGE_TOKEN.join(texts), answer) for texts, answer in turns]
        example = data.Example(list(range(n_images)), messages)
        for upto in (None, *range(len(turns))):
            whole = data.encode(example, any_tokenizer, n_image_tokens, upto=upto)
            longest = len(whole.ids) + 1
            for limit in range(n_start + 1):
                says = f"with {n_start} tokens, .*; raise --max-tokens, {limit} leaves no room"
                with pytest.raises(DataError, match=says):
                    data.encode(example, any_tokenizer, n_image_tokens, limit, upto)
            for limit in range(n_start + 1, longest + 1):
                row = data.encode(example, any_tokenizer, n_image_tokens, limit, upto)
                check_row(row, whole, limit)
                assert row.role.count(Role.IMAGE) == n_image_tokens * len(row.images)

    def check_row(row, whole, limit):
        kept = len(row.ids)
        assert kept <= limit and row.images == whole.images[: len(row.images)]
        parts = whole.ids[:kept], whole.role[:kept], whole.turn[:kept]
        assert (row.ids, row.role, row.turn) == parts
        if kept < min(limit, len(whole.ids)):  # from there on a turn is gone
            turn = whole.turn[kept]
            assert turn != whole.turn[kept - 1]
            assert (int(Role.IMAGE), turn) in zip(whole.role[limit:], whole.turn[limit:])

    for_all(check, n, turns=written(), n_image_tokens=st.integers(1, 5))


def test_half_of_a_surrogate_pair_is_one_clear_error(any_tokenizer):
    for text in ("what is \ud800?", b"caf\xe9".decode("utf-8", "surrogateescape")):
        with pytest.raises(DataError, match="is not UTF-8 text"):
            any_tokenizer.encode(text)
