"""From pictures and dialogues to batches: the one prompt format, its roles and labels, for every data set.

A row of the model, for the dialogue [("<image>\\nis there a red circle?", "yes"), ("where?", "top left")]:

    <bos> [n image tokens] is there a red circle ? <answer> yes <eos> where ? <answer> top left <eos>
    TEXT  IMAGE ...        QUESTION ...                     ANSWER    TEXT ...         ANSWER
    turn  0  | 1                                                    | 2

Roles are written down while the tokens are, so labels are never searched for afterwards. A caption is the answer to a message
that is nothing but the picture: it asks nothing, so its opening token is TEXT, and mma opens nothing there.

Shapes:  B rows   T tokens of a row   n image tokens of a picture   N distinct pictures   P places where a picture stands
"""

import io
import json
import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import sentencepiece
import torch
from PIL import Image, ImageOps  # Pillow comes with torchvision, which requires it
from torch import Tensor

from mma import Role

CACHED_PICTURES = 8192
MAX_PIXELS = 50_000_000  # of a picture's file
IMAGE, ANSWER = "<image>", "<answer>"  # the picture's placeholder; the token that opens an answer


class DataError(Exception):
    """Something in the user's data is wrong; the message says what, where and what to do. kind: for counting."""

    def __init__(self, message: str, kind: str = "malformed"):
        super().__init__(message)
        self.kind = kind


class Damaged:
    """The entries of a data set that cannot be used: counted and reported by kind, or, if strict, an error at the first."""

    def __init__(self, strict: bool = True):
        self.strict, self.kinds = strict, {}

    def add(self, error: DataError) -> None:
        if self.strict:
            raise error
        self.kinds.setdefault(error.kind, []).append(str(error))

    def report(self, of: int) -> str:
        """What was left out of how many, with the first three of each kind; empty if nothing was."""
        if not self.kinds:
            return ""
        lines = [f"{sum(map(len, self.kinds.values())):,} of {of:,} entries are damaged and left out (--strict makes them an error):"]
        for kind, errors in sorted(self.kinds.items(), key=lambda item: -len(item[1])):
            lines += [f"  {len(errors):,} {kind}, such as", *(f"    {error}" for error in errors[:3])]
        return "\n".join(lines)


def seed_of(*key) -> int:
    """A random generator's seed for a key of words and numbers, the same in every process."""
    return zlib.crc32(repr(key).encode())


@dataclass(frozen=True)
class Crop:
    """A part of a picture's file: left, top, right, bottom in pixels. whole: the width and height the file must have."""
    path: Path
    box: tuple[int, int, int, int]
    whole: tuple[int, int]


@dataclass
class Example:
    """One dialogue. turns: (user message, answer); each IMAGE in a message stands for the next of `images`, which are files (their
    path, or their bytes), parts of files (Crop) or uint8 tensors [3, size, size]. family: the kind of question, for the tables.
    group: examples that share it are consistent if all are answered right."""
    images: list
    turns: list[tuple[str, str]]
    family: str = "all"
    id: str = ""
    group: str = ""


@dataclass
class Row:
    """An encoded dialogue: lists of equal length, the pictures in the order of their image tokens, and its id. Of a packed row (`pack`)
    `document` counts the dialogues; of any other it is empty."""
    ids: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    images: list = field(default_factory=list)
    id: str = ""
    document: list[int] = field(default_factory=list)

    def add(self, ids, role, turn):
        self.ids += ids
        self.role += [int(role)] * len(ids)
        self.turn += [turn] * len(ids)


# --------------------------------------------------------------------------------------------------------------------

class Tokenizer:
    """sentencepiece (BPE) over the data's own text, left as it is; bytes stand in for what it has not seen, so no text is lost."""

    def __init__(self, model: bytes):
        self.model = model
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pad, self.bos, self.eos = self.sp.pad_id(), self.sp.bos_id(), self.sp.eos_id()
        self.image, self.answer = self.sp.piece_to_id(IMAGE), self.sp.piece_to_id(ANSWER)
        self.start, self.next, self.opening, self.end = [self.bos], [], [self.answer], [self.eos]  # what stands around messages and answers
        self.encode = lru_cache(maxsize=65536)(lambda text: tuple(self.sp.encode(text)))

    def __len__(self) -> int:
        return self.sp.get_piece_size()

    def __reduce__(self):  # the processor itself cannot be sent to a worker process
        return Tokenizer, (self.model,)

    def piece(self, i: int) -> str:
        """What a token is, for the eye."""
        return self.sp.id_to_piece(i).replace("\u2581", " ")

    def decode(self, ids: list[int]) -> str:
        return self.sp.decode([i for i in ids if not self.sp.is_control(i)])

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """vocab_size is an upper bound: text with fewer distinct pieces gets a smaller vocabulary."""
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size, hard_vocab_limit=False,
                model_type="bpe", byte_fallback=True, character_coverage=1.0, num_threads=1, minloglevel=2,
                normalization_rule_name="identity", remove_extra_whitespaces=False,
                pad_id=0, unk_id=1, bos_id=2, eos_id=3, control_symbols=[IMAGE, ANSWER], max_sentence_length=100_000)
        except RuntimeError as error:  # no text at all, or more distinct characters than vocab_size has room for
            raise DataError(f"no tokenizer can be trained on this text; raise --vocab-size ({str(error).splitlines()[-1]})") from None
        return cls(model.getvalue())


