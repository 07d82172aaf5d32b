"""What fits: parameters, memory and FLOPs of a training step at the paper's shapes.

    python -m lab.bench size

Nothing is computed: the model is on torch's meta device, whose tensors hold no numbers.
"""

from dataclasses import fields

import torch
from torch.utils.flop_counter import FlopCounterMode

from bridge.finetune import PRESETS
from bridge.pretrained import PretrainedConfig, PretrainedMLLM
from model import LOGITS_AT_ONCE, AttentionContext

ROWS, QUESTION, ANSWER = 32, 60, 120  # of a step; tokens of a row, besides its picture
DECODER = ["encoder", "embed", "blocks", "norm", "unembed"]  # all but the projector
ARMS = {  # (what is frozen, optimizer, processes)
    "paper, Muon": (["encoder"], "muon", 1),
    "aki, stage 1": (DECODER, "adamw", 1),
    "aki, stage 2": (["encoder"], "adamw", 1),
    "aki, stage 2, each of 8 GPUs (--fsdp)": (["encoder"], "adamw", 8),
}


def paper_model() -> PretrainedMLLM:
    """The sizes of bridge.finetune's preset paper, with the vocabulary of Phi-3.5-mini."""
    preset = PRESETS["paper"]
    known = {field.name for field in fields(PretrainedConfig)}
    sizes = {k: v for k, v in {**preset["own"], **preset["model"]}.items() if k in known}
    with torch.device("meta"):
        return PretrainedMLLM(PretrainedConfig(vocab_size=32_064, **sizes))


def parameters(model) -> dict[str, int]:
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }


def length(model) -> int:
    """Tokens of a row."""
    return 1 + model.config.n_image_tokens + QUESTION + ANSWER


def memory(model, frozen: list[str], optimizer: str, processes: int) -> dict[str, float]:
    """GiB that a training step of train.py holds on each GPU: float32 weights, gradients and
    moments (AdamW two, Muon one), with --fsdp of several processes a part of each and what is
    gathered meanwhile; of each layer its input and of one layer everything (--checkpointing); one
    chunk of logits."""
    config, counts = model.config, parameters(model)
    total, of_layer = sum(counts.values()), counts["blocks"] // config.n_layer
    trained = {name: n for name, n in counts.items() if name not in frozen}
    by_adamw = trained if optimizer == "adamw" else {"embed", "unembed"} & trained.keys()
    moments = sum(trained.values()) + sum(counts[name] for name in by_adamw)
    # several processes gather all but the layers, and two of the layers at a time
    gathered = total - counts["blocks"] - counts["encoder"] + 2 * of_layer
    tokens, D = ROWS // processes * length(model), config.d_model
    held = {
        "weights": 4 * total / processes,
        "gradients": 4 * sum(trained.values()) / processes,
        "moments": 4 * moments / processes,
        "gathered weights": 4 * gathered * (processes > 1),
        "inputs of the layers": 4 * config.n_layer * tokens * D,
        "one layer": tokens * (4 * 8 * D + 2 * 6 * config.d_ff) + 2 * of_layer,
        "a chunk of logits": 3 * 4 * LOGITS_AT_ONCE * config.vocab_size,
    }
    return {name: n_bytes / 2**30 for name, n_bytes in held.items()}


def flops(model, frozen: list[str]) -> int:
    """Of a forward and backward pass, as torch counts them. All of attention's scores count,
    whatever the mask, and no second forward pass."""
    config, T = model.config, length(model)
    for name, part in model.named_children():
        part.requires_grad_(name not in frozen)
    with torch.device("meta"), FlopCounterMode(display=False) as passes:
        images = torch.empty(ROWS, 3, config.image_size, config.image_size, dtype=torch.uint8)
        words = torch.empty(ROWS, T - config.n_image_tokens, config.d_model)
        x = torch.cat([model.projector(model.encoder(images)), words], 1)
        everything = torch.ones(ROWS, 1, T, T, dtype=torch.bool)
        hidden = model.decode(x, AttentionContext(everything, torch.arange(T)[None]))
        model.head(hidden[:, -ANSWER:]).sum().backward()
    return passes.get_total_flops()


def size(args=None) -> list[list[str]]:
    """A column for each of ARMS."""
    model, columns = paper_model(), []
    counts = parameters(model)
    for arm in ARMS.values():
        column = {"parameters": sum(counts.values()), **counts}
        column = {name: f"{n / 1e6:,.1f} M" for name, n in column.items()}
        held = memory(model, *arm)
        held["memory in all"] = sum(held.values())
        column |= {f"{name}, GiB": f"{gib:.1f}" for name, gib in held.items()}
        column["model, TFLOP"] = f"{flops(model, arm[0]) / 1e12:.0f}"
        columns.append(column)
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return [[f"{ROWS} rows of {length(model)} tokens", *ARMS], *rows]
