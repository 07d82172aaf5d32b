"""How fast, against what: every claim about speed as a table that one command prints.

    python -m lab.bench mask          a training step and a prefill under mma against causal
    python -m lab.bench last-layer    a training step with read_at and without
    python -m lab.bench packing       dialogues of very different lengths, packed and padded
    python -m lab.bench shared        ten questions about one picture: computed once under causal,
                                      ten times under mma
    python -m lab.bench train         a training step against the same model of transformers
    python -m lab.bench generate      prefill and decoding against transformers' generate
    python -m lab.bench loader        how much faster batches are made than trained on
    python -m lab.bench limit         a training step's share of what the machine can do
    python -m lab.bench size          the paper's shapes: parameters, memory, FLOPs; on a GPU also
                                      steps and memory as measured
    python -m lab.bench job           `python train.py`: seconds to 80, 95 and 97 % on validation
                                      and to the end, and how they divide
    python -m lab.bench code          lines a file

Tables go to runs/results/speed_TOPIC.{json,md}, on a GPU speed_TOPIC_gpu; --publish writes
docs/results too. The arms of a table take turns within one run, after a warm-up, and their medians
are compared: ratios hold on a noisy machine, absolute times only on the machine that the table
names. train and generate need `pip install transformers`; nothing else does.
"""

from pathlib import Path

from engine.options import Parser, positive
from engine.run import one_line_errors
from engine.tables import markdown
from lab import (
    bench_job,
    bench_limit,
    bench_model,
    bench_shared,
    bench_size,
    bench_theirs,
    publish,
    results,
)
from lab.bench_timing import CUDA, WHERE

UNTIMED = ("job", "size")  # no medians of arms that take turns


def code(args) -> list[list[str]]:
    """Lines of every Python file, by folder; of the tests their number."""
    table = []
    for folder in ("", "data", "engine", "lab", "bridge", "tests"):
        pattern = "**/*.py" if folder == "tests" else "*.py"
        files = sorted((results.ROOT / folder).glob(pattern))
        lines = [(f.name, len(f.read_text(encoding="utf-8").splitlines())) for f in files]
        listed = ", ".join(f"{name} {n}" for name, n in lines if n)
        names = f"{len(files)} files" if folder == "tests" else listed
        total = f"{sum(n for _, n in lines):,}"
        table.append([f"{folder}/" if folder else "the four", total, names])
    return table


TOPICS = {
    "mask": bench_model.mask,
    "last-layer": bench_model.last_layer,
    "packing": bench_model.packing,
    "loader": bench_model.loader,
    "shared": bench_shared.shared,
    "train": bench_theirs.train_step,
    "generate": bench_theirs.generate,
    "limit": bench_limit.limit,
    "size": bench_size.size,
    "job": bench_job.job,
    "code": code,
}


def report(record: dict) -> str:
    """The Markdown of a topic's JSON."""
    if record["topic"] == "code":
        return "\n".join(f"* {name} ({lines}): {files}" for name, lines, files in record["table"])
    table = markdown(record["table"])
    turns = f"; medians of {record['repeats']}, the arms taking turns"
    return f"{table}\n\n{record['where']}{'' if record['topic'] in UNTIMED else turns}."


def write(folder: Path, record: dict) -> None:
    name = f"speed_{record['topic'].replace('-', '_')}{'_gpu' * CUDA}"
    publish.write_json(folder / f"{name}.json", record)
    publish.write_text(folder / f"{name}.md", report(record))


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("topic", choices=TOPICS, metavar="TOPIC", help=", ".join(TOPICS))
    add("--repeats", type=positive, default=9, metavar="N", help="timed calls of an arm (9)")
    add("--seeds", type=positive, default=3, metavar="N", help="job: one after the other (3)")
    add("--peak", type=float, default=989, metavar="TFLOPS",
        help="size: the GPU's, dense, bfloat16 (default: 989, an H100 SXM)")  # fmt: skip
    add("--results", type=Path, default=results.RESULTS, metavar="DIR",
        help="default: runs/results")  # fmt: skip
    add("--publish", action="store_true", help="write docs/results too")
    args = parser.parse_args(argv)
    if args.results.resolve() == results.PUBLISHED:
        parser.error(f"{results.PUBLISHED} is written by --publish alone")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        table = TOPICS[args.topic](args)
        record = {"topic": args.topic, "where": WHERE, "repeats": args.repeats, "table": table}
        print(report(record))
        for folder in [args.results] + [results.PUBLISHED] * args.publish:
            write(folder, record)


if __name__ == "__main__":
    main()
