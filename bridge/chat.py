"""A pretrained decoder's tokenizer and chat template, through transformers' AutoTokenizer, as a
tokenizer of data/prompt.py.

The template is tried on a few dialogues, and what is common to them is the form of every dialogue.
The ids are those of apply_chat_template, with two exceptions: in what a user writes, the letters of
a special token are letters; and an answer begins right behind the header that a prompt ends with,
without what a template may add there (Qwen3's empty <think>).
"""

import json
import re
import warnings
from functools import lru_cache, partial, reduce
from pathlib import Path

from bridge.folders import needed, one_line, read_config
from bridge.hf_roles import QUESTIONS, common, header_of, rendered
from data import IMAGE_TOKEN, DataError, Example, Tokenizer, encode

OWN = "own"  # --template: the one in the folder
SPECIAL = r"<s>|</s>|<\|\w+\|>"  # though a file may not call it so
WORD, ANSWER = "quetzal", "zebra"  # no template has these


class ChatTokenizer(Tokenizer):
    """model: a tokenizer.json. start, next, opening, end: the ids of the template, as in
    data.Tokenizer; the last of `end`, eos, and all of `ends` end an answer. asked, answered: (what
    stands before a message or an answer, behind the last special token; the white space of it that
    is encoded with the words). trim: messages lose the white space around them. image: the id of
    the new token <image>, the one after the decoder's last."""

    def __init__(self, model: bytes, **form):
        self.model, self.form, self.pad = model, form, 0
        self.start, self.next, self.opening, self.end, self.ends = (
            form[name] for name in ("start", "next", "opening", "end", "ends")
        )
        self.eos, self.image = self.end[-1], form["image"]
        self.bpe = needed("tokenizers", "tokenizers").Tokenizer.from_str(model.decode())
        self.bpe.encode_special_tokens = True  # "encode" their letters, that is: do not find them
        self.encode = lru_cache(maxsize=65536)(self.ids_of)
        self.space = ""  # in front of a decoded answer
        self.space = self.decode(self.answer_ids("x")).removesuffix("x")

    def __len__(self) -> int:
        return self.image + 1

    def __reduce__(self):  # for worker processes
        return partial(ChatTokenizer, self.model, **self.form), ()

    def extras(self) -> dict:
        """What __init__ needs beside the model; a run keeps it in tokenizer.json, and the model in
        tokenizer.model."""
        return self.form

    def ids_of(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self.bpe.encode(text, add_special_tokens=False).ids)
        except TypeError:  # half of a surrogate pair
            raise DataError(f"{text[:80]!r} is not UTF-8 text") from None

    def behind(self, place: str, words: str) -> list[int]:
        """The ids of words where a message or an answer begins."""
        before, space = self.form[place]
        return list(self.encode(before + space + words)[len(self.encode(before)) :])

    def message_ids(self, parts: list[str]) -> list[list[int] | None]:
        parts = list(parts)
        if self.form["trim"]:
            parts[0] = parts[0].lstrip()
            parts[-1] = parts[-1].rstrip()
        ids = [None if part == IMAGE_TOKEN else list(self.encode(part)) for part in parts[1:]]
        return [self.behind("asked", parts[0]), *ids]

    def answer_ids(self, answer: str) -> list[int]:
        return [*self.behind("answered", answer.strip()), *self.end]

    def piece(self, i: int) -> str:
        known = self.bpe.id_to_token(i) is not None
        return self.bpe.decode([i], skip_special_tokens=False) if known else f"<{i}>"

    def decode(self, ids: list[int]) -> str:
        n = len(self.end)
        ids = ids[:-n] if list(ids[-n:]) == self.end else ids
        ids = [i for i in ids if i not in self.ends and i < self.image]
        return self.bpe.decode(ids, skip_special_tokens=True).removeprefix(self.space)


# --- From a folder


def read_tokenizer(folder: Path, template: str = OWN, system: str = "") -> ChatTokenizer:
    """Of a decoder's Hugging Face folder. template: a file in Jinja, in place of the folder's own.
    system: a system prompt, in place of the one that a template may begin with."""
    vocabulary, theirs = read_config(folder).vocab_size, auto_tokenizer(folder)
    if template != OWN:
        with one_line(f"--template {template} cannot be read"):
            theirs.chat_template = Path(template).read_text(encoding="utf-8")
    if not theirs.chat_template:
        raise DataError(f"{folder}: no chat template is there; --template FILE.jinja names one")
    with one_line(folder, (ValueError, OSError, needed("jinja2", "jinja2").TemplateError)):
        form = form_of(theirs, folder, system)
        tokenizer = ChatTokenizer(model_of(theirs), image=vocabulary, **form)
        check_form(tokenizer, theirs, folder, system)
    plain = set(theirs.get_vocab().values()) - specials_of(theirs)
    used = [*tokenizer.start, *tokenizer.next, *tokenizer.opening, *tokenizer.end]
    if (last := max(*plain, *used)) >= vocabulary:
        raise DataError(
            f"{folder}: the tokenizer has ids up to {last}, but the decoder {vocabulary} tokens"
        )
    return tokenizer


