"""A run that a comparison has a place for, known by its settings and not by its name.

It lies in RUNS/PROGRAM/DATA-ARM-SEED-DIGEST, the digest that of its settings and of the code that
makes it: runs of different settings, or of other code, are never taken for each other, whatever
they are called, and no run is made twice.
"""

import json
import re
import shlex
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from data import DataError
from engine import code, wings
from engine.checkpoint import NON_IDENTITY_ARGS
from engine.options import PATHS
from engine.run import read_record
from lab.experiments import Experiment

# What does not make a run another run. Where data lie does: they are known by nothing else
SAME_RUN = {*NON_IDENTITY_ARGS} - {*PATHS, "limit"}
SETTINGS = "settings.json"  # in the folder of a run: its identity
BASE = re.compile(r"\{([^{} ]+)\}")  # of a line: the folder of another arm's run


@dataclass(eq=False)
class Trial:
    """A run that a comparison has a place for: an arm with a seed."""

    arm: str
    seed: int
    program: str  # a module, run by python -m
    words: list[str]  # its command line
    settings: dict  # the same as the program understands it
    folder: Path  # where it is, or will be
    is_base: bool  # others begin with it
    needs: list[Path] = field(default_factory=list)  # folders of runs that it begins with


def slug(text: str) -> str:
    return re.sub(r"[^\w.+@&]+", "-", text).strip("-")


def finished(folder: Path) -> bool:
    return (folder / "run.json").exists()


def understood(program: str, words: list[str]):
    """The arguments as the program understands them. A program can be compared if its module has
    arguments(argv), or options(argv), if its command line has --out, --seed and --resume, and if it
    leaves run.json and metrics.jsonl as train.py does."""
    try:
        module = import_module(program)
        parse = getattr(module, "options", None) or module.arguments
    except (ModuleNotFoundError, AttributeError) as error:
        raise DataError(f"-m {program} cannot be compared: {error}") from None
    args = parse(words)
    if getattr(args, "variant", None):
        wings.get(args)  # puts the variant's settings into args, as train.py does
    return args


def identity(settings: dict, *others: str) -> dict:
    """What makes a run the run it is, as JSON has it; others: what is left out, too."""
    kept = {k: v for k, v in settings.items() if k not in SAME_RUN and k not in others}
    return json.loads(json.dumps(kept, default=str))


def find(runs: Path, args, made_by: str = "") -> Path | None:
    """The finished run below `runs` that began with these settings: SETTINGS, or run.json, which
    programs may have filled up. An option that is younger than the run has its default; one that
    the program does not know makes it another run. made_by: the code, by default any."""
    wanted, origin = identity(vars(args)), getattr(args, "origin", {})
    for folder in sorted(file.parent for file in runs.glob("*/run.json")):
        record = read_record(folder)
        if made_by and record.get("code") != made_by:
            continue
        made = identity(record["args"])
        if (folder / SETTINGS).exists():
            made = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        younger = {n for n in wanted if n not in made and origin.get(n) != "you"}
        if made == {n: value for n, value in wanted.items() if n not in younger}:
            return folder
    return None


def bases_of(lines: dict[str, str]) -> set[str]:
    """The arms whose runs others begin with."""
    return {base for line in lines.values() for base in BASE.findall(line)}


def plan(experiment: Experiment, seeds: list[int] | None, extra: list[str], runs: Path,
         any_code: bool = False):  # fmt: skip
    """The trials; a first seed of everything comes before the second of anything. seeds: instead of
    the experiment's; extra: options of every line; runs: the folder of them all; any_code: runs of
    other code are taken for done, too."""
    numbers, trials = experiment.seeds, []
    wanted = {arm: numbers if isinstance(numbers, int) else numbers.get(arm, 1)
              for arm in experiment.lines}  # fmt: skip
    first = experiment.first_seed
    for seed in dict.fromkeys(seeds or range(first, first + max(wanted.values()))):
        made = {}
        for arm in wanted:
            if seeds or seed - first < wanted[arm]:
                made[arm] = trial_of(experiment, arm, seed, made, extra, runs, any_code)
        trials += made.values()
    return trials


def trial_of(experiment: Experiment, arm: str, seed: int, made: dict, extra, runs: Path,
             any_code: bool) -> Trial:  # fmt: skip
    """made: the trials of this seed so far. An arm that others begin with does not get `extra`."""
    line, is_base = experiment.lines[arm], arm in bases_of(experiment.lines)
    program, words = experiment.program, shlex.split(line)
    if words[:1] == ["-m"]:
        program, words = words[1], words[2:]
    if unknown := [base for base in BASE.findall(line) if base not in made]:
        raise DataError(f"{line}: no line before it is named {unknown[0]}")
    needs = [made[base].folder for base in BASE.findall(line)]
    words = [BASE.sub(lambda match: str(made[match[1]].folder), word) for word in words]
    words = [*shlex.split(experiment.common), *([] if is_base else extra), *words]
    words += ["--seed", str(seed)]
    parsed = understood(program, words)
    if hasattr(parsed, "workers") and "--workers" not in words:
        words += ["--workers", "0"]  # several runs share the cores
    settings, made_by = vars(parsed), code.fingerprint(parsed, program)
    known_by = json.dumps([identity(settings), made_by], sort_keys=True)
    digest = sha256(known_by.encode()).hexdigest()
    name = slug(f"{settings.get('data', '')}-{arm}")[:80]
    there = find(runs / program, parsed, "" if any_code else made_by)
    folder = there or runs / program / f"{name}-{seed}-{digest[:6]}"
    return Trial(arm, seed, program, words, settings, folder, is_base, needs)
