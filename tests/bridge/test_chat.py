"""Tokenizers and chat templates of Hugging Face folders: the ids of transformers'
apply_chat_template, special tokens that nobody can type, and what is refused."""

import json
import pickle
import sys

import pytest
from hypothesis import strategies as st
from properties import for_all, tries

import data
import eval as evaluation
from bridge.chat import ChatTokenizer, read_tokenizer
from data import DataError
from mma import Role

hf = pytest.importorskip("transformers", "5.6")
from families import FAMILIES, MESSAGES, PIECES, bpe_of, write_folder  # noqa: E402

SPECIAL = "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "</s>", "<s>", "<|end|>"
TEXTS = [
    "which colour is this?", "it is red.", "", " ", "\n", "\n\n", "  ", "\t", " leading", "  two",
    "   three spaces", "    four", "\nline", "\n\nlines", "\n  both", "  \n both", "\r\nwindows",
    "\ttab", "\n\ttab", "trailing ", "trailing\n", "trailing \n\n", " on both sides ", "a\n\n\nb",
    "def f(x):\n    return x + 1\n", "for i in range(10):\n\tprint(i)  # no", "x = {'a': [1, 2]}",
    "#include <stdio.h>\nint main() { return 0; }", "SELECT * FROM t WHERE a >= 10;",
    "12 + 345 = 357", "3.14159, 1e-5, 2023-11-24", "1234567890", "café", "cafe\u0301",
    "\u0301 begins with a mark", "naïve résumé", "色は？", "什么颜色？", "안녕", "Какого цвета?",
    "ما اللون", "🙂", "👨\u200d👩\u200d👧 family", "🇩🇪 flag", "\xa0no-break", "\u2003em space",
    "\u2028separator", "\u200bzero width", "it's we'll I'D", "a<b>c</b> [INST]",
    "user\nassistant\nsystem", "<image", "| < | > <| |>", "\x00\x01 control", "long " * 40,
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, folder, transformers' tokenizer)."""
    folder = tmp_path_factory.mktemp(request.param)
    write_folder(folder, request.param)
    return request.param, folder, hf.AutoTokenizer.from_pretrained(folder)


def expected_of(theirs, turns, system="") -> list[int]:
    """transformers' ids of the prompt for the last answer."""
    messages = [{"role": "system", "content": system}] if system else []
    for message, answer in turns:
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    written = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    return theirs(written, add_special_tokens=False).input_ids


def prompt_of(tokenizer, turns, images=0) -> list[int]:
    example = data.Example([None] * images, turns)
    return data.encode(example, tokenizer, 2, upto=len(turns) - 1).ids


def row_of(tokenizer, *turns) -> tuple[str, list[int]]:
    """A dialogue as it is read, and the ids of its answers."""
    row = data.encode(data.Example([], list(turns)), tokenizer, 1)
    answers = [i for i, role in zip(row.ids, row.role) if role == Role.ANSWER]
    return "".join(map(tokenizer.piece, row.ids)), answers


def specials_of(theirs) -> set[int]:
    return {i for i, token in theirs.added_tokens_decoder.items() if token.special}


def test_fifty_texts_have_their_ids(family):
    """One message, with a system prompt and without; a dialogue whose later messages are the texts
    too. Phi-3's special tokens swallow the white space behind them. Worker processes and runs get
    the tokenizer from what a run keeps of it (tokenizer.model, tokenizer.json)."""
    name, folder, theirs = family
    for system in ["", "You see pictures."][: 1 if name in PIECES else 2]:
        read = read_tokenizer(folder, system=system)
        kept = ChatTokenizer(read.model, **json.loads(json.dumps(read.extras())))
        tokenizer = pickle.loads(pickle.dumps(kept))
        assert (tokenizer.form, len(tokenizer)) == (read.form, len(read))
        for text in TEXTS if name != "phi-3" else [t.lstrip() for t in TEXTS]:
            for turns in ([(text, "")], [("which?", "it is red."), (text, "yes"), (text, "")]):
                assert prompt_of(tokenizer, turns) == expected_of(theirs, turns, system), text


def test_a_picture_is_a_token_of_theirs(family):
    """<image> as transformers' special token: what stands around it has its ids, and so has a
    picture but that it is several tokens."""
    name, folder, theirs = family
    theirs = pickle.loads(pickle.dumps(theirs))
    theirs.add_special_tokens({"additional_special_tokens": [data.IMAGE_TOKEN]})
    tokenizer = read_tokenizer(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert tokenizer.image == vocabulary and len(tokenizer) == vocabulary + 1
    texts = "<image>which?", "<image>\nwhich?", "what is <image> and <image>?\n", "<image>"
    for text in texts[: 3 if name in PIECES else 4]:  # after a picture their space is doubled
        expected, image = expected_of(theirs, [(text, "")]), theirs.convert_tokens_to_ids("<image>")
        expected = [j for i in expected for j in ([tokenizer.image] * 2 if i == image else [i])]
        assert prompt_of(tokenizer, [(text, "")], text.count(data.IMAGE_TOKEN)) == expected, text


def test_an_answer_ends_as_its_template_says(family):
    _, folder, theirs = family
    tokenizer = read_tokenizer(folder)
    _, answer = row_of(tokenizer, ("which?", "yes " + SPECIAL[0]))
    assert answer[-1] == tokenizer.eos == theirs.eos_token_id and answer[-1] in tokenizer.ends
    assert tokenizer.decode(answer) == "yes " + SPECIAL[0]
    assert tokenizer.piece(tokenizer.eos) == theirs.eos_token
    assert tokenizer.piece(tokenizer.image) == f"<{tokenizer.image}>"
    assert tokenizer.decode([tokenizer.image, tokenizer.image - 1]) == ""  # of no text
    with pytest.raises(DataError, match="is not UTF-8 text"):
        tokenizer.encode("caf\udce9")


@tries(60, 5000)
def test_text_comes_back_and_never_becomes_a_special_token(family, n):
    name, folder, theirs = family
    tokenizer, specials = read_tokenizer(folder), specials_of(theirs)
    keeps = name[:4] != "qwen"  # which composes what Unicode writes in two ways
    pieces = st.text(max_size=6) | st.sampled_from((*SPECIAL, " ", "\n", "which colour"))

    def check(text):
        ids = tokenizer.encode(text)
        assert not specials & {*ids}
        spaced = text.replace("\u2581", " ") if name in PIECES else text
        assert not keeps or tokenizer.decode(list(ids)) == spaced

    for_all(check, n, text=st.lists(pieces, max_size=5).map("".join))


# --- Templates and folders that are not the usual ones


def written(tmp_path, family="qwen3", template=None, **files):
    """A family's folder with another template, and other files; names have __ for points."""
    write_folder(tmp_path, family)
    if template is not None:
        files["chat_template__jinja"] = template
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


THINKING = MESSAGES.replace(
    "message['content'] + ",
    "('<think>\n\n</think>\n\n' if message.role == 'assistant' and loop.last else '')"
    " + message['content'] + ",
)
BARE = (
    "{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant:{% endif %}"
)


def test_an_answer_opens_behind_the_header_of_the_prompt(tmp_path):
    """Without the empty <think> that Qwen3's template puts before a last answer."""
    tokenizer = read_tokenizer(written(tmp_path, template=THINKING))
    one = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    text, _ = row_of(tokenizer, ("which?", "red"), ("and?", "blue"))
    assert text == one.format("which?", "red") + "\n" + one.format("and?", "blue")


def test_a_template_that_ends_no_answer_gets_the_tokenizers_end(tmp_path):
    with pytest.warns(UserWarning, match="two turns differ from what its chat template gives"):
        tokenizer = read_tokenizer(written(tmp_path, template=BARE))
    text, answer = row_of(tokenizer, ("which?", "red"), ("and?", "blue"))
    said = "### user: which?\n### assistant: red<|im_end|>\n### user: and?\n### assistant: blue"
    assert text == said + "<|im_end|>"
    assert tokenizer.decode(answer[: answer.index(tokenizer.eos)]) == "red"


def test_every_stated_end_ends_an_answer(tmp_path):
    # The last is of no special token: a setting that is not meant
    *ends, word = map(bpe_of("qwen3").token_to_id, ("<|endoftext|>", "<|im_end|>", "a"))
    stated = {"eos_token_id": [*ends, word]}
    tokenizer = read_tokenizer(written(tmp_path, generation_config__json=stated))
    assert tokenizer.ends == sorted(ends) and tokenizer.eos == ends[1]
    assert tokenizer.decode([word, ends[0]]) == "a"
    asked = data.Example([], [("which?", "b")])
    assert not evaluation.score(asked, 0, [word, ends[0]], tokenizer, None)["unparsed"]


def test_a_template_of_ones_own_and_what_a_file_asks_for_beside_ids(tmp_path):
    """Text is not cut, and a special token that is not marked as one stays one. A tokenizer.json
    counts whatever tokenizer.model is: Meta's is tiktoken's."""
    settings = json.loads((written(tmp_path) / "tokenizer.json").read_text())
    rule = dict(direction="Right", strategy="LongestFirst", stride=0)
    settings["truncation"] = dict(rule, max_length=2)
    settings["added_tokens"][2]["special"] = False
    own = MESSAGES.replace("im_start", "endoftext")
    folder = written(tmp_path, tokenizer__json=settings, tokenizer__model="IQ== 0", mine=own)
    tokenizer = read_tokenizer(folder, str(tmp_path / "mine"))
    assert "".join(map(tokenizer.piece, tokenizer.start)) == "<|endoftext|>user"
    text = "which colour is this? <|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(list(ids)) == text and tokenizer.eos not in ids


def test_a_sentencepiece_model_alone(tmp_path, tokenizer):
    pytest.importorskip("google.protobuf")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>"}
    config = {"model_type": "llama", "vocab_size": 2000}
    folder = written(tmp_path, "vicuna", tokenizer_config__json=settings, config__json=config)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "tokenizer.json").unlink()
    found = prompt_of(read_tokenizer(folder), [("is there a red circle?", "")])
    assert {*tokenizer.encode("is there a red circle?")} <= {*found}


REFUSED = {
    "no template": (dict(template=""), {}, "no chat template is there; --template FILE.jinja"),
    "no such template": ({}, dict(template="phi-3"), "--template phi-3 cannot be read: .*No such"),
    "a broken template": (dict(template="{% for"), {}, "[Uu]nexpected|Expected"),
    "no header": (dict(template="{{ messages[0].content }}"), {}, "."),
    "no system": (dict(family="phi-3"), dict(system="Be brief."), "no place for a system prompt"),
    "a broken tokenizer": (dict(tokenizer__json="{"), {}, "its tokenizer cannot be read"),
    "a vocabulary": (
        dict(config__json={"model_type": "llama", "vocab_size": 9}), {}, "ids up to .* 9 tokens",
    ),
    "ends": (dict(generation_config__json=[1]), {}, "generation_config.json: "),
    "half an end": (dict(generation_config__json={"eos_token_id": 0.5}), {}, "json: .*float"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, name):
    files, options, says = REFUSED[name]
    with pytest.raises(DataError, match=says) as error:
        read_tokenizer(written(tmp_path, **files), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module,package", [
    ("google.protobuf", "protobuf"), ("transformers", "transformers"),
])  # fmt: skip
def test_missing_files_and_packages_are_named(tmp_path, monkeypatch, module, package):
    folder = written(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer.json or tokenizer.model"):
        read_tokenizer(folder)
    (folder / "tokenizer.model").touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"the package {package}.*: pip install '?{package}"):
        read_tokenizer(folder)
