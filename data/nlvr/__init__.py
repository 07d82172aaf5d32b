"""NLVR (Suhr et al., ACL 2017; CC BY 4.0; github.com/lil-lab/nlvr, folder nlvr) in its own layout:

    SOURCE/SPLIT/SPLIT.json   an object a line: sentence, label "true" or "false", identifier "n-m",
                              directory
    SOURCE/SPLIT/images/...   SPLIT-n-m-K.png, 400 x 100: three boxes of 100 x 100; K = 0..5 tells
                              the order of the boxes

or the folder that holds this layout as `nlvr/`, as in a clone. Where a picture lies below images/
does not matter. Where one of its six orders is missing, all are made by permuting the boxes of the
first that is there. Each box is a picture of its own.

An example's family is the kind of its picture and what its sentence asks, such as "towers place":
see picture_kind and asks.

Training takes the boxes in a random order. A held-out split asks every sentence six times, once for
each order: that is NLVR's official accuracy. Consistency is the share of sentences (identifiers n)
whose answers are all correct, for all of their pictures and orders. "train" and "val" both come
from SOURCE/train: a tenth of its directories is val. Any other split is read when asked for.
"""

import re
import zlib
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

import torch

from data.draws import generator_of
from data.errors import DataError
from data.files import read_entries
from data.folder import Folder, SkippedEntries
from data.nlvr.phrases import NUMBER
from data.nlvr.world import World
from data.pixels import Crop
from data.prompt import IMAGE_TOKEN, Example

ORDERS = list(permutations(range(3)))
BOXES = [(x, 0, x + 100, 100) for x in (0, 150, 300)]  # left, top, right, bottom in a picture
WORD_OF_DIGIT = dict(enumerate(NUMBER))
# Found in train by its rare words
MISSPELT = {
    "atleast": "at least", "isa": "is a", "eactly": "exactly", "exacty": "exactly", "adge": "edge",
    "exacrly": "exactly", "egde": "edge", "cirlce": "circle", "trianlge": "triangle", "ans": "and",
    "sqaures": "squares", "yelllow": "yellow", "yelow": "yellow", "ble": "blue", "b;ue": "blue",
    "touhing": "touching", "hte": "the", "theer": "there", "objetcs": "objects", "leats": "least",
    "blicks": "blocks", "ablue": "a blue", "ad": "and", "od": "of", "bellow": "below",
    "nealy": "nearly", "wth": "with", "circ;e": "circle", "colour": "color", "colours": "colors",
    "coloured": "colored", "leat": "least",
}  # fmt: skip
FIELDS = ("sentence", "label", "identifier")
TEXTS = f"texts {', '.join(FIELDS)}"
# What a sentence asks, told by its words: the first of these that has one of its words. A sentence
# with none of them says that something is there, or is everywhere: "exist".
ASKS = {
    "compare": r"same|different|equal|as many|kinds?|types?|than (?:the|in)|(?:least|most) number",
    "place": r"\w*touch\w*|corners?|edges?|walls?|top|bases?|bottom|sides?|roof|lines?|middle"
    r"|above|over|on|below|bellow|under|underneath|beneath|between|left|right|near\w*"
    r"|attach\w*|stack\w*|second|third|positions?",
    "count": r"\d+|two|three|four|five|six|seven|eight|zero|no|none|many|multiple|single|number"
    r"|only one|(?<!at least )one(?! of)|exactly|at most|more|less",
}


def plain(sentence: str) -> str:
    """A sentence in one spelling: lower case, numbers as words, no full stop; NLVR has lost some
    sentences' first letter, an A."""
    text = re.sub(r"\d", lambda m: f" {WORD_OF_DIGIT.get(int(m[0]), m[0])} ", sentence.lower())
    words = text.rstrip(" ./").replace(",", " , ").split()
    words = " ".join(MISSPELT.get(word, word) for word in words).split()
    words[:1] = [{"ll": "all", "t": "at"}.get(word, word) for word in words[:1]]
    return " ".join(words).replace(" ,", ",")


def asks(sentence: str) -> str:
    """What a sentence, in one spelling, asks: compare, place, count or exist (see ASKS)."""
    words = (kind for kind, some in ASKS.items() if re.search(rf"\b(?:{some})\b", sentence))
    return next(words, "exist")


