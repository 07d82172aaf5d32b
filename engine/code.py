"""Which code made a run: a fingerprint of the files that decide what it computes."""

import hashlib
import sys
from collections import defaultdict
from pathlib import Path

from engine import wings

ROOT = Path(__file__).resolve().parent.parent
CORE = ("mma.py", "model.py", "train.py", "eval.py", "data/**/*.py", "engine/*.py")


def fingerprint(args, program: str = "__main__") -> dict[str, str]:
    """Part of the code -> 16 hex digits: "core", the four files, data/ and engine/, and what the
    run has beside it: the program's own file and the module of its variant, or all of bridge/ where
    one of these lies there. args: of the run; program: the module that is run. Line ends do not
    count, all else does."""
    of_ours = not hasattr(args, "model")  # else a Hugging Face model, which has no variant
    variant = wings.variant_of(vars(args)) if of_ours else wings.PLAIN
    wraps = getattr(variant.wrap_source, "func", variant.wrap_source)  # of a functools.partial
    made_of = [x for x in (variant.model_class, variant.tokenizer_class, wraps) if x]
    parts = {"core": {file for pattern in CORE for file in ROOT.glob(pattern)}}
    for module in (sys.modules[name] for name in (program, *(x.__module__ for x in made_of))):
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if file.parent == ROOT / "bridge":
            parts["bridge"] = {*file.parent.glob("*.py")}
        elif file not in parts["core"] and (file.parent == ROOT or ROOT / "lab" in file.parents):
            parts[file.relative_to(ROOT).as_posix()] = {file}
    return {part: digest(files) for part, files in parts.items()}


def digest(files: set[Path]) -> str:
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.relative_to(ROOT).as_posix()}\n{file.read_text('utf-8')}".encode())
    return found.hexdigest()[:16]


def told_apart(runs: list[dict]) -> str:
    """A sentence, where a part of the code is not the same in all runs that have it; else "". runs:
    as run.json has them."""
    versions = defaultdict(set)
    for run in runs:
        made_by = run.get("code", "unknown")
        for part, version in ({"core": made_by} if isinstance(made_by, str) else made_by).items():
            versions[part].add(version)
    if (most := max(map(len, versions.values()), default=1)) < 2:
        return ""
    return (f"These runs were made by {most} versions of the code (`code` in run.json): what "
            "differs may be the code's.")  # fmt: skip
