"""The loss that training takes, at the rows that count alone, is model.loss in value and in every
gradient; and the hidden states at some rows are those of the full pass."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import KINDS, enlarge, hidden_of, loss_and_gradients

import data
from data.packing import first_fit
from engine import last_layer
from engine.last_layer import answer_loss, find_loss_positions, gather_rows
from engine.precision import wrap_blocks
from lab.variants import PLAIN, VARIANTS, text_first
from mma import Role

MODELS = {"plain": PLAIN, **VARIANTS}
EXACT = dict(rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def losses_in_float64(monkeypatch):
    """The loss is taken in float32; here nothing is rounded to it, so that equal means equal."""
    plain = torch.Tensor.float
    keep = lambda x: x if x.dtype == torch.float64 else plain(x)
    monkeypatch.setattr(torch.Tensor, "float", keep)


@pytest.fixture
def varied(model, tokenizer, dialogues):
    """varied(name) -> the model of a variant, every parameter away from its start, and the rows of
    all dialogues in its order: with one answer, with several, and one whose answer was cut off."""

    def make(name):
        variant = MODELS[name]
        torch.manual_seed(0)
        other = enlarge(variant.model_class(replace(model.config, image_size=24)))
        for n, (key, p) in enumerate(other.named_parameters()):
            if "attention.gate" in key:  # they start at zero
                p.data.normal_(generator=torch.Generator().manual_seed(n))
        own = variant.tokenizer_class(tokenizer.model)
        examples = [*map(text_first, dialogues)] if name == "dot" else dialogues
        rows = [data.encode(e, own, other.config.n_image_tokens) for e in examples]
        rows.append(data.encode(examples[0], own, other.config.n_image_tokens, upto=0))
        return other, rows

    return make


def batches_of(model, rows, tokenizer):
    """Padded and packed, with pads and with rows of several documents."""
    padded = data.collate(rows, tokenizer.pad, model.config.image_size)
    packed = data.collate(first_fit(rows, 70), tokenizer.pad, model.config.image_size)
    assert "document" not in padded and packed["document"].max() >= 1
    assert (packed["role"] == Role.PAD).any() and len(packed["ids"]) > 1
    return padded, packed


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_at_the_rows_that_count_is_the_plain_loss(varied, tokenizer, kind, name):
    model, rows = varied(name)
    for batch in batches_of(model, rows, tokenizer):
        rows_index, valid_index = find_loss_positions(batch["role"], batch.get("document"))
        assert rows_index.numel() > len(valid_index) > 0
        plain = loss_and_gradients(model, model.loss, **batch, mask=kind)
        fast = loss_and_gradients(
            model, answer_loss, model, rows_index, valid_index, **batch, kind=kind
        )
        assert plain[0].dtype == torch.float64 and all(g.any() for g in plain[1:])
        for a, b in zip(fast, plain):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_that_are_read_are_those_of_the_full_pass(varied, tokenizer, kind, name):
    model, rows = varied(name)
    g = torch.Generator().manual_seed(0)
    for batch in batches_of(model, rows, tokenizer):
        B, T = batch["ids"].shape
        index = torch.randint(T, (B, 5), generator=g)
        with torch.no_grad():
            read = model(**batch, kind=kind, rows=index)
        full = hidden_of(model, batch, kind)
        assert read.shape == (B, 5, model.config.d_model)
        expected = torch.stack([full[b, index[b]] for b in range(B)])
        torch.testing.assert_close(read, expected, **EXACT)


def test_a_batch_without_any_answer(model, batch_of, dialogues):
    batch = batch_of(dialogues[:2], upto=0)
    rows, valid_index = find_loss_positions(batch["role"])
    assert rows.shape == (2, 1) and len(valid_index) == 0
    found = loss_and_gradients(model, answer_loss, model, rows, valid_index, **batch)
    loss, *gradients = found
    assert loss == 0 and not any(g.any() for g in gradients)


def test_loss_positions_are_those_before_an_answer():
    g, role = torch.Generator().manual_seed(0), None
    for _ in range(20):
        role = torch.randint(5, (4, 12), generator=g)
        document = torch.randint(3, (4, 12), generator=g).sort(1).values
        for documents in (None, document):
            rows, valid_index = find_loss_positions(role, documents)
            K = rows.shape[1]
            found = [(i // K, rows.flatten()[i].item()) for i in valid_index.tolist()]
            expected = [
                (b, t - 1)
                for b in range(4)
                for t in range(1, 12)
                if role[b, t] == Role.ANSWER
                and (documents is None or document[b, t] == document[b, t - 1])
            ]
            assert sorted(found) == expected and len(set(found)) == len(found)
            assert all(len(set(row)) == K for row in rows.tolist())  # filled up with others


def test_another_number_of_targets_divides(model, batch_of, dialogues):
    batch = batch_of(dialogues)
    positions = find_loss_positions(batch["role"])
    whole = answer_loss(model, *positions, **batch)
    part = answer_loss(model, *positions, num_targets=torch.tensor(7.0), **batch)
    torch.testing.assert_close(part * 7, whole * len(positions[1]), **EXACT)


@pytest.mark.parametrize("again,at_once", [(True, 4096), (False, 3), (True, 1)])
def test_what_saves_memory_changes_nothing(model, batch_of, dialogues, monkeypatch, again, at_once):
    """Layers computed again in backward; logits in parts."""
    batch = batch_of(dialogues)
    positions = find_loss_positions(batch["role"])
    whole = loss_and_gradients(model, answer_loss, model, *positions, **batch)
    monkeypatch.setattr(last_layer, "LOGITS_AT_ONCE", at_once)
    wrap_blocks(model, SimpleNamespace(checkpointing=again, compile=False))
    calls = []
    model.blocks[-1].norm1.register_forward_hook(lambda *_: calls.append(1))
    saving = loss_and_gradients(model, answer_loss, model, *positions, **batch)
    assert len(calls) == 1 + again
    for a, b in zip(saving, whole):
        torch.testing.assert_close(a, b, **EXACT)


def test_gather_rows():
    x = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[0, 6], [3, 3], [2, 1]])
    expected = torch.stack([x[b, rows[b]] for b in range(3)])
    assert torch.equal(gather_rows(x, rows), expected)
    assert torch.equal(gather_rows(x[:1], rows), torch.stack([x[0, r] for r in rows]))
