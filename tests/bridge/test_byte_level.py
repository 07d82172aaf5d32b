"""Tokenizers from a tokenizer.json, and their chat templates: the ids of transformers'
apply_chat_template, special tokens that nobody can type, and what is refused."""

import json
import pickle
import sys

import pytest
import torch
from hypothesis import strategies as st
from properties import for_all, tries

import data
import eval as evaluation
from bridge import finetune
from bridge.chat import ChatTokenizer, read_tokenizer
from bridge.pretrained import PretrainedMLLM, load
from data import DataError
from mma import Role

hf = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from families import FAMILIES, write_folder  # noqa: E402 - needs tokenizers

pytestmark = pytest.mark.usefixtures("nothing_drawn")

SPECIAL = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>",
)  # fmt: skip
TEXTS = [
    "which colour is this?", "it is red.", "", " ", "\n", "\n\n", "  ", "\t", " leading", "  two",
    "   three spaces", "    four", "\nline", "\n\nlines", "\n  both", "  \n both", "\r\nwindows",
    "\ttab", "\n\ttab", "trailing ", "trailing\n", "trailing \n\n", " on both sides ", "a\n\n\nb",
    "def f(x):\n    return x + 1\n", "for i in range(10):\n\tprint(i)  # no", "x = {'a': [1, 2]}",
    "#include <stdio.h>\nint main() { return 0; }", "SELECT * FROM t WHERE a >= 10;",
    "12 + 345 = 357", "3.14159, 1e-5, 2023-11-24", "1234567890", "café", "cafe\u0301",
    "\u0301 begins with a mark", "naïve résumé", "色は？", "什么颜色？", "안녕", "Какого цвета?",
    "ما اللون", "🙂", "👨\u200d👩\u200d👧 family", "🇩🇪 flag", "\xa0no-break", "\u2003em space",
    "\u2028separator", "\u200bzero width", "it's we'll I'D", "a<b>c</b> <s> </s> [INST]",
    "user\nassistant\nsystem", "<image", "| < | > <| |>", "\x00\x01 control", "long " * 40,
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(folder, our template's name, transformers' tokenizer, the system block it begins with)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    ours, theirs, block = FAMILIES[name]
    write_folder(folder, name)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), chat_template=theirs,
        bos_token="<|begin_of_text|>" if ours == "llama-3" else None,
    )  # fmt: skip
    return folder, ours, tokenizer, block


