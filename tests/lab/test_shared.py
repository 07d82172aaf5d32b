"""A picture that several questions share gives what the separate rows give."""

import pytest
import torch
from helpers import loss_and_gradients

import data
from lab.shared import BranchingMLLM, join, prefill, split
from mma import PAD, Role
from model import KVCache

ASKED = [("is there a red circle?", "yes"), ("where?", "blue square nothing"), ("blue?", "no")]


@pytest.fixture
def branching(model):
    model.__class__ = BranchingMLLM
    return model


@pytest.fixture
def rows_about(model, tokenizer):
    """rows_about(picture, turns, ...): a row for each of the turns."""

    def make(picture, turns=ASKED, **kwargs):
        examples = [data.Example([picture], [("<image>" + q, a)]) for q, a in turns]
        return [data.encode(e, tokenizer, model.config.n_image_tokens, **kwargs) for e in examples]

    return make


@pytest.fixture
def collated(tokenizer):
    return lambda rows: data.collate(rows, tokenizer.pad, 16)


def close(a, b):
    return all(torch.allclose(x, y, atol=1e-9) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["causal", "v2v"])
def test_loss_and_every_gradient(branching, rows_about, collated, pictures, kind):
    """Two pictures with different numbers of questions: one row has pads."""
    groups = [rows_about(pictures[0]), rows_about(pictures[1], ASKED[:2])]
    joined = collated([join(rows) for rows in groups])
    apart = collated([row for rows in groups for row in rows])
    assert joined["role"].shape[0] == 2 and (joined["role"] == PAD).any()
    expected = loss_and_gradients(branching, branching.loss, **apart, mask=kind)
    assert close(loss_and_gradients(branching, branching.loss, **joined, mask=kind), expected)


def test_every_logit(branching, rows_about, collated, pictures):
    rows = rows_about(pictures[0])
    P = len(split(rows)[0].ids)
    with torch.no_grad():
        joined = branching.head(branching(**collated([join(rows)]), mask="causal"))[0]
        apart = branching.head(branching(**collated(rows), mask="causal"))
    start = P
    for row, logits in zip(rows, apart):
        end = start + len(row.ids) - P
        seen = torch.cat([joined[:P], joined[start:end]])
        assert torch.allclose(seen, logits[: len(row.ids)], atol=1e-9)
        start = end
    assert start == len(joined)


@pytest.mark.parametrize("kind", ["mma", "prefix", "f", "mutual"])
def test_a_picture_that_reads_the_question_cannot_be_shared(
    branching, rows_about, collated, pictures, kind
):
    with pytest.raises(ValueError, match="it cannot be shared"):
        branching.loss(**collated([join(rows_about(pictures[0]))]), mask=kind)


def test_rows_without_branches_are_read_as_ever(branching, rows_about, collated, pictures):
    batch = collated(rows_about(pictures[0]))
    asked = "mma", batch["role"], batch["turn"]
    seen, plain = branching.context_of(*asked), super(BranchingMLLM, branching).context_of(*asked)
    assert torch.equal(seen.attention_mask, plain.attention_mask)
    assert torch.equal(seen.position, plain.position)


def test_prefill(branching, rows_about, collated, pictures):
    """Prompts of different lengths: their states, and the caches that answers are decoded from."""
    rows = rows_about(pictures[0], upto=0)
    whole, (beginning, rest) = collated(rows), split(rows)
    Q, T = whole["ids"].shape
    length = (whole["role"] != PAD).sum(1, keepdim=True)
    context = branching.context_of("causal", whole["role"], whole["turn"])
    context.cache = cache = KVCache(branching, Q, T + 2)
    context.column = torch.arange(T).expand(Q, T)
    with torch.inference_mode():
        expected = branching(**whole, context=context, read_at=length - 1)[:, 0]
    hidden, seen = prefill(branching, collated([beginning]), collated(rest), room=2)
    assert torch.allclose(hidden, expected, atol=1e-9) and seen.k.shape == cache.k.shape
    for q in range(Q):
        for a, b in ((seen.k, cache.k), (seen.v, cache.v)):
            assert torch.allclose(a[:, q, :, : length[q]], b[:, q, :, : length[q]], atol=1e-9)


def test_the_picture_is_computed_once(branching, rows_about, collated, pictures):
    rows, computed = rows_about(pictures[0], upto=0), []
    hook = branching.blocks[0].norm1.register_forward_hook(
        lambda module, inputs, y: computed.append(y.shape[:2].numel())
    )
    beginning, rest = split(rows)
    prefill(branching, collated([beginning]), collated(rest))
    hook.remove()
    longest = max(len(row.ids) for row in rest)
    assert computed == [len(beginning.ids), len(rows) * longest]


def test_rows_that_do_not_begin_alike(rows_about, pictures):
    a, b = rows_about(pictures[0])[:2]
    other = rows_about(pictures[1])[0]
    part = rows_about(pictures[0][:, :8, :8])[0]  # it begins in the same memory
    text = data.Row([1, 2], [int(Role.TEXT)] * 2, [0, 0])
    for rows in ([a, other], [a, part], [a, text], [text, text]):
        with pytest.raises(ValueError, match="only if they begin alike"):
            join(rows)
    before = [list(x) for x in (a.ids, a.role, a.turn)]
    join([a, b])
    assert [a.ids, a.role, a.turn] == before  # the rows stay as they were
