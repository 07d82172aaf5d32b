"""The two kinds of tokenizer that come with pretrained decoders: sentencepiece (tokenizer.model)
and byte-level BPE (tokenizer.json; needs `pip install tokenizers`).

Both give the ids of plain text, in which a special token's letters are letters; the id of a special
token by its name; what a token is, for the eye; and the text of ids, without special tokens.
"""

import json
import re

import sentencepiece

from data import DataError

SPECIAL = r"<s>|</s>|<\|\w+\|>"


class SentencePieces:
    """added: special tokens that the sentencepiece model does not have, text -> id."""

    byte_level = False

    def __init__(self, model: bytes, added: dict[str, int]):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.encode, self.added = self.processor.encode, added

    def special(self, text: str) -> int | None:
        i = self.processor.piece_to_id(text)
        return self.added.get(text, None if i == self.processor.unk_id() else i)

    def piece(self, i: int) -> str:
        for text, special in self.added.items():
            if special == i:
                return text
        known = i < self.processor.get_piece_size()
        return self.processor.id_to_piece(i).replace("\u2581", " ") if known else f"<{i}>"

    def decode(self, ids: list[int]) -> str:
        known = self.processor.get_piece_size()
        return self.processor.decode(
            [i for i in ids if i < known and not self.processor.is_control(i)]
        )


class ByteLevel:
    """model: a tokenizer.json. Tokens that were added without being special, as Qwen3's <think>,
    are found in plain text, as transformers finds them. last: the largest id of plain text."""

    byte_level = True

    def __init__(self, model: bytes):
        settings = json.loads(model)
        self.check(settings)
        self.added = {token["content"]: token["id"] for token in settings["added_tokens"]}
        plain = dict(settings["model"]["vocab"])
        for token in settings["added_tokens"]:
            token["special"] |= bool(re.fullmatch(SPECIAL, token["content"]))
            if token["special"]:
                plain.pop(token["content"], None)
            else:
                plain[token["content"]] = token["id"]
        self.last = max(plain.values())
        self.bpe = self.tokenizer_of(json.dumps(settings))
        self.bpe.encode_special_tokens = True  # "encode" their letters, that is: do not find them
        self.bpe.no_truncation()
        self.bpe.no_padding()

    @staticmethod
    def tokenizer_of(settings: str):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise DataError(
                "a tokenizer.json needs the package tokenizers: pip install tokenizers"
            ) from None
        try:
            return Tokenizer.from_str(settings)
        except Exception as error:  # the package raises nothing more special
            raise DataError(f"tokenizer.json cannot be read ({error})") from None

    @staticmethod
    def check(settings: dict) -> None:
        kind, before = settings["model"]["type"], json.dumps(settings.get("pre_tokenizer"))
        if kind != "BPE" or "ByteLevel" not in json.dumps(settings.get("decoder")):
            raise DataError(
                f"a tokenizer.json of the kind {kind}, not of bytes, cannot be read; "
                "byte-level BPE can"
            )
        if '"add_prefix_space": true' in before:
            raise DataError("a tokenizer.json with add_prefix_space cannot be read")

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def special(self, text: str) -> int | None:
        return self.added.get(text)

    def piece(self, i: int) -> str:
        known = self.bpe.id_to_token(i) is not None
        return self.bpe.decode([i], skip_special_tokens=False) if known else f"<{i}>"

    def decode(self, ids: list[int]) -> str:
        return self.bpe.decode(ids, skip_special_tokens=True)
