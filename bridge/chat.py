"""Tokenizers that come with a pretrained decoder: its sentencepiece model, its special tokens, and
its chat template as data.

A template is four texts: what begins a dialogue, what begins every later message, what stands
between a message and its answer, and what ends an answer. Their special tokens are looked up by
name; in what a user writes, the same letters are plain text.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sentencepiece

from data import DataError, Tokenizer


@dataclass(frozen=True)
class Template:
    start: str
    next: str
    opening: str
    end: str


VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = {
    "llama-2": Template("<s>[INST]", "<s>[INST]", "[/INST]", "</s>"),
    "vicuna": Template(f"<s>{VICUNA} USER:", "USER:", "ASSISTANT:", "</s>"),
    "phi-3": Template("<|user|>", "<|user|>", "<|end|><|assistant|>", "<|end|>"),
}
SPECIAL = r"<s>|</s>|<\|\w+\|>"


class ChatTokenizer(Tokenizer):
    """added: special tokens that the sentencepiece model does not have, text -> id. image: the id
    of the new token <image>, the one after the decoder's last."""

    def __init__(self, model: bytes, template: str, added: dict[str, int], image: int):
        self.model, self.template, self.added = model, template, added
        self.image, self.pad = image, 0
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.encode = lru_cache(maxsize=65536)(self._encode)
        if template not in TEMPLATES:
            raise DataError(f"no chat template {template!r}; there are {', '.join(TEMPLATES)}")
        form = TEMPLATES[template]
        texts = form.start, form.next, form.opening, form.end
        self.start, self.next, self.opening, self.end = map(self.with_specials, texts)
        self.eos = self.end[0]

    def with_specials(self, text: str) -> list[int]:
        """The tokens of a template's text, its special tokens among them."""
        ids = []
        for part in filter(None, re.split(f"({SPECIAL})", text)):
            if not re.fullmatch(SPECIAL, part):
                ids += self.encode(part.strip())
            elif part in self.added:
                ids.append(self.added[part])
            elif self.sp.piece_to_id(part) != self.sp.unk_id():
                ids.append(self.sp.piece_to_id(part))
            else:
                raise DataError(
                    f"the template {self.template!r} needs the special token {part}, which this "
                    "tokenizer does not have"
                )
        return ids

    def __len__(self) -> int:
        return self.image + 1

    def __reduce__(self):  # for worker processes
        return type(self), (self.model, self.template, self.added, self.image)

    def piece(self, i: int) -> str:
        for text, special in self.added.items():
            if special == i:
                return text
        return super().piece(i) if i < self.sp.get_piece_size() else f"<{i}>"

    def decode(self, ids: list[int]) -> str:
        known = self.sp.get_piece_size()
        return self.sp.decode([i for i in ids if i < known and not self.sp.is_control(i)])

    def extras(self) -> dict:
        """What __init__ needs beside the sentencepiece model; a run keeps it in tokenizer.json."""
        return {"template": self.template, "added": self.added, "image": self.image}


def read_tokenizer(folder: Path, template: str) -> ChatTokenizer:
    """Of a decoder's Hugging Face folder: tokenizer.model, tokenizer_config.json or
    added_tokens.json, config.json."""
    try:
        model = (folder / "tokenizer.model").read_bytes()
        vocabulary = read(folder / "config.json")["vocab_size"]
        added = {}
        if (file := folder / "added_tokens.json").exists():
            added |= read(file)
        if (file := folder / "tokenizer_config.json").exists():
            listed = read(file).get("added_tokens_decoder", {})
            added |= {token["content"]: int(i) for i, token in listed.items()}
        added = {text: i for text, i in added.items() if i < vocabulary}
        return ChatTokenizer(model, template, added, vocabulary)
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: no such file; tokenizers are read from sentencepiece's "
            "tokenizer.model"
        ) from None
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{folder}: its tokenizer cannot be read ({error})") from None


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))
