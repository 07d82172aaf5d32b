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

A run is known by its settings, what its file of data holds and the code, not by its name, and is
never made twice. Ctrl-C lets the runs save; the same command goes on. A run that fails is said at
the end, and the others go on.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from data.errors import DataError, need
from engine.checkpoint import StopRequest
from engine.options import PATHS, Parser, positive
from engine.run import check_writable, one_line_errors
from lab import publish, results
from lab.experiments import EXPERIMENTS, Experiment
from lab.trials import SETTINGS, Trial, bases_of, finished, plan, slug

BEGUN = "--- "  # in log.txt before the command of each start
SHOWN = ("claims", "detailed", "marks", "short")


# --- Training


def launch(trial: Trial) -> subprocess.Popen:
    """Start a run, or go on with it, on one thread; what it prints goes to log.txt. In a session of
    its own: Ctrl-C reaches this command alone, which then asks each run once to stop."""
    print(f"{trial.folder.name}: begun", flush=True)
    publish.write_json(trial.folder / SETTINGS, trial.settings)
    command = [sys.executable, "-m", trial.program, *trial.words]
    with open(trial.folder / "log.txt", "a") as log:
        print(f"{BEGUN}{shlex.join(command)}", file=log, flush=True)
        return subprocess.Popen(
            [*command, "--out", str(trial.folder), "--resume"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )  # fmt: skip


def why_it_failed(folder: Path, status: int) -> str:
    """Its last error, or its last line. status: of its process, negative if a signal ended it."""
    if status < 0:
        return f"signal {-status} ended it" + (", as where memory runs out" if status == -9 else "")
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    _, *said = log.rpartition(BEGUN)[2].strip().splitlines()
    errors = [line for line in said if line.startswith("error:")]
    return (errors or said or ["it said nothing"])[-1]


def train_all(trials: list[Trial], jobs: int) -> dict[Path, str]:
    """Make the runs that are not there, `jobs` at a time, each after those that it begins with;
    returns folder -> why, of those that failed. Ctrl-C, or SIGTERM, lets the runs save; a second
    Ctrl-C does not."""
    todo = {trial.folder: trial for trial in trials if not finished(trial.folder)}
    todo = [*todo.values()]
    running, failed = {}, {}  # process -> (trial, when it began)
    with StopRequest() as stop:
        try:
            start(todo, running, jobs)
            while running and not stop.requested:
                time.sleep(0.1)
                failed |= take_ended(running)
                start(todo, running, jobs)
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        finally:
            for process in running:
                process.kill()
    if stop.requested:
        print("the same command goes on", file=sys.stderr)
        raise KeyboardInterrupt
    for trial in todo:  # what is left begins with runs that failed
        lost = next(folder for folder in trial.needs if not finished(folder))
        failed[trial.folder] = f"it begins with {lost}, which failed"
    return failed


def start(todo: list[Trial], running: dict, jobs: int) -> None:
    """Start trials of `todo` that begin with nothing that is still to be made, up to `jobs`."""
    ready = [trial for trial in todo if all(map(finished, trial.needs))]
    for trial in ready[: jobs - len(running)]:
        todo.remove(trial)
        running[launch(trial)] = trial, time.monotonic()


def take_ended(running: dict) -> dict[Path, str]:
    """Take the processes that have ended out of `running`; returns folder -> why, of those that
    failed."""
    failed = {}
    for process in [process for process in running if process.poll() is not None]:
        trial, began = running.pop(process)
        how = "FAILED" if process.returncode else "done"
        print(f"{trial.folder.name}: {how} after {time.monotonic() - began:.0f} s", flush=True)
        if process.returncode:
            failed[trial.folder] = why_it_failed(trial.folder, process.returncode)
    return failed


# --- What finished runs say


def ask(trial: Trial, asks: dict[str, str], make: bool, failed: dict) -> dict[str, Path]:
    """name -> file, of what a finished run has been asked (Experiment.asks). The files lie in the
    run's folder, and nothing is asked twice. failed gets what goes wrong."""
    files = {name: trial.folder / f"{slug(name)}.json" for name in asks}
    for name, file in files.items():
        if file.exists() or not make:
            continue
        program, *words = asks[name].split()
        try:
            with contextlib.redirect_stdout(None):
                import_module(program).main([str(trial.folder), *words, "--json", str(file)])
        except (SystemExit, Exception) as error:
            if getattr(error, "code", None) == 130:
                raise KeyboardInterrupt from None
            failed[file] = str(error)
    return {name: file for name, file in files.items() if file.exists()}


def collect(trials: list[Trial], experiment: Experiment, make: bool, failed: dict) -> dict:
    """What has finished, as a result (lab/results.py). make: ask what has not been asked."""
    arms, missing = {arm: [] for arm in experiment.lines}, []
    for trial in sorted(trials, key=lambda trial: list(arms).index(trial.arm)):
        there = finished(trial.folder)
        asked = ask(trial, experiment.asks, make, failed) if there else {}
        try:
            if there and (not experiment.split or experiment.split in asked):
                arms[trial.arm].append(results.read_run(trial.folder, asked, experiment.split))
                continue
        except (DataError, ValueError, KeyError) as error:
            failed[trial.folder] = f"it is damaged, and left out: {error}"
        missing.append(f"{trial.arm}-{trial.seed}")
    result = {
        "arms": {arm: runs for arm, runs in arms.items() if runs},
        "options": {arm: experiment.lines[arm] for arm, runs in arms.items() if runs},
        "missing": missing, "settings": common_settings(trials, experiment),
        "show": {name: getattr(experiment, name) for name in SHOWN},
    }  # fmt: skip
    return json.loads(json.dumps(result))  # as it will be read again


def common_settings(trials: list[Trial], experiment: Experiment) -> dict:
    """What all runs have, those that others begin with apart; of folders the names. Where data lie
    differs by machine; a file of them is known by what it holds."""
    bases = bases_of(experiment.lines)
    first, *others = (trial.settings for trial in trials if trial.arm not in bases)
    return {
        name: Path(value).name if isinstance(value, str) else value
        for name, value in first.items()
        if (name not in (*PATHS, "seed") or f"{name} holds" in first)
        and all(s.get(name) == value for s in others)
    }


# --- The command


def comparison(args) -> tuple[str, Experiment]:
    """What is compared, and the name of its files. Own lines: each with the first one, in every
    respect."""
    if args.experiment:
        name, experiment = args.experiment, EXPERIMENTS[args.experiment]
        lines, marks = chosen(experiment.lines, args.only), tuple(args.mark or experiment.marks)
        return args.name or name, experiment._replace(lines=lines, marks=marks)
    program, *others = {line.partition(" --")[0] for line in args.lines}
    shown = program if program.startswith("-m ") and not others else ""  # what all begin with
    lines = {line.removeprefix(shown).replace("--mask ", "").strip(): line for line in args.lines}
    lines = {re.sub(r" ([->]) ", r"\1", name): line for name, line in lines.items()}  # see claims
    first, *others = lines
    claims, marks = tuple(f"{name} > {first}" for name in others), tuple(args.mark or (80, 95))
    of_all = "-".join(Path(word).name for word in args.extra)
    name = args.name or slug(f"{slug('-vs-'.join(lines))[:80]}-{of_all}"[:120])
    return name, Experiment(lines, seeds=3, claims=claims, detailed=claims, marks=marks)


def chosen(lines: dict[str, str], only: list[str] | None) -> dict[str, str]:
    """The lines that --only names, with those that they begin with."""
    if unknown := [name for name in only or [] if name not in lines]:
        raise DataError(f"--only {unknown[0]}: no such arm; there are {', '.join(lines)}")
    some = {name: line for name, line in lines.items() if not only or name in only}
    return {name: line for name, line in lines.items() if name in {*some, *bases_of(some)}}


def compare(args) -> None:
    name, experiment = comparison(args)
    check_writable(args.runs / "results" / f"{name}.json")
    trials = plan(experiment, args.seeds, args.extra, args.runs, args.any_code)
    failed = {}
    if args.publish:  # before the runs are made, too
        publish.read_published(name, common_settings(trials, experiment))
    if not args.tables:
        failed = train_all(trials, args.jobs)
    result = collect(trials, experiment, not args.tables, failed)
    said = "".join(f"\n  {folder}: {why}" for folder, why in failed.items())
    if not result["arms"]:
        nothing = f"no finished run of {name} in {args.runs}"
        raise DataError(nothing + (said or "; leave --tables out to make them"))
    files = publish.write(args.runs / "results", name, result)
    files = publish.publish(name, result) if args.publish else files
    for file in files:
        if file.suffix == ".md":
            print(file.read_text(encoding="utf-8"))
    print("\n".join(f"wrote {file}" for file in files))
    if failed:
        raise DataError(f"{len(failed)} failed (see log.txt there), the others are done:{said}")


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("experiment", nargs="?", choices=list(EXPERIMENTS), metavar="LINE [LINE ...] or NAME",
        help=f"command lines, each one word to the shell; or {', '.join(EXPERIMENTS)}")  # fmt: skip
    add("--only", nargs="+", metavar="ARM", help="of NAME these arms alone")
    add("--seeds", nargs="+", type=int, metavar="N",
        help="of every line (default: 0 1 2; of NAME as lab/experiments.py says)")  # fmt: skip
    add("--jobs", type=positive, default=1, metavar="N",
        help="runs at a time, one thread each (default: 1)")  # fmt: skip
    add("--mark", nargs="+", type=float, metavar="P",
        help="validation accuracies, in %%, whose first step is told (default: 80 95)")  # fmt: skip
    add("--runs", type=Path, default=Path("runs/compare"), metavar="DIR",
        help="default: runs/compare; tables go to DIR/results")  # fmt: skip
    add("--name", help="of the files in there (default: NAME, or the lines)")
    add("--publish", action="store_true", help="write docs/results too; what is there is kept")
    add("--any-code", action="store_true", help="take runs that other code made for done, too")
    add("--tables", action="store_true", help="train nothing; the tables of what there is")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    own = parser._option_string_actions
    lines = [
        word for word in argv[:cut]
        if word.startswith("-m ") or word.startswith("--") and word.split("=")[0] not in own
    ]  # fmt: skip
    args = parser.parse_args([word for word in argv[:cut] if word not in lines])
    args.lines, args.extra, args.runs = lines, argv[cut + 1 :], args.runs.resolve()
    if bool(args.experiment) == bool(lines) and (lines or not args.tables):
        parser.error("name one published comparison, or give command lines, quoted")
    if lines and args.only:
        parser.error("--only takes arms of a published comparison")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        for package, what in (("matplotlib", "curves"), ("scipy", "tests"), ("pandas", "tables")):
            need(package, f"the {what}")  # before a day of training, not after it
        compare(args) if args.experiment or args.lines else publish.renew()


if __name__ == "__main__":
    main()
