"""How a command of this folder ends when it is stopped while it loads, or when nobody reads it.

Imported before torch, which takes seconds to load, by what is run from the command line; a program
of your own that imports a module from here is left as it is. Without it these end in a traceback:
Ctrl-C before `engine.run.one_line_errors` is reached, `| head`, a character that the terminal's
encoding cannot show, bytes on standard input that are not of its encoding.
"""

import atexit
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def is_command(started: str) -> bool:
    """Does sys.argv[0] say that a file of the folder itself, or of data/, was started? It is "-m"
    while `python -m lab.NAME` looks for its module."""
    file = Path(started).resolve()
    return started == "-m" or file.is_file() and file.parent in (ROOT, ROOT / "data")


def reader_is_gone(text: str = "") -> bool:
    """Write text and what waits to be written; if nobody reads standard output any more, drop it
    instead and return True."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
        return False
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


def say_less(kind, error, trace) -> None:
    """A sys.excepthook. Of the pipes that break, only standard output does so in silence; where
    that is not buffered, nothing waits in it, and a line of text tells."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    elif not (issubclass(kind, BrokenPipeError) and reader_is_gone("\n")):
        sys.__excepthook__(kind, error, trace)


if is_command(sys.argv[0]):
    sys.excepthook = say_less
    atexit.register(reader_is_gone)
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if stream is not None:  # data.Tokenizer says which text cannot be read
            stream.reconfigure(errors=errors)
