"""Which pictures' files are copies of each other, whatever their names."""

import hashlib
from pathlib import Path


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
