"""A property is tried on a few examples that hypothesis draws, always the same; on many with -m
slow."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

BUSY = (HealthCheck.too_slow, HealthCheck.data_too_large)  # a busy machine is no fault


def tries(few: int, many: int):
    """Run a test twice: with `n` = few examples, and, if slow tests are asked for, with many."""
    return pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])


def for_all(check, n: int, **drawn) -> None:
    """check(name=value, ...) for n examples of the strategies `drawn`. Of a few the one that fails
    is shown as it is: looking for a smaller one takes minutes."""
    few = [phase for phase in Phase if phase is not Phase.shrink]
    fixed = settings(
        max_examples=n, deadline=None, derandomize=True, database=None, print_blob=False,
        phases=few if n < 100 else list(Phase), suppress_health_check=BUSY,
    )  # fmt: skip
    fixed(given(**drawn)(check))()
