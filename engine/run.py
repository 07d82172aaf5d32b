"""The folder of a run: what is written into it while it trains, and how it goes on.

    tokenizer.model       from the beginning
    metrics.jsonl         a line every 10 steps; locked while the run trains
    checkpoint.pt         while it is not finished
    model.pt, run.json    when it is finished

Also the small things that commands around a run share: one-line errors, checks of folders.
"""

import errno
import json
import os
import sys
import time
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from data import DataError, reason
from engine import checkpoint, code
from engine.distributed import Distributed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

METRICS = "metrics.jsonl"
TIMED = 50  # steps of stage 1, after which a run says how long it will take
# Not all data have captions for stage 1
STAGE_NAMES = {"pt": "stage 1", "sft": "stage 2 (questions)"}


class Run:
    """The folder of one training: train.py calls these one after the other."""

    def __init__(self, args, processes: Distributed, tokenizer, fingerprint: str, watch=None):
        self.args, self.processes, self.out, self.watch = args, processes, args.out, watch
        self.fingerprint, self.state = fingerprint, None
        self.began, now = time.perf_counter(), code.fingerprint(args)
        # What a checkpoint keeps of the run so far. lines: of metrics.jsonl; clock: the seconds at
        # each validation; unread: picture and why -> rows it was left out of; kept: with
        # --keep-best, of the best validation its step, value and weights; code: which made it
        self.progress = {"lines": [], "clock": [], "unread": {}, "kept": {}, "code": now}
        self.metrics = hold(self.out)
        if args.resume:
            device = "cpu" if processes.sharded else processes.device
            self.state = checkpoint.load(self.out, device, args, fingerprint)
            self._say_where_it_goes_on(now)
        processes.barrier()  # all have read the folder: now the first process writes
        if processes.is_main:
            self._prepare_folder(tokenizer)

    def _say_where_it_goes_on(self, code_now: dict[str, str]) -> None:
        if not self.state:
            self.processes.say(f"no checkpoint in {self.out}: from the start")
            return
        self.progress, self.began = self.state["progress"], self.began - self.state["seconds"]
        self.processes.say("going on after step {step} of stage {stage}".format(**self.state))
        begun_by = self.progress["code"]
        if changed := {part for part in code_now if code_now[part] not in begun_by.get(part, "")}:
            self.processes.say("the code has changed since: run.json will name both versions")
            begun_by |= {part: f"{begun_by.get(part, '')}+{code_now[part]}" for part in changed}

    def _prepare_folder(self, tokenizer) -> None:
        if not self.args.resume:  # --overwrite: until it has finished, there is no run
            for name in ("run.json", "model.pt", checkpoint.NAME, "tokenizer.json"):
                (self.out / name).unlink(missing_ok=True)
        checkpoint.write_file(self.out / "tokenizer.model", lambda f: f.write(tokenizer.model))
        if hasattr(tokenizer, "extras"):  # a tokenizer that came with pretrained weights
            checkpoint.write_file(self.out / "tokenizer.json", json.dumps(tokenizer.extras()))
        if os.fstat(self.metrics.fileno()).st_size:
            self.metrics.truncate(0)
        self.metrics.writelines(self.progress["lines"])  # what a stop left behind is written anew

    def to_do(self) -> list[str]:
        """The stages that were not finished before a stop."""
        return ["sft"] if self.state and self.state["stage"] == "sft" else ["pt", "sft"]

    def begin(self, stage: str, model, optimizers: list, scaler) -> int:
        """Restore what the checkpoint holds of a stage; returns how many of its steps are done."""
        self.stage, self.unchecked, self.newly_unread, self.shown = stage, [], [], {}
        if self.state is None or self.state["stage"] != stage:
            return 0
        self.processes.restore(self.state, model, optimizers)
        scaler.load_state_dict(self.state["scaler"])
        first_step, self.state = self.state["step"], None
        return first_step

    def bar(self, first_step: int, steps: int) -> tqdm:
        """The numbers of the steps, from 0, under a progress bar."""
        to_do, hidden = range(first_step, steps), not self.processes.is_main
        self.shown_bar = tqdm(to_do, STAGE_NAMES[self.stage], steps, initial=first_step,
                              mininterval=1, disable=hidden)  # fmt: skip
        return self.shown_bar

    def on_device(self, batches) -> list[dict]:
        """What the loader gave, on the device; a DataError that a worker met is raised here."""
        if isinstance(batches, DataError):
            raise batches
        self.newly_unread += batches[0].pop("unread", [])
        device = self.processes.device
        return [{k: x.to(device, non_blocking=True) for k, x in b.items()} for b in batches]

    # --- What a step leaves

    def note(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Keep a step's loss and gradient norm, on the device, for the next check."""
        self.unchecked.append((loss, norm))

    def check(self, step: int, scaler, steps) -> None:
        """Stop if one of the steps since the last call had a loss or gradient that is not a number,
        and count the rows that were left out. steps: the StepBatches. Not after every step, because
        it makes a GPU wait; always before a checkpoint is written."""
        sums = torch.stack([loss + norm for loss, norm in self.unchecked])
        bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
        there = (file := self.out / checkpoint.NAME).exists()
        saved = f"{file} is from before and good" if there else "no checkpoint was written yet"
        if bad:
            loss, norm = map(float, self.unchecked[bad[0]])
            first = step - len(self.unchecked) + bad[0]  # counted from 0, as batches are
            rows = [e.id or f"row {i}" for i, e in enumerate(steps.examples(first))]
            rows = ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
            raise DataError(
                f"loss {loss}, gradient norm {norm} at step {first + 1} of stage {self.stage}: "
                f"{saved}. Its rows: {rows}. A lower --lr may help"
            )
        if scaler.is_enabled() and scaler.get_scale() < 1:  # it begins at 2**16, halved each time
            raise DataError(
                f"float16: up to step {step} of stage {self.stage} the gradients of many steps in "
                f"a row were not finite, and these steps were left out: {saved}. Go on with "
                "--precision bfloat16 or float32"
            )
        self.unchecked.clear()
        self._count_unread()

    def _count_unread(self) -> None:
        """Count the rows that were left out since the last call, in all processes, and name each
        picture that could not be read once."""
        unread = self.progress["unread"]
        for why in chain(*self.processes.gather(self.newly_unread)):
            if why not in unread:
                self.processes.say(f"left out of training: {why}")
            unread[why] = unread.get(why, 0) + 1
        self.newly_unread = []

    def write(self, step: int, loss: float, model, val: dict | None, draw: bool) -> None:
        """A line of metrics.jsonl; val: what validation of the model gave. draw: the curves."""
        line = {"stage": self.stage, "step": step, "loss": loss}
        if val:
            line["val"] = val
            self.shown = {"val": f"{val['accuracy']:.1%}"}
            if "loss" in val:
                self.shown["val loss"] = f"{val['loss']:.3f}"
            if unasked := val.get("not_asked"):
                self.shown["not asked yet"] = ", ".join(unasked)
            self.progress["clock"].append([step, self.seconds(2)])
            self._keep_best(step, val, model)
        if self.stage == "pt" and step == TIMED:
            self._say_time()
        self.shown_bar.set_postfix({"loss": f"{loss:.3f}", **self.shown})
        if not self.processes.is_main:
            return
        self.progress["lines"].append(json.dumps(line) + "\n")
        self.metrics.write(self.progress["lines"][-1])
        if draw and self.watch:
            lines = list(map(json.loads, self.progress["lines"]))
            self.watch.write_curves(self.out / "curves.png", lines)

    def _say_time(self) -> None:
        """About how long both stages will take, by the first steps of stage 1."""
        each, steps = self.seconds() / TIMED, self.args.pt_steps
        first, both = (tqdm.format_interval(each * n) for n in (steps, steps + self.args.steps))
        self.processes.say(f"At this speed: stage 1 {first}, both stages {both}, plus validation")

    def _keep_best(self, step: int, val: dict, model) -> None:
        """Keep the weights of a validation that is better than all before it. They are written with
        the next checkpoint: a crash takes the run back to the last one, and them with it."""
        by, sign = self.args.keep_best, -1 if self.args.keep_best == "loss" else 1
        kept = self.progress["kept"]
        if by in val and (not kept or sign * val[by] > sign * kept["val"]):
            weights = {name: w.cpu().clone() for name, w in model.state_dict().items()}
            kept |= {"step": step, "val": val[by], "by": by, "weights": weights}

    def save(self, step: int, model, optimizers: list, scaler) -> None:
        """Write checkpoint.pt."""
        weights = self.processes.state(model, optimizers)
        if self.processes.is_main:
            checkpoint.save(
                self.out, settings=checkpoint.settings(self.args), data=self.fingerprint,
                stage=self.stage, step=step, seconds=self.seconds(), progress=self.progress,
                scaler=scaler.state_dict(), **weights,
            )  # fmt: skip

    def seconds(self, digits: int = 6) -> float:
        return round(time.perf_counter() - self.began, digits)

    # --- Its end

    def save_model(self, model) -> None:
        """Write model.pt; with --keep-best, the weights of the best validation, which the model
        then has too."""
        self.processes.barrier()
        if kept := self.progress["kept"]:
            model.load_state_dict(kept["weights"])
        weights = self.processes.state(model, [])["model"]
        if self.processes.is_main:
            save = lambda file: checkpoint.save_model(file, model, weights)
            checkpoint.write_file(self.out / "model.pt", save)
            self.params = sum(p.numel() for p in model.parameters())

    def finish(self, summary: dict) -> dict:
        """Write run.json, delete the checkpoint; returns the record of run.json."""
        self.metrics.close()
        args, unread, kept = self.args, self.progress["unread"], self.progress["kept"]
        pictures, rows = len(unread), sum(unread.values())
        if rows:
            print(f"{rows:,} rows of {pictures:,} unreadable pictures were left out of training")
        options = dict(vars(args))
        record = {
            "run": str(self.out), **summary, "params": self.params, "mask": args.mask,
            "seed": args.seed, "origin": options.pop("origin", {}),  # where each of args comes from
            "args": options, "seconds": self.seconds(1), "clock": self.progress["clock"],
            "unread": {"pictures": pictures, "rows": rows}, "code": self.progress["code"],
            "torch": torch.__version__,
        }  # fmt: skip
        if kept:  # whose weights model.pt holds
            record["kept"] = {name: kept[name] for name in ("step", "val", "by")}
        text = json.dumps(record, indent=1, default=str) + "\n"
        checkpoint.write_file(self.out / "run.json", text)
        (self.out / checkpoint.NAME).unlink(missing_ok=True)
        return json.loads(text)


# --- What commands around a run share


def read_record(run: Path) -> dict:
    """The run.json of a finished run."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "data" not in dict(record.get("args", {})):
            raise ValueError
        return record
    except (FileNotFoundError, NotADirectoryError):
        why = "not a finished run, run.json is missing; RUN is what --out of train.py named"
        raise DataError(f"{run}: {why}") from None
    except (OSError, TypeError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is not what train.py writes"
        raise DataError(f"{run / 'run.json'} cannot be read: {why}") from None


def check_writable(*files: Path | None) -> None:
    """DataError for a file that will not be writable at the end of a long command."""
    for file in filter(None, files):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            there = file.exists()
            open(file, "ab").close()
            if not there:
                file.unlink()  # a command that fails leaves nothing
        except OSError as error:
            raise DataError(f"{file} cannot be written: {error.strerror}") from None


def hold(out: Path):
    """metrics.jsonl of the folder `out`, open for appending. Of several processes of one run the
    first locks it until it is closed, here or by another opening of it in this process, or the
    process ends: one training at a time. DataError if another has it, or it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / METRICS, "a", buffering=1, encoding="utf-8")  # line by line
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror}") from None
    try:
        first = int(os.environ.get("RANK", 0)) == 0
        if first and fcntl:
            # Not flock: a loader's worker would hold that on after its parent was killed
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif first:
            file.seek(2**30)  # beyond what others may want to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        advice = "wait for it, or choose another --out"
        raise DataError(f"another process is training in {out}; {advice}") from None
    return file