def auto_tokenizer(folder: Path):
    """transformers' tokenizer of a folder: from tokenizer.json, whatever else is there."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        if not (folder / "tokenizer.model").exists():
            raise DataError(f"{folder}: no tokenizer.json or tokenizer.model")
        for module, package in (("sentencepiece",) * 2, ("google.protobuf", "protobuf")):
            needed(module, package)
    auto = needed("transformers", "transformers>=5.6").AutoTokenizer
    with one_line(f"{folder}: its tokenizer cannot be read", Exception):
        theirs = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        theirs.backend_tokenizer  # noqa: B018 - those in Python have none
    return theirs


def specials_of(theirs) -> set[int]:
    """The ids of special tokens, and of what looks like one though a file does not say so."""
    tokens = theirs.added_tokens_decoder.items()
    return {i for i, token in tokens if token.special or re.fullmatch(SPECIAL, token.content)}


def model_of(theirs) -> bytes:
    """The tokenizer.json of plain text: what looks like a special token is one, nothing is cut."""
    settings, specials = json.loads(theirs.backend_tokenizer.to_str()), specials_of(theirs)
    for token in settings["added_tokens"]:
        token["special"] = token["id"] in specials
    return json.dumps({**settings, "truncation": None, "padding": None}).encode()


def form_of(theirs, folder: Path, system: str) -> dict:
    """What a ChatTokenizer needs to know of a template."""
    show = partial(rendered, theirs, system=system)
    prompt, whole = show(WORD, add_generation_prompt=True), show(WORD, ANSWER)
    if system.strip() not in prompt:
        raise ValueError("the chat template has no place for a system prompt")
    trim = f"\t{WORD}" not in show(f"\t{WORD}", add_generation_prompt=True)
    probes = QUESTIONS if trim else (*QUESTIONS, "\n" + QUESTIONS[0], "  " + QUESTIONS[0])
    before, _, to_answer = prompt.partition(WORD)
    opened, after = whole.partition(WORD)[2].split(ANSWER)
    header = common(to_answer, opened)
    space = opened[len(header) :]  # or an empty <think>, which is left out
    end, next_start = between_turns(theirs, show, after, probes)
    start, _, asked = words_behind(theirs, before, probes)
    *_, answered = words_behind(theirs, header + space * space.isspace(), QUESTIONS)
    stated = [end[-1], theirs.eos_token_id, *stated_ends(folder)]
    return dict(
        start=start, next=next_start, opening=header_of(theirs), end=end, asked=asked,
        answered=answered, trim=trim, ends=sorted(specials_of(theirs).intersection(stated)),
    )  # fmt: skip


def words_behind(theirs, text: str, probes: tuple) -> tuple:
    """Of a template's text before words: the ids that no words change, the letters that each is of,
    and (what of them stands behind the last special token; what is left, encoded with the words).
    """
    encoded = partial(theirs, add_special_tokens=False)
    found = [encoded(text + probe, return_offsets_mapping=True) for probe in probes]
    ids = reduce(common, (of_probe.input_ids for of_probe in found))
    spans, specials = found[0].offset_mapping[: len(ids)], specials_of(theirs)
    last = max((span[1] for i, span in zip(ids, spans) if i in specials), default=0)
    reach = max(last, len(text.rstrip(" ")))  # a space is of the word behind it
    ids = ids[: sum(span[1] <= reach for span in spans)]
    reach = spans[len(ids) - 1][1] if ids else 0
    before, space, words = text[last:reach], text[reach:], found[0].input_ids[len(ids) :]
    if encoded(before + space + probes[0]).input_ids[len(encoded(before).input_ids) :] != words:
        before = "\n"  # of sentencepiece, where only a text's very beginning gets a space
    return ids, spans[: len(ids)], [before, space]


def between_turns(theirs, show, after: str, probes: tuple) -> tuple:
    """The ids that end an answer, and those that begin a later message. after: what the template
    writes behind the last answer."""
    text = show(QUESTIONS[0], ANSWER, WORD, add_generation_prompt=True)
    ids, spans, _ = words_behind(theirs, text[: text.rindex(WORD)], probes)
    said = text.index(ANSWER) + len(ANSWER)
    first = next((k for k, span in enumerate(spans) if span[0] >= said), len(ids))
    specials = specials_of(theirs)
    for k in range(first, len(ids)):
        white, ending = text[said : spans[k][0]], text[said : spans[k][1]].rstrip()
        if ids[k] in specials and not white.strip() and after.startswith(ending):
            return ids[first : k + 1], ids[k + 1 :]
    if theirs.eos_token_id is None:
        raise ValueError("neither the chat template nor the tokenizer says what ends an answer")
    return [theirs.eos_token_id], ids[first:]


def stated_ends(folder: Path) -> list[int]:
    """The ids that end an answer, as the folder's settings have it: one or several."""
    stated, file = read_config(folder).eos_token_id, folder / "generation_config.json"
    with one_line(file, Exception):
        if file.exists():
            config = needed("transformers", "transformers>=5.6").GenerationConfig
            stated = config.from_pretrained(folder, local_files_only=True).eos_token_id
        return [stated] if isinstance(stated, int) else list(stated or [])


def check_form(tokenizer: ChatTokenizer, theirs, folder: Path, system: str) -> None:
    """Warn of a template that no form is the whole of."""
    first, second = QUESTIONS
    ours = encode(Example([], [(first, ANSWER), (second, "")]), tokenizer, 1, upto=1).ids
    said = rendered(theirs, first, ANSWER, second, system=system, add_generation_prompt=True)
    expected = theirs(said, add_special_tokens=False).input_ids
    if ours != expected:
        at = len(common(ours, expected))
        said = f"two turns differ from what its chat template gives from token {at} on"
        warnings.warn(f"{folder}: {said} ({theirs.decode(expected[at:])!r})", stacklevel=3)
