"""What hypothesis draws: layouts of rows, dialogues, text. A property is tried on a few examples,
always the same; on many with -m slow."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import data
from mma import Role

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


@st.composite
def layouts(draw, most: int = 14):
    """role, turn, document, int64 [2, T]: anything next to anything, pads with whatever numbers;
    often pads on the left, on the right, or both, and documents one after the other."""
    T = draw(st.integers(1, most))
    roles, numbers = st.sampled_from([int(role) for role in Role]), st.integers(0, 2)
    rows = []
    for _ in range(2):
        role, turn, document = (
            draw(st.lists(cell, min_size=T, max_size=T)) for cell in (roles, numbers, numbers)
        )
        left, right = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        for t in [*range(left), *range(T - right, T)]:
            role[t % T] = int(Role.PAD)
        rows.append((role, turn, sorted(document) if draw(st.booleans()) else document))
    return tuple(torch.tensor(x) for x in zip(*rows))


WORDS = ("is there", "a red circle", "blue", "how many squares", "?", "")


@st.composite
def dialogues(draw, n_pictures: int):
    """An Example of one to three turns, whose images are numbers below n_pictures; a message has up
    to two, anywhere in its words, and may be nothing else, or nothing."""
    images, said = [], []
    words = st.sampled_from(WORDS)
    for _ in range(draw(st.integers(1, 3))):
        here = draw(st.lists(st.integers(0, n_pictures - 1), max_size=2))
        images += here
        said.append((data.IMAGE_TOKEN.join(draw(words) for _ in range(len(here) + 1)), draw(words)))
    return data.Example(images, said)
