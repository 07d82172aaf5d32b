"""Compare: any command lines, side by side over seeds, each made by train.py or another program.

    python -m lab.compare "--mask causal" "--mask mma" "--mask mma --lr 0.002" --seeds 0 1 2 \\
        --jobs 2 -- --data llava --source mine.json --images pictures
    python -m lab.compare shapes             a published comparison, of lab/experiments.py
    python -m lab.compare shapes --tables    train nothing: the tables of what has finished
    python -m lab.compare shapes --publish   write docs/results too; what is there is kept
    python -m lab.compare --tables           README.md and docs/*.md from docs/results/*.json

It trains what is not there yet, prints accuracy and its differences to the first line, tested over
seeds, and writes both to runs/compare/results, with curves and all numbers as JSON. What follows --
is given to every line. A line that begins with -m MODULE is one of that module, not of train.py.

A run is known by its settings, not by its name, and is never made twice. Ctrl-C lets the runs save;
the same command goes on. A run that fails is said at the end, and the others go on.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from data import DataError
from engine import wings
from engine.checkpoint import NON_IDENTITY_ARGS, StopRequest
from engine.options import PATHS, Parser, positive
from engine.run import one_line_errors, read_record
from lab import publish, results
from lab.experiments import EXPERIMENTS, Experiment, lines_of

# What does not make a run another run. Where data lie does: they are known by nothing else
SAME_RUN = {*NON_IDENTITY_ARGS} - {*PATHS, "limit"}
SHOWN = ("claims", "families", "steps", "largest", "marks", "counts", "short")
SETTINGS = "settings.json"  # in the folder of a run: its identity
BASE = re.compile(r"\{([^{} ]+)\}")  # of a line: the folder of another arm's run


# --- What is to be trained


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


def find(runs: Path, args) -> Path | None:
    """The finished run below `runs` that began with these settings: SETTINGS, or run.json, which
    programs may have filled up. An option that is younger than the run has its default; one that
    the program does not know makes it another run."""
    wanted, origin = identity(vars(args)), getattr(args, "origin", {})
    for folder in sorted(file.parent for file in runs.glob("*/run.json")):
        made = identity(read_record(folder)["args"])
        if (folder / SETTINGS).exists():
            made = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        younger = {n for n in wanted if n not in made and origin.get(n) != "you"}
        if made == {n: value for n, value in wanted.items() if n not in younger}:
            return folder
    return None


def plan(lines: dict[str, str], args) -> list[Trial]:
    """A first seed of everything comes before the second of anything. args: of this command."""
    numbers, trials = args.experiment.seeds, []
    counts = {arm: numbers if isinstance(numbers, int) else numbers.get(arm, 1) for arm in lines}
    for seed in args.seeds or range(max(counts.values())):
        made = {}
        for arm, line in lines.items():
            if args.seeds or seed < counts[arm]:
                made[arm] = trial_of(arm, line, seed, made, args, bases_of(lines))
        trials += made.values()
    return trials


def bases_of(lines: dict[str, str]) -> set[str]:
    return {base for line in lines.values() for base in BASE.findall(line)}


def trial_of(arm: str, line: str, seed: int, made: dict, args, bases: set[str]) -> Trial:
    """made: the trials of this seed so far. bases: arms that others begin with; what follows -- is
    not for them."""
    program, words = args.experiment.program, shlex.split(line)
    if words[:1] == ["-m"]:
        program, words = words[1], words[2:]
    if unknown := [base for base in BASE.findall(line) if base not in made]:
        raise DataError(f"{line}: no line before it is named {unknown[0]}")
    needs = [made[base].folder for base in BASE.findall(line)]
    words = [BASE.sub(lambda match: str(made[match[1]].folder), word) for word in words]
    extra = [] if arm in bases else args.extra
    words = [*shlex.split(args.experiment.common), *extra, *words, "--seed", str(seed)]
    parsed = understood(program, words)
    if hasattr(parsed, "workers") and "--workers" not in words:
        words += ["--workers", "0"]  # several runs share the cores
    settings, runs = vars(parsed), args.runs / program
    digest = sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()
    name = slug(f"{settings.get('data', '')}-{arm}")[:80]
    folder = find(runs, parsed) or runs / f"{name}-{seed}-{digest[:6]}"
    return Trial(arm, seed, program, words, settings, folder, arm in bases, needs)


# --- Training


def launch(trial: Trial) -> subprocess.Popen:
    """Start a run, or go on with it, on one thread; what it prints goes to log.txt. In a session of
    its own: Ctrl-C reaches this command alone, which then asks each run once to stop."""
    publish.write_json(trial.folder / SETTINGS, identity(trial.settings))
    command = [sys.executable, "-m", trial.program, *trial.words]
    with open(trial.folder / "log.txt", "a") as log:
        return subprocess.Popen(
            [*command, "--out", str(trial.folder), "--resume"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )  # fmt: skip


def last_words(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return ([line for line in lines if line.strip()] or ["it said nothing"])[-1].split("\r")[-1]


class Training:
    """Runs that are made, some at a time; failed: folder -> why."""

    def __init__(self, todo: list[Trial], at_a_time: int):
        self.waiting = list({trial.folder: trial for trial in todo}.values())
        self.at_a_time, self.running, self.failed = at_a_time, {}, {}

    def go(self) -> None:
        """Make all runs. KeyboardInterrupt after Ctrl-C or SIGTERM, when the runs have saved; at
        once after a second Ctrl-C."""
        with StopRequest() as stop:
            try:
                while (self.waiting or self.running) and not stop.requested:
                    self.start()
                    self.collect()
                    time.sleep(0.1)
                self.stop()
            finally:
                for process, _ in self.running.values():
                    process.kill()
        if stop.requested:
            print("the same command goes on", file=sys.stderr)
            raise KeyboardInterrupt

    def start(self) -> None:
        """Start what there is room for, and what has all that it begins with."""
        for trial in list(self.waiting):
            lost = [need for need in trial.needs if need in self.failed]
            ready = all((need / "run.json").exists() for need in trial.needs)
            if lost:
                self.failed[trial.folder] = f"it begins with {lost[0]}, which failed"
            elif ready and len(self.running) < self.at_a_time:
                self.running[trial] = launch(trial), time.monotonic()
            else:
                continue
            self.waiting.remove(trial)

    def collect(self) -> None:
        """Take note of what has ended."""
        for trial, (process, began) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[trial]
            name, seconds = trial.folder.name, f"{time.monotonic() - began:.0f} s"
            if process.returncode == 0:
                print(f"{name}: done after {seconds}", flush=True)
            else:
                self.failed[trial.folder] = last_words(trial.folder)
                print(f"{name}: FAILED after {seconds}", flush=True)

    def stop(self) -> None:
        """Ask what still runs to save, and wait for it."""
        for process, _ in self.running.values():
            process.terminate()
        for trial, (process, _) in list(self.running.items()):
            process.wait()
            del self.running[trial]


# --- What finished runs say


def ask(trial: Trial, questions: dict, make: bool, failed: dict) -> dict[str, Path]:
    """name -> file, of what a finished run has been asked (Experiment.asks). The files lie in the
    run's folder, and nothing is asked twice. failed gets what goes wrong."""
    files = {}
    for name, question in questions.items():
        file = trial.folder / f"{slug(name)}.json"
        program, *words = question.command.split()
        if trial.arm not in (question.arms or [trial.arm]):
            continue
        if trial.seed not in (question.seeds or [trial.seed]):
            continue
        if question.limited and trial.settings.get("limit"):
            words += ["--limit", str(trial.settings["limit"])]
        try:
            if make and not file.exists():
                with contextlib.redirect_stdout(None):
                    import_module(program).main([str(trial.folder), *words, "--json", str(file)])
        except SystemExit as error:
            failed[file] = str(error)
        if file.exists():
            files[name] = file
    return files


