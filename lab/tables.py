"""Tables of trials: what they need of a finished run, and the rows that they print.

A trial is an experiment with several arms: methods that are trained alike and compared. Everywhere
`arms` is {arm: its runs, each as `read` gives it}, seed by seed.
"""

import importlib.util
import json
import statistics
from pathlib import Path

from data import DataError
from engine.run import read_record
from engine.tables import markdown, parts_of, spread

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "docs" / "results"  # written on --publish alone
RESULTS = Path("runs/results")  # where an ordinary call writes
KEYS = ("seed", "accuracy", "consistency", "families", "n", "unparsed", "params", "seconds", "kept")


def need(package: str, what: str) -> None:
    """DataError if a package that the lab asks for is not installed."""
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{what} need {package}: pip install {package}")


def curve_of(run: Path) -> dict[int, float]:
    """Validation accuracy (0 to 1) at each step of stage 2 that was looked at."""
    log = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["val"]["accuracy"] for line in log if "val" in line}


def read(run: Path, split: str | None = None) -> dict:
    """What the tables need of a finished run. split: with its numbers on an official split, as
    eval.py wrote them (lab/finished.py)."""
    record, curve = read_record(run), curve_of(run)
    if split:
        record |= json.loads((run / f"{split}.json").read_text())["runs"][0]
    kept = {key: record[key] for key in KEYS if key in record}
    return {**kept, "curve": curve, "step_at_80": first_look(curve, 0.8), "run": run.name}


def first_look(curve: dict, level: float) -> int | None:
    """The first step at which validation accuracy (0 to 1) was at a level; None, if it never was.
    A curve's keys are text once they were JSON."""
    return next((int(step) for step, accuracy in curve.items() if accuracy >= level), None)


def last_validation(run: dict) -> float:
    """Validation accuracy, in %, at the last look. A curve's keys are text once they were JSON."""
    return 100 * run["curve"][max(run["curve"], key=int)]


def in_percent(runs: list[dict], family: str | None = None) -> dict[int, float]:
    """seed -> test accuracy in %, overall or of a family of questions."""
    return {
        run["seed"]: 100 * (parts_of(run["families"])[family] if family else run)["accuracy"]
        for run in runs
    }


def reached(runs: list[dict]) -> str:
    """The step at which each seed passes 80 % on validation."""
    steps = [run["step_at_80"] for run in runs]
    return ", ".join("never" if step is None else f"{step:,}" for step in steps)


def kept_at(runs: list[dict]) -> str:
    """The step of the best look at validation, whose weights each seed has kept (--keep-best)."""
    return ", ".join(f"{run['kept']['step']:,}" if "kept" in run else "-" for run in runs)


def arms_table(arms: dict[str, list[dict]]) -> str:
    """A row for each arm: test accuracy in % (mean ± standard deviation over seeds), overall and by
    family, or part of families (engine.tables.parts_of); the consistency, where there is one; when
    it passes 80 % on validation, and, where the best weights were kept, of which step they are."""
    everyone = [run for runs in arms.values() for run in runs]
    families = list(dict.fromkeys(name for run in everyone for name in parts_of(run["families"])))
    consistent = ["consistency"] if any("consistency" in run for run in everyone) else []
    best = ["best at step"] if any("kept" in run for run in everyone) else []
    rows = [
        ["arm", "seeds", "overall", *consistent, *families, "80 % at step", *best, "parameters"]
    ]
    for arm, runs in arms.items():
        means = [spread(list(in_percent(runs, name).values())) for name in (None, *families)]
        means[1:1] = [spread([100 * run[key] for run in runs]) for key in consistent]
        steps = [reached(runs), *(kept_at(runs) for _ in best)]
        rows.append([arm, str(len(runs)), *means, *steps, f"{runs[0]['params']:,}"])
    return markdown(rows)


def rates_table(arms: dict[str, list[dict]], reported: str = "test") -> str:
    """As arms_table, for arms MASK@RATE that are chosen between: validation decides. reported: what
    train.py asks at the end of a run."""
    rows = [["arm", "seeds", "validation", reported, "80 % at step", "parameters"]]
    for arm, runs in arms.items():
        validation = spread([last_validation(run) for run in runs])
        test = spread(list(in_percent(runs).values()))
        cells = [str(len(runs)), validation, test, reached(runs), f"{runs[0]['params']:,}"]
        rows.append([arm, *cells])
    best = [text for mask in masks_of(arms) if (text := best_on_validation(arms, mask))]
    chosen = f"Chosen on validation, at the last look: {', '.join(best)}." if best else ""
    return "\n\n".join(filter(None, [markdown(rows), chosen]))


def masks_of(arms: dict) -> list[str]:
    return list(dict.fromkeys(arm.split("@")[0] for arm in arms))


def best_on_validation(arms: dict[str, list[dict]], mask: str) -> str:
    """ARM (accuracy in %), the best of a mask's arms on the seeds that all of them have."""
    rivals = {arm: runs for arm, runs in arms.items() if arm.startswith(f"{mask}@")}
    shared = set.intersection(*({run["seed"] for run in runs} for runs in rivals.values()))
    if not shared or len(rivals) < 2:
        return ""
    means = {
        arm: statistics.mean(last_validation(run) for run in runs if run["seed"] in shared)
        for arm, runs in rivals.items()
    }
    best, seeds = max(means, key=means.get), ", ".join(map(str, sorted(shared)))
    return f"{best} ({means[best]:.1f}, seed{'s' * (len(shared) > 1)} {seeds})"
