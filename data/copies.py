"""Which pictures' files are copies of each other, whatever their names."""

import hashlib
from pathlib import Path


def same_pictures(paths) -> tuple[dict[Path, Path], int]:
    """The file that each path stands for: links are resolved, and of several files with the same
    bytes all stand for the first; and how many files are such copies."""
    real = {path: path.resolve() for path in dict.fromkeys(paths)}
    alike = [list(dict.fromkeys(real.values()))]
    for content in (size_of, head_of, hash_of):  # each takes longer, and is asked of fewer files
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


def size_of(file: Path) -> int:
    return file.stat().st_size


def head_of(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4096)


def hash_of(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