def collect(trials: list[Trial], lines: dict[str, str], args, failed: dict) -> dict:
    """What has finished, as a result (lab/results.py)."""
    experiment, arms, missing = args.experiment, {arm: [] for arm in lines}, []
    for trial in sorted(trials, key=lambda trial: list(lines).index(trial.arm)):
        there = (trial.folder / "run.json").exists()
        asked = ask(trial, experiment.asks, not args.tables, failed) if there else {}
        if there and (not experiment.split or experiment.split in asked):
            arms[trial.arm].append(results.read_run(trial.folder, asked, experiment.split))
        else:
            missing.append(f"{trial.arm}-{trial.seed}")
    arms = {arm: runs for arm, runs in arms.items() if runs}
    result = {
        "arms": arms, "options": {arm: lines[arm] for arm in arms}, "missing": missing,
        "settings": common_settings(trials),
        "show": {name: getattr(experiment, name) for name in SHOWN},
    }  # fmt: skip
    return json.loads(json.dumps(result))  # as it will be read again


def common_settings(trials: list[Trial]) -> dict:
    """What all runs have, those that others begin with apart; of folders the names."""
    settings = [identity(trial.settings, *PATHS, "seed") for trial in trials if not trial.is_base]
    alike = {n: v for n, v in settings[0].items() if all(s.get(n) == v for s in settings)}
    return {name: Path(v).name if isinstance(v, str) else v for name, v in alike.items()}


