"""The last layer, computed only where it is read: `read_at` gives the columns of the full pass, and
the loss, which reads those that predict an answer, is that of the full pass, to every gradient."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import KINDS, enlarge, hidden_of, loss_and_gradients

import data
import model as model_file
from data.packing import first_fit
from lab.variants import VARIANTS
from mma import Role
from model import MLLM

# The variants that change the model; what else they change makes other rows
MODELS = {"plain": MLLM} | {n: v.model_class for n, v in VARIANTS.items() if v.model_class}
pytestmark = pytest.mark.usefixtures("losses_in_float64")
EXACT = dict(rtol=1e-9, atol=1e-9)


@pytest.fixture
def varied(model, tokenizer, dialogues):
    """varied(name) -> the model of a variant, every parameter away from its start, and a padded and
    a packed batch of rows with one answer, with several, and one whose answer was cut off."""

    def make(name):
        torch.manual_seed(0)
        other = enlarge(MODELS[name](replace(model.config, image_size=24)))
        for n, (key, p) in enumerate(other.named_parameters()):
            if "attention.gate" in key:  # they start at zero
                p.data.normal_(generator=torch.Generator().manual_seed(n))
        examples = [(e, None) for e in dialogues] + [(dialogues[0], 0)]
        rows = [data.encode(e, tokenizer, 9, upto=upto) for e, upto in examples]
        some = rows, first_fit(rows, 70)
        padded, packed = (data.collate(x, tokenizer.pad, 24) for x in some)
        assert "document" not in padded and packed["document"].max() >= 1
        assert (packed["role"] == Role.PAD).any() and len(packed["ids"]) > 1
        return other, padded, packed

    return make


def full_loss(model, num_targets=None, **batch):
    """The loss of the full pass, from its definition."""
    ids, role, document = batch["ids"], batch["role"], batch.get("document")
    target = role[:, 1:] == Role.ANSWER
    if document is not None:
        target &= document[:, 1:] == document[:, :-1]
    logits = model.head(model(**batch))[:, :-1][target]
    loss = F.cross_entropy(logits, ids[:, 1:][target], reduction="sum")
    return loss / (num_targets or len(logits))


def assert_same(found, expected):
    assert expected[0].dtype == torch.float64 and all(x.any() for x in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_full_pass(varied, kind, name):
    model, *batches = varied(name)
    for batch in batches:
        expected = loss_and_gradients(model, full_loss, model, **batch, mask=kind)
        assert_same(loss_and_gradients(model, model.loss, **batch, mask=kind), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_that_are_read_are_those_of_the_full_pass(varied, kind, name):
    """In any order, one also twice."""
    model, *batches = varied(name)
    g = torch.Generator().manual_seed(0)
    for batch in batches:
        B, T = batch["ids"].shape
        read_at = torch.randint(T, (B, 5), generator=g)
        with torch.no_grad():
            read = model(**batch, mask=kind, read_at=read_at)
        full = hidden_of(model, batch, kind)
        torch.testing.assert_close(read, torch.stack([x[at] for x, at in zip(full, read_at)]))


def test_the_last_layer_alone_is_computed_at_them(varied):
    """And of it the keys and values everywhere."""
    model, batch, _ = varied("plain")
    (B, T), seen = batch["ids"].shape, []
    for block in model.blocks:
        for part in (block.attention.k, block.attention.v, block.attention.out, block.down):
            part.register_forward_hook(lambda m, x, y: seen.append(y.shape[1]))
    model(**batch, read_at=torch.zeros(B, 2, dtype=torch.int64))
    assert seen == [T] * 4 * (len(model.blocks) - 1) + [T, T, 2, 2]


def test_another_number_of_targets_divides(model, batch_of, dialogues):
    batch, seven = batch_of(dialogues), torch.tensor(7.0)
    expected = loss_and_gradients(model, full_loss, model, num_targets=7, **batch)
    assert_same(loss_and_gradients(model, model.loss, num_targets=seven, **batch), expected)


@pytest.mark.parametrize("again,at_once", [(True, 4096), (False, 3), (True, 1)])
def test_what_saves_memory_changes_nothing(model, batch_of, dialogues, monkeypatch, again, at_once):
    """Layers computed again in backward; logits in parts."""
    batch, heads, calls = batch_of(dialogues), [], []
    whole = loss_and_gradients(model, model.loss, **batch)
    monkeypatch.setattr(model_file, "LOGITS_AT_ONCE", at_once)
    model.checkpointing, head = again, MLLM.head
    monkeypatch.setattr(MLLM, "head", lambda self, x: heads.append(len(x)) or head(self, x))
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    assert_same(loss_and_gradients(model, model.loss, **batch), whole)
    assert len(calls) == len(model.blocks) * (1 + again)
    tokens = int((batch["role"] == Role.ANSWER).sum())
    assert max(heads) == min(at_once, tokens) and sum(heads) == tokens * (1 + (at_once < tokens))
    calls.clear()
    hidden_of(model, batch, "mma")
    assert len(calls) == len(model.blocks)  # nothing is computed again where nothing is learned
