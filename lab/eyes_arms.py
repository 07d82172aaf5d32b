"""Reproduce: a language model gets eyes, under every mask, over seeds; with and without having
learned from text before. See lab/eyes.py.

    python -m lab.eyes_arms                       train what is not there; runs/results/eyes.md
    python -m lab.eyes_arms --only causal mma     these arms alone
    python -m lab.eyes_arms --rates 0.002 0.004   causal and mma at several rates --lr, seeds 0, 1
    python -m lab.eyes_arms --tables              train nothing: the tables of what has finished
    python -m lab.eyes_arms --llm FOLDER          causal and mma from a real LLM (preset smollm2)
    python -m lab.eyes_arms --publish             write the tables into docs/results too

Once a seed, train.py --data shapes-text trains the decoder on text; the arms start from it, those
named -fresh from the same sizes with new weights. Encoder, data and their order are the same in all
arms of a seed. A run lies in runs/eyes/ARM-SEED; it is never made twice, and one that was stopped
goes on. What follows -- is given to every run that gets eyes (python -m lab.eyes_arms -- --lr
0.002), --text-options to those that learn from text. With --llm nothing learns from text, runs lie
in runs/eyes-FOLDER, and the tables, eyes_FOLDER, say what sight costs: the loss on plain text that
lab.text_loss measures (RUN/text-loss.json).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from bridge.folders import read_config
from data import DataError
from engine.options import Parser, positive, rate
from engine.options import arguments as train_arguments
from engine.run import one_line_errors, read_record
from engine.tables import markdown
from lab import eyes, publish, tables, text_loss
from lab.arms import NO_IDENTITY, make, settings_with
from lab.claims import NOTE, by_family, earlier, gain_by_seed, greater, share_of_steps
from lab.finished import answer

MASKS = {
    "causal": "--mask causal",
    "mma": "--mask mma",
    "prefix": "--mask prefix",
    "late-mma": "--mask mma --mask-from 0.5",
}
ARMS = MASKS | {f"{name}-fresh": f"{line} --fresh" for name, line in MASKS.items()}
TEXT = "text"  # the runs that learn from text alone, as an arm of the table
COMPARED = [
    (f"{a}{start}", f"{b}{start}")
    for start in ("", "-fresh")
    for a, b in (("mma", "causal"), ("late-mma", "causal"), ("mma", "late-mma"), ("mma", "prefix"))
] + [(name, f"{name}-fresh") for name in MASKS]
SEEDS, RATE_SEEDS = 5, 2
REAL_PT_RATE = 0.0002  # --lr of stage 1 for a real LLM


def arms_of(args) -> dict[str, str]:
    """name -> options of lab.eyes; with --rates, causal and mma at each of them."""
    arms = {arm: ARMS[arm] for arm in ("causal", "mma")} if args.llm else ARMS
    if args.rates:
        rivals = [arm for arm in arms if arm.split("-")[0] in ("causal", "mma")]
        arms = {
            f"{arm}@{r}": f"{arms[arm]} {rates_of_stages(r, args.llm)}"
            for arm in rivals
            for r in args.rates
        }
    known = dict.fromkeys(arm.split("@")[0] for arm in arms)
    if unknown := [name for name in args.only or [] if name not in known]:
        raise DataError(f"--only {unknown[0]}: no such arm; there are {', '.join(known)}")
    return {a: line for a, line in arms.items() if not args.only or a.split("@")[0] in args.only}


def rates_of_stages(lr: float, real: Path | None) -> str:
    """Options. Stage 1 of a real LLM has the same rate whatever that of stage 2 is."""
    return f"--lr {lr}" + (f" --pt-lr-times {REAL_PT_RATE / lr:g}" if real else "")


# --- Runs


def text_line(args, seed: int) -> list[str]:
    return ["--data", "shapes-text", "--mask", "causal", *args.text, "--seed", str(seed)]


def eyes_line(args, options: str, seed: int) -> list[str]:
    llm = ["--llm", str(args.llm or args.runs / f"{TEXT}-{seed}")]
    runs = ["--encoder", str(args.encoder), *llm, *["--preset", "smollm2"] * bool(args.llm)]
    return [*runs, *args.extra, *options.split(), "--seed", str(seed)]


def finished(run: Path, settings: dict) -> bool:
    """Is the run there? DataError if it was made with other settings."""
    if not (run / "run.json").exists():
        return False
    made = read_record(run)["args"]
    wanted = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    # --fresh takes no more of --llm than its sizes and tokenizer, those of all seeds
    of_the_llm = {"llm"} if wanted.get("fresh") else set()
    others = {*NO_IDENTITY, *eyes.OF_THE_RUNS} - {"limit"}  # the test's number of questions counts
    for name in {*wanted} - others - of_the_llm:
        if made.get(name) != wanted[name]:
            raise DataError(
                f"{run} was made with --{name.replace('_', '-')} {made.get(name)}, not "
                f"{wanted[name]}; move it, or choose another --runs"
            )
    return True


def to_do(args, jobs: dict[str, list[str]], parse) -> list[tuple[str, list[str]]]:
    """(name, command line) of each run that is not there. parse: of its command line."""
    return [
        (name, line)
        for name, line in jobs.items()
        if not finished(args.runs / name, vars(parse(line)))
    ]


def train_all(args, arms: dict[str, str]) -> None:
    """First the decoders, then a first seed of every arm before the second of any."""
    read_record(args.encoder)  # what is wrong with these is said before the first run
    if args.llm:
        read_config(args.llm)
    seeds = [] if args.llm else args.seeds
    decoders = {f"{TEXT}-{seed}": text_line(args, seed) for seed in seeds}
    make(to_do(args, decoders, train_arguments), args.runs, args.jobs)
    jobs = {
        f"{arm}-{seed}": eyes_line(args, options, seed)
        for seed in args.seeds
        for arm, options in arms.items()
    }
    make(to_do(args, jobs, eyes.options), args.runs, args.jobs, ["-m", "lab.eyes"])


def text_accuracy(run: Path, train: bool) -> float | None:
    """The share of held-out text scenes that a model with eyes still answers; kept beside it."""
    file = run / "test-text.json"
    if not file.exists():
        if not train:
            return None
        limit = read_record(run)["args"]["limit"]
        some = ["--limit", str(limit)] if limit else []
        answer([str(run), "--data", "shapes-text", *some, "--json", str(file)])
    return json.loads(file.read_text())["runs"][0]["accuracy"]


def plain_text(run: Path, measure: bool) -> dict | None:
    """Nats a token of plain text, of a real LLM before it got eyes and after."""
    file = run / "text-loss.json"
    if not file.exists():
        if not measure:
            return None
        text_loss.main([str(run), "--json", str(file)])
    before, after = (record["loss"] for record in json.loads(file.read_text()))
    return {"before": before, "after": after}


def settings_of(args) -> dict:
    """What all runs have: the recipe, and what is given after --."""
    usual = argparse.Namespace(**{**vars(args), "extra": []})
    usual, asked = (vars(eyes.options(eyes_line(each, "", 0))) for each in (usual, args))
    return {"adam_lr": asked["adam_lr"], **settings_with(usual, asked)}


def collect(args, arms: dict[str, str]) -> dict:
    """What has finished, as the tables want it."""
    options, records, missing = {**arms}, {}, []
    if not args.llm:
        options = {TEXT: " ".join(args.text), **arms}
    for arm in options:
        for seed in args.seeds:
            run = args.runs / f"{arm}-{seed}"
            line = text_line(args, seed) if arm == TEXT else eyes_line(args, arms[arm], seed)
            parse = train_arguments if arm == TEXT else eyes.options
            if not finished(run, vars(parse(line))):
                missing.append(run.name)
                continue
            record = tables.read(run)
            if args.llm:
                record["plain"] = plain_text(run, not args.tables)
            elif not arm.endswith("-fresh") and arm != TEXT and not args.rates:
                record["text"] = text_accuracy(run, not args.tables)
            records.setdefault(arm, []).append(record)
    result = {
        "arms": records, "options": {arm: options[arm] for arm in records}, "missing": missing,
        "data": "shapes", "settings": settings_of(args),
    }  # fmt: skip
    return json.loads(json.dumps(result))  # as it will be read again


# --- Tables


def with_error(values: list[float]) -> str:
    """mean ± standard error."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def summary(arms: dict[str, list[dict]]) -> str:
    """A row for each arm: means and standard errors, in %."""
    before = [run["plain"]["before"] for runs in arms.values() for run in runs if run.get("plain")]
    last = "plain text, nats a token" if before else "text scenes afterwards"
    rows = [["arm", "seeds", "test", "validation, last look", last]]
    for arm, runs in arms.items():
        validation = [tables.last_validation(run) for run in runs]
        text = [100 * run["text"] for run in runs if run.get("text") is not None]
        text += [run["plain"]["after"] for run in runs if run.get("plain")]
        cells = [list(tables.in_percent(runs).values()), validation, text]
        rows.append([arm, str(len(runs)), *map(with_error, cells)])
    plain = f" Plain text before: {statistics.mean(before):.1f} nats a token." if before else ""
    return f"{markdown(rows)}\n\nIn %, mean ± standard error over seeds.{plain}"


