"""The fast way of attention is the slow one, in outputs and gradients."""

import pytest
import torch

import attention
from attention import attend, opened
from mma import CONCENTRIC, OPENS, Role, attention_mask

SPLIT = sorted(set(OPENS) - CONCENTRIC)


@pytest.fixture
def short_rows_too(monkeypatch):
    monkeypatch.setattr(attention, "LONG", 1)


def layout(seed: int, B: int = 4, T: int = 45):
    """Random roles in runs, pads at the end, random turns."""
    g = torch.Generator().manual_seed(seed)
    role, turn = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, T, dtype=torch.int64)
    for b in range(B):
        end, t = int(torch.randint(1, T + 1, (1,), generator=g)), 0
        while t < end:
            run = int(torch.randint(1, 10, (1,), generator=g))
            role[b, t:min(t + run, end)] = torch.randint(1, 5, (1,), generator=g)
            turn[b, t:] += torch.randint(0, 2, (1,), generator=g)
            t += run
    return role, turn


@pytest.mark.parametrize("kind", SPLIT)
def test_the_split_is_the_dense_mask(kind, short_rows_too):
    for seed in range(5):
        role, turn = layout(seed)
        split, real, both = opened(kind, role, turn, None), (role != Role.PAD)[:, None, :, None], []
        assert split is not None
        for mask in (attention_mask(kind, role, turn), split):
            g = torch.Generator().manual_seed(seed)
            q, k, v, wanted = (torch.randn(4, heads, 45, 8, dtype=torch.float64, generator=g) for heads in (4, 2, 2, 4))
            x = [t.requires_grad_() for t in (q, k, v)]
            y = attend(*x, mask) * real
            (y * wanted).sum().backward()
            both.append([y, *(t.grad for t in x)])
        for dense, fast in zip(*both):
            torch.testing.assert_close(fast, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", SPLIT)
def test_the_model_is_the_same_either_way(kind, monkeypatch, model, batch_of, dialogues):
    batch, both = batch_of(dialogues), []
    for long in (10**9, 1):
        monkeypatch.setattr(attention, "LONG", long)
        used = []
        monkeypatch.setattr("model.attend", lambda q, k, v, mask: used.append(type(mask)) or attend(q, k, v, mask))
        model.zero_grad()
        loss = model.loss(**batch, kind=kind)
        loss.backward()
        assert (attention.Opened in used) == (long == 1)
        both.append([loss.detach(), *(p.grad for p in model.parameters())])
    for dense, fast in zip(*both):
        torch.testing.assert_close(fast, dense, rtol=0, atol=1e-10)


def test_answers_are_the_same_either_way(monkeypatch, model, batch_of, dialogues, tokenizer):
    batch, answers = batch_of(dialogues, upto=0), []
    for long in (10**9, 1):
        monkeypatch.setattr(attention, "LONG", long)
        answers.append(model.generate(**batch, eos=tokenizer.eos, max_new_tokens=12))
    assert answers[0] == answers[1]


def test_where_the_dense_mask_is_used(short_rows_too):
    role, turn = layout(0)
    assert opened("cca", role, turn, None) is None and opened("mma", role, turn, torch.zeros_like(role)) is None
    assert opened("mma", role.flip(1), turn, None) is None                   # pads that are not at the end
    attention.LONG = 46
    assert opened("mma", role, turn, None) is None
    attention.LONG = 45
    assert opened("causal", role, turn, None).pairs.numel() == 0             # nothing is opened: the causal kernel alone
    assert opened("causal", role.flip(1), turn, None) is None
    assert opened("causal", role.to("meta"), turn, None).pairs.numel() == 0 and opened("mma", role.to("meta"), turn, None) is None


def test_the_rectangle_is_no_larger_than_it_must(short_rows_too):
    role = torch.tensor([[1, 2, 2, 2, 3, 3, 4, 4], [1, 2, 2, 3, 4, 0, 0, 0]])
    split = opened("mma", role, None, None)
    assert split.pairs.shape == (2, 1, 3, 2) and split.pairs.sum((1, 2, 3)).tolist() == [6, 2]
