"""One training at a time in a folder: a lock file that names the process, held by the system, which
releases it when the process ends, however it ends."""

import os
import socket
from contextlib import contextmanager, suppress
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
    except OSError:
        return False
    return True


@contextmanager
def run_lock(out: Path):
    """Hold the folder `out`; of several processes of one run the first one does. Raises DataError
    if another training has it, or if it cannot be made or written. Folders that were made for a
    training that left nothing in them are taken away again."""
    if int(os.environ.get("RANK", 0)) > 0:
        yield
        return
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / "lock", "a+", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror}") from None
    held = take(file)
    file.seek(0)
    if not held:
        holder = file.read() or "another process"
        raise DataError(f"{holder} is training in {out}; wait for it, or choose another --out")
    is_there = lambda: os.fstat(file.fileno()).st_nlink > 0
    if not is_there():  # it was deleted between opening and locking
        raise DataError(f"a training in {out} has ended just now; start this one again")
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        if fcntl and is_there():  # not deleted by hand, nor made anew
            (out / "lock").unlink()
        file.close()
        with suppress(OSError):  # those that are not empty stay
            if not fcntl:  # Windows deletes no open file
                (out / "lock").unlink()
            for folder in made:
                folder.rmdir()
