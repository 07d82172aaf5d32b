"""Number formats, memory and compilation. Weights are float32 always. The matrix products of
training are in --precision: on GPUs bfloat16, or float16 with a loss scaler on older ones, else
float32. Answers are in float32, and on GPUs that have it in TF32 (10 bits of mantissa)."""

import contextlib

import torch
import torch.nn.functional as F

from data import DataError, reason

FORMATS = ("float32", "bfloat16", "float16")
AUTOCAST_CPU: list[torch.library.Library] = []  # see attend_in_float32


def check_device(name: str) -> None:
    """DataError if tensors cannot be made there. GPUs are counted, not used: a tensor on "cuda"
    would take a few hundred MB of GPU 0 in every process of a job."""
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("tensors there hold no numbers")
        if device.type != "cuda":
            torch.empty(0, device=device)
            return
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise RuntimeError(f"torch {torch.__version__} sees {found} GPUs, counted from 0")
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name} cannot be used here: {reason(error)}") from None


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usual_format(device: str) -> str:
    """The default of --precision. On a CPU with units for bfloat16 that is faster, but two seeds
    of five learned the last family of questions less well (docs/log.md)."""
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def scaler_of(args) -> torch.amp.GradScaler:
    """Scales the loss in float16, where small gradients would vanish. Else it does nothing."""
    return torch.amp.GradScaler(args.device.split(":")[0], enabled=args.precision == "float16")


def autocast_of(args) -> torch.autocast:
    """The context, or decorator, of the forward pass. It keeps no cache of cast weights: that would
    hold a copy of every weight until the end of the pass, of layers that are gathered or computed
    again too."""
    dtype, on = getattr(torch, args.precision), args.precision != "float32"
    kind = args.device.split(":")[0]
    if on and kind == "cpu":
        attend_in_float32()
    return torch.autocast(kind, dtype if on else torch.bfloat16, enabled=on, cache_enabled=False)


@contextlib.contextmanager
def in_tf32():
    """A context, or decorator, in which a GPU's float32 products are in TF32, if it has it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def attend_in_float32() -> None:
    """Under autocast a CPU's attention kernel takes up to four times as long backwards in bfloat16
    as in float32 (docs/log.md). So what autocast does to attention there is set anew: it makes its
    inputs float32."""
    if AUTOCAST_CPU:
        return

    def attention(q, k, v, *rest, **options):
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            return F.scaled_dot_product_attention(q, k, v, *rest, **options)

    AUTOCAST_CPU.append(torch.library.Library("aten", "IMPL"))
    AUTOCAST_CPU[0].impl("scaled_dot_product_attention", attention, "AutocastCPU")


def compile_blocks(model) -> None:
    """Compile the layers; those that are alike are compiled once."""
    for block in [*model.encoder.blocks, *model.blocks]:
        block.compile(dynamic=True)


def uncompiled(compiled: bool):
    """A context in which compiled layers run as they are: an answer has many shapes."""
    if not compiled:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # its import takes seconds
