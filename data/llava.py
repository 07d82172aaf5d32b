"""Your own data: LLaVA-style JSON and a folder of pictures.

    [{"id": "7", "image": "a.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "A cat."}, ...]}, ...]

or JSON Lines, an entry a line. Several turns; `image` may be a list, one name for each <image> in
reading order, or be left out. An optional "category" names the family for the tables. A tenth of
the pictures is held out for test and a tenth for validation: entries that share a picture always
stay together. Captions for stage 1 may come from a second file of the same form.
"""

import json
import os
import zlib
from pathlib import Path

from data.errors import DataError
from data.files import read_entries, same_pictures
from data.folder import Folder, SkippedEntries
from data.prompt import IMAGE_TOKEN, Example

SPEAKER = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


def read_entry(entry, where: str, images: Path, option: str = "--images") -> Example:
    """One entry, checked. option: the one that names `images`. Raises DataError with what is wrong;
    entry may be one (read_entries)."""
    if isinstance(entry, DataError):
        raise entry
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
    n_places = sum(message.count(IMAGE_TOKEN) for message, _ in turns)
    if n_places != len(names):
        found = f"{n_places} {IMAGE_TOKEN} in the messages, but {len(names)} pictures in image"
        raise DataError(f"{where}: {found}", "pictures and placeholders that disagree")
    paths = [find_picture(name, images, where, option) for name in names]
    category = entry.get("category", "all")
    return Example(paths, turns, category if isinstance(category, str) else "all", where)


def read_turns(messages, where: str) -> list[tuple[str, str]]:
    """The messages of an entry, checked: (user message, answer) of each turn."""
    if not isinstance(messages, list) or not messages:
        expected = "a list of human, gpt, human, gpt, ... messages"
        raise DataError(f"{where}: conversations must be {expected}")
    for k, message in enumerate(messages):
        check_message(message, ("human", "gpt")[k % 2], f"{where}: message {k}")
    if len(messages) % 2:
        raise DataError(f"{where}: conversations must be human, gpt, ...: the last has no answer")
    return [(human["value"], gpt["value"]) for human, gpt in zip(messages[::2], messages[1::2])]


def check_message(message, wanted: str, where: str) -> None:
    """Raises DataError unless this is a message from `wanted`, human or gpt."""
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise DataError(f'{where} must be {{"from": ..., "value": text}}')
    speaker = message.get("from")
    if speaker == "system":
        raise DataError(f"{where} is from 'system': take it out, it is not used", "system message")
    if SPEAKER.get(str(speaker)) != wanted:
        raise DataError(f"{where} should be from {wanted!r}, not {speaker!r}")
    if wanted == "gpt" and IMAGE_TOKEN in message["value"]:
        raise DataError(f"{where}: an answer cannot hold {IMAGE_TOKEN}")
    if wanted == "gpt" and not message["value"].strip():
        raise DataError(f"{where}: the answer is empty", "empty answer")


def find_picture(name: str, images: Path, where: str, option: str) -> Path:
    """The file of a picture below the folder `images`, links within it resolved. A link that leads
    out keeps its name: folders of links and hub caches are made so. `..` may not lead out."""
    try:
        named = Path(os.path.normpath(images / name))
        path = named.resolve()
        is_there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # the last: a link to itself
        raise DataError(f"{where}: {name[:80]!r} cannot be a file's name ({error})") from None
    path = path if path.is_relative_to(images) else named
    if not path.is_relative_to(images):
        why = f"{where}: the picture {name!r} is outside {images}"
        why += f" (set {option} to a folder that holds all pictures)"
        raise DataError(why, "picture outside the folder")
    if not is_there:
        advice = f"set {option} to the folder of the pictures"
        raise DataError(f"{where}: no such picture {path} ({advice})", "missing picture")
    return path


def group_by_picture(examples: list[Example], same: dict[Path, Path]) -> list[list[Example]]:
    """Groups of examples, so that no picture stands in two of them (union-find over pictures).
    same: see same_pictures."""
    parent = {}

    def root(x):
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    # Examples without a picture go together if they say the same
    keys = [[same[path] for path in e.images] or [repr(e.turns)] for e in examples]
    for first, *others in keys:
        for other in others:
            parent[root(other)] = root(first)
    groups = {}
    for example, (first, *_) in zip(examples, keys):
        groups.setdefault(root(first), []).append(example)
    return list(groups.values())


def split_groups(groups: list[list[Example]], images: Path) -> dict[str, list[list[Example]]]:
    """A tenth of the pictures for test, a tenth for val, at least one group each. Which split a
    group goes to follows from the names of its pictures below `images` (from its words, where it
    has none), not from the order of the file or where it lies. Fewer than three groups cannot be
    split: all are train."""
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
    if not splits["val"]:  # beside one very large group all others fit in test
        splits["val"].append(splits["test"].pop())
    return splits


def read_examples(source: Path, images: Path | None, skipped: SkippedEntries, prefix: str = "--"):
    """A file's entries as Examples, and the folder of its pictures. prefix: how the two options
    begin that name these."""
    form = 'entries, [{"image": ..., "conversations": [...]}, ...]'
    entries = read_entries(source, form, "conversations", f"{prefix}source")
    images = (images or source.parent).resolve()
    if not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures (check {prefix}images)")
    examples = []
    for i, entry in enumerate(entries.values()):
        try:
            examples.append(read_entry(entry, f"{source}: entry {i}", images, f"{prefix}images"))
        except DataError as error:
            if not examples and i == len(entries) - 1:  # not one is good
                raise
            skipped.add(error)
    return examples, images


def load(
    source: Path, images: Path | None = None, strict: bool = False,
    pt_source: Path | None = None, pt_images: Path | None = None,
) -> Folder:  # fmt: skip
    """The data set in the file `source`, its pictures below `images`. pt_source, pt_images: a file
    of captions for stage 1, the split "pt"; without it stage 1 uses the questions. Captions of
    pictures that are held out are not used: they are counted, and no error."""
    if pt_images and not pt_source:
        raise DataError("--pt-images belongs to --pt-source FILE, which is not given")
    skipped = SkippedEntries(strict)
    examples, images = read_examples(source, images, skipped)
    captions = read_examples(pt_source, pt_images, skipped, "--pt-")[0] if pt_source else []
    same, n_copies = same_pictures(path for e in examples + captions for path in e.images)
    found = f"{n_copies:,} pictures are copies of others under other names: they are in one split"
    skipped.copies = f"{found} with them" if n_copies else ""
    splits = split_groups(group_by_picture(examples, same), images)
    if pt_source:
        held_out_groups = splits["val"] + splits["test"]
        held_out = {same[path] for group in held_out_groups for e in group for path in e.images}
        splits["pt"] = []
        for group in group_by_picture(captions, same):
            kept = [e for e in group if held_out.isdisjoint(same[path] for path in e.images)]
            skipped.held_out += len(group) - len(kept)
            splits["pt"] += [kept] if kept else []
    return Folder(splits, skipped=skipped)
