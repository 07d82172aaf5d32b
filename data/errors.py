"""What is wrong with the user's data, and how much of it was left out."""

import importlib.util
import re


class DataError(Exception):
    """Something in the user's data is wrong; the message says what, where and what to do.
    kind: a word or two under which errors of one sort are counted."""

    def __init__(self, message: str, kind: str = "malformed"):
        super().__init__(message)
        self.kind = kind


def reason(error: Exception) -> str:
    """The first line of what an error says, or of which kind it is, if it says nothing; without an
    object's address, as in <_io.BytesIO object at 0x7f3a5c>."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"<[^<>]*\bat 0x[0-9a-fA-F]+>", "it", said)


def need(package: str, what: str) -> None:
    """DataError if a package that only `what` asks for is not installed."""
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{what} need {package}: pip install {package}")


class SkippedEntries:
    """The entries of a data set that cannot be used: counted and reported by kind, or, if strict,
    an error at the first."""

    def __init__(self, strict: bool = True):
        self.strict = strict
        self.by_kind: dict[str, list[str]] = {}  # kind of error -> messages
        self.held_out = 0  # captions not used: val or test show their pictures; nothing is wrong
        self.copies: str | None = None  # what is said of copies of pictures; None: not looked for

    def add(self, error: DataError) -> None:
        if self.strict:
            raise error
        self.by_kind.setdefault(error.kind, []).append(str(error))

    def count(self) -> int:
        return sum(map(len, self.by_kind.values()))

    def report(self, n_entries: int, brief: bool = False) -> str:
        """What was left out of n_entries, with the first three of each kind; empty if nothing.
        brief: one line, for those who have been told."""
        n = self.held_out
        unused = [f"{n:,} captions of held-out pictures are not used"] if n else []
        unused += [self.copies] if self.copies else []
        if not self.by_kind:
            return "\n".join(unused)
        head = f"{self.count():,} of {n_entries:,} entries are damaged and left out"
        by_number = sorted(self.by_kind.items(), key=lambda item: -len(item[1]))
        if brief:
            kinds = ", ".join(f"{len(messages):,} {kind}" for kind, messages in by_number)
            return "; ".join([f"{head} ({kinds})", *unused])
        lines = [f"{head} (train.py --strict makes them an error):"]
        for kind, messages in by_number:
            lines.append(f"  {len(messages):,} {kind}, such as")
            lines += [f"    {message}" for message in messages[:3]]
        return "\n".join([*lines, *unused])