def messages_of(turns, system=""):
    messages = [{"role": "system", "content": system}] if system else []
    for message, answer in turns:
        messages += [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    return messages[:-1]


def prompt_of(tokenizer, turns, images=0, n=1) -> list[int]:
    example = data.Example([None] * images, turns)
    return data.encode(example, tokenizer, n, upto=len(turns) - 1).ids


def test_fifty_texts_have_their_ids(family):
    """One message, with a system prompt and without; a dialogue whose later messages are the texts
    too. Where their template adds a system text of its own, it is taken out."""
    folder, name, theirs, block = family
    plain = read_tokenizer(folder, name)
    system = " You see pictures.\n" if name == "chatml" else "You see pictures."
    told = read_tokenizer(folder, name, (dates_of(block) + system))
    assert len(TEXTS) >= 50
    for text in TEXTS:
        for turns in ([(text, "")], [("which?", "it is red."), (text, "yes"), (text, "")]):
            messages = messages_of(turns)
            written = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            assert block in written
            written = written.replace(block, "", 1)
            expected = theirs(written, add_special_tokens=False).input_ids
            assert prompt_of(plain, turns) == expected, text
            expected = theirs.apply_chat_template(
                messages_of(turns, system), add_generation_prompt=True, return_dict=False
            )
            assert prompt_of(told, turns) == expected, text


def dates_of(block: str) -> str:
    """What Llama-3.1's template writes before every system prompt."""
    return block.split("\n\n", 1)[1].removesuffix("<|eot_id|>") if "Date" in block else ""


def test_spaces_join_the_end_of_the_line_before(family):
    """The check above can fail: encoded apart, a message that begins with a line's end has other
    ids. Llama-3's template trims it."""
    folder, name, theirs, _ = family
    tokenizer = read_tokenizer(folder, name)
    if name == "llama-3":
        assert prompt_of(tokenizer, [("\n two ", "")]) == prompt_of(tokenizer, [("two", "")])
        return
    apart = [*tokenizer.encode("user\n"), *tokenizer.encode("\n two")]
    assert apart != theirs("user\n\n two", add_special_tokens=False).input_ids


def test_a_picture_is_a_token_of_theirs(family):
    """<image> as transformers' special token: what stands around it has its ids, and so has a
    picture but that it is several tokens."""
    folder, name, theirs, block = family
    theirs = pickle.loads(pickle.dumps(theirs))
    theirs.add_special_tokens({"additional_special_tokens": [data.IMAGE_TOKEN]})
    tokenizer = read_tokenizer(folder, name)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert tokenizer.image == vocabulary and len(tokenizer) == vocabulary + 1
    for text in ("<image>which?", "<image>\nwhich?", "  what is <image> and <image>?\n", "<image>"):
        messages = messages_of([(text, "")])
        written = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        expected = theirs(written.replace(block, "", 1), add_special_tokens=False).input_ids
        image = theirs.convert_tokens_to_ids(data.IMAGE_TOKEN)
        expected = [j for i in expected for j in ([tokenizer.image] * 2 if i == image else [i])]
        assert prompt_of(tokenizer, [(text, "")], text.count(data.IMAGE_TOKEN), 2) == expected, text


def specials_of(tokenizer) -> set[int]:
    return {i for text in SPECIAL if (i := tokenizer.sp.special(text)) is not None}


def test_a_special_token_is_one_token_and_nobody_types_it(family):
    folder, name, theirs, _ = family
    tokenizer = read_tokenizer(folder, name)
    specials = specials_of(tokenizer)
    assert len(specials) >= 3
    assert theirs("<|im_end|> <|eot_id|>", add_special_tokens=False).input_ids[0] in specials | {
        *range(420)
    }
    for text in SPECIAL:
        ids = tokenizer.encode(f"a{text}b")
        assert not specials & {*ids} and tokenizer.decode(list(ids)) == f"a{text}b"
    row = data.encode(
        data.Example([], [(SPECIAL[0] + SPECIAL[3], "yes " + SPECIAL[0])]), tokenizer, 1
    )
    format_ids = [*tokenizer.start, *tokenizer.opening, *tokenizer.end]
    assert sum(i in specials for i in row.ids) == sum(i in specials for i in format_ids)
    answer = [i for i, role in zip(row.ids, row.role) if role == Role.ANSWER]
    assert answer[-1] == tokenizer.eos == tokenizer.sp.special(tokenizer.form.end)
    assert tokenizer.decode(answer) == "yes " + SPECIAL[0]
    assert tokenizer.piece(tokenizer.eos) == tokenizer.form.end
    assert tokenizer.piece(tokenizer.image) == f"<{tokenizer.image}>"
    assert tokenizer.decode([tokenizer.image, tokenizer.image - 1]) == ""  # of no text


@tries(60, 5000)
def test_text_comes_back_and_never_becomes_a_special_token(family, n):
    folder, name, *_ = family
    tokenizer = read_tokenizer(folder, name)
    specials, keeps = specials_of(tokenizer), tokenizer.sp.bpe.normalizer is None
    pieces = st.text(max_size=6) | st.sampled_from((*SPECIAL, " ", "\n", "which colour"))

    def check(text):
        ids = tokenizer.encode(text)
        assert not specials & {*ids}
        assert not keeps or tokenizer.decode(list(ids)) == text

    for_all(check, n, text=st.lists(pieces, max_size=5).map("".join))


def test_it_reaches_workers_and_runs(family):
    """Pickled, and from what a run keeps of it."""
    folder, name, *_ = family
    tokenizer = read_tokenizer(folder, name, "Be brief.")
    for copy in (
        pickle.loads(pickle.dumps(tokenizer)),
        ChatTokenizer(tokenizer.model, **json.loads(json.dumps(tokenizer.extras()))),
    ):
        assert copy.extras() == tokenizer.extras() and copy.start == tokenizer.start
        assert copy.encode("it is red.") == tokenizer.encode("it is red.")


def test_a_run_from_such_a_folder(vision, llava, tmp_path, capsys):
    """From the folder of a Qwen2 to answers: <image> is a new row, the mean of the others."""
    folder = tmp_path / "qwen2"
    folder.mkdir()
    write_folder(folder, "qwen2.5")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = hf.Qwen2Config(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    hf.Qwen2ForCausalLM(config).save_pretrained(folder)
    embed = load(vision[0], folder, vocab_size=size + 1).embed.weight
    torch.testing.assert_close(embed[-1], embed[:-1].mean(0))
    line = f"--data llava --source {llava} --llm {folder} --vision {vision[0]} --template chatml "
    line += (
        "--pool 2 --preset tiny --device cpu --workers 0 --pt-pictures 2 --pictures 2 --limit 3 "
    )
    line += f"--val-limit 3 --pt-steps 1 --steps 1 --out {tmp_path / 'run'} --system"
    finetune.main([*line.split(), "Be brief."])
    evaluation.main([str(tmp_path / "run"), "--device", "cpu", "--limit", "2"])
    assert "overall" in capsys.readouterr().out
    model, tokenizer = evaluation.open_run(tmp_path / "run")
    assert (type(model), type(tokenizer)) == (PretrainedMLLM, ChatTokenizer)
    assert tokenizer.sp.byte_level and tokenizer.system == "Be brief."


# --- What is refused


def changed(tmp_path, change) -> None:
    """A Qwen's folder whose tokenizer.json `change` has changed."""
    write_folder(tmp_path, "qwen2.5")
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    change(settings)
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("change,says", [
    (lambda s: s["model"].update(type="Unigram"), "of the kind Unigram.* byte-level BPE can"),
    (lambda s: s.update(decoder={"type": "Metaspace"}), "not of bytes"),
    (lambda s: s["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix"),
    (lambda s: s["added_tokens"].pop(2), "needs the special token <.im_end.>"),
    (lambda s: s["model"].update(merges=3), "cannot be read"),
    (lambda s: s.pop("model"), "cannot be read"),
    (lambda s: s["model"]["vocab"].update(much=9999), "ids up to 9999, but the decoder .* tokens"),
])  # fmt: skip
def test_what_would_give_other_ids_is_refused(tmp_path, change, says):
    changed(tmp_path, change)
    with pytest.raises(DataError, match=says):
        read_tokenizer(tmp_path, "chatml")


def test_what_a_file_asks_for_beside_ids_is_left_out(tmp_path):
    """Text is not cut, not padded, and a special token that is not marked as one stays one."""

    def change(settings):
        rule = dict(direction="Right", strategy="LongestFirst", stride=0)
        settings["truncation"] = dict(rule, max_length=2)
        settings["added_tokens"][2]["special"] = False

    changed(tmp_path, change)
    tokenizer = read_tokenizer(tmp_path, "chatml")
    text = "which colour is this? <|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(list(ids)) == text and tokenizer.eos not in ids


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, "smollm2")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="needs the package tokenizers: pip install tokenizers"):
        read_tokenizer(tmp_path, "chatml")


def test_templates_and_tokenizers_that_do_not_fit(chat, tmp_path):
    write_folder(tmp_path, "llama-3")
    with pytest.raises(DataError, match="'vicuna' needs sentencepiece's tokenizer.model"):
        read_tokenizer(tmp_path, "vicuna")
    with pytest.raises(DataError, match="'chatml' needs the special token <.im_start.>"):
        read_tokenizer(tmp_path, "chatml")
    with pytest.raises(DataError, match="'chatml' needs a tokenizer.json"):
        read_tokenizer(chat, "chatml")
    with pytest.raises(DataError, match="'phi-3' has no place for a system prompt"):
        read_tokenizer(chat, "phi-3", "Be brief.")
