"""easy-VQA (Victor Zhou, MIT licence; github.com/vzhou842/easy-VQA) from its own layout:

    SOURCE/{train,test}/images/ID.png    SOURCE/{train,test}/questions.json = [[question, answer, image id], ...]

or the folder that holds this layout as `data/`, as in a clone. A twentieth of the training pictures is kept for validation.
"""

import zlib
from pathlib import Path

from data import IMAGE, DataError, Example, Folder, read_json

FAMILY = {
    **dict.fromkeys(("yes", "no"), "yes/no"),
    **dict.fromkeys(("circle", "rectangle", "triangle"), "shape"),
}  # else: color


def read_split(folder: Path) -> dict[int, list[Example]]:
    """image id -> its questions, each checked."""
    file = folder / "questions.json"
    entries, by_image = read_json(file), {}
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{file}: expected a list of [question, answer, image id]")
    have = {path.name for path in (folder / "images").glob("*")}
    for i, entry in enumerate(entries):
        where = f"{file}: entry {i}"
        if not (
            isinstance(entry, list)
            and len(entry) == 3
            and all(isinstance(text, str) for text in entry[:2])
        ):
            raise DataError(
                f"{where}: expected [question, answer, image id], got {str(entry)[:100]}"
            )
        question, answer, image = entry
        if f"{image}.png" not in have:
            raise DataError(f"{where}: no such picture {folder / 'images' / f'{image}.png'}")
        by_image.setdefault(image, []).append(
            Example(
                [folder / "images" / f"{image}.png"],
                [(IMAGE + question, answer)],
                FAMILY.get(answer, "color"),
                where,
            )
        )
    return by_image


def load(source: Path) -> Folder:
    source = source / "data" if (source / "data" / "train").is_dir() else source
    train, test = read_split(source / "train"), read_split(source / "test")
    if len(train) < 2:
        raise DataError(
            f"{source / 'train'}: training and validation need at least one picture each"
        )
    held = set(
        sorted(train, key=lambda image: zlib.crc32(str(image).encode()))[: max(1, len(train) // 20)]
    )
    answers = {
        example.turns[0][1]
        for groups in (train, test)
        for group in groups.values()
        for example in group
    }
    return Folder(
        {
            "train": [g for image, g in train.items() if image not in held],
            "val": [g for image, g in train.items() if image in held],
            "test": list(test.values()),
        },
        answers,
    )