def picture_kind(boxes) -> str:
    """ "towers" or "scattered", by an entry's structured_rep; "unknown" where it has none. Towers
    are squares of one size in one column."""
    try:
        items = {(i["type"].lower(), i["size"], i["x_loc"]) for box in boxes for i in box}
    except (TypeError, KeyError, AttributeError):
        items = set()
    if not items:
        return "unknown"
    return "towers" if items == {("square", 20, 40)} else "scattered"


def files_by_split(source: Path) -> dict[str, Path]:
    """split -> its JSON file: its folder's name, or the file's own where a folder holds several
    (hidden/hidden_final.json). source may be the folder of one split, too."""
    by_split, folders = {}, [source, *source.iterdir()]
    for folder in sorted(path for path in folders if (path / "images").is_dir()):
        found = sorted(folder.glob("*.json"))
        for file in found:
            alone = len(found) == 1 or file.stem == folder.name
            by_split[folder.name if alone else file.stem] = file
    return by_split


def read_entry(entry, where: str) -> dict:
    """One entry of a split's JSON file, checked; its sentence in one spelling, its label in lower
    case. Raises DataError with what is wrong; entry may be one (read_entries)."""
    if isinstance(entry, DataError):
        raise entry
    if not isinstance(entry, dict) or not all(isinstance(entry.get(f), str) for f in FIELDS):
        raise DataError(f"{where}: expected an object with the {TEXTS}, got {str(entry)[:100]}")
    if entry["label"].lower() not in ("true", "false"):
        raise DataError(f"{where}: the label must be true or false, not {entry['label']!r}")
    if not re.fullmatch(r"\d+-\d+", entry["identifier"]):
        raise DataError(f"{where}: the identifier must be like 72-0, not {entry['identifier']!r}")
    sentence = plain(entry["sentence"])
    if not sentence or IMAGE_TOKEN in sentence:
        raise DataError(f"{where}: the sentence is empty or holds {IMAGE_TOKEN}")
    return {**entry, "sentence": sentence, "label": entry["label"].lower()}


def pictures_of(file: Path) -> tuple[dict[str, Path], str]:
    """The pictures of a split's JSON file, PREFIX-n-m -> the one with the lowest K; and the prefix
    of that file's: its folder's name or its own, or, if no picture begins so, the only one there
    is (a folder may have been renamed: test-P/images/test-0-0-0.png)."""
    first, prefixes = {}, set()
    paths = (file.parent / "images").rglob("*.png")
    for path in sorted(paths, key=lambda path: path.name, reverse=True):
        name = path.stem.rpartition("-")[0]
        first[name] = path  # the lowest K is the one that stays
        prefixes.add(name.rsplit("-", 2)[0])
    named = [name for name in (file.parent.name, file.stem) if name in prefixes]
    return first, [*named, *(prefixes if len(prefixes) == 1 else []), file.parent.name][0]


def read_split(file: Path) -> dict[str, list[list[Example]]]:
    """directory -> its examples, those of one sentence together, the boxes in the order of the
    first picture there is."""
    folder, by_directory = file.parent, {}
    first_picture, prefix = pictures_of(file)
    for line, entry in read_entries(file, f"objects with the {TEXTS}", FIELDS[0]).items():
        where = f"{file}: {line}"
        entry = read_entry(entry, where)
        identifier = entry["identifier"]
        picture = first_picture.get(f"{prefix}-{identifier}")
        if picture is None:
            name = f"{prefix}-{identifier}-K.png"
            raise DataError(f"{where}: no picture {name} below {folder / 'images'}")
        example = Example(
            [Crop(picture, box, (400, 100)) for box in BOXES],
            [(IMAGE_TOKEN * 3 + entry["sentence"], entry["label"])],
            id=f"{where} ({identifier})",
            family=f"{picture_kind(entry.get('structured_rep'))} {asks(entry['sentence'])}",
            group=f"{folder.name}/{file.stem}-{identifier.split('-')[0]}",  # numbers begin anew
        )
        directory = by_directory.setdefault(str(entry.get("directory", picture.parent.name)), {})
        directory.setdefault(example.group, []).append(example)
    return {name: list(groups.values()) for name, groups in by_directory.items()}


def in_order(example: Example, order: tuple[int, ...]) -> Example:
    """The example with its boxes permuted."""
    return replace(example, images=[example.images[k] for k in order])


