"""easy-VQA (Victor Zhou, MIT licence; github.com/vzhou842/easy-VQA) in its own layout:

    SOURCE/{train,test}/images/ID.png
    SOURCE/{train,test}/questions.json = [[question, answer, image id], ...]

or the folder that holds this layout as `data/`, as in a clone. A twentieth of the training pictures
is kept for validation.
"""

import zlib
from pathlib import Path

from data.errors import DataError
from data.files import read_entries
from data.folder import Folder
from data.prompt import IMAGE_TOKEN, Example

# The family of a question follows from its answer; any other answer is a color.
FAMILY = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(("circle", "rectangle", "triangle"), "shape"),
}


def read_split(folder: Path) -> dict[int, list[Example]]:
    """image id -> its questions, each checked."""
    file = folder / "questions.json"
    form, by_image = "[question, answer, image id]", {}
    files = {path.name for path in (folder / "images").glob("*")}
    for name, entry in read_entries(file, form).items():
        where = f"{file}: {name}"
        texts = entry[:2] if isinstance(entry, list) and len(entry) == 3 else [None]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: expected {form}, got {str(entry)[:100]}")
        question, answer, image = entry
        picture, family = folder / "images" / f"{image}.png", FAMILY.get(answer, "color")
        if picture.name not in files:
            raise DataError(f"{where}: no such picture {picture}")
        example = Example([picture], [(IMAGE_TOKEN + question, answer)], family, where)
        by_image.setdefault(image, []).append(example)
    return by_image


def load(source: Path) -> Folder:
    """The data set in the folder `source`. Raises DataError if its files are not as above."""
    source = source / "data" if (source / "data" / "train").is_dir() else source
    train, test = read_split(source / "train"), read_split(source / "test")
    if len(train) < 2:
        folder = source / "train"
        raise DataError(f"{folder}: training and validation need at least one picture each")
    shuffled = sorted(train, key=lambda image: zlib.crc32(str(image).encode()))
    for_val = set(shuffled[: max(1, len(train) // 20)])
    splits = {
        "train": [group for image, group in train.items() if image not in for_val],
        "val": [group for image, group in train.items() if image in for_val],
        "test": list(test.values()),
    }
    groups = [*train.values(), *test.values()]
    return Folder(splits, {example.turns[0][1] for group in groups for example in group})
