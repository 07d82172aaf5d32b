"""Our own against our own: the mask, the last layer, packing, the loader.

    python -m lab.bench mask|last-layer|packing|loader

Shapes:  B rows of a batch   T tokens of a row   t queries   H query heads   G key/value heads
         d head width
"""

import random

import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention

import data
from lab import bench_timing as timing
from lab.bench_timing import CUDA, DEVICE, batch_of, rows_of, tiny, to_device, training_step
from model import MLLM, attention

# rows, image tokens along a side, pictures, tokens of a row; besides the default job's
LENGTHS = (16, 12, 1, 256), (4, 24, 1, 1024), (1, 28, 4, 4096)
PROMPT = ("ids", "role", "images", "image_index", "turn")


def causal_without_mask(q, k, v, mask):
    """model.attention for the causal mask of rows without gaps, by the kernel that needs none: what
    a causal model would use. The last layer's few rows keep theirs."""
    if q.shape[-2] != k.shape[-2]:
        return attention(q, k, v, mask)
    grouped, scale = q.shape[1] > k.shape[1], v.shape[-1] ** -0.5
    if q.is_cuda:  # as in model.attention
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped, scale=scale)


class BlockAttention:
    """model.attention by FlexAttention (arXiv 2412.05496): blocks of 128 x 128 in which the mask
    opens nothing are not computed. The blocks are found once a forward pass, from the dense mask,
    so that the rule is the same. The last layer's few rows keep model.attention."""

    def __init__(self, compiled: bool = True):
        function = flex_attention.flex_attention
        self.function = torch.compile(function, dynamic=False) if compiled else function
        self.dense = self.blocks = None

    def __call__(self, q, k, v, mask):
        if q.shape[-2] != k.shape[-2]:
            return attention(q, k, v, mask)
        if mask is not self.dense:
            B, _, T, _ = mask.shape
            allowed = lambda b, h, i, j: mask[b, 0, i, j]
            blocks = flex_attention.create_block_mask(allowed, B, None, T, T, device=mask.device)
            self.dense, self.blocks = mask, blocks
        q, k = q.to(v.dtype), k.to(v.dtype)
        options = dict(enable_gqa=q.shape[1] > k.shape[1], scale=v.shape[-1] ** -0.5)
        return self.function(q, k, v, block_mask=self.blocks, **options)


def attending(model, function, call):
    """The call, its attention computed by another function."""

    def inner():
        before = [block.attention.attend for block in model.blocks]
        for block in model.blocks:
            block.attention.attend = function
        call()
        for block, usual in zip(model.blocks, before):
            block.attention.attend = usual

    return inner


def mask(args) -> list[list[str]]:
    """Causal without a mask tensor, causal with one, and mma; on a GPU also mma in blocks. Rows
    have equal lengths, so that causal may go without."""
    table = [["tokens", "rows", "what", "causal, no mask, ms", "causal, dense mask", "mma"]]
    table[0] += ["mma, FlexAttention"] * CUDA
    for config, batch in mask_cases():
        model, optimizers = timing.trained(config)
        B, T = batch["ids"].shape
        last = torch.full((B, 1), T - 1, device=DEVICE)

        @torch.no_grad()
        def prefill(mask, model=model, batch=batch, last=last):
            timing.prefill(model, {name: batch[name] for name in PROMPT}, mask, last)

        def training(mask, model=model, optimizers=optimizers, batch=batch):
            training_step(model, optimizers, mask, batch)()

        for what, call in (("training step", training), ("prefill", prefill)):
            arms = {
                "no mask": attending(model, causal_without_mask, lambda c=call: c("causal")),
                "causal": lambda c=call: c("causal"),
                "mma": lambda c=call: c("mma"),
            }
            if CUDA and T >= 1024:
                arms["blocks"] = attending(model, BlockAttention(), arms["mma"])
            t = timing.turns(arms, args.repeats)
            ratios = [f"{t[arm] / t['no mask']:.2f}" for arm in list(arms)[1:]]
            ratios += ["-"] * (len(table[0]) - 4 - len(ratios))
            table.append([f"{T:,}", str(B), what, f"{1000 * t['no mask']:.1f}", *ratios])
    return table


def mask_cases():
    """(config, batch) of the default job and of LENGTHS."""
    model, batches = timing.default_job()
    yield model.config, to_device(batches[timing.ORDINARY][0])
    for rows, grid, pictures, total in LENGTHS:
        config = tiny(image_size=16 * grid)
        answer = total - 1 - pictures * config.n_image_tokens - 64
        yield config, batch_of(config, rows_of(config, [(64, answer)] * rows, pictures))


class Everywhere(MLLM):
    """Computes its last layer at all columns."""

    def decode(self, x, context, read_at=None):
        hidden = super().decode(x, context)
        return hidden if read_at is None else hidden.take_along_dim(read_at[..., None], 1)


def last_layer(args) -> list[list[str]]:
    """A training step of stage 2 at the default shape: the last layer computed where an answer is
    predicted (read_at), against everywhere. Both take the vocabulary only where it is predicted."""
    _, batches = timing.default_job()
    (batch,), arms = map(to_device, batches[timing.ORDINARY]), {}
    for name, model_class in (("everywhere", Everywhere), ("read_at", MLLM)):
        model, optimizers = timing.trained(batches.config, model_class)
        arms[name] = training_step(model, optimizers, "mma", batch)
    t = timing.turns(arms, args.repeats)
    usual = t["everywhere"]
    B, T = batch["ids"].shape
    rows = [
        [f"{B} rows of {T} tokens, {model.config.n_layer} layers", "ms a step", "of everywhere"]
    ]
    return rows + [[name, f"{1000 * s:.1f}", f"{s / usual:.2f}"] for name, s in t.items()]


def packing(args) -> list[list[str]]:
    """64 dialogues a step, lengths as in LLaVA's data: questions of 5 to 60 tokens, answers of 1 to
    200."""
    config, r = tiny(), random.Random(0)
    rows = rows_of(config, [(r.randint(5, 60), r.randint(1, 200)) for _ in range(64)])
    model, optimizers = timing.trained(config)
    batches = {"padded": batch_of(config, rows), "packed": batch_of(config, data.pack(rows))}
    steps = {
        name: training_step(model, optimizers, "mma", batch) for name, batch in batches.items()
    }
    t = timing.turns(steps, args.repeats)
    table = [["rows", "shape", "positions that hold a token", "dialogues a second", "of padded"]]
    for name, batch in batches.items():
        shape, filled = " x ".join(map(str, batch["ids"].shape)), (batch["role"] > 0).float().mean()
        ratio = f"{t['padded'] / t[name]:.2f}"
        table.append([name, shape, f"{filled:.1%}", f"{64 / t[name]:.0f}", ratio])
    return table


def loader(args) -> list[list[str]]:
    """Making a batch in one process against training on it."""
    _, batches = timing.default_job()
    model, optimizers = timing.trained(batches.config)
    training = training_step(model, optimizers, "mma", to_device(batches[timing.ORDINARY][0]))
    step = iter(range(10**6))
    arms = {
        "making a batch (one process)": lambda: batches[next(step)],
        "a training step": training,
    }
    t = timing.turns(arms, args.repeats)
    table = [["what", "ms", "times as fast as training"]]
    for name, seconds in t.items():
        table.append([name, f"{1000 * seconds:.1f}", f"{t['a training step'] / seconds:.1f}"])
    return table
