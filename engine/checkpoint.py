"""What lets a run be stopped anywhere and go on as if nothing had happened: whole files, the whole state, and Ctrl-C.

    python train.py ... --resume      goes on where the run in --out was stopped; the same command without --resume began it

A checkpoint holds everything that the rest of a run depends on: stage, step, parameters, both optimizers, random generators, the
settings, a fingerprint of the data, and how far metrics.jsonl had been written. The data order needs no state: the batch of a step
is a function of (stage, step, seed).
"""

import errno
import hashlib
import json
import os
import signal
import threading
from pathlib import Path

import torch

import data

NAME = "checkpoint.pt"
WHERE = (
    "out",
    "overwrite",
    "resume",
    "workers",
    "device",
    "limit",
    "save_every",
    "checkpointing",
    "compile",
    "source",
    "images",
    "pt_source",
    "pt_images",
)  # not what a run is


def write(path: Path, save) -> None:
    """Write a file whole or not at all: save(file) under a temporary name, flushed to the disk, then renamed over the old one."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        part.unlink(missing_ok=True)
        why = (
            error.strerror
            if isinstance(error, OSError) and error.errno != errno.EINVAL
            else str(error).splitlines()[0]
        )
        kept = f"; {path.name} is still the one from before" if path.exists() else ""
        raise data.DataError(
            f"{path} could not be written: {why}{kept}. Free some space, then go on with --resume"
        ) from None


def settings(args) -> dict:
    """What makes a run the run it is, as it stands in run.json."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in WHERE
    }


def fingerprint(source, tokenizer: data.Tokenizer, batches: list) -> str:
    """Of the data: all texts, the names and sizes of all picture files, the tokenizer, and the first batch of each stage to the
    last pixel. Where the data lie does not matter."""
    digest = hashlib.sha256(tokenizer.model)
    for split, groups in (source.splits if isinstance(source, data.Folder) else {}).items():
        for example in (example for group in groups for example in group):
            files = [getattr(image, "path", image) for image in example.images]
            digest.update(
                repr(
                    (split, example.turns, [(file.name, file.stat().st_size) for file in files])
                ).encode()
            )
    for batch in batches:
        for name in sorted(batch):
            digest.update(
                f"{name}{list(batch[name].shape)}".encode() + batch[name].numpy().tobytes()
            )
    return digest.hexdigest()


def save(out: Path, metrics, **state) -> None:
    """The state of a run after a step. metrics: the open metrics.jsonl; its lines up to here belong to the checkpoint."""
    os.fsync(metrics.fileno())
    state |= {
        "metrics": metrics.tell(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    write(out / NAME, lambda file: torch.save(state, file))


def reopen(file: Path, length: int):
    """metrics.jsonl, cut back to where the checkpoint was: what came after it will be written again."""
    try:
        metrics = open(file, "r+b", buffering=0)
    except OSError as error:
        raise data.DataError(
            f"{file} belongs to the checkpoint and cannot be opened: {error.strerror}"
        ) from None
    if metrics.seek(0, os.SEEK_END) < length:
        raise data.DataError(
            f"{file} is shorter than when the checkpoint was written; put it back, or start again with --overwrite"
        )
    metrics.truncate(length)
    metrics.seek(length)
    return metrics


def load(out: Path, device: str, args, data_fingerprint: str) -> dict | None:
    """The state that `save` wrote, or None if the run was stopped before its first. Refuses what is not the same run."""
    try:
        state = torch.load(out / NAME, map_location=device, weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises many kinds; each means the same to the user
        raise data.DataError(
            f"{out / NAME} cannot be read as a checkpoint: {str(error).splitlines()[0]}"
        ) from None
    now, then = settings(args), json.loads(state["settings"])
    differs = [
        f"--{name.replace('_', '-')} is {now.get(name)!r} and was {then.get(name)!r}"
        for name in sorted({*now, *then})
        if now.get(name) != then.get(name)
    ]
    if not differs and state["data"] != data_fingerprint:
        differs = [
            "the data are not those it was trained on (its texts, its pictures or their order changed)"
        ]
    if differs:
        raise data.DataError(
            f"the run in {out} cannot go on: "
            + "; ".join(differs)
            + ". Give the options it began with, or another --out"
        )
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
    return state


class Stop:
    """Ctrl-C and SIGTERM finish the step first: `asked` turns true. A second Ctrl-C stops at once, but not under torchrun, which
    passes on to its processes a Ctrl-C that the terminal has sent them already."""

    def __init__(self, patient: bool = False):
        self.patient = patient

    def __enter__(self):
        self.asked, self.before = False, {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self._ask)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def _ask(self, number, frame):
        self.asked = True
        if not self.patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_interrupt(worker: int) -> None:
    """For the loader's workers: Ctrl-C, or a cluster's SIGTERM, reaches them too, but it is the main process that decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
