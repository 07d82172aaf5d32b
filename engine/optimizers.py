"""The optimizers of a stage: Muon for the weight matrices, AdamW for the rest; or AdamW alone.

Shapes:  k matrices of one shape, stacked   rows, columns of a matrix
"""

import torch
from torch import Tensor, nn

from data import DataError
from engine.distributed import full_tensor, shard_like

NEWTON_SCHULZ_STEPS = 5


def make_optimizers(model: nn.Module, args, stage: str) -> list[torch.optim.Optimizer]:
    """For the parameters that are trained: Muon at --lr for weight matrices, AdamW at --adam-lr for
    embeddings, the vocabulary head, norms, biases and positions. With --optimizer adamw: AdamW at
    --lr for all but the projector, at --adam-lr for the projector. Stage 1 has pt_lr_times the rate
    --lr, and may have a second rate of its own, pt_adam_lr."""
    adamw = args.optimizer == "adamw"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def is_first(name: str) -> bool:
        if adamw:
            return not name.startswith("projector")
        is_matrix = trained[name].dim() == 2 and name.endswith(".weight")
        return is_matrix and not name.endswith(("embed.weight", "unembed.weight"))

    first, second = ([p for n, p in trained.items() if is_first(n) == w] for w in (True, False))
    # fused: one pass over the numbers of a parameter; a CPU has it, too
    fused = args.device.startswith(("cuda", "cpu"))
    options = dict(betas=(0.9, 0.95), weight_decay=1e-4 if adamw else 0.0, fused=fused)
    optimizers, dtype = [], torch.bfloat16 if args.precision == "bfloat16" else torch.float32
    if first:
        lr = args.lr * (args.pt_lr_times if stage == "pt" else 1)
        kind, given = (torch.optim.AdamW, options) if adamw else (Muon, {"dtype": dtype})
        optimizers += [kind(first, lr, **given)]
    if second:
        lr = args.pt_adam_lr if stage == "pt" else args.adam_lr
        optimizers += [torch.optim.AdamW(second, lr, **options)]
    return optimizers


def describe_optimizers(args) -> str:
    """One line: what make_optimizers makes, with peak rates."""

    def rates(first: float, second: float) -> str:
        return f"{second:g}" + (f" ({first:g} in stage 1)" if first != second else "")

    of_first = rates(args.lr * args.pt_lr_times, args.lr)
    of_second = rates(args.pt_adam_lr, args.adam_lr)
    if args.optimizer == "adamw":
        return f"AdamW, peak rate {of_first}; of the projector {of_second}"
    return f"Muon for weight matrices, peak rate {of_first}; AdamW for the rest, {of_second}"


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Give every parameter that share of its optimizer's peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share


def freeze(model: nn.Module, parts: list[str], option: str = "--freeze", steps: int = 1) -> None:
    """Train all parameters but those whose names begin with one of parts. DataError for a part that
    no parameter belongs to, or if none is left to train; option, steps: of the stage."""
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not part or not any(name.startswith(part) for name in names):
            there = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise DataError(f"{option} {part!r}: no parameter's name begins so; there are {there}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(parts)))
    if steps and not any(parameter.requires_grad for parameter in model.parameters()):
        why = "leaves no parameter to train; name fewer parts"
        raise DataError(f"{option} {' '.join(parts)} {why}")


class Muon(torch.optim.Optimizer):
    """Muon (Keller Jordan, 2024): momentum, orthogonalised by Newton-Schulz, for weight matrices.
    Equal to torch.optim.Muon up to rounding, but in one batch for all matrices of a shape, and in
    bfloat16, as torch's, only where --precision is: on a CPU without units for it that takes longer
    than the rest of the step (docs/log.md). dtype: of its matrix products."""

    NUMBERS_AT_ONCE = 2**26  # in a batch, so that large models' do not fill the GPU

    def __init__(self, params, lr: float, momentum: float = 0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):  # torch's state-dict functions pass a closure by name
        for group in self.param_groups:
            for params in self._batches(group["params"]):
                self._update(params, group)

    def _batches(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Those that have a gradient, by shape, and no more at once than fit."""
        batches = {}
        for index, p in enumerate(params):
            if p.grad is not None:
                part = index // max(1, self.NUMBERS_AT_ONCE // p.numel())
                batches.setdefault((p.shape, part), []).append(p)
        return list(batches.values())

    def _update(self, params: list[Tensor], group: dict) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in params]
        means = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, means, momentum)  # Nesterov
        updates = orthogonalise(torch.stack([full_tensor(u) for u in updates]), self.dtype)
        scale = max(1, params[0].shape[0] / params[0].shape[1]) ** 0.5
        updates = [shard_like(update, p) for update, p in zip(updates, params)]
        torch._foreach_add_(params, updates, alpha=-lr * scale)


def orthogonalise(m: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly, of each matrix of m [k, rows, columns]: quintic
    Newton-Schulz. dtype: of the matrix products, which are nearly all of the work."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a.to(dtype) @ b.to(dtype)).to(m.dtype)

    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        a = product(x, x.mT)
        b = product(a, a).mul_(2.0315).add_(a, alpha=-4.775)
        x = product(b, x).add_(x, alpha=3.4445)
    return x.mT if tall else x