def check_out(args) -> None:
    """DataError if --out cannot be written, is trained in, or holds a run that would be lost or,
    with --resume, another one than is asked for; SystemExit if there is nothing to do."""
    out, now = args.out, checkpoint.settings(args)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise DataError(f"--out {out} cannot be written: {there} is no folder that may be")
    if (out / METRICS).exists():
        hold(out).close()
    if args.overwrite:
        return
    if not (out / "run.json").exists():
        if (out / checkpoint.NAME).exists() and not args.resume:
            advice = "go on with it by --resume, or say --overwrite"
            raise DataError(f"{out} holds a run that was stopped; {advice}")
        return
    if not args.resume:
        raise DataError(f"{out} holds a finished run; choose another --out or say --overwrite")
    origins = getattr(args, "origin", {})  # other programs say nothing of these
    given = {name for name, origin in origins.items() if origin == "you"} - {"keep_best"}
    asked, trained = {name: now[name] for name in given if name in now}, read_record(out)["args"]
    if differs := checkpoint.differences(asked, {name: trained.get(name) for name in asked}):
        advice = "Give another --out to train this one"
        raise DataError(f"{out} holds a finished run, of which {differs}. {advice}")
    print(f"{out} holds a finished run; there is nothing to go on with")
    raise SystemExit(0)


@contextmanager
def one_line_errors(out: Path | None = None):
    """What goes wrong for the user's data, disk, memory or keyboard ends the command with one line.
    Of torchrun's processes each says its own errors; of Ctrl-C, which stops all, the first."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):  # what the terminal cannot show, or sends, is no crash
            stream.reconfigure(errors=errors)
    try:
        yield
        print(end="", flush=True)  # also where there is no stdout
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    except torch.OutOfMemoryError as error:
        advice = "--accumulate 2, or more, computes a step in parts; --checkpointing keeps less of "
        advice += "each layer"
        raise SystemExit(f"error: out of GPU memory ({reason(error)}): {advice}") from None
    except BrokenPipeError:  # `| head`: nobody reads the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC or out is None:
            raise
        why = "no space left on the disk; free some, then go on with --resume"
        raise SystemExit(f"error: {out}: {why}") from None
    except KeyboardInterrupt:
        saved = out is not None and (out / checkpoint.NAME).exists()
        go_on = "the same command with --resume goes on" if saved else "nothing was saved yet"
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\nstopped; {go_on} ({out})" if out else "\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
