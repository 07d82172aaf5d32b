"""Reading benchmark files into questions: VLMEvalKit's TSV (or CSV), and POPE's JSON lines.

Columns: index, question, answer, image (base64, several as a list, or the index of a row that has
it) or image_path, and where there are any hint, A to Z, category. A row without options beside
others that have some is an open question. POPE: an object a line with image, text, label.
"""

import ast
import base64
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge.folders import needed, one_line
from data import IMAGE_TOKEN, DataError, Example, normalise
from data.files import read_entries
from data.pictures import can_open, open_picture

PROMPTS = {
    "choice": "{hint}{question}\n{options}\n"
    "Answer with the option's letter from the given choices directly.",
    "yes/no": "{hint}{question}\nPlease answer yes or no.",
    "short": "{hint}{question}\nAnswer the question using a single word or phrase.",
}
POPE = {"question": "text", "answer": "label", "image_path": "image"}  # our column -> its name
MOST_NAMED = 10  # rows, each naming the one before, on the way to a picture
LONGEST_INDEX = 64  # characters; an image field that is longer holds a picture
SEPARATORS = {".tsv": "\t", ".csv": ","}


@dataclass
class Question:
    example: Example
    kind: str  # a key of PROMPTS
    answers: list[str]  # a letter; yes or no; what people answered
    options: dict[str, str]
    about: tuple  # equal for questions about the same picture


def read(file: Path, images: Path | None = None) -> list[Question]:
    """The questions of a TSV or JSON lines file. images: the folder of pictures that are named by
    a path (default: the file's). Raises DataError with the line of what cannot be read."""
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures (check --images)")
    separator = SEPARATORS.get(file.suffix.lower())
    with one_line(f"{file}: not readable", (OSError, ValueError)):
        rows = list(read_table(file, separator) if separator else read_pope(file))
    if not rows:
        raise DataError(f"{file}: holds no question")
    if empty := [where for where, row in rows if not "".join(as_list(row["answer"])).strip()]:
        raise DataError(f"{empty[0]}: its answer is empty; fill it in, or leave the row out")
    answers = {normalise(row["answer"]) for _, row in rows if not options_of(row)}
    kind = "yes/no" if answers <= {"yes", "no"} else "short"
    indices = [without_point(row["index"]) for _, row in rows]
    by_index = {index: row for index, (_, row) in zip(indices, rows)}
    by_index |= {index: {} for index, n in Counter(indices).items() if n > 1}
    ids = Counter(row.get("question_id") for _, row in rows)
    pair = "question_id" if set(ids.values()) == {2} else ""  # MME, where it has no image_path
    folder = images or file.parent
    questions = [question(where, row, kind, by_index, folder, pair) for where, row in rows]
    files = [image for q in questions for image in q.example.images if isinstance(image, Path)]
    if files and not any(map(can_open, files)):
        why = f"none of the pictures that it names can be opened, such as {files[0]}"
        raise DataError(f"{file}: {why} (check --images)")
    return questions


def read_table(file: Path, separator: str) -> Iterator[tuple[str, dict]]:
    """(where it stands, column -> text) of every row. A cell of "nan" is a gap, as pandas writes
    one that has become text."""
    table = needed("pandas", "pandas").read_csv(
        file, sep=separator, dtype=str, na_filter=False, index_col=False, encoding="utf-8-sig"
    )
    if missing := {"index", "question", "answer"} - set(table):
        raise DataError(
            f"{file}: no column {', '.join(sorted(missing))}; a table as VLMEvalKit has it was "
            "expected"
        )
    for row in table.replace(r"(?i)^\s*nan\s*$", "", regex=True).to_dict("records"):
        yield f"{file}: row {row['index']}", row


def read_pope(file: Path) -> Iterator[tuple[str, dict]]:
    """The same of a file of JSON lines."""
    expected = "expected an object with image, text and label, all of them texts"
    for place, entry in read_entries(file, "questions", POPE["answer"], "FILE").items():
        if isinstance(entry, DataError):
            raise entry
        known = entry if isinstance(entry, dict) else {}
        row = {column: known.get(name) for column, name in POPE.items()}
        if not all(isinstance(text, str) for text in row.values()):
            raise DataError(f"{file}: {place}: {expected}, got {str(entry)[:100]}")
        yield f"{file}: {place}", row | {"index": place}


