"""The prompt format: from pictures and dialogues to rows of tokens with their roles, to batches.

A row of the model, for the dialogue [("<image>is there a red circle?", "yes"), ("where?", "top")]:

    <bos> [n image tokens] is there a red circle ? <answer> yes <eos> where ? <answer> top <eos>
    TEXT  IMAGE ...        QUESTION ...                     ANSWER    TEXT ...         ANSWER
    turn  0  | 1                                                      | 2

Roles are written down while the tokens are, so labels are never searched for afterwards. A caption
is the answer to a message that is nothing but the picture: it asks nothing, so its opening token
is TEXT, and mma opens nothing there.

Shapes:  B rows   T tokens of a row   n image tokens of a picture   N distinct pictures
         P places where a picture stands
"""

import io
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from data.errors import DataError
from data.pixels import UNREADABLE, Crop, picture_key, scaled
from mma import Role

IMAGE_TOKEN = "<image>"  # a picture's placeholder in a message
ANSWER_TOKEN = "<answer>"  # opens an answer
LEAST_VOCABULARY = 262  # 256 bytes and the special tokens, before any letter


@dataclass
class Example:
    """One dialogue. turns: (user message, answer); each IMAGE_TOKEN in a message stands for the
    next of `images`: files (their path, or their bytes), parts of files (Crop) or uint8 tensors
    [3, size, size]. family: the kind of question, for the tables. group: examples that share it are
    consistent if all are answered right."""

    images: list
    turns: list[tuple[str, str]]
    family: str = "all"
    id: str = ""
    group: str = ""


@dataclass
class Row:
    """An encoded dialogue: lists of equal length, and the pictures in the order of their image
    tokens. Of a packed row (data.pack) `document` counts the dialogues; else it is empty. unread:
    what is wrong with a picture that it should have shown (see `row_or_empty_prompt`)."""

    ids: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    images: list = field(default_factory=list)
    id: str = ""
    document: list[int] = field(default_factory=list)
    unread: str = ""

    def add(self, ids, role: Role, turn: int) -> None:
        self.ids += ids
        self.role += [int(role)] * len(ids)
        self.turn += [turn] * len(ids)

    def cut(self, max_tokens: int, turn_start: int) -> bool:
        """Cut the row at its end, but never inside a picture: then the whole turn that begins at
        turn_start goes. Returns whether the turn's pictures are still there."""
        turn = range(turn_start, len(self.ids))
        last_image = max((i for i in turn if self.role[i] == Role.IMAGE), default=-1)
        keep = max_tokens if last_image < max_tokens else turn_start
        self.ids, self.role, self.turn = (x[:keep] for x in (self.ids, self.role, self.turn))
        return last_image < max_tokens


class Tokenizer:
    """sentencepiece (BPE) over the data's own text, left as it is; bytes stand in for what it has
    not seen, so that no text is lost but for U+2581, sentencepiece's sign for a space: it is read
    as one."""

    def __init__(self, model: bytes):
        if not model:  # sentencepiece says so only when it is asked for the first time
            raise ValueError("it is empty")
        self.model = model
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pad, self.bos, self.eos = self.sp.pad_id(), self.sp.bos_id(), self.sp.eos_id()
        self.image = self.sp.piece_to_id(IMAGE_TOKEN)
        self.answer = self.sp.piece_to_id(ANSWER_TOKEN)
        # What begins a dialogue, what begins a later message, what opens an answer, what ends it
        self.start, self.next, self.opening, self.end = [self.bos], [], [self.answer], [self.eos]
        self.ends = [self.eos]  # what a model may end an answer with
        self.encode = lru_cache(maxsize=65536)(self.ids_of)

    def __len__(self) -> int:
        return self.sp.get_piece_size()

    def __reduce__(self):  # the processor itself cannot be sent to a worker process
        return type(self), (self.model,)

    def ids_of(self, text: str) -> tuple[int, ...]:
        """Raises DataError for what no UTF-8 can be: bytes of another encoding at the keyboard."""
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"{text[:80]!r} is not UTF-8 text")
        return tuple(self.sp.encode(text))

    def arrange(self, parts: list[str]) -> list[str]:
        """The parts of a message, text and IMAGE_TOKEN, in the order the model reads them."""
        return [part if part == IMAGE_TOKEN else part.strip() for part in parts]

    def message_ids(self, parts: list[str]) -> list[list[int] | None]:
        """The ids of each part of a message, as the model reads them; None for a picture."""
        parts = self.arrange(parts)
        return [None if part == IMAGE_TOKEN else list(self.encode(part)) for part in parts]

    def answer_ids(self, answer: str) -> list[int]:
        """An answer with its end."""
        return [*self.encode(answer.strip()), *self.end]

    def piece(self, i: int) -> str:
        """What a token is, for the eye."""
        return self.sp.id_to_piece(i).replace("\u2581", " ")

    def decode(self, ids: list[int]) -> str:
        return self.sp.decode([i for i in ids if not self.sp.is_control(i)])

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """vocab_size is an upper bound: text with fewer distinct pieces gets fewer."""
        model, size = io.BytesIO(), max(vocab_size, LEAST_VOCABULARY)
        special = [IMAGE_TOKEN, ANSWER_TOKEN]
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=model, model_type="bpe",
                vocab_size=size, hard_vocab_limit=False, byte_fallback=True,
                character_coverage=1.0, normalization_rule_name="identity",
                remove_extra_whitespaces=False, max_sentence_length=100_000, num_threads=1,
                minloglevel=2, pad_id=0, unk_id=1, bos_id=2, eos_id=3, control_symbols=special,
            )  # fmt: skip
        except RuntimeError as error:
            why = str(error).splitlines()[-1]
            if "sentences_.empty()" in why:
                why = "the training data have no text to train a tokenizer on"
            elif needed := re.search(r"size is smaller than required_chars. \d+ vs (\d+)", why):
                why = f"--vocab-size {vocab_size} is too small: this text needs {needed[1]} or more"
            raise DataError(why) from None
        return cls(model.getvalue())


