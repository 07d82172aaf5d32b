"""One process or several: torchrun --nproc_per_node=N train.py ... trains the same run as python train.py, N times as many hands.

Every process makes the same global batch of a step and keeps every N-th row of it; DistributedDataParallel averages the gradients, so
that parameters, losses and answers are those of one process up to rounding. Process 0 alone writes. A process that dies ends the
job: torchrun stops the others.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


class Processes:
    """Who we are: rank 0 .. world - 1. With one process every method is trivial and nothing is started."""

    def __init__(self, device: str):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = device
        if self.world > 1:
            if device.startswith("cuda"):
                self.device = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(minutes=10))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, rows: list) -> list:
        return rows[self.rank::self.world]

    def wrap(self, model: nn.Module):
        """A function of a batch's keyword arguments: the loss, whose gradients are averaged over the processes on the way back."""
        if self.world == 1:
            return model.loss
        # a process whose rows hold no picture does not use the encoder
        return nn.parallel.DistributedDataParallel(Loss(model), find_unused_parameters=True)

    def mean(self, x: torch.Tensor) -> float:
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x)
        return float(x) / self.world

    def any(self, flag: bool) -> bool:
        """Is it true for one of us? All must ask."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags > 0)

    def joined(self, parts: list) -> list:
        """What `mine` took apart, in its order again."""
        if self.world == 1:
            return parts
        all_parts = [None] * self.world
        dist.all_gather_object(all_parts, parts)
        out = [None] * sum(map(len, all_parts))
        for rank, some in enumerate(all_parts):
            out[rank::self.world] = some
        return out

    def wait(self) -> None:
        """Until everyone is here."""
        if self.world > 1:
            dist.barrier()

    def end(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


class Loss(nn.Module):
    """DistributedDataParallel calls forward; the model's loss is a method."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **batch) -> torch.Tensor:
        return self.model.loss(**batch)
