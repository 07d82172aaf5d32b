"""Muon, the optimizer of the weight matrices.

Shapes:  k matrices of one shape, stacked   rows, columns of a matrix
"""

import torch

from processes import part_as, whole


class Muon(torch.optim.Optimizer):
    """Muon (Keller Jordan, 2024): momentum, orthogonalised by Newton-Schulz, for weight matrices. Equal to torch.optim.Muon up
    to rounding, but in float32 and in one batch for all matrices of a shape: torch's runs matrix by matrix in bfloat16, which on a
    CPU without bfloat16 units takes longer than the rest of the step (LOG.md)."""

    AT_ONCE = 2**26  # numbers in a batch, so that large models' do not fill the GPU

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(
        self, closure=None
    ):  # no closure is ever called; torch's state-dict functions pass one by name
        for group in self.param_groups:
            shapes = {}
            for k, p in enumerate(group["params"]):
                if p.grad is not None:
                    shapes.setdefault((p.shape, k // max(1, self.AT_ONCE // p.numel())), []).append(
                        p
                    )
            for (shape, _), params in shapes.items():
                updates = []
                for p in params:
                    m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(m, group["momentum"]))  # Nesterov
                update = orthogonalise(torch.stack([whole(u) for u in updates]))
                for p, u in zip(params, update):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(part_as(u, p), alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)


def orthogonalise(m: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly, of each matrix of m [k, rows, columns]: quintic Newton-Schulz."""
    tall = m.shape[1] > m.shape[2]
    x = m.mT if tall else m
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x
