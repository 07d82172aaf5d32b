"""One process or several: torchrun --nproc_per_node=N train.py ... trains the same run as python train.py, N times as many hands.

Every process makes the same global batch of a step and keeps every N-th row of it, so that parameters, losses and answers are those of
one process up to rounding. Process 0 alone writes. A process that dies ends the job: torchrun stops the others. Two ways to share:

    DistributedDataParallel     every process holds the whole model; gradients are averaged
    FSDP2 (train.py --fsdp)     every process holds a part of each parameter, gradient and optimizer state; a block's parameters are
                                gathered while it computes. For what does not fit one GPU; checkpoints are written in parts too
"""

import os
import shutil
from datetime import timedelta
from pathlib import Path
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn

import data


class Processes:
    """Who we are: rank 0 .. world - 1. With one process every method is trivial and nothing is started."""

    def __init__(self, device: str, sharded: bool = False):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.sharded = device, sharded
        if sharded and self.world == 1:
            raise data.DataError(
                "--fsdp shares the model out among processes: torchrun --nproc_per_node=N train.py ... N > 1"
            )
        if self.world > 1:
            if device.startswith("cuda"):
                self.device = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                    timeout=timedelta(minutes=10),
                )

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, rows: list) -> list:
        """This process's share. Of a sharded model all need the same number of steps to answer: there everyone takes all rows."""
        return rows if self.sharded else rows[self.rank :: self.world]

    def place(self, model: nn.Module) -> nn.Module:
        """The model, on this process's device; sharded: a part of it, without its ever being there as a whole."""
        if not self.sharded:
            return model.to(self.device)
        from torch.distributed.fsdp import (
            fully_shard,
        )  # the imports of what is sharded take a second

        mesh = dist.device_mesh.init_device_mesh(torch.device(self.device).type, (self.world,))
        for part in [*model.encoder.blocks, *model.blocks, model]:
            fully_shard(part, mesh=mesh)

        def generate(model, *args, **options):
            with torch.no_grad():  # parameters cannot be gathered in inference mode
                out = type(model).generate.__wrapped__(model, *args, **options)
            model.reshard()
            return out

        model.generate = MethodType(generate, model)
        return model

    def wrap(self, model: nn.Module):
        """A function of a batch's keyword arguments: the loss, whose gradients are averaged over the processes on the way back."""
        return (
            model.loss
            if self.world == 1 or self.sharded
            else nn.parallel.DistributedDataParallel(Loss(model))
        )

    def save(self, model: nn.Module, optimizers: list, folder: Path) -> dict:
        """What a checkpoint keeps of both; sharded: all write their parts below `folder`, and its name is kept."""
        if not self.sharded:
            return {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import get_state_dict

        try:
            checkpoint.save(
                dict(zip(("model", "optimizers"), get_state_dict(model, optimizers))),
                checkpoint_id=folder,
            )
        except checkpoint.CheckpointException as error:
            why = next(iter(error.failures.values()))[0]
            raise data.DataError(
                f"{folder} could not be written: {why}; what was saved before is still there. Free some space, "
                "then go on with --resume"
            ) from None
        return {"parts": folder.name}

    def restore(self, state: dict, model: nn.Module, optimizers: list, out: Path) -> None:
        """The inverse of save, also with another number of processes. out: the folder that holds `folder`."""
        if not self.sharded:
            model.load_state_dict(state["model"])
            for optimizer, its in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(its)
            return
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

        parts = dict(zip(("model", "optimizers"), get_state_dict(model, optimizers)))
        try:
            checkpoint.load(parts, checkpoint_id=out / state["parts"])
        except checkpoint.CheckpointException as error:
            why = str(next(iter(error.failures.values()))[0]).splitlines()[0]
            raise data.DataError(
                f"{out / state['parts']} cannot be read as a checkpoint: {why}"
            ) from None
        set_state_dict(
            model, optimizers, model_state_dict=parts["model"], optim_state_dict=parts["optimizers"]
        )

    def weights(self, model: nn.Module) -> dict:
        """All parameters and buffers, whole; sharded: on the first process's CPU alone. All must ask."""
        if not self.sharded:
            return model.state_dict()
        model.reshard()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )

    def mean(self, x: Tensor) -> float:
        if self.world > 1:
            x = x.clone()
            dist.all_reduce(x)
        return float(x) / self.world

    def any(self, flag: bool) -> bool:
        """Is it true for one of us? All must ask."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)])  # on the CPU, so that no GPU is waited for
        dist.all_reduce(flags)
        return bool(flags > 0)

    def joined(self, parts: list) -> list:
        """What `mine` took apart, in its order again."""
        if self.world == 1 or self.sharded:
            return parts
        all_parts = [None] * self.world
        dist.all_gather_object(all_parts, parts)
        out = [None] * sum(map(len, all_parts))
        for rank, some in enumerate(all_parts):
            out[rank :: self.world] = some
        return out

    def wait(self) -> None:
        """Until everyone is here."""
        if self.world > 1:
            dist.barrier()

    def end(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def whole(x: Tensor) -> Tensor:
    """All of a sharded tensor; any other tensor as it is."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def part_as(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: x, shared out as `like` is."""
    if not hasattr(like, "full_tensor"):
        return x
    return dist.tensor.distribute_tensor(
        x, like.device_mesh, like.placements, src_data_rank=None
    )  # all hold all of x: nothing is sent


def remove_parts(out: Path, keep: str | None = None) -> None:
    """Delete the folders of sharded checkpoints in `out`, but one."""
    for folder in out.glob("parts-*"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)


class Loss(nn.Module):
    """DistributedDataParallel calls forward; the model's loss is a method."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **batch) -> Tensor:
        return self.model.loss(**batch)
