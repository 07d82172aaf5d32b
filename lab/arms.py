"""Reproduce: every method beside every other, over seeds and data, each run made by train.py.

    python -m lab.arms shapes             train what is not yet there; tables in runs/results
    python -m lab.arms depth              mma against causal over decoder depth; likewise: budget,
                                          scenes, rates, sounds, shapes-pairs, easy_vqa, nlvr,
                                          nlvr+world, nlvr+world-rates, nlvr+world-high-rate
    python -m lab.arms shapes --tables    train nothing: the tables of what has finished
    python -m lab.arms shapes --only mma+lora cca    these arms alone
    python -m lab.arms shapes --publish   write the tables into docs/results too
    python -m lab.arms time               milliseconds a training step of each arm, in turns
    python -m lab.arms readme             put docs/results/*.md into README.md and docs/*.md

lab/experiments.py says what an arm is, and which ones an experiment compares. A run lies in
runs/arms/DATA-ARM-SEED. It is known by its settings, not by its name; it is never made twice, and
one that was stopped goes on. What follows -- is given to every run
(python -m lab.arms shapes -- --preset small).
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data import DataError, load
from engine import wings
from engine.checkpoint import NON_IDENTITY_ARGS
from engine.options import Parser, positive
from engine.options import arguments as train_arguments
from engine.run import one_line_errors
from lab import finished, publish, tables
from lab.experiments import EXPERIMENTS, TIMES, arms_of, choose

# What makes the recipe: published runs of another one do not belong into the same table
RECIPE = ("preset", "n_layer", "pt_steps", "pt_pictures", "steps", "pictures", "questions", "lr")
NO_IDENTITY = ("eval_every", "val_limit", *NON_IDENTITY_ARGS)  # not what a run is


# --- Runs


@dataclass
class Trial:
    """A run that an experiment has a place for."""

    arm: str
    seed: int
    line: list[str]  # the command line of train.py
    settings: dict  # the same as train.py understands it
    asked: bool  # for this number of seeds

    @property
    def identity(self) -> str:
        same = {k: str(v) for k, v in self.settings.items() if k not in NO_IDENTITY}
        return json.dumps(same, sort_keys=True)


def command_line(data_options: list[str], options: str, seed: int, extra: list[str]):
    """What follows train.py, and its arguments as train.py understands them. "2x" stands for twice
    the experiment's number of steps."""
    steps = train_arguments([*data_options, *extra]).steps
    words = [str(int(w[:-1]) * steps) if w in TIMES else w for w in options.split()]
    line = [*data_options, *extra, *words, "--seed", str(seed)]
    args = train_arguments(line)
    wings.get(args)  # puts the variant's settings into args, as train.py does
    return line, args


def plan(args, arms: dict[str, str], data_options: list[str]) -> list[Trial]:
    """A first seed of everything comes before the second of anything."""
    trials, numbers = [], EXPERIMENTS[args.experiment].seeds
    seeds = args.seeds or range(max([1, *(numbers.get(arm, 1) for arm in arms)]))
    for seed in seeds:
        for arm, options in arms.items():
            line, settings = command_line(data_options, options, seed, args.extra)
            asked = args.seeds is not None or seed < numbers.get(arm, 1)
            trials.append(Trial(arm, seed, line, vars(settings), asked))
    return trials


def find(runs: Path, settings: dict) -> Path | None:
    """The finished run below `runs` that has these settings; an option that is younger than the run
    has its default, and one that train.py does not know makes it another run. DataError if it was
    tested on another number of questions (--limit)."""
    default = vars(train_arguments(["--data", settings["data"], "--preset", settings["preset"]]))
    for file in sorted(runs.glob("*/run.json")):
        made = {**default, **json.loads(file.read_text())["args"]}
        names = {*made, *settings} - {*NO_IDENTITY}
        if all(name in settings and made.get(name) == settings[name] for name in names):
            if made["limit"] != settings["limit"]:
                tested = f"{file.parent} was tested with --limit {made['limit'] or 'all'}"
                wants = f"not {settings['limit'] or 'all'}; move it, or choose another --runs"
                raise DataError(f"{tested}, {wants}")
            return file.parent
    return None


def to_do(trials: list[Trial], runs: Path, data: str) -> list[tuple[str, list[str]]]:
    """(name, command line) of each run that is asked for and not there, once."""
    todo = {}
    for trial in trials:
        if trial.asked and find(runs, trial.settings) is None:
            todo.setdefault(trial.identity, (f"{data}-{trial.arm}-{trial.seed}", trial.line))
    return list(todo.values())