def about_picture(question: str) -> str:
    """The message that asks a question about one picture."""
    return IMAGE_TOKEN + question.replace(IMAGE_TOKEN, " ")


def encode(
    example: Example, tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int | None = None,
    upto: int | None = None,
) -> Row:  # fmt: skip
    """One dialogue as a row. `upto`: make the prompt for the answer of that turn (0 = first): what
    comes before it, true answers of earlier turns included, and the token that opens it.

    A row longer than max_tokens is cut at its end, but never inside a picture: then the picture's
    whole turn goes. Raises DataError if pictures and placeholders disagree, or if no row has room
    for more than its start.
    """
    n_places = sum(message.count(IMAGE_TOKEN) for message, _ in example.turns)
    if n_places != len(example.images):
        found = f"{n_places} {IMAGE_TOKEN} in the messages, but {len(example.images)} pictures"
        raise DataError(f"{example.id}: {found}".removeprefix(": "))
    n_start = len(tokenizer.start)
    if max_tokens is not None and n_start >= max_tokens:
        why = f"every dialogue begins with {n_start} tokens, any system prompt included"
        raise DataError(f"{why}; raise --max-tokens, {max_tokens} leaves no room for more")
    row, images = Row(id=example.id), iter(example.images)
    row.add(tokenizer.start, Role.TEXT, 0)
    for t, (message, answer) in enumerate(example.turns):
        turn_start = len(row.ids)
        row.add(tokenizer.next if t else [], Role.TEXT, t + 1)
        before, *after = message.split(IMAGE_TOKEN)  # the text before the first picture, after each
        # A picture alone asks nothing and opens nothing; nor does a message without a picture.
        asks = after and any(text.strip() for text in (before, *after))
        text_role = Role.QUESTION if asks else Role.TEXT
        parts = [before] + [part for text in after for part in (IMAGE_TOKEN, text)]
        for ids in tokenizer.message_ids(parts):
            if ids is None:
                row.add([tokenizer.image] * n_image_tokens, Role.IMAGE, t + 1)
            else:
                row.add(ids, text_role, t + 1)
        row.add(tokenizer.opening, text_role, t + 1)
        if upto != t:
            row.add(tokenizer.answer_ids(answer), Role.ANSWER, t + 1)
        too_long = max_tokens is not None and len(row.ids) > max_tokens
        if not too_long or row.cut(max_tokens, turn_start):
            row.images += [next(images) for _ in after]
        if too_long or upto == t:
            break
    return row


def unusable(examples: list[Example], tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int):
    """Which of the examples are longer than max_tokens and are cut, and which of those then keep no
    answer token: two sets of indices."""
    rows = [encode(example, tokenizer, n_image_tokens) for example in examples]
    too_long = {i for i, row in enumerate(rows) if len(row.ids) > max_tokens}
    cut = {i: encode(examples[i], tokenizer, n_image_tokens, max_tokens) for i in too_long}
    return too_long, {i for i, row in cut.items() if Role.ANSWER not in row.role}


def row_or_empty_prompt(row: Row, tokenizer: Tokenizer, image_size: int) -> Row:
    """The row, if its pictures can be read. Else, in its place, the shortest prompt, without a
    picture or an answer, whose `unread` says why: a batch keeps its number of rows."""
    try:
        for image in row.images:
            pixels_of(image, image_size, "")
    except DataError as error:
        empty = encode(Example([], [("", "")], id=row.id), tokenizer, 0, upto=0)
        empty.unread = str(error)
        return empty
    return row


def pixels_of(image: Tensor | Path | bytes | Crop, size: int, where: str) -> Tensor:
    """uint8 [3, size, size] of one of an example's images; `where` names the example in an
    error."""
    try:
        if isinstance(image, Tensor):
            return scaled(image, size)
        from data.pictures import read_picture  # a built-in world has no files

        return read_picture(image, size)
    except DataError as error:
        why = f"{where}: {error}" if where else str(error)
        raise DataError(why, UNREADABLE) from None


def collate(rows: list[Row], pad: int, image_size: int) -> dict[str, Tensor]:
    """Rows padded on the right to the longest, as keyword arguments of the model: ids, role, turn
    and, of packed rows, document, int64 [B, T]; images uint8 [N, 3, size, size] (each distinct
    picture once), image_index int64 [P]: which of these stands at each place."""
    T = max(len(row.ids) for row in rows)

    def padded(name: str, fill: int) -> Tensor:
        return torch.tensor([getattr(row, name) + [fill] * (T - len(row.ids)) for row in rows])

    batch = {"ids": padded("ids", pad), "role": padded("role", int(Role.PAD))}
    batch["turn"] = padded("turn", 0)
    if rows[0].document:
        batch["document"] = padded("document", -1)
    distinct, image_index = {}, []  # distinct: key of a picture -> (index, pixels)
    for image, row_id in ((image, row.id) for row in rows for image in row.images):
        key = picture_key(image)
        if key not in distinct:
            distinct[key] = len(distinct), pixels_of(image, image_size, row_id)
        image_index.append(distinct[key][0])
    if image_index:
        batch["images"] = torch.stack([pixels for _, pixels in distinct.values()])
        batch["image_index"] = torch.tensor(image_index)
    return batch