def encode(example: Example, tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int | None = None,
           upto: int | None = None, text_first: bool = False) -> Row:
    """One dialogue as a row. `upto`: make the prompt for the answer of that turn (0 = first): what comes before it, gold
    answers of earlier turns included, and the token that opens it. text_first: in every message the text comes before the
    pictures.

    A row longer than max_tokens is cut at its end, but never inside a picture: then the picture's whole turn goes.
    """
    places = sum(message.count(IMAGE) for message, _ in example.turns)
    if places != len(example.images):
        raise DataError(f"{example.id}: {places} {IMAGE} in the messages, but {len(example.images)} pictures".removeprefix(": "))
    row, images = Row(id=example.id), iter(example.images)
    row.add(tokenizer.start, Role.TEXT, 0)
    for t, (message, answer) in enumerate(example.turns):
        start = len(row.ids)
        row.add(tokenizer.next if t else [], Role.TEXT, t + 1)
        pieces = message.split(IMAGE)
        asked = len(pieces) > 1 and any(piece.strip() for piece in pieces)  # a picture alone asks nothing and opens nothing
        text_role = Role.QUESTION if asked else Role.TEXT
        pictures = [next(images) for _ in pieces[1:]]
        parts = pieces[:1] + [part for piece in pieces[1:] for part in (IMAGE, piece)]
        for part in sorted(parts, key=lambda part: part is IMAGE) if text_first else parts:  # the sort is stable
            if part is IMAGE:
                row.add([tokenizer.image] * n_image_tokens, Role.IMAGE, t + 1)
            else:
                row.add(list(tokenizer.encode(part.strip())), text_role, t + 1)
        row.add(tokenizer.opening, text_role, t + 1)
        if upto != t:
            row.add([*tokenizer.encode(answer.strip()), *tokenizer.end], Role.ANSWER, t + 1)
        if max_tokens and len(row.ids) > max_tokens:
            last_image = max((i for i in range(start, len(row.ids)) if row.role[i] == Role.IMAGE), default=-1)
            keep = start if last_image >= max_tokens else max_tokens
            row.ids, row.role, row.turn = row.ids[:keep], row.role[:keep], row.turn[:keep]
            row.images += pictures if last_image < max_tokens else []
            break
        row.images += pictures
        if upto == t:
            break
    return row


