"""Reproduce: every method beside every other, over seeds and data, each run made by train.py and by nothing else.

    python arms.py shapes                 train what is not yet there, then write results/shapes.{json,md,png}; PNG: curves over the steps
    python arms.py depth                  mma against causal over decoder depth; likewise: budget, rates, easy_vqa, nlvr
    python arms.py shapes --tables        only write the tables of what has finished
    python arms.py time                   milliseconds a training step of each arm, interleaved on this machine
    python arms.py readme                 put the tables of results/*.md into README.md

A run lies in RUNS/DATA-ARM-SEED (default: runs/arms). It is known by its settings, not by its name; it is never made twice, and one
that was stopped goes on. --jobs N makes N at a time, each with an equal share of the cores. An arm is a line in ARMS: the options
that train.py is given. What follows -- is given to every run (python arms.py shapes -- --preset small).
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import data
import draw
import eval as evaluation
import train
from model import MLLM

ARMS = {  # without "mutual": on rows whose picture comes before the question it is mma, pair by pair (tests/test_arms.py)
    "causal": "--mask causal",
    "mma": "--mask mma",
    "prefix": "--mask prefix",
    "v2v": "--mask v2v",
    "f": "--mask f",
    "cca": "--mask cca",
    "mma+cca": "--mask mma+cca",
    "t&i": "--mask causal --order text-first",
    "dot": "--mask causal --order both",
    "dot-double": "--mask causal --order both --steps 2x",
    "rave-style": "--mask causal --gate rave",
    "mma+rave-style": "--mask mma --gate rave",
    "lora": "--mask causal --gate lora",
    "scalar": "--mask causal --gate scalar",
    "leaky-captions": "--mask mma --pt-mask leaky --allow-leaks",
}
MAIN = ["causal", "mma", "prefix", "cca", "dot", "v2v"]  # at least three seeds; one elsewhere
TEST_TIME = {"v2v": ["--mask", "v2v"], "v2t": ["--mask", "v2t"], "f": ["--mask", "f"], "aif 0.25": ["--aif", "0.25"],
             "aif 0.5": ["--aif", "0.5"]}  # on the checkpoints of causal and mma: name -> options of eval.py


def pairs(option: str, values) -> dict[str, str]:
    """mma and causal at every value of one option."""
    return {f"{mask}@{value}": f"--mask {mask} --{option} {value}" for mask in ("mma", "causal") for value in values}


EXPERIMENTS = {  # name -> (data and the options that all arms share, {arm: options}, what the @ in an arm's name counts)
    "shapes": ("shapes", ARMS, None),
    "depth": ("shapes", pairs("n-layer", (2, 3, 4, 6, 8)), "decoder layers"),
    "budget": ("shapes", pairs("steps", ("1x", "2x", "4x")), "training budget, in default budgets"),
    "rates": ("shapes", pairs("lr", (0.002, 0.004, 0.008)), "learning rate"),
    "easy_vqa": ("easy_vqa --pt-steps 200 --steps 400", ARMS, None),  # short: with the default budget mma has 98.6 % at its first look
    "nlvr": ("nlvr", {arm: ARMS[arm] for arm in ("causal", "mma")}, None),
    "nlvr+world": ("nlvr+world", {arm: ARMS[arm] for arm in ("causal", "mma")}, None),
}
WHERE = ("eval_every", "val_limit", *checkpoint.WHERE)  # not what a run is


def wanted(data_options: list[str], options: str, seed: int, extra: list[str]) -> tuple[list[str], argparse.Namespace]:
    """The command line of a run of train.py, and the same parsed. "2x" stands for twice the experiment's number of steps."""
    steps = train.arguments([*data_options, *extra]).steps
    line = [str(int(word[:-1]) * steps) if word in ("1x", "2x", "4x") else word for word in options.split()]
    line = [*data_options, *extra, *line, "--seed", str(seed)]
    return line, train.arguments(line)


def find(runs: Path, args: argparse.Namespace) -> Path | None:
    """The finished run below `runs` that has these settings; an option that is younger than the run has its default."""
    default = vars(train.arguments(["--data", args.data, "--preset", args.preset]))
    for file in sorted(runs.glob("*/run.json")):
        made = {**default, **json.loads(file.read_text())["args"]}
        if all(made[name] == value for name, value in vars(args).items() if name not in WHERE):
            return file.parent
    return None


