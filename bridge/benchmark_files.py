"""Reading benchmark files into questions: VLMEvalKit's TSV, and POPE's JSON lines.

TSV columns: index, question, answer, image (base64, several as a list, or the index of a row that
has it) or image_path, and where there are any hint, A to Z, category. POPE: an object a line with
image, text, label.
"""

import ast
import base64
import csv
import json
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data import IMAGE_TOKEN, DataError, Example
from eval import normalise

PROMPTS = {
    "choice": "{hint}{question}\n{options}\n"
    "Answer with the option's letter from the given choices directly.",
    "yes/no": "{hint}{question}\nPlease answer yes or no.",
    "short": "{hint}{question}\nAnswer the question using a single word or phrase.",
}
POPE = {"question": "text", "answer": "label", "image_path": "image"}  # our column -> its name
LONGEST_INDEX = 64  # characters; an image field that is longer holds a picture


@dataclass
class Question:
    example: Example
    kind: str  # a key of PROMPTS
    answers: list[str]  # a letter; yes or no; what people answered
    options: dict[str, str]
    picture: object  # the same for questions about the same picture


def read(file: Path, images: Path | None = None) -> list[Question]:
    """The questions of a TSV or JSON lines file. images: the folder of pictures that are named by
    a path (default: the file's). Raises DataError with the line of what cannot be read."""
    rows = list(read_tsv(file) if file.suffix == ".tsv" else read_pope(file))
    if not rows:
        raise DataError(f"{file}: holds no question")
    if empty := [where for where, row in rows if not row["answer"].strip()]:
        raise DataError(f"{empty[0]}: its answer is empty; fill it in, or leave the row out")
    answers = {normalise(row["answer"]) for _, row in rows}
    kind = "yes/no" if answers <= {"yes", "no"} else "short"
    if any(row.get("A") for _, row in rows):
        kind = "choice"
    long = [row for _, row in rows if len(row.get("image", "")) > LONGEST_INDEX]
    inline = {row["index"]: row["image"] for row in long}
    return [question(where, row, kind, inline, images or file.parent) for where, row in rows]


def read_tsv(file: Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, column -> text) of every row."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t")
            missing = {"index", "question", "answer"} - set(rows.fieldnames or ())
            if missing:
                raise DataError(
                    f"{file}: no column {', '.join(sorted(missing))}; a TSV as VLMEvalKit has it "
                    "was expected"
                )
            for row in rows:
                where = f"{file}: row {row['index']}"
                yield where, {name: value or "" for name, value in row.items() if name}
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not readable as TSV ({error})") from None


def read_pope(file: Path) -> Iterator[tuple[str, dict]]:
    """The same of a file of JSON lines."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028, as splitlines
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not readable ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            entry = json.loads(line)
            row = {column: entry[name] for column, name in POPE.items()}
            right = all(isinstance(text, str) for text in row.values())
        except (ValueError, KeyError, TypeError, RecursionError):
            right = False
        if not right:
            raise DataError(
                f"{where}: expected an object with image, text and label, all of them texts, got "
                f"{line[:100]}"
            )
        yield where, row | {"index": str(number)}


def question(where: str, row: dict, kind: str, inline: dict[str, str], folder: Path) -> Question:
    """One row. inline: index of a row -> its picture, which other rows may name."""
    images, picture = pictures_of(where, row, inline, folder)
    answer, options = row["answer"].strip(), {}
    if kind == "choice":
        letters = [letter for letter in string.ascii_uppercase if row.get(letter, "").strip()]
        options = {letter: row[letter].strip() for letter in letters}
        if answer not in options:
            raise DataError(
                f"{where}: its answer {answer!r} is none of the options {', '.join(options)}"
            )
    message = IMAGE_TOKEN * len(images) + message_of(row, kind, options)
    category = row.get("category", "").strip() or "all"
    example = Example(images, [(message, answer)], category, where)
    answers = as_list(answer) if kind == "short" else [answer]
    return Question(example, kind, answers, options, picture)


def pictures_of(where: str, row: dict, inline: dict[str, str], folder: Path) -> tuple[list, tuple]:
    """A row's pictures, as bytes or as paths; and what is equal for equal pictures."""
    field = row.get("image") or ""
    if len(field) <= LONGEST_INDEX:  # the index of a row stands for its picture
        field = inline.get(field, field)
    texts = as_list(field or row.get("image_path") or "")
    if not texts:
        raise DataError(f"{where}: no picture")
    if not field:
        return [folder / text for text in texts], tuple(texts)
    try:
        return [base64.b64decode(text, validate=True) for text in texts], tuple(texts)
    except ValueError as error:  # binascii.Error is one
        raise DataError(f"{where}: its image is not base64 ({error})") from None


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
    """ "x" -> ["x"]; "['x', 'y']" -> ["x", "y"]; "" -> []."""
    if text.startswith("["):
        try:
            return [str(x) for x in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return [text] if text else []
