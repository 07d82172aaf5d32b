"""How much of the machine a training step uses: its matrix products a second, beside those same
products alone and a large one.

python -m lab.bench limit

What the step does besides (norms, attention's softmax, copies, optimizer) counts as lost time; the
FLOPs of attention's kernel, which torch does not count on a CPU, are left out everywhere.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lab import bench_timing as timing
from lab.bench_timing import CUDA, DEVICE, USUAL, to_device, training_step

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
LARGE = 8192 if CUDA else 2048  # side of the large product


class Recorder(TorchDispatchMode):
    """Counts the matrix products that run inside: by operation, and each operand's size, strides
    and dtype."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in PRODUCTS:
            operands = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args)
            self.found[func, operands] += 1
        return func(*args, **(kwargs or {}))


def products_of(call) -> tuple[Counter, int]:
    """The matrix products of a call, as Recorder counts them, and their FLOPs."""
    with Recorder() as recorder, FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_flop_counts()["Global"]
    return recorder.found, sum(flops.get(product, 0) for product in PRODUCTS)


def alone(found: Counter):
    """A call that does the same products on random matrices, and nothing else."""
    todo = []
    for (func, operands), times in found.items():
        matrices = [
            torch.empty_strided(size, stride, dtype=dtype, device=DEVICE).normal_()
            for size, stride, dtype in operands
        ]
        todo += [(func, matrices)] * times

    @torch.no_grad()
    def call():
        for func, matrices in todo:
            func(*matrices)

    return call


def limit(args) -> list[list[str]]:
    """A step of stage 2 of the default job, Muon included."""
    _, batches = timing.default_job()
    model, optimizers = timing.trained(batches.config)
    batch = to_device(batches[timing.ORDINARY][0])
    step = training_step(model, optimizers, "mma", batch)
    found, flops = products_of(step)
    a = torch.randn(LARGE, LARGE, device=DEVICE, dtype=getattr(torch, USUAL.precision))
    arms = {
        "a training step": (step, flops),
        "its matrix products alone": (alone(found), flops),
        f"a product of {LARGE:,} x {LARGE:,}": (lambda: a @ a, 2 * LARGE**3),
    }
    t = timing.turns({name: call for name, (call, _) in arms.items()}, args.repeats)
    rates = {name: n / t[name] / 1e9 for name, (_, n) in arms.items()}
    table = [["what", "GFLOP", "ms", "GFLOP a second", "of which a step uses"]]
    for name, (_, n) in arms.items():
        share = f"{rates['a training step'] / rates[name]:.0%}"
        table.append([name, f"{n / 1e9:.2f}", f"{1000 * t[name]:.1f}", f"{rates[name]:.1f}", share])
    return table
