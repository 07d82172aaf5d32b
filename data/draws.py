"""What a step of training draws, as a function of its key alone: so a run can stop and go on."""

import zlib

import torch


def seed_of(*key) -> int:
    """A random generator's seed for a key of words and numbers, the same in every process."""
    return zlib.crc32(repr(key).encode())


def generator_of(*key) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def drawn_in_epochs(n: int, step: int, per_step: int, stage: str, seed: int, what: str) -> list:
    """Which of n things a step takes: each once an epoch, in an order of the epoch's own."""
    drawn, epoch = [], -1
    for k in range(step * per_step, (step + 1) * per_step):
        if k // n != epoch:
            epoch = k // n
            order = torch.randperm(n, generator=generator_of(stage, seed, epoch, what))
        drawn.append(order[k % n].item())
    return drawn


class Wrapped:
    """A data set that does some things otherwise and leaves all else to `source`."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        if name == "source" or name.startswith("__"):  # pickle asks before there is a source
            raise AttributeError(name)
        return getattr(self.source, name)
