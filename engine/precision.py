"""Number formats, memory and compilation. Numbers are float32 on CPUs and Apple's GPUs, bfloat16 on
CUDA, float16 with a loss scaler where a GPU has no bfloat16."""

import contextlib
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from data import DataError


def check_device(name: str) -> None:
    """DataError if tensors cannot be made there. GPUs are counted, not used: a tensor on "cuda"
    would take a few hundred MB of GPU 0 in every process of a job."""
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
            return
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise RuntimeError(f"torch {torch.__version__} sees {found} GPUs, counted from 0")
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"--device {name} cannot be used here: {why}") from None


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bfloat16(device: str) -> bool:
    """Is it a GPU that computes in bfloat16?"""
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def scaler_of(device: str) -> torch.amp.GradScaler:
    """For a GPU without bfloat16, where gradients need their loss scaled. Else it does nothing."""
    on = device.startswith("cuda") and not has_bfloat16(device)
    return torch.amp.GradScaler(device.split(":")[0], enabled=on)


def autocast_of(device: str, scaler: torch.amp.GradScaler):
    """The context of the forward pass. It keeps no cache of cast weights: that would hold a copy
    of every weight until the end of the pass, of layers that are gathered or computed again too."""
    kind, half = device.split(":")[0], scaler.is_enabled()
    dtype = torch.float16 if half else torch.bfloat16
    return torch.autocast(kind, dtype, enabled=half or kind == "cuda", cache_enabled=False)


def wrap_blocks(model, args) -> None:
    """As --checkpointing and --compile ask; layers that are alike are compiled once."""
    if args.checkpointing:
        recompute_blocks(model)
    if args.compile:
        for block in [*model.encoder.blocks, *model.blocks]:
            block.compile(dynamic=True)


def recompute_blocks(model) -> None:
    """Keep of each decoder layer its input alone, and compute the rest again in backward
    (activation checkpointing, arXiv 1604.06174): for large models."""
    for block in model.blocks:
        block.forward = partial(recompute, block.forward)


def recompute(forward, *inputs):
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)


def uncompiled(compiled: bool):
    """A context in which compiled layers run as they are: an answer has many shapes."""
    if not compiled:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # its import takes seconds
