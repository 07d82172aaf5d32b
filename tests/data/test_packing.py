"""Packed rows waste few positions. That they teach what rows alone do is tested of every method in
tests/test_properties.py."""

import random

import data
from data import Row
from data.packing import first_fit
from mma import Role


def lengths_of_llava(n: int, seed: int) -> list[Row]:
    """Questions of 5 to 60 tokens, answers of 1 to 200, a picture of 16."""
    r = random.Random(seed)
    some = [18 + r.randint(5, 60) + r.randint(1, 200) for _ in range(n)]
    return [Row([1] * T, [int(Role.TEXT)] * T, [1] * T) for T in some]


def test_packed_rows_are_full():
    for seed in range(20):
        rows = lengths_of_llava(64, seed)
        packed = data.pack(rows)
        T = max(len(row.ids) for row in packed)
        tokens, same = (sum(len(row.ids) for row in some) for some in (rows, packed))
        assert tokens == same >= 0.95 * len(packed) * T
        assert T <= 3 * max(len(row.ids) for row in rows)


def test_rows_of_like_length_stay_as_they_are():
    rows = [Row([1] * n, [1] * n, [1] * n) for n in (28, 29, 30, 30)]
    assert data.pack(rows) is rows
    assert data.pack(rows[:1]) == rows[:1]


def test_pictures_stay_with_their_dialogues(tokenizer, dialogues):
    rows = [data.encode(e, tokenizer, 4) for e in dialogues]
    for row in first_fit(rows, 60):
        assert len(row.images) * 4 == row.role.count(Role.IMAGE)
        assert sorted(set(row.document)) == list(range(row.document[-1] + 1))
