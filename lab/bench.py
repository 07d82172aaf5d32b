"""How fast, against what: every claim about speed as a table that one command prints.

    python -m lab.bench mask          a training step and a prefill under mma against causal
    python -m lab.bench last-layer    a training step with read_at and without
    python -m lab.bench train         a training step against the same model of transformers
    python -m lab.bench generate      prefill and decoding against transformers' generate
    python -m lab.bench kernels       the kernels that a training step starts
    python -m lab.bench job           `python train.py`: seconds to 80, 95 and 97 % on validation
                                      and to the end
    python -m lab.bench size          the paper's shapes: parameters, memory, FLOPs
    python -m lab.bench code          lines of code

Tables go to runs/results/speed_TOPIC.{json,md}, on a GPU speed_TOPIC_gpu; --publish writes
docs/results too. The arms of a table take turns within one run, after a warm-up, and their medians
are compared: ratios hold on a noisy machine, absolute times only on the machine that the table
names. train and generate need `pip install transformers`; nothing else does.

Shapes:  B rows of a batch   T tokens of a row
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from data import DataError
from engine.options import Parser, positive
from engine.run import one_line_errors, read_record
from engine.tables import markdown, spread
from lab import publish, results, size, theirs, timing
from lab.timing import CUDA, USUAL, random_batch, training_step
from mma import mask_mod
from model import MLLM, attention

# --- The mask

# rows, image tokens along a side, pictures, tokens of a row; besides the default job's
LENGTHS = (16, 12, 1, 256), (4, 24, 1, 1024), (1, 28, 4, 4096)
LONG = 1024  # tokens of a row from which on FlexAttention is tried


def causal_attention(q, k, v, mask):
    """model.attention for the causal mask of rows without gaps, by the kernel that needs no mask:
    what a causal model would use. The last layer's few queries keep theirs."""
    if q.shape[-2] != k.shape[-2]:
        return attention(q, k, v, mask)
    if q.is_cuda:  # as in model.attention
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=len(q[0]) > len(k[0]))


class Maskless(MLLM):
    """Causal, without a mask tensor."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.blocks:
            block.attention.attend = causal_attention


class Flex(MLLM):
    """By FlexAttention (arXiv 2412.05496): blocks of 128 x 128 in which the mask opens nothing are
    not computed. The blocks are found once a forward pass, from the rule itself (mma.mask_mod). The
    last layer's few queries keep model.attention and the dense mask."""

    function = staticmethod(torch.compile(flex_attention.flex_attention, dynamic=False))

    def context_of(self, mask, role, turn=None, document=None):
        may_read, (B, T) = mask_mod(mask, role, turn, document), role.shape
        blocks = flex_attention.create_block_mask(may_read, B, None, T, T, device=role.device)

        def attend(q, k, v, dense):
            if q.shape[-2] != k.shape[-2]:
                return attention(q, k, v, dense)
            q, k, grouped = q.to(v.dtype), k.to(v.dtype), q.shape[1] > k.shape[1]
            return self.function(q, k, v, block_mask=blocks, enable_gqa=grouped)

        for block in self.blocks:
            block.attention.attend = attend
        return super().context_of(mask, role, turn, document)


MASKS = {
    "causal, no mask": (Maskless, "causal"),
    "causal, dense mask": (MLLM, "causal"),
    "mma": (MLLM, "mma"),
    "mma, FlexAttention": (Flex, "mma"),
}


def mask(args) -> list[list[str]]:
    """Rows have equal lengths, so that causal may go without a mask; the prefill is generate's, of
    the same rows. FlexAttention needs a GPU and long rows."""
    names = list(MASKS)[: None if CUDA else 3]
    table = [["tokens", "rows", "what", f"{names[0]}, ms", *names[1:]]]
    for config, batch in mask_cases():
        B, T = batch["ids"].shape
        steps, prefills = {}, {}
        for name in names if T >= LONG else names[:3]:
            model_class, kind = MASKS[name]
            model, optimizers = timing.trained(replace(config, mask=kind), model_class)
            steps[name] = training_step(model, optimizers, kind, batch)
            prefills[name] = partial(model.generate, **batch, eos=-1, max_new_tokens=1)
        for what, arms in (("training step", steps), ("prefill", prefills)):
            t = timing.turns(arms, args.repeats)
            ratios = [f"{t[name] / t[names[0]]:.2f}" if name in t else "-" for name in names[1:]]
            table.append([f"{T:,}", str(B), what, f"{1000 * t[names[0]]:.1f}", *ratios])
    return table


def mask_cases():
    """(config, batch) of the default job and of LENGTHS."""
    yield timing.default_batch()
    for rows, grid, pictures, total in LENGTHS:
        config = timing.tiny(image_size=16 * grid)
        answer = total - 1 - pictures * config.n_image_tokens - 64
        yield config, random_batch(config, [(64, answer)] * rows, pictures)


# --- A training step


class Everywhere(MLLM):
    """Computes its last layer at all columns."""

    def decode(self, x, context, read_at=None):
        hidden = super().decode(x, context)
        return hidden if read_at is None else hidden.take_along_dim(read_at[..., None], 1)


