"""How times are taken: arms that take turns, their medians, and the steps and batches they take.

An arm is one of the things that a table compares. lab/bench.py says what the tables are.

Shapes:  B rows of a batch   T tokens of a row
"""

import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

import data
from engine import wings
from engine.batches import StepBatches
from engine.optimizers import freeze, make_optimizers
from engine.options import PRESETS, arguments
from engine.precision import autocast_of, scaler_of
from mma import Role
from model import MLLM, Config
from train import clip_and_step, forward_backward

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PLACE = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
USUAL = arguments(["--preset", "tiny", "--device", DEVICE])  # what train.py would do here
ORDINARY = 1000  # the step that is timed: the first ones ask mostly for places, in short rows


def where(precision: str) -> str:
    """What a table of times says of its machine and of the format of training."""
    half = f"training in {precision}, answering in float32"
    return f"{PLACE}, torch {torch.__version__}, {'float32' if precision == 'float32' else half}"


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


# --- Models, and batches: the model's keyword arguments


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
    return model, on_device(StepBatches(source, tokenizer, config, "sft", args)[ORDINARY][0])


def on_device(batch: dict) -> dict:
    return {name: x.to(DEVICE) for name, x in batch.items()}


def random_batch(config: Config, lengths: list[tuple[int, int]], pictures: int = 1) -> dict:
    """Rows of random tokens: a picture or more, a question and an answer of these lengths."""
    rows, shape = [], (3, config.image_size, config.image_size)
    for question, answer in lengths:
        row = data.Row()
        row.add([1], Role.TEXT, 0)
        row.add([2] * config.n_image_tokens * pictures, Role.IMAGE, 1)
        for role, length in ((Role.QUESTION, question), (Role.ANSWER, answer)):
            row.add(torch.randint(4, config.vocab_size, (length,)).tolist(), role, 1)
        row.images = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(pictures)]
        rows.append(row)
    return on_device(data.collate(rows, 0, config.image_size))