def in_all_orders(example: Example) -> list[Example]:
    """The example six times: from its own six pictures, where they are all there (NLVR drew each of
    them: they differ from a permutation in up to four pixels), else by permuting its boxes."""
    path = example.images[0].path
    name = path.stem.rpartition("-")[0]
    pictures = [path.with_name(f"{name}-{k}.png") for k in range(len(ORDERS))]
    if not all(picture.is_file() for picture in pictures):
        return [in_order(example, order) for order in ORDERS]
    crops = [[replace(crop, path=picture) for crop in example.images] for picture in pictures]
    return [replace(example, images=images) for images in crops]


def with_world(source: Path) -> "NLVR":
    return NLVR(source, World())


class NLVR(Folder):
    """NLVR as a data set. With `world`, stage 1 is the world's alone, and in stage 2 it has its
    share of every batch."""

    final_split = "val"  # the official splits are read only when eval.py is asked to
    answers = {"true", "false"}
    SHARE = 0.5  # NLVR's share of a batch of stage 2, where there is a world ...
    AFTER = 400  # ... from this step on; until then the batch is the world's alone

    def __init__(self, source: Path, world: World | None = None):
        self.source = source / "nlvr" if (source / "nlvr").is_dir() else source
        if not self.source.is_dir():
            raise DataError(f"{self.source}: no such folder (check --source)")
        self.world, self.files, self.skipped = world, files_by_split(self.source), SkippedEntries()
        if not self.files:
            expected = "folders such as train, each with train.json and images"
            raise DataError(f"{self.source}: expected {expected} (check --source)")

    @cached_property
    def splits(self) -> dict[str, list[list[Example]]]:
        """train and val, a group for each sentence (up to four pictures); split by directory, as
        NLVR's authors advise, because train holds many pictures that differ in the order of their
        boxes alone."""
        file = self.files.get("train", self.source / "train" / "train.json")
        by_directory = read_split(file)
        if len(by_directory) < 2:
            why = f"all examples are of one directory, {next(iter(by_directory))!r}"
            advice = 'train and val need one each: give some entries another "directory"'
            raise DataError(f"{file}: {why}; {advice}")
        names = sorted(by_directory, key=lambda name: (zlib.crc32(name.encode()), name))
        n_val = max(1, len(names) // 10)
        return {
            split: [group for name in names_of_split for group in by_directory[name]]
            for split, names_of_split in (("train", names[n_val:]), ("val", names[:n_val]))
        }

    def texts(self):
        yield from super().texts()
        if self.world:
            yield from self.world.texts()

    def draw(self, stage: str, step: int, pictures: int, per_picture: int, seed: int):
        if self.world and (stage == "pt" or step < self.AFTER):
            return self.world.draw(stage, step, pictures, per_picture, seed)
        n_own = max(1, round(pictures * self.SHARE)) if self.world else pictures
        orders = generator_of(stage, seed, step, "orders")
        examples = super().draw(stage, step, n_own, per_picture, seed)
        chosen = torch.randint(len(ORDERS), (len(examples),), generator=orders).tolist()
        examples = [in_order(example, ORDERS[k]) for example, k in zip(examples, chosen)]
        if self.world and n_own < pictures:
            examples += self.world.draw(stage, step, pictures - n_own, per_picture, seed)
        return examples

    def read_pictures(self, size: int, brief: bool = False) -> str:
        """Of train and val (Folder.read_pictures); nothing where only official splits are there."""
        return super().read_pictures(size, brief) if "train" in self.files else ""

    def split_names(self) -> list[str]:
        """train and val; the official splits that are there; world, where there is one."""
        own = ["train", "val"] if "train" in self.files else []
        official = [name for name in self.files if name != "train"]
        return [*own, *official, *(["world"] if self.world else [])]

    def heldout(self, split: str, limit: int | None = None) -> list[Example]:
        """Every example in all six orders: first all examples in the first order, then in the
        second, ..."""
        if split == "world":
            return self.world.heldout(split, limit)
        if split in ("train", "val"):
            groups = self.splits[split]
        else:
            by_directory = read_split(self.files[split])
            groups = [group for sentences in by_directory.values() for group in sentences]
        orders = [in_all_orders(example) for group in groups for example in group]
        return [examples[k] for k in range(len(ORDERS)) for examples in orders][:limit]