def make(todo: list[tuple[str, list[str]]], runs: Path, jobs: int) -> None:
    """Train what is to do, `jobs` at a time. A run that fails is reported at the end; the others go on."""
    threads = max(1, len(os.sched_getaffinity(0)) // jobs if hasattr(os, "sched_getaffinity") else os.cpu_count() // jobs)

    def one(job):
        name, line = job
        began, out = time.time(), runs / name
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "log.txt", "w") as log:
            code = subprocess.run([sys.executable, "train.py", *line, "--out", str(out), "--workers", "0", "--resume"], stdout=log,
                                  stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, cwd=Path(__file__).parent).returncode
        tqdm.write(f"{name}: {'done' if code == 0 else 'FAILED'} after {time.time() - began:.0f} s")
        return name if code else None

    with ThreadPoolExecutor(jobs) as pool:
        failed = [name for name in tqdm(pool.map(one, todo), total=len(todo), desc="runs", disable=not todo) if name]
    if failed:
        raise data.DataError(f"{len(failed)} runs failed; see log.txt in " + ", ".join(str(runs / name) for name in failed))


def read(run: Path) -> dict:
    """What the tables need of a finished run."""
    record = json.loads((run / "run.json").read_text())
    curve = evaluation.curve(run)
    keys = ("seed", "accuracy", "consistency", "families", "n", "unparsed", "params", "seconds")
    return {**{k: record[k] for k in keys if k in record}, "curve": curve,
            "step_at_80": next((step for step, accuracy in curve.items() if accuracy >= 0.8), None), "run": run.name}


# --------------------------------------------------------------------------------------------------------------------
# Tables

def arms_table(arms: dict[str, list[dict]]) -> str:
    """A row for each arm: accuracy in % (mean ± standard deviation over seeds), overall and by family; when it passes 80 %."""
    families = sorted({f for runs in arms.values() for run in runs for f in run["families"]})
    rows = [["arm", "seeds", "overall", *families, "80 % at step", "parameters"]]
    for arm, runs in arms.items():
        steps = [run["step_at_80"] for run in runs]
        rows.append([arm, str(len(runs)), evaluation.spread([100 * run["accuracy"] for run in runs]),
                     *(evaluation.spread([100 * run["families"][f]["accuracy"] for run in runs]) for f in families),
                     ", ".join("never" if s is None else f"{s:,}" for s in steps), f"{runs[0]['params']:,}"])
    return evaluation.markdown(rows)


def greater(a: list[float], b: list[float]) -> str:
    """Is the mean of a above that of b? yes or no if they lie further apart than twice the standard error of their difference
    (Welch), "not clear" otherwise or with a single seed."""
    if min(len(a), len(b)) < 2:
        return "not clear (one seed)"
    error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
    difference = statistics.mean(a) - statistics.mean(b)
    verdict = "not clear" if abs(difference) <= 2 * error else "yes" if difference > 0 else "no"
    return f"{verdict} ({difference:+.1f} ± {error:.1f} points)"


def claims(arms: dict[str, list[dict]]) -> str:
    """The paper's pattern, claim by claim."""
    def of(arm, family=None):
        return [100 * (run["families"][family]["accuracy"] if family else run["accuracy"]) for run in arms[arm]]

    rows = [["claim", "here"]]
    for better, worse in (("mma", "causal"), ("mma", "dot"), ("dot", "causal"), ("mma", "cca"), ("mma", "prefix"), ("mma", "v2v"),
                          ("t&i", "causal")):
        if better in arms and worse in arms:
            rows.append([f"{better} > {worse}", greater(of(better), of(worse))])
    if "mma" in arms and "causal" in arms:
        gain = {f: statistics.mean(of("mma", f)) - statistics.mean(of("causal", f)) for f in arms["mma"][0]["families"]}
        order = sorted(gain, key=gain.get, reverse=True)
        if {"counting", "existence"} <= set(gain):
            verdict = "yes" if set(order[:2]) == {"counting", "existence"} else "no"
            gains = ", ".join(f"{f} {gain[f]:+.1f}" for f in order)
            rows.append(["mma's gains are largest in counting and existence", f"{verdict} ({gains})"])
        same = arms["mma"][0]["params"] == arms["causal"][0]["params"]
        rows.append(["mma has no parameters of its own", "yes" if same else "no"])
    return evaluation.markdown(rows) if len(rows) > 1 else ""


