"""What is wrong with the user's data, and how much of it was left out."""


class DataError(Exception):
    """Something in the user's data is wrong; the message says what, where and what to do.
    kind: for counting."""

    def __init__(self, message: str, kind: str = "malformed"):
        super().__init__(message)
        self.kind = kind


class SkippedEntries:
    """The entries of a data set that cannot be used: counted and reported by kind, or, if strict,
    an error at the first."""

    def __init__(self, strict: bool = True):
        self.strict, self.kinds = strict, {}

    def add(self, error: DataError) -> None:
        if self.strict:
            raise error
        self.kinds.setdefault(error.kind, []).append(str(error))

    def count(self) -> int:
        return sum(map(len, self.kinds.values()))

    def report(self, of: int) -> str:
        """What was left out of how many, with the first three of each kind; empty if nothing."""
        if not self.kinds:
            return ""
        lines = [
            f"{self.count():,} of {of:,} entries are damaged and left out "
            "(--strict makes them an error):"
        ]
        for kind, errors in sorted(self.kinds.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(errors):,} {kind}, such as")
            lines += [f"    {error}" for error in errors[:3]]
        return "\n".join(lines)