def comparisons(arms: dict[str, list[dict]]) -> str:
    """Arm against arm over seeds: in all, by family for mma, and how much sooner."""
    rows = [["claim", "here"]]
    for a, b in COMPARED:
        if a in arms and b in arms:
            verdict = greater(tables.in_percent(arms[a]), tables.in_percent(arms[b]))
            rows.append([f"{a} > {b}", str(verdict)])
    gains = {}
    for start in ("", "-fresh"):
        pair = [arms.get(f"{mask}{start}") for mask in ("mma", "causal")]
        if not all(pair):
            continue
        rows += by_family(*pair, start)
        sooner = f"mma{start} is at 80 % on validation after fewer steps"
        rows.append([sooner, earlier(*pair)])
        rows.append([
            f"share of its steps after which mma{start} is where causal{start} ends (validation)",
            share_of_steps(*pair),
        ])  # fmt: skip
        gains[start] = gain_by_seed(*pair, None)
    if len(gains) == 2 and all(gains.values()):
        verdict = greater(gains[""], gains["-fresh"])
        rows.append(["mma gains more over causal after text than without", str(verdict)])
    return f"{markdown(rows)}\n\n{NOTE}" if len(rows) > 1 else ""


def report(result: dict, rates: bool) -> str:
    arms = result["arms"]
    with_eyes = {arm: runs for arm, runs in arms.items() if arm != TEXT}
    if rates:
        parts = [tables.rates_table(with_eyes)]
    else:
        parts = [summary(arms), tables.arms_table(arms), comparisons(arms)]
    if result["missing"]:
        parts.append(f"Not yet run: {', '.join(result['missing'])}.")
    return "\n\n".join(filter(None, parts))