def test_time(arms: dict[str, Path], limit: int | None, make: bool = True) -> list[dict]:
    """Masks and AIF that are only switched on when answering, on finished runs; each result is kept beside the run."""
    out, first = [], ["--limit", str(limit)] if limit else []
    for arm, run in arms.items():
        for name, options in {"as trained": [], **TEST_TIME}.items():
            file = run / f"test-{name.replace(' ', '-')}.json"
            if not file.exists() and not make:
                continue
            if not file.exists():
                with contextlib.redirect_stdout(None):
                    evaluation.main([str(run), *options, *first, "--json", str(file)])
            record = json.loads(file.read_text())["runs"][0]
            out.append({"trained": arm, "test": name, "accuracy": record["accuracy"], "families": record["families"]})
    return out


def step_times(arms: dict[str, str], repeats: int = 15) -> dict[str, float]:
    """arm -> median milliseconds of a training step of stage 2 (forward, backward, update), all arms taking turns."""
    source, runs = data.load("shapes"), {}
    tokenizer = data.Tokenizer.train(source.texts(), 4096)
    for arm, options in arms.items():
        args = wanted(["--data", "shapes"], options, 0, [])[1]
        config = train.config_of(args, tokenizer)
        model, batches = MLLM(config).to(args.device), train.Steps(source, tokenizer, config, "sft", args)
        model.encoder.requires_grad_(False)
        runs[arm] = (args, model, batches, train.optimizers_of(model, args), [])
    for step in tqdm(range(repeats + 2), desc="timing"):
        for args, model, batches, optimizers, times in runs.values():
            batch = {name: x.to(args.device) for name, x in batches[step].items()}
            began = time.perf_counter()
            train.update(model, optimizers, batch, args.mask, [1e-3, 1e-3], train.scaler_of(args.device))
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - began))
    return {arm: statistics.median(times[2:]) for arm, (*_, times) in runs.items()}


# --------------------------------------------------------------------------------------------------------------------

def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "time", "readme"])
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help=f"of {', '.join(MAIN)} (default: 0 1 2)")
    parser.add_argument("--other-seeds", nargs="+", type=int, default=[0], help="of the other arms (default: 0)")
    parser.add_argument("--source", type=Path, help="easy_vqa, nlvr: the folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/arms"), help="where the runs lie (default: runs/arms)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the tables go (default: results)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--tables", action="store_true", help="train nothing; write what there is")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    args.extra, args.runs, args.results = argv[cut + 1:], args.runs.resolve(), args.results.resolve()
    return args


def main(argv=None):
    args = arguments(argv)
    args.results.mkdir(parents=True, exist_ok=True)
    try:
        {"time": write_time, "readme": write_readme}.get(args.experiment, reproduce)(args)
    except data.DataError as error:
        raise SystemExit(f"error: {error}") from None


def write_time(args) -> None:
    times = step_times({arm: options for arm, options in ARMS.items() if not args.only or arm in args.only})
    where = f"{torch.get_num_threads()} CPU threads" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    file = args.results / "shapes.json"
    made = json.loads(file.read_text())["arms"] if file.exists() else {}
    rows = [["arm", "ms a step", "of causal", "steps to 80 %", "seconds to 80 %"]]
    for arm, ms in times.items():
        steps = [run["step_at_80"] for run in made.get(arm, [])]
        reached = [step for step in steps if step]
        mean = statistics.mean(reached) if reached else 0
        some = f" ({len(reached)} of {len(steps)} seeds)" if len(reached) < len(steps) else ""
        to_80 = [f"{mean:,.0f}{some}", f"{mean * ms / 1000:.0f}{some}"] if reached else ["never" if steps else "-"] * 2
        rows.append([arm, f"{ms:.0f}", f"{ms / times.get('causal', ms):.2f}", *to_80])
    text = (f"{evaluation.markdown(rows)}\n\n{where}, torch {torch.__version__}; seconds = steps x ms a step, without stage 1 and "
            "the looks at validation.")
    print(text)
    (args.results / "time.md").write_text(text + "\n", encoding="utf-8")
    (args.results / "time.json").write_text(json.dumps({"where": where, "torch": torch.__version__, "ms": times}, indent=1) + "\n")


