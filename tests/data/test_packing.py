"""Packed rows teach what rows alone do, and waste few positions."""

import random

import pytest
import torch
from helpers import KINDS, OPENS, loss_and_gradients

import data
from data import Row
from data.packing import first_fit
from mma import Role, attention_mask, leaks


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


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_unpacked_in_loss_and_gradient(kind, model, tokenizer, dialogues):
    rows = [data.encode(e, tokenizer, model.config.n_image_tokens) for e in dialogues]
    packed, both = data.pack(rows), []
    assert len(packed) < len(rows) and any(row.document[-1] for row in packed)
    for some in (rows, packed):
        batch = data.collate(some, tokenizer.pad, model.config.image_size)
        both.append(loss_and_gradients(model, model.loss, **batch, mask=kind))
    for alone, together in zip(*both):  # the loss is taken in float32
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_a_packed_batch_leaks_where_its_rows_do(tokenizer, dialogues):
    rows = [data.encode(e, tokenizer, 4) for e in dialogues]
    for kind in KINDS:
        sums = []
        for some in (rows, first_fit(rows, 60)):
            batch = data.collate(some, tokenizer.pad, 16)
            role, document = batch["role"], batch.get("document")
            mask = attention_mask(kind, role, batch["turn"], document)
            sums.append(int(leaks(mask, role, document).sum()))
        assert sums[0] == sums[1]
        assert kind not in OPENS or (sums[0] > 0) == (kind == "leaky")


def test_pictures_stay_with_their_dialogues(tokenizer, dialogues):
    rows = [data.encode(e, tokenizer, 4) for e in dialogues]
    for row in first_fit(rows, 60):
        assert len(row.images) * 4 == row.role.count(Role.IMAGE)
        assert sorted(set(row.document)) == list(range(row.document[-1] + 1))
