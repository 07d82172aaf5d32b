"""How fast, against what: every claim about speed as a table that one command prints.

    python -m lab.bench mask          a training step and a prefill under mma against causal
    python -m lab.bench arms          a training step of every arm of lab/experiments.py
    python -m lab.bench job           `python train.py`: seconds to 80, 95 and 97 % on validation
                                      and to the end

Tables go to runs/results/speed_TOPIC.{json,md}, on a GPU speed_TOPIC_gpu; --publish writes
docs/results too. The arms of a table take turns within one run, after a warm-up, and their medians
are compared: ratios hold on a noisy machine, absolute times only on the machine that the table
names. What else was measured once stands in docs/speed.md with its commit.

Shapes:  B rows of a batch   T tokens of a row
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
from engine import wings
from engine.batches import StepBatches
from engine.optimizers import freeze, make_optimizers
from engine.options import PRESETS, Parser, positive
from engine.options import arguments as arguments_of_train
from engine.precision import autocast_of, scaler_of
from engine.run import one_line_errors, read_record
from engine.tables import spread
from lab import publish, results
from lab.experiments import EXPERIMENTS
from lab.trials import understood
from mma import ANSWER, IMAGE, QUESTION, TEXT
from model import MLLM, Config, attention
from train import clip_and_step, forward_backward

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
USUAL = arguments_of_train(["--preset", "tiny", "--device", DEVICE])  # what train.py would do here
ORDINARY = 1000  # the step that is timed: the first ones ask mostly for places, in short rows

# --- Taking turns


def turns(arms: dict[str, Callable], repeats: int, warmup: int = 2) -> dict[str, float]:
    """name -> median seconds of a call, the arms taking turns, every other round backwards: what a
    call leaves behind (memory, caches) is then not always the same arm's gain."""
    times = {name: [] for name in arms}
    for k in tqdm(range(repeats + warmup), desc="timing", leave=False):
        for name, call in list(arms.items())[:: (-1) ** k]:
            began = time.perf_counter()
            call()
            if CUDA:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds[warmup:]) for name, seconds in times.items()}


def training_step(model, batch: dict, args=USUAL) -> Callable:
    """A call is a step of train.py's stage 2 on this batch, at a rate at which nothing is learned
    and nothing may overflow."""
    optimizers = make_optimizers(model, args, "sft")
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = 1e-4
    autocast, scaler = autocast_of(args), scaler_of(args)

    def step() -> None:
        forward_backward(model.loss, [batch], model.config.mask, autocast, scaler)
        clip_and_step(model, optimizers, scaler)

    return step


def tiny(vocab: int = 600, **sizes) -> Config:
    return Config(vocab_size=vocab, **{**PRESETS["tiny"]["model"], **sizes})


def trained(config: Config, model_class=MLLM) -> MLLM:
    """A model as stage 2 trains it, the encoder frozen."""
    torch.manual_seed(0)
    model = model_class(config).to(DEVICE)
    freeze(model, ["encoder"])
    return model


def of_train(args) -> tuple[MLLM, dict]:
    """The model of train.py's args, and a batch of its stage 2, on the built-in world."""
    variant = wings.get(args)
    source = variant.wrap_source(data.load("shapes"), args)
    tokenizer = variant.tokenizer_class.train(source.texts(), args.vocab_size)
    config = tiny(len(tokenizer), n_layer=args.n_layer, mask=args.mask)
    model = trained(config, variant.model_class or MLLM)
    batch = StepBatches(source, tokenizer, config, "sft", args)[ORDINARY][0]
    return model, {name: x.to(DEVICE) for name, x in batch.items()}


def random_batch(config: Config, rows: int, pictures: int, question: int, answer: int) -> dict:
    """Rows of pictures and random tokens, a question and an answer of these lengths."""
    lengths = torch.tensor([1, pictures * config.n_image_tokens, question, answer])
    role = torch.tensor([TEXT, IMAGE, QUESTION, ANSWER]).repeat_interleave(lengths).repeat(rows, 1)
    shape = (rows * pictures, 3, config.image_size, config.image_size)
    batch = {
        "ids": torch.randint(4, config.vocab_size, role.shape),
        "role": role,
        "turn": (role != TEXT).long(),
        "images": torch.randint(256, shape, dtype=torch.uint8),
        "image_index": torch.arange(rows * pictures),
    }
    return {name: x.to(DEVICE) for name, x in batch.items()}


