"""Tokenizers that come with a pretrained decoder: sentencepiece or byte-level BPE (pieces.py), its
special tokens, and its chat template as data.

In a template special tokens are looked up by name; in what a user writes, the same letters are
plain text.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bridge.folders import number, read_config
from bridge.pieces import SPECIAL, ByteLevel, SentencePieces
from data import DataError, Tokenizer


@dataclass(frozen=True)
class Template:
    """start: what begins a dialogue; next: what begins every later message; opening: what stands
    between a message and its answer; end: what ends an answer.

    Of byte-level BPE the ids are those of transformers' apply_chat_template. system: the start of a
    dialogue with a system prompt. lead: what a message begins with; it is encoded together with the
    message, because the spaces that follow a line's end become one token with it. trim: white space
    around a message is left out. (Of sentencepiece it is left out around pictures too.)
    """

    start: str
    next: str
    opening: str
    end: str
    byte_level: bool = False
    system: str = ""
    lead: str = ""
    trim: bool = True


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
CHATML_SYSTEM = "<|im_start|>system\n{system}<|im_end|>\n"
LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
TEMPLATES = {
    "llama-2": Template("<s>[INST]", "<s>[INST]", "[/INST]", "</s>"),
    "vicuna": Template(f"<s>{VICUNA} USER:", "USER:", "ASSISTANT:", "</s>"),
    "phi-3": Template("<|user|>", "<|user|>", "<|end|><|assistant|>", "<|end|>"),
    "chatml": Template(  # SmolLM2, Qwen
        "<|im_start|>user",
        "\n<|im_start|>user",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
        byte_level=True,
        system=CHATML_SYSTEM + "<|im_start|>user",
        lead="\n",
        trim=False,
    ),
    "llama-3": Template(
        "<|begin_of_text|>" + LLAMA3_USER,
        LLAMA3_USER,
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        byte_level=True,
        system="<|begin_of_text|>" + LLAMA3_SYSTEM + LLAMA3_USER,
    ),
}


class ChatTokenizer(Tokenizer):
    """model: a sentencepiece model or a tokenizer.json. added: special tokens that a sentencepiece
    model does not have, text -> id. image: the id of the new token <image>, the one after the
    decoder's last. system: a system prompt, if there is to be one."""

    def __init__(
        self, model: bytes, template: str, added: dict[str, int], image: int, system: str = ""
    ):
        self.model, self.template, self.added, self.system = model, template, added, system
        self.image, self.pad = image, 0
        if template not in TEMPLATES:
            raise DataError(f"no chat template {template!r}; there are {', '.join(TEMPLATES)}")
        self.sp = ByteLevel(model) if model.startswith(b"{") else SentencePieces(model, added)
        self.encode = lru_cache(maxsize=65536)(self.ids_of)
        self.form = form = TEMPLATES[template]
        self.check()
        start = form.system if system else form.start
        texts = start, form.next, form.opening, form.end
        self.start, self.next, self.opening, self.end = map(self.with_specials, texts)
        self.eos = self.end[0]

    def check(self) -> None:
        """DataError unless template, tokenizer and system prompt fit each other."""
        if self.form.byte_level != self.sp.byte_level:
            needed = (
                "a tokenizer.json" if self.form.byte_level else "sentencepiece's tokenizer.model"
            )
            raise DataError(f"the template {self.template!r} needs {needed}")
        if self.system and not self.form.system:
            raise DataError(f"the template {self.template!r} has no place for a system prompt")
        if self.sp.byte_level and self.sp.last >= self.image:
            raise DataError(
                f"the tokenizer has ids up to {self.sp.last}, but the decoder {self.image} tokens"
            )

    def with_specials(self, text: str) -> list[int]:
        """The tokens of a template's text, its special tokens among them."""
        ids = []
        for part in filter(None, re.split(f"({SPECIAL})", text)):
            if not re.fullmatch(SPECIAL, part):
                system = self.system.strip() if self.form.trim else self.system
                ids += self.encode(part.replace("{system}", system))
                continue
            special = self.sp.special(part)
            if special is None or special >= self.image:
                raise DataError(
                    f"the template {self.template!r} needs the special token {part}, which this "
                    "tokenizer does not have"
                )
            ids.append(special)
        return ids

    def arrange(self, parts: list[str]) -> list[str]:
        if not self.form.byte_level:
            return super().arrange(parts)
        parts = list(parts)
        if self.form.trim:
            parts[0] = parts[0].lstrip()
            parts[-1] = parts[-1].rstrip()
        return [self.form.lead + parts[0], *parts[1:]]

    def __len__(self) -> int:
        return self.image + 1

    def __reduce__(self):  # for worker processes
        return type(self), (self.model, *self.extras().values())

    def piece(self, i: int) -> str:
        return self.sp.piece(i)

    def decode(self, ids: list[int]) -> str:
        return self.sp.decode(ids)

    def extras(self) -> dict:
        """What __init__ needs beside the model; a run keeps it in tokenizer.json, and the model,
        of whatever kind, in tokenizer.model."""
        names = ("template", "added", "image", "system")
        return {name: getattr(self, name) for name in names}


def read_tokenizer(folder: Path, template: str, system: str = "") -> ChatTokenizer:
    """Of a decoder's Hugging Face folder: tokenizer.model, with tokenizer_config.json or
    added_tokens.json, or else tokenizer.json; and config.json."""
    try:
        name = "tokenizer.model"
        if not (folder / name).exists() and (folder / "tokenizer.json").exists():
            name = "tokenizer.json"
        model = (folder / name).read_bytes()
        vocabulary = number(folder, read_config(folder), "vocab_size")
        added = added_tokens(folder, vocabulary) if name == "tokenizer.model" else {}
        return ChatTokenizer(model, template, added, vocabulary, system)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{error.filename}: no such file; tokenizers are read from sentencepiece's "
            "tokenizer.model or from the tokenizer.json of a byte-level BPE"
        ) from None
    except OSError as error:
        raise DataError(f"{error.filename}: not readable ({error.strerror})") from None
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{folder}: its tokenizer cannot be read ({error})") from None


def added_tokens(folder: Path, vocabulary: int) -> dict[str, int]:
    """Special tokens that are not in the sentencepiece model, text -> id."""
    added = {}
    if (file := folder / "added_tokens.json").exists():
        added |= read(file)
    if (file := folder / "tokenizer_config.json").exists():
        listed = read(file).get("added_tokens_decoder", {})
        added |= {token["content"]: int(i) for i, token in listed.items()}
    return {text: i for text, i in added.items() if i < vocabulary}


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))
