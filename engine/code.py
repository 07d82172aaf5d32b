"""Which code made a run: a fingerprint of the files that decide what it computes."""

import hashlib
import sys
from pathlib import Path

from engine import wings

ROOT = Path(__file__).resolve().parent.parent
DECIDE = ("mma.py", "model.py", "train.py", "eval.py", "data/**/*.py", "engine/*.py")


def fingerprint(args, program: str = "__main__") -> str:
    """16 hex digits of the four files, data/, engine/, and of what the run has beside them: the
    program's own file, the module of its variant, all of bridge/ where one of these lies there.
    args: of the run; program: the module that is run. Line ends do not count, all else does."""
    of_ours = not hasattr(args, "model")  # else a Hugging Face model, which has no variant
    variant = wings.variant_of(vars(args)) if of_ours else wings.PLAIN
    wraps = getattr(variant.wrap_source, "func", variant.wrap_source)  # of a functools.partial
    made_of = [x for x in (variant.model_class, variant.tokenizer_class, wraps) if x]
    modules = [sys.modules[name] for name in (program, *(x.__module__ for x in made_of))]
    files = {file for pattern in DECIDE for file in ROOT.glob(pattern)}
    for module in modules:
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if file.parent == ROOT / "bridge":
            files |= {*file.parent.glob("*.py")}
        elif ROOT / "lab" in file.parents:
            files.add(file)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\n{file.read_text('utf-8')}".encode())
    return digest.hexdigest()[:16]


def told_apart(runs: list[dict]) -> str:
    """A sentence, where runs are of different code; else "". runs: as run.json has them."""
    codes = {run.get("code", "unknown") for run in runs}
    if len(codes) < 2:
        return ""
    return (f"These runs were made by {len(codes)} versions of the code (`code` in run.json): what "
            "differs may be the code's.")  # fmt: skip