def with_tables(readme: str, results: Path) -> str:
    """The README with what stands between <!-- NAME.md --> and <!-- end --> taken from the results."""
    def block(match):
        return f"<!-- {match[1]} -->\n{(results / match[1]).read_text(encoding='utf-8').strip()}\n<!-- end -->"
    return re.sub(r"<!-- ([\w+]+\.md) -->\n.*?<!-- end -->", block, readme, flags=re.S)


def write_readme(args) -> None:
    file = Path(__file__).parent / "README.md"
    file.write_text(with_tables(file.read_text(encoding="utf-8"), args.results), encoding="utf-8")


def reproduce(args) -> None:
    (name, *shared), counts = EXPERIMENTS[args.experiment][0].split(), EXPERIMENTS[args.experiment][2]
    arms = {arm: options for arm, options in EXPERIMENTS[args.experiment][1].items() if not args.only or arm in args.only}
    data_options = ["--data", name, *shared] + (["--source", str(args.source.resolve())] if args.source else [])
    settings, todo, missing, taken = {}, [], [], set()
    for seed in sorted({*args.seeds, *args.other_seeds}):  # a first seed of everything before the second of anything
        for arm, options in arms.items():
            line, settings[arm, seed] = wanted(data_options, options, seed, args.extra)
            key = json.dumps({k: str(v) for k, v in vars(settings[arm, seed]).items() if k not in WHERE}, sort_keys=True)
            asked = seed in (args.seeds if arm in MAIN else args.other_seeds)
            if asked and key not in taken and find(args.runs, settings[arm, seed]) is None:
                todo.append((f"{name}-{arm}-{seed}", line))
            if asked:
                taken.add(key)
                missing.append((arm, seed))
    if not args.tables:
        make(todo, args.runs, args.jobs)
    done = {arm: [run for (a, _), some in settings.items() if a == arm and (run := find(args.runs, some))] for arm in arms}
    missing = [f"{arm}-{seed}" for arm, seed in missing if find(args.runs, settings[arm, seed]) is None]
    records = {arm: [read(run) for run in runs] for arm, runs in done.items() if runs}
    if not records:
        raise data.DataError(f"no finished run of {args.experiment} in {args.runs}; leave --tables out to make them")
    out = {"data": name, "arms": records, "options": {arm: arms[arm] for arm in records}, "missing": missing}
    if args.experiment == "shapes":
        first = {arm: done[arm][0] for arm in ("causal", "mma") if done.get(arm)}
        out["test_time"] = test_time(first, next(iter(settings.values())).limit, make=not args.tables)
    label = {arm: f"{arm} ({len(runs)} seed{'s' * (len(runs) > 1)})" for arm, runs in records.items()}
    curves = {label[arm]: [run["curve"] for run in runs] for arm, runs in records.items() if counts or arm in MAIN}
    draw.write_curves(args.results / f"{args.experiment}{'-curves' if counts else ''}.png", curves)
    if counts:  # accuracy over what the @ counts
        lines = {}
        for arm, runs in records.items():
            mask, x = arm.split("@")
            for run in runs:
                lines.setdefault(mask, {}).setdefault(run["seed"], {})[float(x.rstrip("x"))] = run["accuracy"]
        draw.write_curves(args.results / f"{args.experiment}.png", {mask: list(by.values()) for mask, by in lines.items()},
                                f"{counts} (test accuracy)")
    (args.results / f"{args.experiment}.json").write_text(json.dumps(out, indent=1) + "\n")
    for name, text in report(args.experiment, out).items():
        print(text, end="\n\n")
        (args.results / name).write_text(text + "\n", encoding="utf-8")


def report(experiment: str, result: dict) -> dict[str, str]:
    """The Markdown of an experiment's JSON, file by file: the table; what it says of the paper's claims and of masks at test time."""
    parts, rest = [arms_table(result["arms"])], []
    if result["missing"]:
        parts.append(f"Not yet run: {', '.join(result['missing'])}.")
    if experiment == "shapes":
        rest.append(claims(result["arms"]))
    if result.get("test_time"):
        rest.append(evaluation.markdown([["trained with", "switched on for the test", "accuracy, %"], *(
            [r["trained"], r["test"], f"{100 * r['accuracy']:.1f}"] for r in result["test_time"])]))
    out = {f"{experiment}.md": parts, f"{experiment}_claims.md": [part for part in rest if part]}
    return {name: "\n\n".join(some) for name, some in out.items() if some}


if __name__ == "__main__":
    main()