def make(todo: list[tuple[str, list[str]]], runs: Path, jobs: int, program=("train.py",)) -> None:
    """Train what is to do, `jobs` at a time, each with an equal share of the cores. A run that
    fails is reported at the end; the others go on."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count()
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // jobs))}

    def one(job):
        name, line = job
        began, out = time.time(), runs / name
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *program, *line, "--out", str(out), "--workers", "0"]
        with open(out / "log.txt", "w") as log:
            code = subprocess.run(
                [*command, "--resume"], stdout=log, stderr=log, env=environment, cwd=tables.ROOT
            ).returncode
        how = "done" if code == 0 else "FAILED"
        tqdm.write(f"{name}: {how} after {time.time() - began:.0f} s")
        return name if code else None

    with ThreadPoolExecutor(jobs) as pool:
        made = tqdm(pool.map(one, todo), total=len(todo), desc="runs", disable=not todo)
        failed = [str(runs / name) for name in made if name]
    if failed:
        last = Path(failed[0], "log.txt").read_text(encoding="utf-8").strip().split("\n")[-1]
        listed = ", ".join(failed)
        raise DataError(f"{len(failed)} runs failed; see log.txt in {listed}; the first: {last}")


# --- The command


def reproduce(args) -> None:
    name, *shared = EXPERIMENTS[args.experiment].options.split()
    all_arms = arms_of(args.experiment)
    arms = choose(all_arms, args.only)
    source = ["--source", str(args.source.resolve())] if args.source else []
    data_options = ["--data", name, *shared, *source]
    trials = plan(args, arms, data_options)
    tables.need("matplotlib", "the curves")  # before a day of training, not after it
    if args.experiment in (*publish.CLAIMED, *publish.COUNTS):
        tables.need("scipy", "the claims")
    settings = common_settings(data_options, args.extra)
    if args.publish and not args.tables:  # before the runs are made, too
        publish.check_settings(args.experiment, settings, name)
    if not args.tables and (todo := to_do(trials, args.runs, name)):
        check_data(name, args.source, trials)
        make(todo, args.runs, args.jobs)
    result = collect(args, trials, arms)
    result["data"], result["settings"] = name, settings
    published = tables.PUBLISHED / f"{args.experiment}.json"
    if not result["arms"] and not (args.publish and published.exists()):
        raise DataError(
            f"no finished run of {args.experiment} in {args.runs}; leave --tables out to make them"
        )
    if result["arms"]:
        publish.write(args.results, args.experiment, result)
    if args.publish:
        publish.publish(args.experiment, result, [*all_arms, *arms])
    folder = tables.PUBLISHED if args.publish else args.results
    for file in publish.report(args.experiment, json.loads((folder / published.name).read_text())):
        print((folder / file).read_text(encoding="utf-8"))


def check_data(name: str, source: Path | None, trials: list[Trial]) -> None:
    """DataError, before the first run, for what is wrong with the files, or with --scenes and the
    pictures of a step."""
    load(name, source)
    options = ("scenes", "pt_pictures", "pictures")
    different = {tuple(trial.settings[option] for option in options) for trial in trials}
    for scenes, *sizes in (some for some in different if some[0]):
        world = load(name, source, scenes=scenes)
        for size in sizes:
            world.draw("pt", 0, size, 1, 0)


def collect(args, trials: list[Trial], arms: dict[str, str]) -> dict:
    """What has finished, as the tables want it."""
    found = {(t.arm, t.seed): find(args.runs, t.settings) for t in trials}
    split = EXPERIMENTS[args.experiment].split
    if split:
        found = {t: finished.asked_on(run, split, not args.tables) for t, run in found.items()}
    done = {arm: [run for (a, _), run in found.items() if a == arm and run] for arm in arms}
    missing = [f"{t.arm}-{t.seed}" for t in trials if t.asked and not found[t.arm, t.seed]]
    records = {arm: [tables.read(run, split) for run in runs] for arm, runs in done.items() if runs}
    result = {"arms": records, "options": {arm: arms[arm] for arm in records}, "missing": missing}
    if args.experiment == "shapes":
        first = {arm: done[arm][0] for arm in ("causal", "mma") if done.get(arm)}
        limit = trials[0].settings["limit"]
        result["test_time"] = finished.test_time(first, limit, make=not args.tables)
    return json.loads(json.dumps(result))  # as it will be read again


def common_settings(data_options: list[str], extra: list[str]) -> dict:
    """What all runs have, for what is published: the preset, the recipe, and what -- changes."""
    usual, asked = (vars(train_arguments([*data_options, *more])) for more in ([], extra))
    return settings_with(usual, asked)


def settings_with(usual: dict, asked: dict) -> dict:
    """The recipe, and what else of `asked` is not as usual; both: arguments of a run."""
    changed = {name for name in asked if asked[name] != usual[name]} - {*NO_IDENTITY}
    changed |= {"limit"} if asked["limit"] else set()
    return {name: asked[name] for name in [*RECIPE, *sorted(changed - {*RECIPE})]}


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("experiment", choices=[*EXPERIMENTS, "time", "readme"], metavar="EXPERIMENT",
        help=f"{', '.join(EXPERIMENTS)}, time, readme")  # fmt: skip
    add("--only", nargs="+", metavar="ARM", help="these alone: an arm, a variant or MASK+VARIANT")
    add("--seeds", nargs="+", type=int, metavar="N",
        help="of every arm (default: from 0, as many as lab/experiments.py says)")  # fmt: skip
    add("--source", type=Path, metavar="DIR", help="easy_vqa, nlvr: the folder of the data")
    add("--runs", type=Path, default=Path("runs/arms"), metavar="DIR", help="default: runs/arms")
    add("--results", type=Path, default=tables.RESULTS, metavar="DIR", help="default: runs/results")
    add("--publish", action="store_true", help="write docs/results too; what is there is kept")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--tables", action="store_true", help="train nothing; write what there is")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    args.extra = argv[cut + 1 :]
    args.runs, args.results = args.runs.resolve(), args.results.resolve()
    if args.results == tables.PUBLISHED:
        parser.error(f"{tables.PUBLISHED} is written by --publish alone")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        from lab import bench_arms

        if args.experiment == "readme":
            bench_arms.renew(tables.PUBLISHED)
            publish.write_readme()
        elif args.experiment == "time":
            bench_arms.write_time(args, choose(arms_of("shapes"), args.only))
        else:
            reproduce(args)


if __name__ == "__main__":
    main()