def options_of(row: dict) -> dict[str, str]:
    """letter -> text"""
    texts = {letter: row.get(letter, "").strip() for letter in string.ascii_uppercase}
    return {letter: text for letter, text in texts.items() if text}


def question(
    where: str, row: dict, kind: str, by_index: dict[str, dict], folder: Path, pair: str
) -> Question:
    """One row. kind: of a row without options. pair: the column that is equal in rows about the
    same picture, if they have no image_path."""
    images, options = pictures_of(where, row, by_index, folder), options_of(row)
    answer, category = row["answer"].strip(), row.get("category", "").strip()
    kind = "choice" if options else kind
    if kind == "choice" and answer not in options:
        raise DataError(
            f"{where}: its answer {answer!r} is none of the options {', '.join(options)}"
        )
    message = IMAGE_TOKEN * len(images) + message_of(row, kind, options)
    answers = as_list(answer) if kind == "short" else [answer]
    about = category, row.get("image_path") or row.get(pair) or tuple(images)
    return Question(
        Example(images, [(message, answer)], category, where), kind, answers, options, about
    )


def pictures_of(where: str, row: dict, by_index: dict[str, dict], folder: Path) -> list:
    """A row's pictures, as bytes or as paths."""
    if row.get("image", "").strip():
        return inline(where, row["image"], by_index)
    if paths := as_list(row.get("image_path", "")):
        return [folder / path for path in paths]
    raise DataError(f"{where}: no picture")


def inline(where: str, field: str, by_index: dict[str, dict], names: tuple = ()) -> list[bytes]:
    """The pictures of an image field. names: the rows that named one another on the way to it."""
    pictures = []
    for text in as_list(field.strip()):
        name = without_point(text)
        if len(text) > LONGEST_INDEX or name not in by_index:
            pictures.append(decoded(where, text))
        elif (
            name in names
            or len(names) == MOST_NAMED
            or not (named := by_index[name].get("image", "").strip())
        ):
            why = "has no picture of its own, is there more than once, or stands behind "
            why += f"{MOST_NAMED} others"
            raise DataError(f"{where}: its image names row {name}, which {why}")
        else:
            pictures += inline(f"{where}, by way of row {name}", named, by_index, (*names, name))
    return pictures


def decoded(where: str, text: str) -> bytes:
    """The bytes of base64, broken into lines or not, or of a data URI. What is too short for most
    pictures must be one to be no row's index."""
    text = "".join(re.sub(r"^data:[^,]*,", "", text).split())
    try:
        picture = base64.b64decode(text, validate=True)
        if len(text) <= LONGEST_INDEX:
            open_picture(picture)
        return picture
    except (ValueError, DataError) as error:  # binascii.Error is the first
        if len(text) <= LONGEST_INDEX:
            raise DataError(f"{where}: its image names row {text}, which is not there") from None
        raise DataError(f"{where}: its image is not base64 ({error})") from None


def without_point(index: str) -> str:
    """A row's index as other rows name it: pandas writes 0.0 for 0 where a column has gaps."""
    return re.sub(r"\.0+$", "", index.strip())


def message_of(row: dict, kind: str, options: dict[str, str]) -> str:
    asked, hint, prompt = row["question"].strip(), row.get("hint", "").strip(), PROMPTS[kind]
    if kind == "yes/no" and "yes or no" in asked.lower():  # MME's questions say so themselves
        prompt = prompt.split("\n")[0]
    return prompt.format(
        hint=f"{hint}\n" if hint else "",
        question=asked.replace(IMAGE_TOKEN, " "),
        options="\n".join(f"{letter}. {text}" for letter, text in options.items()),
    )


def as_list(text: str) -> list[str]:
    """ "x" -> ["x"]; "['x', 'y']", or numpy's "['x' 'y']", or VQA's "[{'answer': 'x'}, ...]" ->
    ["x", "y"]; "" -> []."""
    if text.startswith("["):
        try:
            listed = ast.literal_eval(re.sub(r"(?<=[^\s,\[]['\"}])\s+(?=['\"{])", ", ", text))
            return [str(x["answer"] if isinstance(x, dict) else x) for x in listed]
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            pass
    return [text] if text else []
