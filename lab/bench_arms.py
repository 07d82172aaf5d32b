"""Milliseconds of a training step of every arm of lab/experiments.py, the arms taking turns.

    python -m lab.bench_arms                 all arms of shapes; runs/results/time.{json,md}
    python -m lab.bench_arms mma cca         these arms, and causal
    python -m lab.bench_arms --publish       all of them, into docs/results too

What follows -- is given to each (python -m lab.bench_arms -- --precision bfloat16).
"""

import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from engine.options import Parser
from engine.precision import autocast_of, scaler_of
from engine.run import one_line_errors
from engine.tables import markdown
from lab import publish, results
from lab.compare import chosen
from lab.experiments import lines_of
from lab.results import first_step
from lab.timing import build, optimizers_of, wait, where
from lab.trials import understood
from train import clip_and_step, forward_backward


def arguments_of(options: str, extra: list[str]):
    """The arguments of train.py."""
    return understood("train", ["--data", "shapes", *extra, *options.split()])


def prepare(options: str, extra: list[str]) -> SimpleNamespace:
    """An arm's model, batches and optimizers."""
    args = arguments_of(options, extra)
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


def write(folder: Path, record: dict) -> None:
    publish.write_json(folder / "time.json", record)
    renew(folder)


def renew(folder: Path) -> None:
    """time.md from time.json and the published runs of shapes, which may be more by now."""
    if (folder / "time.json").exists():
        record = json.loads((folder / "time.json").read_text(encoding="utf-8"))
        made = publish.read_published("shapes") or {"arms": {}}
        publish.write_text(folder / "time.md", report(record, made["arms"]))


def report(record: dict, made: dict[str, list[dict]]) -> str:
    """The Markdown of time.json and shapes.json."""
    rows = [["arm", "ms a step", "of causal", "steps to 80 %", "seconds to 80 %"]]
    for name, ms in record["ms"].items():
        steps = [first_step(run["curve"], 0.8) for run in made.get(name, [])]
        got_there = [step for step in steps if step]
        mean = statistics.mean(got_there) if got_there else 0
        some = f" ({len(got_there)} of {len(steps)} seeds)" if len(got_there) < len(steps) else ""
        to_80 = [f"{mean:,.0f}{some}", f"{mean * ms / 1000:.0f}{some}"]
        none = ["never" if steps else "-"] * 2
        ratio = f"{record['of_causal'][name]:.2f}"
        rows.append([name, f"{ms:.0f}", ratio, *(to_80 if got_there else none)])
    about = "seconds = steps x ms a step, without stage 1 and the looks at validation."
    return f"{markdown(rows)}\n\n{record['where']}; {about}"


def main(argv=None) -> None:
    parser, arms = Parser(__doc__), lines_of("shapes")
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("arms", nargs="*", metavar="ARM", help=f"of {', '.join(arms)}")
    add("--results", type=Path, default=results.RESULTS, metavar="DIR",
        help="default: runs/results")  # fmt: skip
    add("--publish", action="store_true", help="write docs/results too; of all arms alone")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args, extra = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if args.publish and args.arms:
        parser.error("--publish is for all arms together: times of other calls are not comparable")
    with one_line_errors():
        asked = ["causal", *args.arms] if args.arms else None
        times = step_times(chosen(arms, asked), extra=extra)
        ratios = {name: ms / times["causal"] for name, ms in times.items()}
        machine = where(arguments_of("", extra).precision)
        record = {"where": machine, "extra": extra, "ms": times, "of_causal": ratios}
        for folder in [args.results] + [results.PUBLISHED] * args.publish:
            write(folder, record)
        print((args.results / "time.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
