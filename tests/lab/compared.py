"""Results as a JSON has them, and a program whose runs take no time."""

from lab.compare import SHOWN
from lab.experiments import Experiment

# It answers as its mask and seed say, and says that the code $CODE made it. --fail fails where the
# seed is not 0; --wait waits for SIGTERM, which it survives by saving. Asked of a finished run, it
# notes down what, and answers as eval.py or, asked for the loss, lab.text_loss would.
FAKE = """
import argparse, json, os, signal, sys
from pathlib import Path

def arguments(argv=None):
    parser = argparse.ArgumentParser()
    for name, kind, default in (
        ("data", str, "shapes"), ("mask", str, "mma"), ("source", str, None), ("llm", str, None),
        ("lr", float, 0.004), ("seed", int, 0), ("limit", int, None), ("out", Path, None),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    for flag in ("fail", "wait", "resume"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args(argv)

def main(argv):
    run, *words, flag, file = argv
    with open(Path(run) / "asked", "a") as asked:
        asked.write(" ".join(words) + ";")
    if "--fail" in words:
        raise SystemExit("error: no such split")
    of_eval = {"runs": [{"accuracy": 0.25, "n": 8, "families": {}}]}
    losses = [{"loss": 3.5}, {"loss": 9.25}]
    Path(file).write_text(json.dumps(losses if "loss" in words else of_eval))

def save(number, frame):
    (args.out / "saved").write_text("")
    raise SystemExit(130)

if __name__ == "__main__":
    args = arguments()
    signal.signal(signal.SIGTERM, save)
    with open(args.out / "begun", "a") as file:
        file.write(os.environ["OMP_NUM_THREADS"] + "\\n")
    if args.fail and args.seed:
        sys.exit("error: it was to fail\\nbecause of its seed")
    if args.lr == 0.9:
        os.kill(os.getpid(), signal.SIGKILL)
    while args.wait and not (args.out / "saved").exists():
        signal.pause()
    right = {"causal": 0.5, "mma": 0.75}[args.mask] + args.seed ** 2 / 100
    families = {name: {"accuracy": right, "n": 50} for name in ("place", "count")}
    record = {"accuracy": right, "families": families, "n": 100, "unparsed": 0, "params": 7,
              "seconds": 1.0, "mask": args.mask, "seed": args.seed, "args": vars(args),
              "code": json.loads(os.environ["CODE"])}
    curve = [{"step": 10 * k, "val": {"accuracy": k * right / 4, "loss": (1 - right) / k}}
             for k in range(1, 5)]
    lines = [json.dumps(line) for line in [{"step": 5}, *curve]]
    (args.out / "metrics.jsonl").write_text("\\n".join(lines))
    (args.out / "run.json").write_text(json.dumps(record, default=str))
"""


def run_of(accuracy, seed=0, families=None, curve=None, **more):
    """A run as results.read_run gives it. accuracy: in %, like those of families."""
    families = {"other": accuracy} if families is None else families
    return {
        "seed": seed, "accuracy": accuracy / 100, "n": 100, "unparsed": 0, "params": 5,
        "families": {name: {"accuracy": a / 100, "n": 20} for name, a in families.items()},
        "curve": {"2": accuracy / 100} if curve is None else curve, "run": f"run-{seed}", **more,
    }  # fmt: skip


def result_of(arms, options=None, settings=None, **show):
    """A comparison's JSON. arms: name -> runs; show: fields of Experiment."""
    experiment = Experiment({}, **show)
    return {
        "arms": arms, "options": options or dict.fromkeys(arms, ""), "missing": [],
        "settings": settings or {"preset": "tiny"},
        "show": {name: getattr(experiment, name) for name in SHOWN},
    }  # fmt: skip
