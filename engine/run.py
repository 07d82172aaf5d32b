"""The folder of a run: what is written into it while it trains, and how it goes on.

    tokenizer.model       from the beginning
    metrics.jsonl         a line every 10 steps
    checkpoint.pt, lock   while it is not finished; best.pt too with --keep-best
    model.pt, run.json    when it is finished

Also the small things that commands around a run share: one-line errors, checks of folders.
"""

import errno
import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from data import DataError, reason
from engine import checkpoint
from engine.distributed import Distributed, remove_parts

BEST = "best.pt"
# Not all data have captions for stage 1
STAGE_NAMES = {"pt": "stage 1", "sft": "stage 2 (questions)"}


class Run:
    """Records, looks at validation, saves, stops and goes on."""

    def __init__(self, args, ranks: Distributed, tokenizer, fingerprint: str):
        self.args, self.ranks, self.out, self.fingerprint = args, ranks, args.out, fingerprint
        self.began, self.clock, self.state = time.perf_counter(), [], None
        self.validation, self.score, self.watch = [], None, None
        self.unread, self.newly_unread = {}, []  # picture and why -> rows it was left out of
        self.out.mkdir(parents=True, exist_ok=True)
        if args.resume:
            self.state = checkpoint.load(self.out, ranks.device, args, fingerprint)
        if self.state:
            self.clock, self.began = self.state["clock"], self.began - self.state["seconds"]
            self.unread = self.state["unread"]
            ranks.say(f"going on after step {self.state['step']} of stage {self.state['stage']}")
        elif args.resume:
            ranks.say(f"no checkpoint in {self.out}: from the start")
        ranks.barrier()  # all have read the folder: now the first process writes
        if ranks.is_main:
            self._prepare_folder(tokenizer)

    def watch_by(self, watch, validation: list, score) -> None:
        """At every look score(validation) gives the summary that is recorded, and
        watch.write_curves (if watch is given) draws what was recorded so far."""
        self.watch, self.validation, self.score = watch, validation, score

    def _prepare_folder(self, tokenizer) -> None:
        if not self.args.resume:  # --overwrite: until it has finished, there is no run
            for name in ("run.json", "model.pt", checkpoint.NAME, BEST):
                (self.out / name).unlink(missing_ok=True)
        remove_parts(self.out, self.state.get("parts") if self.state else None)
        checkpoint.write_file(
            self.out / "tokenizer.model", lambda file: file.write(tokenizer.model)
        )
        (self.out / "tokenizer.json").unlink(missing_ok=True)
        if hasattr(tokenizer, "extras"):  # a tokenizer that came with pretrained weights
            extras = json.dumps(tokenizer.extras()).encode()
            checkpoint.write_file(self.out / "tokenizer.json", lambda file: file.write(extras))
        metrics = self.out / "metrics.jsonl"
        self.metrics = (
            checkpoint.reopen(metrics, self.state["metrics"])
            if self.state
            else open(metrics, "wb", buffering=0)
        )

    def to_do(self, stages: list):
        """Those of the stages (name, mask, batches) that were not finished before a stop."""
        finished = ["pt"] if self.state and self.state["stage"] == "sft" else []
        return [stage for stage in stages if stage[0] not in finished]

    def begin_stage(self, stage: str, model, optimizers: list, scaler, batches) -> int:
        """Steps of this stage that are already done, with their state restored."""
        self.stage, self.model, self.optimizers, self.scaler = stage, model, optimizers, scaler
        self.batches, self.steps, self.unchecked, self.shown = batches, len(batches), [], {}
        batches.rank, batches.world_size = self.ranks.rank, self.ranks.world_size
        if self.state is None or self.state["stage"] != stage:
            return 0
        self.ranks.restore(self.state, model, optimizers, self.out)
        for optimizer in optimizers:  # the rate that was saved is its step's, not the peak
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"]
        scaler.load_state_dict(self.state["scaler"])
        first_step, self.state = self.state["step"], None
        return first_step

    def progress(self, loader, first_step: int) -> tqdm:
        """The loader's batches, with a bar; a DataError that a worker met is raised here."""
        self.bar = tqdm(
            loader,
            desc=STAGE_NAMES[self.stage],
            initial=first_step,
            total=self.steps,
            mininterval=1,
            disable=not self.ranks.is_main,
        )
        for batch in self.bar:
            if isinstance(batch, DataError):
                raise batch
            self.newly_unread += batch.pop("unread", [])
            yield {n: x.to(self.ranks.device, non_blocking=True) for n, x in batch.items()}

    def record(self, stop_request, step: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """After each step: check it; every 10 steps write a line; every so often look at
        validation and save; stop if a process was asked to. loss, norm: scalars on the device."""
        args, sft, last = self.args, self.stage == "sft", step == self.steps
        self.unchecked.append((loss.detach(), norm.detach()))
        stop = self.ranks.any_rank(stop_request.requested)
        eval_now = last or sft and step % args.eval_every == 0
        save_now = last or stop or step % args.save_every == 0
        if step % 10 == 0 or eval_now or save_now:
            mean_loss = self.ranks.mean(loss.detach())
            self.check_finite(step)
            self.count_unread()
        if step % 10 == 0 or eval_now:
            self._write_line({"stage": self.stage, "step": step, "loss": mean_loss}, eval_now)
        if save_now:
            self.save(step)
        if stop:
            self.bar.close()
            raise KeyboardInterrupt

    def _write_line(self, line: dict, eval_now: bool) -> None:
        if eval_now and self.stage == "sft" and self.validation:
            line["val"] = self.score(self.validation)
            self.shown["val"] = f"{line['val']['accuracy']:.1%}"
            self.clock.append([line["step"], self.seconds(2)])
        if self.ranks.is_main:
            self.metrics.write((json.dumps(line) + "\n").encode())
            if self.args.keep_best and "val" in line:
                self._keep_if_best(line["step"])
        if self.ranks.is_main and eval_now and self.watch:
            lines = (self.out / "metrics.jsonl").read_text().splitlines()
            self.watch.write_curves(self.out / "curves.png", [json.loads(line) for line in lines])
        self.bar.set_postfix({"loss": f"{line['loss']:.3f}", **self.shown})

    def _best_look(self) -> dict:
        """The step and the validation accuracy of the first look that no other is better than; {}
        if there was none. The file of the metrics knows those from before a stop too."""
        lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        looks = [line for line in map(json.loads, lines) if "val" in line]
        looks = [{"step": line["step"], "val": line["val"]["accuracy"]} for line in looks]
        return max(looks, key=lambda look: look["val"], default={})

    def _keep_if_best(self, step: int) -> None:
        """Write best.pt, if no look before this one was as good."""
        if self._best_look()["step"] == step:
            weights = self.model.state_dict()
            checkpoint.write_file(self.out / BEST, lambda file: torch.save(weights, file))

    def check_finite(self, step: int) -> None:
        """Stop if one of the last steps had a loss or gradient that is not a number. They are
        looked at a few steps at a time, because a look makes the GPU wait, and always before a
        checkpoint is written."""
        sums = torch.stack([loss + norm for loss, norm in self.unchecked])
        bad = (~torch.isfinite(sums)).nonzero().flatten().tolist()
        if bad:
            loss, norm = map(float, self.unchecked[bad[0]])
            first = step - len(self.unchecked) + bad[0]  # counted from 0, as batches are
            rows = [e.id or f"row {i}" for i, e in enumerate(self.batches.examples(first))]
            file = self.out / checkpoint.NAME
            kept = (
                f"{file} is from before and good"
                if file.exists()
                else "no checkpoint was written yet"
            )
            raise DataError(
                f"loss {loss}, gradient norm {norm} at step {first + 1} of stage {self.stage}: "
                f"{kept}. Its rows: {', '.join(rows[:8])}{', ...' if len(rows) > 8 else ''}. "
                "A lower --lr may help"
            )
        self.unchecked.clear()

    def count_unread(self) -> None:
        """Count the rows that were left out since the last call, in all processes, and name each
        picture that could not be read once."""
        if not self.ranks.any_rank(bool(self.newly_unread)):
            return
        for why in self.ranks.gather_all(self.newly_unread):
            if why not in self.unread:
                self.ranks.say(f"left out of training: {why}")
            self.unread[why] = self.unread.get(why, 0) + 1
        self.newly_unread = []

    def save(self, step: int) -> None:
        folder, kept = self.out / f"parts-{self.stage}-{step}", {}
        if self.ranks.is_main or self.ranks.sharded:
            kept = self.ranks.save(self.model, self.optimizers, folder)
        if self.ranks.is_main:
            checkpoint.save(
                self.out,
                self.metrics,
                settings=json.dumps(checkpoint.settings(self.args)),
                data=self.fingerprint,
                stage=self.stage,
                step=step,
                seconds=self.seconds(),
                clock=self.clock,
                unread=self.unread,
                scaler=self.scaler.state_dict(),
                **kept,
            )
            remove_parts(self.out, kept.get("parts"))

    def seconds(self, digits: int = 6) -> float:
        return round(time.perf_counter() - self.began, digits)

    def save_model(self, model) -> None:
        """Write model.pt; with --keep-best, the weights of the best look at validation, which the
        model then has too."""
        self.ranks.barrier()
        if self.args.keep_best and (self.out / BEST).exists():
            best = torch.load(self.out / BEST, self.ranks.device, weights_only=True)
            model.load_state_dict(best)
        weights = self.ranks.full_weights(model)
        if self.ranks.is_main:
            checkpoint.write_file(
                self.out / "model.pt", lambda file: checkpoint.save_model(file, model, weights)
            )
            self.params = sum(p.numel() for p in model.parameters())

    def finish(self, summary: dict) -> dict:
        """Write run.json, delete the checkpoint; returns the record of run.json."""
        self.metrics.close()
        args, n_pictures, n_rows = self.args, len(self.unread), sum(self.unread.values())
        if n_rows:
            print(
                f"{n_rows:,} rows of {n_pictures:,} unreadable pictures were left out of training"
            )
        record = {
            "run": str(self.out),
            **summary,
            "params": self.params,
            "mask": args.mask,
            "seed": args.seed,
            "args": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            "seconds": self.seconds(1),
            "clock": self.clock,
            "unread": {"pictures": n_pictures, "rows": n_rows},
            "torch": torch.__version__,
        }
        if args.keep_best and (look := self._best_look()):
            record["kept"] = look  # whose weights model.pt holds
        text = (json.dumps(record, indent=1) + "\n").encode()
        checkpoint.write_file(self.out / "run.json", lambda file: file.write(text))
        for name in (checkpoint.NAME, BEST):
            (self.out / name).unlink(missing_ok=True)
        remove_parts(self.out)
        return record


def read_record(run: Path) -> dict:
    """The run.json of a finished run."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        if not isinstance(record, dict) or "data" not in dict(record.get("args", {})):
            raise ValueError
        return record
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{run}: not a finished run, run.json is missing; RUN is what --out of train.py named"
        ) from None
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


def check_out(args) -> None:
    """DataError if --out holds a run that would be lost, SystemExit if there is nothing to do."""
    if (args.out / "run.json").exists() and not args.overwrite:
        if args.resume:
            print(f"{args.out} holds a finished run; there is nothing to go on with")
            raise SystemExit(0)
        raise DataError(f"{args.out} holds a finished run; choose another --out or say --overwrite")
    if (args.out / checkpoint.NAME).exists() and not args.resume and not args.overwrite:
        raise DataError(
            f"{args.out} holds a run that was stopped; go on with it by --resume, or say "
            "--overwrite"
        )


@contextmanager
def one_line_errors(out: Path | None = None):
    """What goes wrong for the user's data, disk or keyboard ends the command with one line. Ctrl-C
    stops all of torchrun's processes, and the first alone says so; an error may be of any one of
    them, and each says its own."""
    try:
        yield
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        if error.errno != errno.ENOSPC or out is None:
            raise
        raise SystemExit(
            f"error: {out}: no space left on the disk; free some, then go on with --resume"
        ) from None
    except KeyboardInterrupt:
        saved = out is not None and (out / checkpoint.NAME).exists()
        go_on = "the same command with --resume goes on" if saved else "nothing was saved yet"
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\nstopped; {go_on} ({out})" if out else "\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
