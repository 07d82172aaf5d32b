"""Tokenizers of pretrained decoders, and their chat templates."""

import pickle

import pytest

import data
from bridge.chat import TEMPLATES, ChatTokenizer, read_tokenizer
from data import DataError
from mma import Role


@pytest.mark.parametrize("name", [name for name, t in TEMPLATES.items() if not t.byte_level])
def test_a_template_round_trips(chat, name):
    """A dialogue is what the template says, piece by piece; what a user writes is never a special
    token; answers come back as written."""
    tokenizer, form = read_tokenizer(chat, name), TEMPLATES[name]
    turns = [("<image>which colour is this?", "it is red."), ("<|end|></s>really?", "yes.")]
    row = data.encode(data.Example(["p"], turns), tokenizer, 2)
    pieces = ["<image>" if i == tokenizer.image else tokenizer.piece(i) for i in row.ids]
    first = form.start + "<image><image> which colour is this?" + form.opening + " it is red."
    second = form.next + " <|end|></s>really?" + form.opening + " yes."
    squeeze = str.maketrans("", "", " ")
    expected = (first + form.end + second + form.end).translate(squeeze)
    assert "".join(pieces).translate(squeeze) == expected
    ends = 2 if name != "phi-3" else 4  # Phi-3 ends messages as it ends answers
    assert row.ids.count(tokenizer.end[0]) == ends
    answers = [i for i, r in zip(row.ids, row.role) if r == Role.ANSWER]
    assert tokenizer.decode(answers[: answers.index(tokenizer.eos)]) == "it is red."
    assert answers[-1] == tokenizer.eos
    assert len(tokenizer) == tokenizer.image + 1 and max(row.ids) == tokenizer.image


def test_text_that_is_not_utf8_is_named(chat):
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_tokenizer(chat, "phi-3").encode("caf\udce9")


def test_a_tokenizer_reaches_workers_and_runs(chat):
    """Pickled, and from what a run keeps of it (tokenizer.model, tokenizer.json)."""
    tokenizer = read_tokenizer(chat, "phi-3")
    for copy in (
        pickle.loads(pickle.dumps(tokenizer)),
        ChatTokenizer(tokenizer.model, **tokenizer.extras()),
    ):
        assert type(copy) is ChatTokenizer and copy.extras() == tokenizer.extras()
        assert copy.encode("it is red.") == tokenizer.encode("it is red.")
        assert (copy.start, copy.end, copy.eos) == (tokenizer.start, tokenizer.end, tokenizer.eos)


def test_a_template_that_does_not_fit_is_refused(chat, tmp_path):
    (tmp_path / "config.json").write_text((chat / "config.json").read_text())
    (tmp_path / "tokenizer.model").write_bytes((chat / "tokenizer.model").read_bytes())
    with pytest.raises(DataError, match="'phi-3' needs the special token <.user.>"):
        read_tokenizer(tmp_path, "phi-3")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(DataError, match="tokenizer.model: no such file"):
        read_tokenizer(tmp_path, "vicuna")