def pack(rows: list[Row], enough: float = 0.85, aim: float = 0.95) -> list[Row]:
    """Fewer, fuller rows: dialogues one after the other, told apart by `document`. Nothing else changes: no dialogue is cut, none reads
    another, positions restart. Rows that padding to the longest fills to the share `enough` stay as they are. Packed rows are as
    short as they can be to be filled to `aim` (attention costs T^2): first fit, longest first."""
    longest, tokens = max(len(row.ids) for row in rows), sum(len(row.ids) for row in rows)
    best, filled = rows, tokens / (len(rows) * longest)
    if filled >= enough:
        return rows
    for length in (longest * k // 4 for k in (4, 5, 6, 8, 12)):
        packed = first_fit(rows, length)
        share = tokens / (len(packed) * max(len(row.ids) for row in packed))
        if share > filled:
            best, filled = packed, share
        if filled >= aim:
            break
    return best


def first_fit(rows: list[Row], length: int) -> list[Row]:
    """Rows of at most `length` tokens, each dialogue in the first that has room for it."""
    out = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        into = next((o for o in out if len(o.ids) + len(row.ids) <= length), None)
        if into is None:
            out.append(into := Row())
        into.document += [into.document[-1] + 1 if into.document else 0] * len(row.ids)
        for name in ("ids", "role", "turn", "images"):
            getattr(into, name).extend(getattr(row, name))
    return out


def collate(rows: list[Row], pad: int, image_size: int) -> dict[str, Tensor]:
    """Rows padded on the right to the longest, as keyword arguments of the model: ids, role, turn and, of packed rows, document
    int64 [B, T], images uint8 [N, 3, size, size] (each distinct picture once), picture int64 [P]."""
    T = max(len(row.ids) for row in rows)

    def padded(name, fill):
        return torch.tensor([getattr(row, name) + [fill] * (T - len(row.ids)) for row in rows])

    batch = {"ids": padded("ids", pad), "role": padded("role", int(Role.PAD)), "turn": padded("turn", 0)}
    if rows[0].document:
        batch["document"] = padded("document", -1)
    distinct, picture = {}, []  # dict: key -> (index, pixels)
    for row in rows:
        for image in row.images:
            key = image.data_ptr() if isinstance(image, Tensor) else image
            if key not in distinct:
                distinct[key] = len(distinct), pixels_of(image, image_size, row.id)
            picture.append(distinct[key][0])
    if picture:
        batch["images"] = torch.stack([pixels for _, pixels in distinct.values()])
        batch["picture"] = torch.tensor(picture)
    return batch


def pixels_of(image: Tensor | Path | bytes | Crop, size: int, where: str) -> Tensor:
    """uint8 [3, size, size] of one of an example's images; `where` names the example in an error."""
    try:
        if not isinstance(image, Tensor):
            return read_picture(image, size)
        if image.shape[-1] == size:
            return image
        return torch.nn.functional.interpolate(image[None].float(), size=(size, size), mode="area")[0].round().to(torch.uint8)
    except DataError as error:
        raise DataError(f"{where}: {error}" if where else str(error), "unreadable picture") from None


@lru_cache(maxsize=CACHED_PICTURES)
def read_picture(image: Path | bytes | Crop, size: int) -> Tensor:
    """uint8 [3, size, size]. The whole picture, or the whole part, is kept: it is scaled to fit and centred on grey, never cropped
    or flipped."""
    picture = open_picture(image.path if isinstance(image, Crop) else image)
    if isinstance(image, Crop):
        if picture.size != image.whole:
            raise DataError(f"{image.path}: expected a picture of {image.whole[0]} x {image.whole[1]} pixels, got "
                            f"{picture.width} x {picture.height}")
        picture = picture.crop(image.box)
    if picture.size != (size, size):
        scale = size / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
        square = Image.new("RGB", (size, size), (128, 128, 128))
        square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = square
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1).contiguous()