def last_layer(args) -> list[list[str]]:
    """The last layer computed where an answer is predicted (read_at), against everywhere. Both take
    the vocabulary only where it is predicted."""
    config, batch = timing.default_batch()
    arms = {
        name: training_step(*timing.trained(config, model_class), "mma", batch)
        for name, model_class in (("everywhere", Everywhere), ("read_at", MLLM))
    }
    t = timing.turns(arms, args.repeats)
    B, T = batch["ids"].shape
    header = [f"{B} rows of {T} tokens, {config.n_layer} layers", "ms a step", "of everywhere"]
    rows = [[name, f"{1000 * s:.1f}", f"{s / t['everywhere']:.2f}"] for name, s in t.items()]
    return [header, *rows]


class Kernels(TorchDispatchMode):
    """Counts torch's operations that run inside, without those that only look at their input in
    another shape."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
        if func.namespace == "aten" and not is_view:
            self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def kernels(args=None, most: int = 8) -> list[list[str]]:
    """Of a step at the default shape, in all and the most frequent ones."""
    config, batch = timing.default_batch()
    step = training_step(*timing.trained(config), "mma", batch)
    step()  # the first one also makes the optimizers' moments
    with Kernels() as counter:
        step()
    frequent = [[name, str(n)] for name, n in counter.found.most_common(most)]
    return [["kernels", "a step"], ["in all", str(counter.found.total())], *frequent]


# --- Not taking turns

TRAIN = [sys.executable, "train.py"]
MARKS = (0.8, 0.95, 0.97)  # of validation


def job(args) -> list[list[str]]:
    """A row a seed, one after the other, and their mean; needs the machine to itself."""
    runs = [run_job(seed) for seed in range(args.seeds)]
    table = [["seed", *runs[0]]]
    for seed, run in enumerate(runs):
        table.append([str(seed), *("never" if x is None else f"{x:.1f}" for x in run.values())])
    columns = [list(values) for values in zip(*(run.values() for run in runs))]
    means = ["never by all" if None in column else spread(column) for column in columns]
    return [*table, ["mean", *means]]


def run_job(seed: int) -> dict[str, float | None]:
    """Seconds from the command to each mark (None: never) and to the end; accuracy on test."""
    with tempfile.TemporaryDirectory() as folder:
        out, began = Path(folder, "run"), time.perf_counter()
        command = [*TRAIN, "--seed", str(seed), "--out", str(out)]
        if status := subprocess.run(command, cwd=results.ROOT).returncode:
            raise DataError(f"{' '.join(command)} ended with status {status}")
        in_all, record = time.perf_counter() - began, read_record(out)
        curve = results.curve_of(out)
    # the run's own clock begins when Python has loaded and the data are there
    start, clock, taken = in_all - record["seconds"], dict(record["clock"]), {}
    for mark in MARKS:
        step = results.first_step(curve, mark)
        taken[f"to {100 * mark:.0f} %"] = start + clock[step] if step else None
    return {**taken, "in all": in_all, "test, %": 100 * record["accuracy"]}


def code(args=None) -> list[list[str]]:
    """Lines of the Python files, as wc counts them."""
    table = [["", "lines", "files"]]
    for name in "mma.py model.py train.py eval.py data engine lab bridge tests".split():
        files = sorted((results.ROOT / name).rglob("*.py")) or [results.ROOT / name]
        lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
        table.append([name, f"{lines:,}", str(len(files))])
    return table


# --- The command

TOPICS = {
    "mask": mask,
    "last-layer": last_layer,
    "train": theirs.train,
    "generate": theirs.generate,
    "kernels": kernels,
    "job": job,
    "size": size.size,
    "code": code,
}
IN_TURNS = ("mask", "last-layer", "train", "generate")
OF_NO_MACHINE = ("size", "code")


def report(record: dict) -> str:
    """The Markdown of a topic's JSON."""
    table, place = markdown(record["table"]), record["where"]
    if record["topic"] in OF_NO_MACHINE:
        return table
    if record["topic"] in IN_TURNS:
        place += f"; medians of {record['repeats']}, the arms taking turns"
    return f"{table}\n\n{place}."


def write(folder: Path, record: dict) -> None:
    on_gpu = CUDA and record["topic"] not in OF_NO_MACHINE
    name = f"speed_{record['topic'].replace('-', '_')}{'_gpu' * on_gpu}"
    publish.write_json(folder / f"{name}.json", record)
    publish.write_text(folder / f"{name}.md", report(record))


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("topic", choices=TOPICS, metavar="TOPIC", help=", ".join(TOPICS))
    add("--repeats", type=positive, default=9, metavar="N", help="timed calls of an arm (9)")
    add("--seeds", type=positive, default=3, metavar="N", help="job: one after the other (3)")
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
        table, where = TOPICS[args.topic](args), timing.where(USUAL.precision)
        record = {"topic": args.topic, "where": where, "repeats": args.repeats, "table": table}
        print(report(record))
        for folder in [args.results] + [results.PUBLISHED] * args.publish:
            write(folder, record)


if __name__ == "__main__":
    main()
