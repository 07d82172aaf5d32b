"""Reproduce: every method beside every other, over seeds and data, each run made by train.py.

    python -m lab.arms shapes             train what is not yet there; tables in runs/results
    python -m lab.arms depth              mma against causal over decoder depth; likewise: budget,
                                          scenes, rates, sounds, shapes-pairs, easy_vqa, nlvr,
                                          nlvr+world
    python -m lab.arms shapes --tables    train nothing: the tables of what has finished
    python -m lab.arms shapes --only mma+lora cca    these arms alone
    python -m lab.arms shapes --publish   write the tables into docs/results too
    python -m lab.arms time               milliseconds a training step of each arm, in turns
    python -m lab.arms readme             put docs/results/*.md into README.md and docs/*.md

An arm of a trial is a line of options for train.py. A mask of mma.py and a method of
lab/variants.py are arms by their names: a method's name alone is the method under the causal mask,
MASK+NAME is the method under that mask. A run lies in runs/arms/DATA-ARM-SEED. It is known by its
settings, not by its name; it is never made twice, and one that was stopped goes on. What follows --
is given to every run (python -m lab.arms shapes -- --preset small).
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
from engine.checkpoint import NON_IDENTITY_ARGS
from engine.options import Parser, positive
from engine.options import arguments as train_arguments
from engine.run import one_line_errors
from lab import finished, publish, tables, variants
from mma import EXTRA_PAIRS

ARMS = {
    "causal": "--mask causal",
    "mma": "--mask mma",
    "prefix": "--mask prefix",
    "v2v": "--mask v2v",
    "f": "--mask f",
    "cca": "--mask causal --variant cca",
    "t&i": "--mask causal --variant text-first",
    "dot": "--mask causal --variant dot",
    "rave-style": "--mask causal --variant rave",
    "mma+rave-style": "--mask mma --variant rave",
    "lora": "--mask causal --variant lora",
    "scalar": "--mask causal --variant scalar",
}
# How many seeds an arm of the table has, where more than one
SEEDS = {"causal": 5, "mma": 5, "prefix": 5, "v2v": 3, "cca": 3, "t&i": 3, "dot": 3}
# Kinds and methods without an arm: where the picture comes before the question, mutual is mma pair
# by pair (tests/lab/test_arms.py); leaky and leaky-captions are lessons.
NO_ARM = ("mutual", "leaky", "leaky-captions")
# What makes the recipe: published runs of another one do not belong into the same table
RECIPE = ("preset", "n_layer", "pt_steps", "pt_pictures", "steps", "pictures", "questions", "lr")
NO_IDENTITY = ("eval_every", "val_limit", *NON_IDENTITY_ARGS)  # not what a run is
TIMES = ("1x", "2x", "4x")  # as many times the experiment's steps


def arms_of_the_table() -> dict[str, str]:
    """ARMS, and the masks and variants that a fork has added."""
    arms = dict(ARMS)
    arms |= {kind: f"--mask {kind}" for kind in EXTRA_PAIRS if kind not in (*arms, *NO_ARM)}
    named = {line.split("--variant ")[-1].split()[0] for line in arms.values()}
    new = [name for name in variants.VARIANTS if name not in (*named, *NO_ARM)]
    return arms | {name: f"--mask causal --variant {name}" for name in new}


def pairs(option: str, values) -> dict[str, str]:
    """mma and causal at every value of one option."""
    masks = ("mma", "causal")
    return {f"{m}@{value}": f"--mask {m} --{option} {value}" for m in masks for value in values}


RATES = pairs("lr", (0.002, 0.004, 0.008))
BUDGETS = pairs("steps", TIMES)
SCENES = pairs("scenes", (2000, 8000, 32000))
OTHERS = "causal mma prefix t&i"
# name -> the data and the options that all arms share; the arms (names in ARMS, or lines of
# options, or how they are made); how many seeds an arm has, if more than one
EXPERIMENTS = {
    "shapes": ("shapes", arms_of_the_table, SEEDS),
    "depth": ("shapes", pairs("n-layer", (2, 3, 4, 6)), {}),
    "budget": ("shapes", BUDGETS, {arm: 5 if arm.endswith("1x") else 3 for arm in BUDGETS}),
    # twice the steps, so that validation has stopped rising
    "scenes": ("shapes --steps 4800 --keep-best", SCENES, dict.fromkeys(SCENES, 2)),
    "rates": ("shapes", RATES, dict.fromkeys(RATES, 2)),
    # a second modality; several pictures a row
    "sounds": ("sounds", OTHERS, dict.fromkeys(OTHERS.split(), 3)),
    "shapes-pairs": ("shapes-pairs", OTHERS, dict.fromkeys(OTHERS.split(), 3)),
    # short: with the default budget mma has 98.6 % at its first look
    "easy_vqa": ("easy_vqa --n-layer 3 --pt-steps 200 --steps 400", arms_of_the_table, SEEDS),
    # long: with its own sentences alone it learns little, and the best look at validation is kept
    "nlvr": ("nlvr --steps 1500 --keep-best", "causal mma", {"causal": 2, "mma": 2}),
    "nlvr+world": ("nlvr+world", "causal mma prefix cca", {"causal": 3, "mma": 3}),
    "nlvr+world-rates": ("nlvr+world", RATES, {}),  # chosen on val: dev is not read
}
# experiment -> the official split on which its runs are compared, read once a finished run; others
# are compared on what train.py reports at its end
OFFICIAL = {"nlvr": "dev", "nlvr+world": "dev"}


def arms_of(experiment: str) -> dict[str, str]:
    arms = EXPERIMENTS[experiment][1]
    arms = {arm: ARMS[arm] for arm in arms.split()} if isinstance(arms, str) else arms
    return arms() if callable(arms) else arms


def choose(arms: dict[str, str], only: list[str] | None) -> dict[str, str]:
    """The arms that --only names (default: all): an arm, a variant, or MASK+VARIANT."""
    if only is None:
        return arms
    chosen = {}
    for name in only:
        mask, _, variant = name.rpartition("+")
        line = f"--mask {mask or 'causal'} --variant {variant}"
        known = variant in variants.VARIANTS and (not mask or mask in EXTRA_PAIRS)
        if name in arms:
            chosen[name] = arms[name]
        elif known and not any("@" in arm for arm in arms):
            same = next((arm for arm, options in arms.items() if options == line), name)
            chosen[same] = line
        else:
            listed = ", ".join([*arms, *variants.VARIANTS])
            raise DataError(f"--only {name}: no such arm; there are {listed}")
    return {arm: chosen[arm] for arm in [*arms, *chosen] if arm in chosen}


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


def wanted(data_options: list[str], options: str, seed: int, extra: list[str]):
    """The command line of a run of train.py, and its arguments. "2x" stands for twice the
    experiment's number of steps."""
    steps = train_arguments([*data_options, *extra]).steps
    words = [str(int(w[:-1]) * steps) if w in TIMES else w for w in options.split()]
    line = [*data_options, *extra, *words, "--seed", str(seed)]
    args = train_arguments(line)
    variants.get(args)  # puts the variant's settings into args, as train.py does
    return line, args


def plan(args, arms: dict[str, str], data_options: list[str]) -> list[Trial]:
    """A first seed of everything comes before the second of anything."""
    trials, numbers = [], EXPERIMENTS[args.experiment][2]
    seeds = args.seeds or range(max([1, *(numbers.get(arm, 1) for arm in arms)]))
    for seed in seeds:
        for arm, options in arms.items():
            line, settings = wanted(data_options, options, seed, args.extra)
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
    name, *shared = EXPERIMENTS[args.experiment][0].split()
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
    split = OFFICIAL.get(args.experiment)
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
        help="of every arm (default: from 0, as many as EXPERIMENTS says)")  # fmt: skip
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
