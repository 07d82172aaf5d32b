"""One process or several: torchrun --nproc_per_node=N train.py ... trains the run of train.py.

Every process makes the same global batch of a step and keeps every N-th row of it, so that
parameters, losses and answers are those of one process up to rounding. Process 0 alone writes. A
process that dies ends the job: torchrun stops the others. Two ways to share: every process holds
the whole model, and gradients are averaged (DistributedDataParallel), or a part of it
(train.py --fsdp; engine/sharding.py).
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from engine.precision import check_device


def processes_of(args) -> "Distributed":
    """This process among those of the job, by the options --device and --fsdp."""
    if not args.fsdp:
        return Distributed(args.device)
    from engine.sharding import Sharded  # its imports take a second

    return Sharded(args.device)


class Distributed:
    """Who we are: rank 0 .. world_size - 1. With one process every method is trivial, and nothing
    is started."""

    sharded = False

    def __init__(self, device: str):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main, self.device = self.rank == 0, device
        if self.world_size == 1:
            return
        backend = "gloo"
        if device.startswith("cuda"):
            self.device, backend = f"cuda:{os.environ['LOCAL_RANK']}", "cpu:gloo,cuda:nccl"
            check_device(self.device)
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=timedelta(minutes=10))

    def say(self, text: str) -> None:
        """Print it once, above a progress bar."""
        if self.is_main:
            tqdm.write(text)

    def local_shard(self, rows: list) -> list:
        """This process's share of rows."""
        return rows[self.rank :: self.world_size]

    def gather(self, items) -> list:
        """What each process hands in, that of the first one first. All must ask. It goes over gloo,
        on the CPU, so that no GPU is waited for."""
        everyones = [items] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(everyones, items)
        return everyones

    def gather_shards(self, shard: list) -> list:
        """What local_shard took apart, in its order again."""
        shards = self.gather(shard)
        rows = [None] * sum(map(len, shards))
        for rank, shard in enumerate(shards):
            rows[rank :: self.world_size] = shard
        return rows

    def mean(self, x: Tensor) -> float:
        """The mean over processes of x, a scalar. All must ask."""
        return sum(self.gather(float(x))) / self.world_size

    def any_rank(self, flag: bool) -> bool:
        """Is it true for one of the processes? All must ask."""
        return any(self.gather(flag))

    def barrier(self) -> None:
        self.gather(None)

    def end(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    # --- The model

    def place(self, model: nn.Module) -> nn.Module:
        """The model, on this process's device."""
        return model.to(self.device)

    def loss_function(self, model: nn.Module):
        """model.loss, a function of a batch's keyword arguments, whose gradients are averaged over
        the processes on the way back."""
        if self.world_size == 1:
            return model.loss
        return nn.parallel.DistributedDataParallel(Loss(model))

    def state(self, model: nn.Module, optimizers: list) -> dict:
        """What a checkpoint keeps of both."""
        states = [optimizer.state_dict() for optimizer in optimizers]
        return {"model": model.state_dict(), "optimizers": states}

    def restore(self, state: dict, model: nn.Module, optimizers: list) -> None:
        """The inverse of state, also with another number of processes; each has all of it."""
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)


class Loss(nn.Module):
    """DistributedDataParallel calls forward; what is minimised is model.loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **batch) -> Tensor:
        return self.model.loss(**batch)


def share_gradients(loss_of, now: bool) -> None:
    """Whether DistributedDataParallel averages the gradients of the next backward pass. Of a step
    in parts only the last one needs it: by then they are added up."""
    if isinstance(loss_of, nn.parallel.DistributedDataParallel):
        loss_of.require_backward_grad_sync = now


def full_tensor(x: Tensor) -> Tensor:
    """All of a sharded tensor; any other tensor as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of full_tensor: x, sharded as `like` is. All processes hold all of x."""
    if not hasattr(like, "full_tensor"):
        return x
    distribute = dist.tensor.distribute_tensor
    return distribute(x, like.device_mesh, like.placements, src_data_rank=None)  # nothing is sent
