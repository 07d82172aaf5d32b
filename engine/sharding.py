"""FSDP2 (train.py --fsdp): every process holds a part of each parameter, gradient and optimizer
state; a block's parameters are gathered while it computes. For what does not fit one GPU; a
checkpoint is put together on a CPU.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.fsdp import fully_shard

from data import DataError
from engine.distributed import Distributed


class Sharded(Distributed):
    """Of a sharded model all processes need the same number of steps to answer: everyone takes all
    rows."""

    sharded = True

    def __init__(self, device: str):
        super().__init__(device)
        if self.world_size == 1:
            raise DataError("--fsdp shares the model out among processes: torchrun "
                            "--nproc_per_node=N train.py ... N > 1")  # fmt: skip

    def local_shard(self, rows: list) -> list:
        return rows

    def gather_shards(self, shard: list) -> list:
        return shard

    def place(self, model: nn.Module) -> nn.Module:
        """Each process's part of the model, without its ever being there as a whole."""
        kind = torch.device(self.device).type
        mesh = dist.device_mesh.init_device_mesh(kind, (self.world_size,))
        for part in [*model.encoder.blocks, *model.blocks, model]:
            fully_shard(part, mesh=mesh)
        return model

    def loss_function(self, model: nn.Module):
        return model.loss

    def state(self, model: nn.Module, optimizers: list) -> dict:
        """All processes must ask, and the first one gets all of it, on its CPU."""
        model.reshard()  # answering gathers what it uses
        options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        states = state_dict.get_state_dict(model, optimizers, options=options)
        return dict(zip(("model", "optimizers"), states))

    def restore(self, state: dict, model: nn.Module, optimizers: list) -> None:
        options = state_dict.StateDictOptions(full_state_dict=True)
        states = {"model_state_dict": state["model"], "optim_state_dict": state["optimizers"]}
        state_dict.set_state_dict(model, optimizers, **states, options=options)