# --- The command


def own(lines: list[str], marks) -> Experiment:
    """The comparison of command lines: each against the first one, in every respect."""
    names = [line.replace("--mask ", "").strip() for line in lines]
    claims = tuple(f"{name} > {names[0]}" for name in dict.fromkeys(names[1:]))
    return Experiment(
        dict(zip(names, lines)), seeds=3, claims=claims, families=claims, steps=claims, marks=marks
    )


def chosen(lines: dict[str, str], only: list[str] | None) -> dict[str, str]:
    """The lines that --only names, with those that they begin with."""
    if unknown := [name for name in only or [] if name not in lines]:
        raise DataError(f"--only {unknown[0]}: no such arm; there are {', '.join(lines)}")
    some = {name: line for name, line in lines.items() if not only or name in only}
    return {name: line for name, line in lines.items() if name in {*some, *bases_of(some)}}


def compare(args) -> None:
    for package, what in (("matplotlib", "curves"), ("scipy", "tests"), ("pandas", "tables")):
        results.need(package, f"the {what}")  # before a day of training, not after it
    lines = chosen(args.lines, args.only)
    trials, failed = plan(lines, args), {}
    if args.publish:  # before the runs are made, too
        publish.check_settings(args.name, common_settings(trials))
    todo = [trial for trial in trials if not (trial.folder / "run.json").exists()]
    if not args.tables:
        training = Training(todo, args.jobs)
        training.go()
        failed |= training.failed
    result = collect(trials, lines, args, failed)
    said = "".join(f"\n  {folder}: {why}" for folder, why in failed.items())
    if not result["arms"]:
        nothing = f"no finished run of {args.name} in {args.runs}"
        raise DataError(nothing + (said or "; leave --tables out to make them"))
    files = publish.write(args.runs / "results", args.name, result)
    files = publish.publish(args.name, result) if args.publish else files
    for file in files:
        if file.suffix == ".md":
            print(file.read_text(encoding="utf-8"))
    print("\n".join(f"wrote {file}" for file in files))
    if failed:
        raise DataError(f"{len(failed)} failed (see log.txt there), the others are done:{said}")


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("experiment", nargs="?", choices=list(EXPERIMENTS), metavar="LINE [LINE ...] or NAME",
        help=f"command lines, each one word to the shell; or {', '.join(EXPERIMENTS)}")  # fmt: skip
    add("--only", nargs="+", metavar="ARM", help="these of the lines alone")
    add("--seeds", nargs="+", type=int, metavar="N",
        help="of every line (default: 0 1 2; of NAME as lab/experiments.py says)")  # fmt: skip
    add("--jobs", type=positive, default=1, metavar="N",
        help="runs at a time, one thread each (default: 1)")  # fmt: skip
    add("--mark", nargs="+", type=float, metavar="P",
        help="validation accuracies, in %%, whose first step is told (default: 80 95)")  # fmt: skip
    add("--runs", type=Path, default=Path("runs/compare"), metavar="DIR",
        help="default: runs/compare")  # fmt: skip
    add("--name", help="of the files in there (default: NAME, or the lines)")
    add("--publish", action="store_true", help="write docs/results too; what is there is kept")
    add("--tables", action="store_true", help="train nothing; the tables of what there is")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    own_lines = [word for word in argv[:cut] if word.startswith("-") and " " in word]
    args = parser.parse_args([word for word in argv[:cut] if word not in own_lines])
    args.extra = argv[cut + 1 :]
    if bool(args.experiment) == bool(own_lines) and not (args.tables and not own_lines):
        parser.error("name one published comparison, or give command lines, quoted")
    return with_experiment(args, own_lines)


def with_experiment(args, own_lines: list[str]):
    """args, with the comparison itself: experiment, lines, name; runs is an absolute path."""
    if args.experiment or own_lines:
        name = args.experiment
        marks = tuple(args.mark or (80, 95))
        args.experiment = EXPERIMENTS[name] if name else own(own_lines, marks)
        if args.mark:
            args.experiment = args.experiment._replace(marks=marks)
        args.lines = lines_of(name) if name else args.experiment.lines
        args.name = args.name or name or slug("-vs-".join(args.lines))[:80]
    args.runs = args.runs.resolve()
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        if args.experiment:
            compare(args)
        else:
            from lab import bench_arms

            bench_arms.renew(results.PUBLISHED)
            publish.renew()


if __name__ == "__main__":
    main()
