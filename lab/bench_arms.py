"""Milliseconds of a training step of every arm of lab/experiments.py, the arms taking turns.

python -m lab.arms time
"""

import json
import statistics
import time
from types import SimpleNamespace

import torch
from tqdm import tqdm

from data import DataError
from engine.precision import autocast_of, scaler_of
from engine.tables import markdown
from lab import publish, tables
from lab.arms import command_line
from lab.experiments import ARMS
from lab.timing import build, optimizers_of, wait, where
from train import clip_and_step, forward_backward


def prepare(options: str, extra: list[str]) -> SimpleNamespace:
    """An arm's model, batches and optimizers."""
    args = command_line(["--data", "shapes"], options, 0, extra)[1]
    torch.manual_seed(0)
    model, batches = build(args)
    optimizers = optimizers_of(model, args)
    return SimpleNamespace(args=args, model=model, batches=batches, optimizers=optimizers)


def train_one(arm: SimpleNamespace, step: int) -> float:
    """Milliseconds of a step of stage 2: forward, backward, update. Its batch is ready before."""
    args = arm.args
    batches = [{name: x.to(args.device) for name, x in b.items()} for b in arm.batches[step]]
    autocast, scaler = autocast_of(args), scaler_of(args)
    began = time.perf_counter()
    forward_backward(arm.model.loss, batches, args.mask, autocast, scaler)
    clip_and_step(arm.model, arm.optimizers, scaler)
    wait()
    return 1000 * (time.perf_counter() - began)


def step_times(arms: dict[str, str], repeats: int = 15, extra: list[str] = ()) -> dict[str, float]:
    """arm -> median milliseconds of a training step of stage 2. Every other round goes backwards,
    so that no arm always follows the same one."""
    prepared = {name: prepare(options, list(extra)) for name, options in arms.items()}
    times = {name: [] for name in arms}
    for step in tqdm(range(repeats + 2), desc="timing", leave=False):
        for name in list(prepared)[:: (-1) ** step]:
            times[name].append(train_one(prepared[name], step))
    return {name: statistics.median(ms[2:]) for name, ms in times.items()}


def write_time(args, arms: dict[str, str]) -> None:
    """Causal is always among the arms: what a ratio compares took turns."""
    times = step_times({"causal": ARMS["causal"], **arms}, extra=args.extra)
    ratios = {name: ms / times["causal"] for name, ms in times.items()}
    precision = command_line(["--data", "shapes"], "", 0, args.extra)[1].precision
    record = {"where": where(precision), "extra": args.extra, "ms": times, "of_causal": ratios}
    write(args.results, record)
    folder = args.results
    if args.publish:
        old = publish.read_published("time", "ms")
        write(folder := tables.PUBLISHED, merge(old, record, list(arms)) if old else record)
    print((folder / "time.md").read_text(encoding="utf-8"))


def merge(old: dict, new: dict, order: list[str]) -> dict:
    """The arms that this call did not time stay as they were published, if on this machine."""
    kept = [name for name in old["ms"] if name not in new["ms"]]
    here = (old["where"], old.get("extra", [])) == (new["where"], new["extra"])
    if kept and not here:
        raise DataError(
            f"the published times are those of {old['where']}; here is {new['where']}: publish "
            "all arms together (without --only)"
        )
    ratios = {name: ms / old["ms"]["causal"] for name, ms in old["ms"].items()}
    ratios |= old.get("of_causal", {})
    names = sorted({*old["ms"], *new["ms"]}, key=publish.place_in([*ARMS, *order, *old["ms"]]))
    ms, of_causal = {**old["ms"], **new["ms"]}, {**ratios, **new["of_causal"]}
    in_order = {key: {n: x[n] for n in names} for key, x in (("ms", ms), ("of_causal", of_causal))}
    return {**new, **in_order}


def write(folder, record: dict) -> None:
    publish.write_json(folder / "time.json", record)
    renew(folder)


def renew(folder) -> None:
    """time.md from time.json and shapes.json, which may have more seeds by now."""
    if (folder / "time.json").exists():
        record = json.loads((folder / "time.json").read_text(encoding="utf-8"))
        publish.write_text(folder / "time.md", report(record, accuracy_of(folder)))


def accuracy_of(folder) -> dict[str, list[dict]]:
    """The arms of the trial shapes: from the folder, else as they are published."""
    for file in (folder / "shapes.json", tables.PUBLISHED / "shapes.json"):
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))["arms"]
    return {}


def report(record: dict, made: dict[str, list[dict]]) -> str:
    """The Markdown of time.json and shapes.json."""
    rows = [["arm", "ms a step", "of causal", "steps to 80 %", "seconds to 80 %"]]
    for name, ms in record["ms"].items():
        steps = [run["step_at_80"] for run in made.get(name, [])]
        got_there = [step for step in steps if step]
        mean = statistics.mean(got_there) if got_there else 0
        some = f" ({len(got_there)} of {len(steps)} seeds)" if len(got_there) < len(steps) else ""
        to_80 = [f"{mean:,.0f}{some}", f"{mean * ms / 1000:.0f}{some}"]
        none = ["never" if steps else "-"] * 2
        ratio = f"{record['of_causal'][name]:.2f}"
        rows.append([name, f"{ms:.0f}", ratio, *(to_80 if got_there else none)])
    about = "seconds = steps x ms a step, without stage 1 and the looks at validation."
    return f"{markdown(rows)}\n\n{record['where']}; {about}"
