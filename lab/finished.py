"""What the tables of a trial ask of finished runs: official splits, other masks, AIF. Every result
is kept beside its run, as a JSON file of eval.py, and is not asked for twice."""

import contextlib
import json
from pathlib import Path

import eval as evaluation

# Switched on for the test of what causal and mma trained: name -> options of eval.py, or of AIF's
TEST_TIME = {
    "v2v": ["--mask", "v2v"],
    "v2t": ["--mask", "mma"],  # FutureMask's name of the same set
    "f": ["--mask", "f"],
    "aif 0.25": ["--share", "0.25"],
    "aif 0.5": ["--share", "0.5"],
}


def answer(line: list[str]) -> None:
    """Evaluate a run, without a word: by lab/aif.py if AIF is asked for, else by eval.py."""
    command = evaluation
    if "--share" in line:
        from lab import aif as command
    with contextlib.redirect_stdout(None):
        command.main(line)


def test_time(arms: dict[str, Path], limit: int | None, make: bool = True) -> list[dict]:
    """Masks and AIF that are only switched on when answering, on finished runs."""
    out, first = [], ["--limit", str(limit)] if limit else []
    for arm, run in arms.items():
        for name, options in {"as trained": [], **TEST_TIME}.items():
            file = run / f"test-{name.replace(' ', '-')}.json"
            if not file.exists() and not make:
                continue
            if not file.exists():
                answer([str(run), *options, *first, "--json", str(file)])
            record = json.loads(file.read_text())["runs"][0]
            result = {key: record[key] for key in ("accuracy", "families")}
            out.append({"trained": arm, "test": name, **result})
    return out


def asked_on(run: Path | None, split: str, make: bool = True) -> Path | None:
    """The run, once it has been asked the official split, whose numbers then lie in SPLIT.json;
    None without a run, or if it has not been asked and is not to be (make)."""
    if run is None:
        return None
    file = run / f"{split}.json"
    if make and not file.exists():
        answer([str(run), "--split", split, "--json", str(file)])
    return run if file.exists() else None
