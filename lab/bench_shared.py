"""What it costs that under mma an encoded picture cannot be shared by several questions.

python -m lab.bench shared

Ten questions about one picture. Under the causal mask the picture is computed once (lab/shared.py),
under mma in the row of each question; the vision encoder runs once in both.

Shapes:  Q questions   T tokens of a row   n image tokens of the picture
"""

import torch

from engine.options import PRESETS
from lab import bench_timing as timing
from lab.bench_timing import batch_of, rows_of, tiny, training_step
from lab.shared import BranchingMLLM, join, prefill, split
from mma import IMAGE
from model import Config

QUESTIONS = 10
# Preset of the model, image tokens along a side, tokens of a question and of an answer. The first
# is the model of `python train.py` on a CPU.
SIZES = ("tiny", 4, 10, 3), ("small", 12, 30, 10), ("small", 24, 30, 10)


def shared(args) -> list[list[str]]:
    """The prefill, up to the state that the first token of each answer comes from, and a step of
    stage 2. Rows have equal lengths, so that nobody computes pads."""
    table = [["image tokens", "what", "causal, shared: ms", "mma, a row each: ms", "times as long",
              "image positions: causal", "mma"]]  # fmt: skip
    for preset, grid, question, answer in SIZES:
        config = tiny(**{**PRESETS[preset]["model"], "image_size": 16 * grid})
        model, optimizers = timing.trained(config, BranchingMLLM)
        prompts, rows = (rows_about_one_picture(config, question, n) for n in (0, answer))
        prefills, steps = prefill_arms(model, prompts), training_arms(model, optimizers, rows)
        for what, arms in (("prefill", prefills), ("training step", steps)):
            t = timing.turns({name: call for name, (call, _) in arms.items()}, args.repeats)
            ms = [f"{1000 * t[name]:.1f}" for name in arms]
            counts = [f"{count:,}" for _, count in arms.values()]
            ratio = f"{t['mma'] / t['causal']:.2f}"
            table.append([str(config.n_image_tokens), what, *ms, ratio, *counts])
    return table


def rows_about_one_picture(config: Config, question: int, answer: int) -> list:
    rows = rows_of(config, [(question, answer)] * QUESTIONS)
    for row in rows:
        row.images = rows[0].images
    return rows


def image_positions(*batches: dict) -> int:
    """How many positions of image tokens the decoder computes, in each of its layers."""
    return sum(int((batch["role"] == IMAGE).sum()) for batch in batches)


def prefill_arms(model, rows: list) -> dict:
    """mask -> (call, image positions that it computes)."""
    beginning, rest = split(rows)
    beginning, rest = batch_of(model.config, [beginning]), batch_of(model.config, rest)
    whole = batch_of(model.config, rows)
    Q, T = whole["ids"].shape
    last = torch.full_like(whole["ids"][:, :1], T - 1)

    @torch.inference_mode()
    def one_by_one():
        timing.prefill(model, whole, "mma", last)

    return {
        "causal": (lambda: prefill(model, beginning, rest), image_positions(beginning, rest)),
        "mma": (one_by_one, image_positions(whole)),
    }


def training_arms(model, optimizers: list, rows: list) -> dict:
    """The same of a training step."""
    joined, whole = batch_of(model.config, [join(rows)]), batch_of(model.config, rows)
    return {
        "causal": (training_step(model, optimizers, "causal", joined), image_positions(joined)),
        "mma": (training_step(model, optimizers, "mma", whole), image_positions(whole)),
    }