def write(folder: Path, name: str, result: dict) -> None:
    """JSON, Markdown, curves. The curves come last: without matplotlib the tables are there."""
    publish.write_json(folder / f"{name}.json", result)
    publish.write_text(folder / f"{name}.md", report(result, name.endswith("rates")))
    with_eyes = {arm: runs for arm, runs in result["arms"].items() if arm != TEXT}
    if with_eyes:
        publish.draw(folder, name, with_eyes)


def reproduce(args) -> None:
    arms, name = arms_of(args), f"eyes_{args.name}" if args.name else "eyes"
    name += "_rates" if args.rates else ""
    if args.publish and not args.tables:
        publish.check_settings(name, settings_of(args), "shapes")
    for package, what in (("matplotlib", "the curves"), ("scipy", "the claims")):
        tables.need(package, what)  # before a day of training, not after it
    if not args.tables:
        train_all(args, arms)
    result = collect(args, arms)
    if not result["arms"]:
        raise DataError(f"no finished run in {args.runs}; leave --tables out to make them")
    write(args.results, name, result)
    if args.publish:
        published = publish.read_published(name, "arms")
        merged = publish.merge(published, result, [TEXT, *ARMS, *arms]) if published else result
        write(tables.PUBLISHED, name, merged)
    folder = tables.PUBLISHED if args.publish else args.results
    print((folder / f"{name}.md").read_text(encoding="utf-8"))


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("--only", nargs="+", metavar="ARM", help=f"of {', '.join(ARMS)}")
    add("--seeds", nargs="+", type=int, metavar="N", help="default: 0 to 4; with --rates 0 and 1")
    add("--rates", nargs="+", type=rate, metavar="LR", help="causal and mma at these rates --lr")
    add("--encoder", type=Path, default=Path("weights/shapes-causal"), metavar="RUN",
        help="whose encoder all arms have (default: weights/shapes-causal)")  # fmt: skip
    add("--llm", type=Path, metavar="FOLDER", help="a real LLM (python -m bridge.smollm2 FOLDER)")
    add(
        "--name", default="", help="of the files eyes_NAME and of runs/eyes-NAME (default: --llm's)"
    )
    add("--text-options", default="", metavar="'...'", help="of train.py, for the text runs")
    add("--runs", type=Path, metavar="DIR", help="default: runs/eyes, runs/eyes-FOLDER")
    add("--results", type=Path, default=tables.RESULTS, metavar="DIR", help="default: runs/results")
    add("--publish", action="store_true", help="write docs/results too; what is there is kept")
    add("--jobs", type=positive, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--tables", action="store_true", help="train nothing; write what there is")
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:cut])
    args.extra, args.text = argv[cut + 1 :], args.text_options.split()
    args.seeds = args.seeds or list(range(RATE_SEEDS if args.rates else SEEDS))
    args.name = args.name or (args.llm.resolve().name if args.llm else "")
    args.runs = args.runs or Path("runs") / (f"eyes-{args.name}" if args.name else "eyes")
    for name in ("runs", "results", "encoder", "llm"):
        setattr(args, name, getattr(args, name) and getattr(args, name).resolve())
    if args.results == tables.PUBLISHED:
        parser.error(f"{tables.PUBLISHED} is written by --publish alone")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        reproduce(args)


if __name__ == "__main__":
    main()
