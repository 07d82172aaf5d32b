"""What is wrong with the user's data."""

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
