"""The paper's shapes: parameters, memory and FLOPs of a training step; on a GPU also as measured.

    python -m lab.bench size

Shapes:  T tokens of a row   D decoder width   E encoder width   d head width   P patches
"""

import gc
from dataclasses import fields

import torch

from engine.optimizers import Muon, orthogonalise_flops
from engine.options import arguments as engine_arguments
from lab import bench_timing as timing
from lab.bench_timing import CUDA, DEVICE, batch_of, rows_of, training_step
from model import LOGITS_AT_ONCE, MLLM

DECODER = ("encoder", "embed", "blocks", "norm", "unembed")  # all but the projector
ARMS = {  # what `plan` needs of each
    "paper, Muon": dict(),
    "aki, stage 1": dict(frozen=DECODER, optimizer="adamw"),
    "aki, stage 2": dict(optimizer="adamw"),
    "aki, stage 2, each of 8 GPUs (--fsdp)": dict(optimizer="adamw", processes=8),
}


def paper_config():
    """The configuration of bridge.finetune's preset paper, and the class of its model."""
    from bridge.finetune import PRESETS
    from bridge.pretrained import PretrainedConfig, PretrainedMLLM

    preset = PRESETS["paper"]
    known = {field.name for field in fields(PretrainedConfig)}
    sizes = {k: v for k, v in {**preset["own"], **preset["model"]}.items() if k in known}
    return PretrainedConfig(vocab_size=32_064, **sizes), PretrainedMLLM


def flops(config, rows: int, T: int, answers: int) -> float:
    """Model FLOPs of a training step, one picture a row, the encoder frozen: 2 for each weight and
    token and 4 T D of attention for each layer and token (the mask is not counted off), three times
    for what is trained; checkpointing's second forward not counted."""
    D, E, d = config.d_model, config.encoder_width, config.head_width
    P = getattr(config, "patches", config.grid) ** 2
    layer = D * d * (2 * config.n_head + 2 * config.n_kv_head) + 3 * D * config.d_ff
    encoder = 4 * E * E + 2 * E * (getattr(config, "encoder_d_ff", 0) or 4 * E)
    decoder = T * config.n_layer * (layer + 2 * T * D) + answers * D * config.vocab_size
    trained = 6 * rows * (decoder + config.n_image_tokens * D * (E + D))
    patches = config.encoder_layers * (encoder + 2 * P * E) + 3 * config.patch_size**2 * E
    return trained + 2 * rows * P * patches


def muon_flops(config, model_class=MLLM) -> int:
    """FLOPs of Muon in a training step, the encoder frozen, whatever the number of rows."""
    with torch.device("meta"):
        model = timing.freeze(model_class(config), ["encoder"])
    optimizers = timing.optimizers_of(model, timing.arguments(["--device", "cpu"]))
    groups = [o.param_groups[0]["params"] for o in optimizers if isinstance(o, Muon)]
    return sum(orthogonalise_flops(*p.shape) for params in groups for p in params)


def plan(
    config, rows: int, T: int, frozen: tuple = ("encoder",), optimizer: str = "muon",
    processes: int = 1, model_class=MLLM,
) -> dict[str, float]:  # fmt: skip
    """What a training step of train.py holds on each GPU, in bytes: float32 weights, gradients and
    moments (AdamW two, Muon one), with --fsdp of several processes a part of each and what is
    gathered meanwhile; of each layer its input and of one layer everything (checkpointing); one
    chunk of logits. rows: a process's. And the numbers of parameters."""
    with torch.device("meta"):
        model = model_class(config)
    n = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    total, of_layer = sum(n.values()), n["blocks"] // config.n_layer
    taught = {name: x for name, x in n.items() if name not in frozen}
    by_adamw = taught if optimizer == "adamw" else {"embed", "unembed"} & taught.keys()
    two = sum(n[name] for name in by_adamw)
    # several processes gather all but the layers, and two of the layers at a time
    gathered = total - n["blocks"] - n["encoder"] + 2 * of_layer if processes > 1 else 0
    tokens, D = rows * T, config.d_model
    return {
        "weights": 4 * total / processes,
        "gradients": 4 * sum(taught.values()) / processes,
        "moments": 4 * (sum(taught.values()) + two) / processes,
        "gathered weights": 4 * gathered,
        "inputs of the layers": 4 * config.n_layer * tokens * D,
        "one layer": tokens * (4 * 8 * D + 2 * 6 * config.d_ff) + 2 * of_layer,
        "a chunk of logits": 3 * 4 * LOGITS_AT_ONCE * config.vocab_size,
        "parameters": total,
        **{f"{name} parameters": x for name, x in n.items()},
    }


