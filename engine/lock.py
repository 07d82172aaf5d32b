"""One training at a time in a folder: a lock file that names the process, held by the system.

The system releases it when the process ends, however it ends. What is still written in it then says
that the run was killed.
"""

import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path

from data import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


def take(file) -> bool:
    """Lock an open file, if nobody else has it."""
    try:
        if fcntl:
            # Not flock: a loader's worker would hold that on after its parent was killed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(1_000_000)  # beyond what others may want to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
    except OSError:
        return False
    return True


def is_at(file, path: Path) -> bool:
    """Is the open file still the one of this name? On Windows it always is."""
    try:
        return not fcntl or os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def holder(text: str) -> str:
    """Who wrote the lock file."""
    try:
        record = json.loads(text)
        return f"process {record['process']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def hold(out: Path):
    """The lock file, locked, and what a killed process left in it. Raises DataError as run_lock.

    Between opening and locking it another run may end and delete it. A deleted file keeps nobody
    out, so a new one is opened then."""
    path = out / "lock"
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        except OSError as error:
            raise DataError(f"--out {out} cannot be written: {error.strerror}") from None
        held = take(file)
        file.seek(0)
        written = file.read()
        if held and is_at(file, path):
            return file, written
        file.close()
        if not held:
            why = f"{holder(written)} is training in {out}"
            raise DataError(f"{why}; wait for it, or choose another --out")


@contextmanager
def run_lock(out: Path, say=print):
    """Hold the folder `out`; of several processes of one run the first one does. Raises DataError
    if another training has it, or if it cannot be made or written."""
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    file, written = hold(out)
    with file:
        if written:
            say(f"{holder(written)} held {out} and is gone without an end")
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # an empty file says that nobody holds it; Windows cannot delete it
            if fcntl and is_at(file, out / "lock"):
                os.unlink(out / "lock")
