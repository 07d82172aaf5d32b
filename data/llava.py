"""Your own data: LLaVA-style JSON and a folder of pictures.

    [{"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                     {"from": "gpt", "value": "A cat."}, ...]}, ...]

Several turns; `image` may be a list, one name for each <image> in reading order, or be left out. An optional "category" names
the family for the tables. A tenth of the pictures is held out for test and a tenth for validation: entries that share a picture
always stay together. Captions for stage 1 may come from a second file of the same form.
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
    talk = entry.get("conversations")
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: its text holds half of a surrogate pair") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: image must be a file name or a list of file names")
    if not isinstance(talk, list) or not talk or len(talk) % 2:
        raise DataError(
            f"{where}: conversations must be a list of human, gpt, human, gpt, ... messages"
        )
    for k, message in enumerate(talk):
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise DataError(f'{where}: message {k} must be {{"from": ..., "value": text}}')
        if SPEAKER.get(str(message.get("from"))) != ("human", "gpt")[k % 2]:
            raise DataError(
                f"{where}: message {k} should be from {('human', 'gpt')[k % 2]!r}, not {message.get('from')!r}"
            )
        if k % 2 and IMAGE in message["value"]:
            raise DataError(f"{where}: message {k}: an answer cannot hold {IMAGE}")
    turns = [(human["value"], gpt["value"]) for human, gpt in zip(talk[::2], talk[1::2])]
    n = sum(message.count(IMAGE) for message, _ in turns)
    if n != len(names):
        raise DataError(
            f"{where}: {n} {IMAGE} in the messages, but {len(names)} pictures in image",
            "pictures and placeholders that disagree",
        )
    paths = []
    for name in names:
        try:
            path = (images / name).resolve()
            found = path.is_file()
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: {name[:80]!r} cannot be a file's name ({error})") from None
        if not path.is_relative_to(images):
            raise DataError(
                f"{where}: the picture {name!r} is outside {images}", "picture outside the folder"
            )
        if not found:
            raise DataError(
                f"{where}: no such picture {path} (set --images to the folder of the pictures)",
                "missing picture",
            )
        paths.append(path)
    category = entry.get("category", "all")
    return Example(paths, turns, category if isinstance(category, str) else "all", where)


def by_picture(examples: list[Example]) -> list[list[Example]]:
    """Groups of examples, so that no picture stands in two of them (union-find over the pictures)."""
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
    """A tenth of the pictures for test, a tenth for val, at least one group each. Who goes where follows from the names of the
    pictures below `images` (from the words, where there is none), not from the order of the file or where it lies. Fewer than three
    groups cannot be split: all are train."""
    if len(groups) < 3:
        return {"train": groups, "val": [], "test": []}

    def name(group):
        return min(
            ["/".join(path.relative_to(images).parts) for e in group for path in e.images]
            or [repr(group[0].turns)]
        )

    def size(group):
        return max(1, len({path for e in group for path in e.images}))

    sizes = sorted(map(size, groups))
    splits, room = (
        {"train": [], "val": [], "test": []},
        dict.fromkeys(("test", "val"), max(sum(sizes) // 10, sizes[1])),
    )
    for group in sorted(groups, key=lambda group: (zlib.crc32(name(group).encode()), name(group))):
        to = next((s for s in room if size(group) <= room[s]), "train")
        splits[to].append(group)
        if to in room:
            room[to] -= size(group)
    return splits


def read(
    source: Path, images: Path | None, skipped: SkippedEntries
) -> tuple[list[list[Example]], Path]:
    """A file's entries, by picture, and the folder of its pictures."""
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
    source: Path,
    images: Path | None = None,
    strict: bool = True,
    pt_source: Path | None = None,
    pt_images: Path | None = None,
) -> Folder:
    """pt_source, pt_images: a file of captions for stage 1, the split "pt"; without it stage 1 uses the questions. Captions of pictures
    that are held out are left out."""
    skipped = SkippedEntries(strict)
    splits = split(*read(source, images, skipped))
    if pt_source is not None:
        held = {
            path
            for name in ("val", "test")
            for group in splits[name]
            for e in group
            for path in e.images
        }
        splits["pt"] = []
        for group in read(pt_source, pt_images, skipped)[0]:
            known = [e for e in group if held.intersection(e.images)]
            for e in known:
                skipped.add(
                    DataError(
                        f"{e.id}: a picture of it is held out",
                        "captions of pictures that are held out",
                    )
                )
            splits["pt"] += [] if known else [group]
    return Folder(splits, skipped=skipped)