def size(args, rows: int = 32, question: int = 60, answer: int = 120) -> list[list[str]]:
    config, model_class = paper_config()
    T = 1 + config.n_image_tokens + question + answer
    held = {
        name: plan(config, rows // arm.get("processes", 1), T, model_class=model_class, **arm)
        for name, arm in ARMS.items()
    }
    first = held["paper, Muon"]
    table = [[f"{rows} rows of {T} tokens", *ARMS]]
    for name in first:
        if name.endswith("parameters"):
            table.append([name, *[f"{first[name] / 1e6:,.1f} M"] * len(ARMS)])
    planned = [memory(plan) for plan in held.values()]
    for name in planned[0]:
        table.append([f"planned: {name}, GiB", *(f"{of[name] / 2**30:.1f}" for of in planned)])
    # what is frozen needs no gradient of its weights: 4 instead of 6 for each
    whole = flops(config, rows, T, answer)
    step = [whole * (2 / 3 if arm.get("frozen") else 1) for arm in ARMS.values()]
    table.append(["model FLOPs of a step", *(f"{x / 1e12:,.0f} T" for x in step)])
    by_muon = muon_flops(config, model_class)
    of_arm = [0 if "optimizer" in arm else by_muon for arm in ARMS.values()]
    table.append(["Muon's FLOPs of a step", *(f"{x / 1e12:,.0f} T" for x in of_arm)])
    hours = guessed_hours(step, 0.4 * args.peak * 1e12)
    guess = f"guess: hours, at 40 % of {args.peak:.0f} TFLOPS"
    table.append([guess, *(f"{h:.1f}" if h else "-" for h in hours)])
    if CUDA:
        rows_to_measure = rows_of(config, [(question, answer)] * rows)
        columns = {"muon": (1, by_muon), "adamw": (3, 0)}  # of the table; FLOPs besides the model's
        for optimizer, (column, further) in columns.items():
            flops_of_step = whole + further, whole
            cells = measure(config, model_class, rows_to_measure, flops_of_step, optimizer, args)
            add_measured(table, cells, column)
    return table


def add_measured(table: list[list[str]], cells: dict[str, str], column: int) -> None:
    """Put what was measured into a column; a row that the table lacks is added."""
    for name, cell in cells.items():
        row = next((row for row in table if row[0] == name), None)
        if row is None:
            row = [name] + [""] * len(ARMS)
            table.append(row)
        row[column] = cell


def memory(plan: dict[str, float]) -> dict[str, float]:
    """The bytes of a plan, without the numbers of parameters, and their sum."""
    of = {name: x for name, x in plan.items() if not name.endswith("parameters")}
    return {**of, "in all": sum(of.values())}


def guessed_hours(step: list[float], flops_a_second: float) -> list[float]:
    """Of each of ARMS; the preset paper has no number of steps: 0."""
    from bridge.finetune import PRESETS

    own = PRESETS["aki"]["own"]
    steps = [0, own["pt_steps"], own["steps"], own["steps"]]
    processes = [arm.get("processes", 1) for arm in ARMS.values()]
    return [n * x / (flops_a_second * p) / 3600 for n, x, p in zip(steps, step, processes)]


def measure(config, model_class, rows: list, flops_of_step, optimizer: str, args) -> dict:
    """On the GPU: steps and memory, activations computed again in backward. flops_of_step: with the
    optimizer's and without."""
    gc.collect()  # the model before this one: its wrapped layers refer to themselves
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    chosen = engine_arguments(["--preset", "tiny", "--device", DEVICE, "--optimizer", optimizer])
    model, optimizers = timing.trained(config, model_class, chosen)
    model.checkpointing = True
    batch = batch_of(config, rows)
    kinds = ("causal", "mma")
    steps = {kind: training_step(model, optimizers, kind, batch) for kind in kinds}
    cells = {}
    for kind, seconds in timing.turns(steps, args.repeats).items():
        cells[f"measured: {kind}, rows a second"] = f"{len(rows) / seconds:.1f}"
        share, without = (x / seconds / args.peak / 1e12 for x in flops_of_step)
        cells[f"{kind}, share of {args.peak:.0f} TFLOPS"] = f"{share:.1%}"
        cells[f"{kind}, without the optimizer's FLOPs"] = f"{without:.1%}"
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {**cells, "measured: peak memory, GiB": f"{peak:.1f}"}