# --- The mask

# rows, image tokens along a side, pictures, tokens of a row; besides the default job's
LENGTHS = (16, 12, 1, 256), (4, 24, 1, 1024), (1, 28, 4, 4096)


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


MASKS = {
    "causal, no mask": (Maskless, "causal"),
    "causal, dense mask": (MLLM, "causal"),
    "mma": (MLLM, "mma"),
}


def mask(args) -> list[list[str]]:
    """Rows have equal lengths, so that causal may go without a mask; the prefill is generate's, of
    the same rows."""
    first, *others = MASKS
    table = [["tokens", "rows", "what", f"{first}, ms", *others]]
    for config, batch in mask_cases():
        B, T = batch["ids"].shape
        arms = {"training step": {}, "prefill": {}}
        for name, (model_class, kind) in MASKS.items():
            model = trained(replace(config, mask=kind), model_class)
            arms["training step"][name] = training_step(model, batch)
            answer = partial(model.generate, **batch, eos=-1, max_new_tokens=1)
            arms["prefill"][name] = answer
        for what, calls in arms.items():
            t = turns(calls, args.repeats)
            ratios = [f"{t[name] / t[first]:.2f}" for name in others]
            table.append([f"{T:,}", str(B), what, f"{1000 * t[first]:.1f}", *ratios])
    return table


def mask_cases():
    """(config, batch) of the default job and of LENGTHS."""
    model, batch = of_train(USUAL)
    yield model.config, batch
    for rows, grid, pictures, total in LENGTHS:
        config = tiny(image_size=16 * grid)
        answer = total - 1 - pictures * config.n_image_tokens - 64
        yield config, random_batch(config, rows, pictures, 64, answer)


def arms(args) -> list[list[str]]:
    """Every mask and method of `python -m lab.compare shapes`, each on the batch that it gets."""
    device = ["--data", "shapes", "--preset", "tiny", "--device", DEVICE]
    steps = {}
    for name, line in EXPERIMENTS["shapes"].lines.items():
        of_arm = understood("train", [*device, *line.split()])
        steps[name] = training_step(*of_train(of_arm), of_arm)
    t = turns(steps, args.repeats)
    rows = [[name, f"{1000 * s:.0f}", f"{s / t['causal']:.2f}"] for name, s in t.items()]
    return [["arm", "ms a step", "of causal"], *rows]


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
            raise data.DataError(f"{' '.join(command)} ended with status {status}")
        in_all, record = time.perf_counter() - began, read_record(out)
        curve = results.curve_of(out)
    # the run's own clock begins when Python has loaded and the data are there
    start, clock, taken = in_all - record["seconds"], dict(record["clock"]), {}
    for mark in MARKS:
        step = results.first_step(curve, mark)
        taken[f"to {100 * mark:.0f} %"] = start + clock[step] if step else None
    return {**taken, "in all": in_all, "test, %": 100 * record["accuracy"]}


# --- The command

TOPICS = {"mask": mask, "arms": arms, "job": job}


def note(topic: str, repeats: int) -> str:
    """The line under a table: the machine, the format of training, how the times were taken."""
    place = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    half = f"training in {USUAL.precision}, answering in float32"
    how = "float32" if USUAL.precision == "float32" else half
    taken = "" if topic == "job" else f"; medians of {repeats}, the arms taking turns"
    return f"{place}, torch {torch.__version__}, {how}{taken}."


def arguments(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("topic", choices=TOPICS, metavar="TOPIC", help=", ".join(TOPICS))
    add("--repeats", type=positive, default=9, metavar="N", help="timed calls of an arm (9)")
    add("--seeds", type=positive, default=3, metavar="N", help="job: one after the other (3)")
    add("--results", type=Path, default=Path("runs/results"), metavar="DIR",
        help="default: runs/results")  # fmt: skip
    add("--publish", action="store_true", help="write docs/results too")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        table = TOPICS[args.topic](args)
        record = {"table": table, "note": note(args.topic, args.repeats)}
        name = f"speed_{args.topic}{'_gpu' * CUDA}"
        for folder in [args.results] + [publish.PUBLISHED] * args.publish:
            files = publish.write(folder, name, record)
        print(files[-1].read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
