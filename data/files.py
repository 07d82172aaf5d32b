"""The user's files: the entries of a JSON file, and which pictures' files are copies of each other,
whatever their names."""

import hashlib
import json
from pathlib import Path

from data.errors import DataError


def read_entries(file: Path, form: str, field: str = "", option: str = "--source") -> dict:
    """The entries of a file of JSON, or of JSON Lines: "entry 3" or "line 4" -> what stands there,
    or the DataError that says why the line cannot be read. form: what an entry is, for errors;
    field: one that each has, so that a line alone is known; option: the one that named the file.
    Raises DataError if the file cannot be read or has no entry."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if lines := json_lines(text):
            return {f"line {k}": read_line(line, f"{file}: line {k}") for k, line in lines}
        entries = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file (check {option})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error})") from None
    if isinstance(entries, dict) and field in entries:
        return {"line 1": entries}
    if not isinstance(entries, list) or not entries:
        found = "none" if entries == [] else "something else"
        raise DataError(f"{file}: expected a list of {form}, found {found}")
    return {f"entry {i}": entry for i, entry in enumerate(entries)}


def json_lines(text: str) -> list[tuple[int, str]]:
    """The lines of JSON Lines that are not blank, each with its number; none if the text is of
    another form. Half of them look like whole objects: some may be damaged."""
    if text.lstrip().startswith("["):
        return []
    rows = [(k, row) for k, row in enumerate(text.split("\n"), 1) if row.strip()]
    n_objects = sum(row.strip()[0] + row.strip()[-1] == "{}" for _, row in rows)
    return rows if len(rows) > 1 and 2 * n_objects >= len(rows) else []


def read_line(line: str, where: str):
    """What a line of JSON Lines holds, or the DataError that says why it cannot be read."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        why = str(error).replace("line 1 ", "")  # Python has seen this line alone
        return DataError(f"{where}: not readable as JSON ({why})")


def same_pictures(paths) -> tuple[dict[Path, Path], int]:
    """The file that each path stands for: links are resolved, and of several files with the same
    bytes all stand for the first; and how many files are such copies."""
    real = {path: path.resolve() for path in dict.fromkeys(paths)}
    alike = [list(dict.fromkeys(real.values()))]
    # Each takes longer than the one before it, and is asked of fewer files
    for content in (lambda file: file.stat().st_size, lambda file: hash_of(file, 4096), hash_of):
        alike = [group for files in alike for group in grouped(files, content)]
    first = {file: files[0] for files in alike for file in files}
    n_copies = sum(len(files) - 1 for files in alike)
    return {path: first.get(file, file) for path, file in real.items()}, n_copies


def grouped(files: list[Path], content) -> list[list[Path]]:
    """The files, those together for which content(file) is equal, without those that are alone.
    What is empty, or cannot be read, is alone."""
    groups = {}
    for file in files:
        try:
            groups.setdefault(content(file) or file, []).append(file)
        except OSError:
            continue
    return [group for group in groups.values() if len(group) > 1]


def hash_of(file: Path, n_bytes: int = -1) -> bytes:
    """Of the file's first bytes, or of all."""
    with open(file, "rb") as opened:
        return hashlib.sha256(opened.read(n_bytes)).digest()