def check_head(path: Path, where: str) -> None:
    """Is this a picture of a size that is read? Its pixels are not looked at."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{where}: {path}: {file.width} x {file.height} pixels are more than the {MAX_PIXELS:,} that are read",
                                "unreadable picture")
    except DataError:
        raise
    except Exception as error:  # see open_picture
        raise DataError(f"{where}: {path}: not a readable picture ({error})", "unreadable picture") from None


@lru_cache(maxsize=8)  # the parts of a picture are read one after the other
def open_picture(path: Path | bytes) -> Image.Image:
    """The file, or what would be in it, as an RGB picture."""
    source, path = (io.BytesIO(path), "a picture in the data") if isinstance(path, bytes) else (path, path)
    try:
        with Image.open(source) as file:
            if file.width * file.height > MAX_PIXELS:  # a small file can unpack to more than the memory holds
                raise DataError(f"{path}: {file.width} x {file.height} pixels are more than the {MAX_PIXELS:,} that are read")
            picture = ImageOps.exif_transpose(file)  # as a viewer would show it
            if picture.mode.startswith("I"):         # 16 bits a pixel
                picture = picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            return picture.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: no such picture") from None
    except DataError:
        raise
    except Exception as error:  # what Pillow raises on damaged files is not a closed list: struct.error, zlib.error, IndexError ...
        raise DataError(f"{path}: not a readable picture ({error})") from None


def unusable(examples: list[Example], tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int) -> tuple[set[int], set[int]]:
    """Which of the examples are longer than max_tokens and are cut, and which of those then keep no answer token."""
    too_long = {i for i, e in enumerate(examples) if len(encode(e, tokenizer, n_image_tokens).ids) > max_tokens}
    return too_long, {i for i in too_long if Role.ANSWER not in encode(examples[i], tokenizer, n_image_tokens, max_tokens).role}


# --------------------------------------------------------------------------------------------------------------------

class Folder:
    """A finite data set: examples of each split grouped by picture. `splits` maps train, val and test to a list of groups, and pt, where
    stage 1 has examples of its own; the examples of one group share a picture, so a batch encodes it once."""
    final_split = "test"  # what train.py reports at its end
    damaged = Damaged()

    def __init__(self, splits: dict[str, list[list[Example]]], answers: set[str] | None = None, damaged: Damaged | None = None):
        self.splits, self.damaged = splits, damaged or Damaged()
        self.answers = answers  # all possible answers, where they are a closed set

    def texts(self):
        for group in self.splits["train"] + self.splits.get("pt", []):
            for example in group:
                for message, answer in example.turns:
                    yield message.replace(IMAGE, " ").strip()
                    yield answer

    def read_pictures(self, size: int) -> str:
        """Read every picture once, if they all fit the cache anyway, else the head of its file: a broken one is found now and not in
        an hour. Examples that show it are left out, or are an error (see Damaged). Returns the report of what was left out."""
        examples = [e for groups in self.splits.values() for group in groups for e in group]
        of, where = len(examples) + sum(map(len, self.damaged.kinds.values())), {}
        for example in examples:
            for image in example.images:
                where.setdefault(image, example.id)
        broken = {}
        for image, entry in where.items():
            try:
                if len(where) <= CACHED_PICTURES:
                    pixels_of(image, size, entry)
                else:
                    check_head(getattr(image, "path", image), entry)
            except DataError as error:
                broken[image] = error
        for split, groups in self.splits.items() if broken else ():
            kept = [[e for e in group if not any(image in broken for image in e.images)] for group in groups]
            for example in {e.id: e for group in groups for e in group if any(image in broken for image in e.images)}.values():
                error = broken[next(image for image in example.images if image in broken)]
                what = str(error).partition(": ")[2] if example.id else str(error)  # after the id of the first that shows it
                self.damaged.add(DataError(f"{example.id}: {what}".removeprefix(": "), error.kind))
            self.splits[split] = [group for group in kept if group]
        return self.damaged.report(of)

    def drop_unusable(self, tokenizer: Tokenizer, n_image_tokens: int, max_tokens: int) -> tuple[int, int]:
        """Take out the training rows that keep no answer token within max_tokens. Returns how many rows are cut, and how many of
        them were taken out; rows of val and test are only ever prompts, and are never cut."""
        cut = dropped = 0
        for split in [split for split in ("train", "pt") if split in self.splits]:
            for g, group in enumerate(self.splits[split]):
                too_long, without = unusable(group, tokenizer, n_image_tokens, max_tokens)
                cut, dropped = cut + len(too_long), dropped + len(without)
                self.splits[split][g] = [example for i, example in enumerate(group) if i not in without]
            self.splits[split] = [group for group in self.splits[split] if group]
            if not self.splits[split]:
                raise DataError(f"no training row keeps an answer within {max_tokens} tokens; raise --max-tokens")
        return cut, dropped

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int) -> list[Example]:
        """The examples of one training step: a function of (stage, step, seed) alone, so a run can stop and go on anywhere."""
        groups = self.splits.get(stage, self.splits["train"])
        epoch, chosen = -1, []
        choice = torch.Generator().manual_seed(seed_of(stage, seed, step, "questions"))
        for k in range(step * pictures, (step + 1) * pictures):
            if k // len(groups) != epoch:
                epoch = k // len(groups)
                order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed_of(stage, seed, epoch, "pictures")))
            group = groups[order[k % len(groups)]]
            chosen += [group[i] for i in torch.randperm(len(group), generator=choice)[:per_picture]]
        return chosen

    def split_names(self) -> list[str]:
        return list(self.splits)

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """The examples of a split, or the first `limit` of them."""
        return [example for group in self.splits[split] for example in group][:limit]


def read_json(file: Path):
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (check --source)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error})") from None


def normalise(answer: str) -> str:
    """Answers are compared in this form: lower case, single spaces, no punctuation (signs, and points within numbers, stay), no
    articles; an answer that is nothing but these stays as it is."""
    words = re.sub(r"[.,;:!?\"'()](?!\d)", " ", answer.lower()).split()
    return " ".join([w for w in words if w not in ("a", "an", "the")] or words or answer.lower().split())


NAMES = ("shapes", "easy_vqa", "llava", "nlvr", "nlvr+world")


def load(name: str, source=None, images=None, strict: bool = False, pt_source=None, pt_images=None):
    """The data set `name`: an object with texts(), draw(...), heldout(split) and answers, as Folder has them. strict: damaged
    entries of a LLaVA file are an error; else they are left out, counted and reported. pt_source, pt_images: captions for stage 1."""
    from data import easy_vqa, llava, nlvr, nlvr_world, shapes  # here, because they build on this file
    if name != "shapes" and source is None:
        raise DataError(f"--data {name} needs --source: the path of its " + ("JSON file" if name == "llava" else "folder"))
    if pt_source is not None and name != "llava":
        raise DataError(f"--pt-source belongs to --data llava, not to {name}")
    if name == "shapes":
        return shapes.Shapes()
    if name.startswith("nlvr"):
        return nlvr.NLVR(source, nlvr_world.World() if name == "nlvr+world" else None)
    return easy_vqa.load(source) if name == "easy_vqa" else llava.load(source, images, strict, pt_source, pt_images)
