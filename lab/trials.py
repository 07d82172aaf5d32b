"""A run that a comparison has a place for, known by its settings and not by its name.

It lies in RUNS/PROGRAM/DATA-ARM-SEED-DIGEST, the digest that of its settings and of the code that
makes it: runs of different settings, or of other code, are never taken for each other, whatever
they are called, and no run is made twice.
"""

import io
import json
import re
import shlex
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
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
SETTINGS = "settings.json"  # in the folder of a run: what it began with
REFUSED = {"--seed", "--out", "--resume", "--overwrite"}  # in a line: they are the runner's
BASE = re.compile(r"\{([^{} ]+)\}")  # of a line: the folder of another arm's run


@dataclass(eq=False)
class Trial:
    """A run that a comparison has a place for: an arm with a seed."""

    arm: str
    seed: int
    program: str  # a module, run by python -m
    words: list[str]  # its command line
    settings: dict  # what makes it the run it is, as the program understands it
    folder: Path  # where it is, or will be
    needs: list[Path]  # folders of runs that it begins with


def slug(text: str) -> str:
    return re.sub(r"[^\w.+@&]+", "-", text).strip("-")


def finished(folder: Path) -> bool:
    return (folder / "run.json").exists()


def understood(program: str, words: list[str]):
    """The arguments as the program understands them; DataError says what it does not. A program can
    be compared if its module has arguments(argv), or options(argv), if its command line has --out,
    --seed and --resume, and if it leaves run.json and metrics.jsonl as train.py does."""
    try:
        module = import_module(program)
        parse = getattr(module, "options", None) or module.arguments
    except (ModuleNotFoundError, AttributeError) as error:
        raise DataError(f"-m {program} cannot be compared: {error}") from None
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            args = parse(words)
    except SystemExit:
        why = said.getvalue().strip().partition("error: ")[2]
        raise DataError(f"{shlex.join(words)}: {why}") from None
    if getattr(args, "variant", None):
        wings.get(args)  # puts the variant's settings into args, as train.py does
    return args


def identity(args) -> dict:
    """What makes a run the run it is, as JSON has it; of a file of data also what it holds."""
    kept = {name: value for name, value in vars(args).items() if name not in SAME_RUN}
    files = {name: Path(kept[name]) for name in PATHS if kept.get(name)}
    for name, file in files.items():
        if file.is_file():
            kept[f"{name} holds"] = held(file, file.stat().st_mtime_ns)
    return json.loads(json.dumps(kept, default=str))


@cache
def held(file: Path, changed: int) -> str:
    """A digest of a file, which was last changed then."""
    with open(file, "rb") as opened:
        return file_digest(opened, "sha256").hexdigest()[:16]


def find(runs: Path, args, made_by: dict | None = None) -> Path | None:
    """The finished run below `runs` that began with these settings. An option that is younger than
    the run has its default; one that the program does not know makes it another run. made_by: the
    code, by default any."""
    wanted, origin = identity(args), getattr(args, "origin", {})
    for file in sorted(runs.glob(f"*/{SETTINGS}")):
        if not finished(file.parent):
            continue
        try:
            made = json.loads(file.read_text(encoding="utf-8"))
            code_of_it = read_record(file.parent).get("code")
        except (DataError, ValueError):  # it is damaged: another is made
            continue
        younger = {n for n in wanted if n not in made and origin.get(n) != "you"}
        same = made == {n: value for n, value in wanted.items() if n not in younger}
        if same and made_by in (None, code_of_it):
            return file.parent
    return None


def bases_of(lines: dict[str, str]) -> set[str]:
    """The arms whose runs others begin with."""
    return {base for line in lines.values() for base in BASE.findall(line)}


def plan(experiment: Experiment, seeds: list[int] | None, extra: list[str], runs: Path,
         any_code: bool = False) -> list[Trial]:  # fmt: skip
    """The trials; a first seed of everything comes before the second of anything. seeds: instead of
    the experiment's; extra: options of every line but those that others begin with; runs: the
    folder of them all; any_code: runs of other code are taken for done, too."""
    lines, numbers, first = experiment.lines, experiment.seeds, experiment.first_seed
    trials, made = [], {}
    count = {arm: numbers if isinstance(numbers, int) else numbers.get(arm, 1) for arm in lines}
    for seed in dict.fromkeys(seeds or range(first, first + max(count.values()))):
        folders = {}
        for arm in lines:
            if seeds or seed - first < count[arm]:
                given = [] if arm in bases_of(lines) else extra
                trial = trial_of(experiment, arm, seed, folders, given, runs, any_code)
                known_by = json.dumps([trial.program, trial.settings], sort_keys=True)
                trial.folder = made.setdefault(known_by, trial.folder)  # two lines may be one run
                folders[arm] = trial.folder
                trials.append(trial)
    return trials


def trial_of(experiment: Experiment, arm: str, seed: int, folders: dict[str, Path], extra: list,
             runs: Path, any_code: bool) -> Trial:  # fmt: skip
    """folders: of the arms before it, with the same seed."""
    line, program = experiment.lines[arm], experiment.program
    if unknown := [base for base in BASE.findall(line) if base not in folders]:
        raise DataError(f"{line}: no line before it is named {unknown[0]}")
    try:
        words = [BASE.sub(lambda base: str(folders[base[1]]), word) for word in shlex.split(line)]
    except ValueError as error:
        raise DataError(f"{line}: {error}") from None
    if refused := REFUSED & {word.partition("=")[0] for word in (*words, *extra)}:
        raise DataError(f"{line}: {min(refused)} is not a line's to say; see --seeds and --runs")
    if words[:1] == ["-m"]:
        _, program, *words = words
    words = [*shlex.split(experiment.common), *extra, *words, "--seed", str(seed)]
    args = understood(program, words)
    if hasattr(args, "workers") and "--workers" not in words:
        words += ["--workers", "0"]  # several runs share the cores
    settings, made_by = identity(args), code.fingerprint(args, program)
    digest = sha256(json.dumps([settings, made_by], sort_keys=True).encode()).hexdigest()
    name = slug(f"{settings.get('data', '')}-{arm}")[:80]
    there = find(runs / program, args, None if any_code else made_by)
    folder = there or runs / program / f"{name}-{seed}-{digest[:6]}"
    while not there and finished(folder):  # it is damaged, or other code ended it
        folder = folder.with_name(f"{folder.name}-again")
    needs = [folders[base] for base in BASE.findall(line)]
    return Trial(arm, seed, program, words, settings, folder, needs)
