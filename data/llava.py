"""Your own data: LLaVA-style JSON and a folder of pictures.

    [{"id": "7", "image": "a.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "A cat."}, ...]}, ...]

Several turns; `image` may be a list, one name for each <image> in reading order, or be left out. An
optional "category" names the family for the tables. A tenth of the pictures is held out for test
and a tenth for validation: entries that share a picture always stay together. Captions for stage 1
may come from a second file of the same form.
"""

import json
import zlib
from pathlib import Path

from data import IMAGE, DataError, Example, Folder, SkippedEntries, read_json

SPEAKER = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


def read_entry(entry, where: str, images: Path) -> Example:
    """One entry, checked. Raises DataError with what is wrong."""
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object with image and conversations")
    where += f" (id {entry['id']!r})" if "id" in entry else ""
    names = entry.get("image")
    names = [] if names is None else [names] if isinstance(names, str) else names
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: its text holds half of a surrogate pair") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: image must be a file name or a list of file names")
    turns = read_turns(entry.get("conversations"), where)
    n = sum(message.count(IMAGE) for message, _ in turns)
    if n != len(names):
        raise DataError(
            f"{where}: {n} {IMAGE} in the messages, but {len(names)} pictures in image",
            "pictures and placeholders that disagree",
        )
    paths = [find_picture(name, images, where) for name in names]
    category = entry.get("category", "all")
    return Example(paths, turns, category if isinstance(category, str) else "all", where)


def read_turns(talk, where: str) -> list[tuple[str, str]]:
    """The messages of an entry, checked: (user message, answer) of each turn."""
    if not isinstance(talk, list) or not talk or len(talk) % 2:
        raise DataError(
            f"{where}: conversations must be a list of human, gpt, human, gpt, ... messages"
        )
    for k, message in enumerate(talk):
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise DataError(f'{where}: message {k} must be {{"from": ..., "value": text}}')
        speaker, wanted = message.get("from"), ("human", "gpt")[k % 2]
        if SPEAKER.get(str(speaker)) != wanted:
            raise DataError(f"{where}: message {k} should be from {wanted!r}, not {speaker!r}")
        if wanted == "gpt" and IMAGE in message["value"]:
            raise DataError(f"{where}: message {k}: an answer cannot hold {IMAGE}")
    return [(human["value"], gpt["value"]) for human, gpt in zip(talk[::2], talk[1::2])]


def find_picture(name: str, images: Path, where: str) -> Path:
    """The file of a picture below the folder `images`."""
    try:
        path = (images / name).resolve()
        found = path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {name[:80]!r} cannot be a file's name ({error})") from None
    if not path.is_relative_to(images):
        outside = "picture outside the folder"
        raise DataError(f"{where}: the picture {name!r} is outside {images}", outside)
    if not found:
        raise DataError(
            f"{where}: no such picture {path} (set --images to the folder of the pictures)",
            "missing picture",
        )
    return path


def by_picture(examples: list[Example]) -> list[list[Example]]:
    """Groups of examples, so that no picture stands in two of them (union-find over pictures)."""
    parent = {}

    def root(x):
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    keys = [example.images or [repr(example.turns)] for example in examples]
    for pictures in keys:
        for other in pictures[1:]:
            parent[root(other)] = root(pictures[0])
    groups = {}
    for example, pictures in zip(examples, keys):
        groups.setdefault(root(pictures[0]), []).append(example)
    return list(groups.values())


def split(groups: list[list[Example]], images: Path) -> dict[str, list[list[Example]]]:
    """A tenth of the pictures for test, a tenth for val, at least one group each. Who goes where
    follows from the names of the pictures below `images` (from the words, where there is none), not
    from the order of the file or where it lies. Fewer than three groups cannot be split: all are
    train."""
    if len(groups) < 3:
        return {"train": groups, "val": [], "test": []}

    def name(group):
        paths = [path.relative_to(images) for e in group for path in e.images]
        return min(["/".join(path.parts) for path in paths] or [repr(group[0].turns)])

    def size(group):
        return max(1, len({path for e in group for path in e.images}))

    sizes = sorted(map(size, groups))
    room = dict.fromkeys(("test", "val"), max(sum(sizes) // 10, sizes[1]))
    splits = {"train": [], "val": [], "test": []}
    for group in sorted(groups, key=lambda group: (zlib.crc32(name(group).encode()), name(group))):
        split_name = next((s for s in room if size(group) <= room[s]), "train")
        splits[split_name].append(group)
        if split_name in room:
            room[split_name] -= size(group)
    return splits


def read(source: Path, images: Path | None, skipped: SkippedEntries):
    """A file's entries, by picture (a list of lists), and the folder of its pictures."""
    entries = read_json(source)
    if not isinstance(entries, list):
        raise DataError(f"{source}: expected a list of entries")
    images = (images or source.parent).resolve()
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures")
    examples = []
    for i, entry in enumerate(entries):
        try:
            examples.append(read_entry(entry, f"{source}: entry {i}", images))
        except DataError as error:
            if not examples and i == len(entries) - 1:  # not one is good
                raise
            skipped.add(error)
    return by_picture(examples), images


def load(
    source: Path, images: Path | None = None, strict: bool = True, pt_source: Path | None = None,
    pt_images: Path | None = None,
) -> Folder:  # fmt: skip
    """pt_source, pt_images: a file of captions for stage 1, the split "pt"; without it stage 1 uses
    the questions. Captions of pictures that are held out are left out."""
    skipped = SkippedEntries(strict)
    splits = split(*read(source, images, skipped))
    if pt_source is None:
        return Folder(splits, skipped=skipped)
    held_out = [e for name in ("val", "test") for group in splits[name] for e in group]
    held_out = {path for e in held_out for path in e.images}
    splits["pt"] = []
    for group in read(pt_source, pt_images, skipped)[0]:
        known = [e for e in group if held_out.intersection(e.images)]
        for e in known:
            kind = "captions of pictures that are held out"
            skipped.add(DataError(f"{e.id}: a picture of it is held out", kind))
        splits["pt"] += [] if known else [group]
    return Folder(splits, skipped=skipped)
