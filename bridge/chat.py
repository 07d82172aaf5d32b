"""Tokenizers that come with a pretrained decoder: its sentencepiece model, its special tokens, and its chat template as data.

A template is four texts: what begins a dialogue, what begins every later message, what stands between a message and its answer, and
what ends an answer. Their special tokens are looked up by name; in what a user writes, the same letters are plain text.
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


VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
          "answers to the user's questions.")
TEMPLATES = {
    "llama-2": Template("<s>[INST]", "<s>[INST]", "[/INST]", "</s>"),
    "vicuna": Template(f"<s>{VICUNA} USER:", "USER:", "ASSISTANT:", "</s>"),
    "phi-3": Template("<|user|>", "<|user|>", "<|end|><|assistant|>", "<|end|>"),
}


class ChatTokenizer(Tokenizer):
    """added: special tokens that the sentencepiece model does not have, text -> id. image: the id of the new token <image>, the one
    after the decoder's last."""

    def __init__(self, model: bytes, template: str, added: dict[str, int], image: int):
        self.model, self.template, self.added, self.image, self.pad = model, template, added, image, 0
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.encode = lru_cache(maxsize=65536)(lambda text: tuple(self.sp.encode(text)))
        if template not in TEMPLATES:
            raise DataError(f"no chat template {template!r}; there are {', '.join(TEMPLATES)}")
        form = TEMPLATES[template]
        self.start, self.next, self.opening, self.end = map(self.with_specials, (form.start, form.next, form.opening, form.end))
        self.eos = self.end[0]

    def with_specials(self, text: str) -> list[int]:
        out = []
        for part in filter(None, re.split(r"(<s>|</s>|<\|\w+\|>)", text)):
            if not re.fullmatch(r"<s>|</s>|<\|\w+\|>", part):
                out += self.encode(part.strip())
            elif part in self.added:
                out.append(self.added[part])
            elif self.sp.piece_to_id(part) != self.sp.unk_id():
                out.append(self.sp.piece_to_id(part))
            else:
                raise DataError(f"the template {self.template!r} needs the special token {part}, which this tokenizer does not have")
        return out

    def __len__(self) -> int:
        return self.image + 1

    def __reduce__(self):
        return ChatTokenizer, (self.model, self.template, self.added, self.image)

    def piece(self, i: int) -> str:
        names = {i: text for text, i in self.added.items()}
        return names.get(i) or (super().piece(i) if i < self.sp.get_piece_size() else f"<{i}>")

    def decode(self, ids: list[int]) -> str:
        return self.sp.decode([i for i in ids if i < self.sp.get_piece_size() and not self.sp.is_control(i)])

    def extras(self) -> dict:
        return {"template": self.template, "added": self.added, "image": self.image}


def read_tokenizer(folder: Path, template: str) -> ChatTokenizer:
    """Of a decoder's Hugging Face folder: tokenizer.model, tokenizer_config.json or added_tokens.json, config.json."""
    try:
        model = (folder / "tokenizer.model").read_bytes()
        vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        added = {}
        for name in ("added_tokens.json", "tokenizer_config.json"):
            if (folder / name).exists():
                some = json.loads((folder / name).read_text(encoding="utf-8"))
                some = {t["content"]: int(i) for i, t in some.get("added_tokens_decoder", {}).items()} if "config" in name else some
                added |= {text: i for text, i in some.items() if i < vocabulary}
        return ChatTokenizer(model, template, added, vocabulary)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: no such file; tokenizers are read from sentencepiece's tokenizer.model") from None
    except (ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{folder}: its tokenizer cannot be read ({error})") from None
