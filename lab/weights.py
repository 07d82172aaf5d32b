"""Put a finished run into a small folder that can be given away: weights in half precision, its
tokenizer, run.json and a picture to ask about.

    python -m lab.weights runs/shapes-mma-0 weights/shapes-mma

eval.py, lab.talk and lab.explore read the folder as they read a run; where its data lie, --source
tells them, since paths of the machine that trained are left out. The model computes in float32 when
it is loaded, so that only the weights are rounded: to 11 bits.
"""

import json
import shutil
from pathlib import Path

import torch

from data import DataError, reason
from engine.checkpoint import write_file
from engine.options import PATHS, Parser
from engine.run import one_line_errors, read_record

COPIED = ("tokenizer.model", "tokenizer.json", "example.png")
ORIGINS = ("encoder", "llm", "vision")  # folders that a run began with; their names are kept


def half(weights: dict) -> dict:
    """float16 of every floating-point tensor; the others as they are."""
    return {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}


def give_away(run: Path, out: Path) -> None:
    """Write the folder `out`. DataError if `run` is not a finished run, or is `out` itself."""
    if out.resolve() == run.resolve():
        raise DataError(f"{out} is the run itself; name another folder")
    record = read_record(run)
    try:
        saved = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise DataError(f"{run / 'model.pt'} cannot be read: {reason(error)}") from None
    out.mkdir(parents=True, exist_ok=True)
    saved["weights"] = half(saved["weights"])
    write_file(out / "model.pt", lambda file: torch.save(saved, file))
    for name in COPIED:
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
    record["run"] = record["args"]["out"] = out.as_posix()
    args = record["args"]
    args.update(dict.fromkeys(PATHS))  # on another machine --source says where data lie
    args.update({name: Path(args[name]).name for name in ORIGINS if args.get(name)})
    text = json.dumps(record, indent=1) + "\n"
    write_file(out / "run.json", lambda file: file.write(text.encode()))


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a finished run")
    add("out", type=Path, metavar="DIR", help="the folder to write")
    args = parser.parse_args(argv)
    with one_line_errors():
        give_away(args.run, args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
