"""What lets a run stop anywhere and go on as if nothing had happened: whole files and whole states.

    python train.py ... --resume      goes on with the run in --out that the same command began

A checkpoint holds everything that the rest of a run depends on: stage, step, parameters, both
optimizers, random generators, the settings, a fingerprint of the data, and the lines of
metrics.jsonl. The data order needs no state: the batch of a step is a function of (stage, step,
seed).
"""

import hashlib
import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path

import torch

import data
from data import DataError, reason

NAME = "checkpoint.pt"
# What a checkpoint holds beside the weights and what the optimizers keep
STATE = {"settings", "data", "stage", "step", "seconds", "progress", "scaler", "rng", "cuda_rng"}
# Options that do not make a run another run
NON_IDENTITY_ARGS = (
    "out", "overwrite", "resume", "workers", "device", "limit", "save_every", "checkpointing",
    "compile", "accumulate", "source", "images", "pt_source", "pt_images", "origin",
)  # fmt: skip


def write_file(path: Path, save) -> None:
    """Write a file whole or not at all: save(file), or a text, under a temporary name, flushed to
    the disk, then renamed over the old one. DataError where the disk does not take it."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(save.encode()) if isinstance(save, str) else save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # not torch.save's word for a full disk
        why = getattr(error, "strerror", None) or reason(error)
        kept = f"; {path.name} is still the one from before" if path.exists() else ""
        raise DataError(
            f"{path} could not be written: {why}{kept}. Free some space, then go on with --resume"
        ) from None


def save_model(file, model, weights: dict | None = None) -> None:
    """weights: all of the model's, where it holds a part of them (default: its own)."""
    weights = model.state_dict() if weights is None else weights
    torch.save({"config": asdict(model.config), "weights": weights}, file)


def load_model(file, model_class, device="cpu"):
    """The model that save_model wrote, of the class that it had."""
    saved = torch.load(file, map_location=device, weights_only=True)
    model = model_class(model_class.config_class(**saved["config"]))
    model.load_state_dict(saved["weights"])
    return model.to(device).eval()


def settings(args) -> dict:
    """What makes a run the run it is, as it stands in run.json."""
    known = {name: value for name, value in vars(args).items() if name not in NON_IDENTITY_ARGS}
    return {name: str(x) if isinstance(x, Path) else x for name, x in known.items()}


def differences(now: dict, then: dict) -> str:
    """What to say of settings that are not what they were, "" of none."""
    return "; ".join(
        f"--{name.replace('_', '-')} is {now.get(name)!r} and was {then.get(name)!r}"
        for name in sorted({*now, *then})
        if now.get(name) != then.get(name)
    )


def fingerprint(source, tokenizer: data.Tokenizer, first_rows: list[data.Row]) -> str:
    """Of the data: all texts, which pictures they are about, the tokenizer; and of a world that
    makes its examples the first rows of each stage, to the last pixel. Where the data lie does not
    matter, nor what the pictures' files hold: one that could not be read may be repaired."""
    digest = hashlib.sha256(tokenizer.model)
    splits = getattr(source, "whole", None) or getattr(source, "splits", {})
    for split, groups in splits.items():
        examples = [example for group in groups for example in group]
        files = [str(getattr(image, "path", image)) for e in examples for image in e.images]
        folder = os.path.commonpath(map(os.path.dirname, files)) if files else ""
        names = iter(file[len(folder) :] for file in files)
        for example in examples:
            shown = [next(names) for _ in example.images]
            digest.update(repr((split, example.turns, shown)).encode())
    for row in first_rows:
        made = [image for image in row.images if isinstance(image, torch.Tensor)]
        if made or not splits:
            digest.update(repr((row.ids, row.role, row.turn)).encode())
        for image in made:
            digest.update(image.numpy().tobytes())
    return digest.hexdigest()


def save(out: Path, **state) -> None:
    """Write the state of a run after a step, with that of the random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    state |= {"rng": torch.get_rng_state(), "cuda_rng": cuda}
    write_file(out / NAME, lambda file: torch.save(state, file))


def load(out: Path, device: str, args, data_fingerprint: str) -> dict | None:
    """The state that `save` wrote, or None if the run was stopped before its first. DataError for
    what is not the same run."""
    try:
        # Of a sharded model every process reads all of it: mapped, it is in the memory once
        options = dict(map_location=device, mmap=args.fsdp)
        state = torch.load(out / NAME, **options, weights_only=True)
        if missing := STATE - set(state):
            raise ValueError(f"it has no {min(missing)}: another version of mma wrote it, or none")
    except FileNotFoundError:
        return None
    except Exception as error:  # torch.load raises many kinds; each means the same to the user
        why = f"{reason(error)}; start again with --overwrite"
        raise DataError(f"{out / NAME} cannot be read as a checkpoint: {why}") from None
    differs = differences(settings(args), state["settings"])
    if not differs and state["data"] != data_fingerprint:
        differs = (
            "the data are not those it was trained on (its texts, its pictures or their order "
        )
        differs += "changed)"
    if differs:
        advice = "Give the options it began with, or another --out"
        raise DataError(f"the run in {out} cannot go on: {differs}. {advice}")
    torch.set_rng_state(state["rng"].cpu())
    if torch.cuda.is_available():
        states = state["cuda_rng"][: torch.cuda.device_count()]  # this machine may have fewer
        torch.cuda.set_rng_state_all([s.cpu() for s in states])
    return state


# Ctrl-C, a cluster, a terminal that is closed; nohup has the last one ignored
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequest:
    """A signal of STOPS finishes the step first: `requested` turns true. A second Ctrl-C stops at
    once, but not with `patient`, for torchrun passes on to its processes a Ctrl-C that the terminal
    has sent them already."""

    def __init__(self, patient: bool = False):
        self.patient, self.requested, self.before = patient, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                    self.before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number, frame):
        self.requested = True
        if not self.patient:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For the loader's workers: Ctrl-C, or a cluster's SIGTERM, reaches them too, but it is the
    main process that decides."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
