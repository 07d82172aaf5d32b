"""What must hold of every mask and every method, a fork's too, over layouts and dialogues that
nobody chose: nothing leaks, packed is unpacked, cached is uncached, and the last layer may be
computed only where it is read."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import KINDS, enlarge, hidden_of, loss_and_gradients, opens_answers, reach
from hypothesis import strategies as st
from properties import for_all, tries

import data
import model as model_file
from data.packing import first_fit
from lab.variants import VARIANTS
from mma import Role, leaks, supervised
from model import MLLM

GRID = 3  # rings have an inside
METHODS = {"none": (MLLM, data.Tokenizer)}  # and those variants that have a class of their own
for name, variant in VARIANTS.items():
    classes = variant.model_class or MLLM, variant.tokenizer_class
    if classes != METHODS["none"]:
        METHODS[name] = classes
WORDS = ("is there", "a red circle", "blue", "how many squares", "?", "")


@st.composite
def drawn_dialogues(draw, n_pictures: int):
    """An Example of one to three turns, whose images are numbers below n_pictures; a message has up
    to two, anywhere in its words, and may be nothing else, or nothing."""
    images, said = [], []
    words = st.sampled_from(WORDS)
    for _ in range(draw(st.integers(1, 3))):
        here = draw(st.lists(st.integers(0, n_pictures - 1), max_size=2))
        images += here
        said.append((data.IMAGE_TOKEN.join(draw(words) for _ in range(len(here) + 1)), draw(words)))
    return data.Example(images, said)


class Method:
    """A small model with pictures of 3 x 3 tokens, no parameter at its start, and the tokenizer
    that belongs to it."""

    def __init__(self, name, config, tokenizer: bytes):
        torch.manual_seed(0)
        model_class, tokenizer_class = METHODS[name]
        config = replace(config, image_size=8 * GRID, d_model=16, n_head=2, n_kv_head=1)
        self.model, self.tokenizer = enlarge(model_class(config)), tokenizer_class(tokenizer)
        self.images = torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8)
        for p in self.model.parameters():
            p.data += 0.1 * torch.randn(p.shape, dtype=p.dtype)

    def rows(self, examples, upto=None) -> list[data.Row]:
        shown = (replace(e, images=[self.images[k] for k in e.images]) for e in examples)
        return [data.encode(e, self.tokenizer, GRID**2, upto=upto) for e in shown]

    def batch(self, rows) -> dict:
        return data.collate(rows, self.tokenizer.pad, 8 * GRID)

    def examples(self, **sizes):
        return st.lists(drawn_dialogues(len(self.images)), **sizes)

    def answers(self, prompts: list[data.Row], new: int):
        """Of each prompt `new` tokens, and the states [new, D] that they are chosen from."""
        read, head = [], type(self.model).head
        self.model.head = lambda hidden: read.append(hidden) or head(self.model, hidden)
        answers = self.model.generate(**self.batch(prompts), eos=-1, max_new_tokens=new)
        return answers, torch.stack(read, 1)


@pytest.fixture(params=METHODS)
def method(request, tokenizer, model):
    return Method(request.param, model.config, tokenizer.model)


def from_column(batch: dict, t: int, vocab_size: int) -> tuple[dict, dict]:
    """The batch of one row, and one with other tokens and pictures from column t on, the first of
    an answer."""
    batch, T = dict(batch), batch["ids"].shape[1]
    if "images" in batch:  # both batches hold both pictures, so that equal means equal to the bit
        batch["images"] = torch.cat([batch["images"], 255 - batch["images"]])
    other = {name: x.clone() for name, x in batch.items()}
    other["ids"][0, t:] = (batch["ids"][0, t:] + torch.arange(1, T - t + 1)) % vocab_size
    if "images" in batch:
        before = int((batch["role"][0, :t] == Role.IMAGE).sum()) // GRID**2
        other["image_index"][before:] += len(batch["images"]) // 2
    return batch, other


@tries(5, 200)
def test_nothing_leaks_where_leaks_says_that_nothing_does(method, n):
    """The state that predicts an answer token changes with what stands there and later where
    mma.leaks says so, and nowhere else. Where turns are not told apart, more leaks."""
    met, model = set(), method.model

    def check(examples, turns, drawn):
        (row,) = first_fit(method.rows(examples), 10**6)
        batch = method.batch([row])
        batch["turn"] *= turns
        role, turn, document = (batch[name] for name in ("role", "turn", "document"))
        targets = supervised(role, document)[0].nonzero()[:, 0].tolist()
        t = drawn.draw(st.sampled_from(targets))
        batch, other = from_column(batch, t, len(method.tokenizer))
        for kind in KINDS:
            mask = model.context_of(kind, role, turn, document).attention_mask
            leak = bool(leaks(mask, role, document)[0, t])
            changed = hidden_of(model, batch, kind) != hidden_of(model, other, kind)
            changed = bool(changed[0, t - 1].any())
            deep = not reach(mask, len(model.blocks))[0, t - 1, t:].any()  # needs more layers
            assert changed == (leak and not deep), (kind, t)
            met.add((kind, leak))

    some = method.examples(min_size=1, max_size=2)
    for_all(check, n, examples=some, turns=st.booleans(), drawn=st.data())
    assert met >= {(kind, False) for kind in KINDS if not opens_answers(kind)}
    assert ("leaky", True) in met


@tries(5, 200)
def test_packed_is_unpacked(method, n):
    """States of every dialogue, alone and packed, with pads and without."""
    model = method.model

    def check(examples):
        rows = sorted(method.rows(examples), key=lambda row: -len(row.ids))  # as first_fit has them
        batch = method.batch(first_fit(rows, 10**6) + first_fit(rows[-1:], 10**6))
        assert (batch["role"][1] == Role.PAD).any() and batch["document"][0].max() == len(rows) - 1
        for kind in KINDS:
            alone = torch.cat([hidden_of(model, method.batch([row]), kind)[0] for row in rows])
            together = hidden_of(model, batch, kind)
            torch.testing.assert_close(together[0], alone, rtol=0, atol=1e-9)
            last = len(rows[-1].ids)
            torch.testing.assert_close(together[1, :last], alone[-last:], rtol=0, atol=1e-9)

    for_all(check, n, examples=method.examples(min_size=2, max_size=3))


@tries(5, 200)
def test_cached_is_uncached(method, n):
    """The states from which a ragged batch of prompts is answered are those of a full pass over
    prompt and answer, row by row."""
    model, new = method.model, 4

    def check(examples, turns):
        prompts = [method.rows([e], t % len(e.turns))[0] for e, t in zip(examples, turns)]
        for kind in (kind for kind in KINDS if not opens_answers(kind)):
            model.config.mask = kind
            for prompt, answer, states in zip(prompts, *method.answers(prompts, new)):
                row = replace(prompt, **{n: getattr(prompt, n)[:] for n in ("ids", "role", "turn")})
                row.add(answer, Role.ANSWER, prompt.turn[-1])
                full = hidden_of(model, method.batch([row]), kind)[0, len(prompt.ids) - 1 : -1]
                torch.testing.assert_close(states, full, rtol=0, atol=1e-9)

    turns = st.lists(st.integers(0, 2), min_size=3, max_size=3)
    for_all(check, n, examples=method.examples(min_size=3, max_size=3), turns=turns)


# --- The last layer, computed only where it is read


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
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_what_is_read_are_those_of_the_full_pass(
    method, kind, dialogues, losses_in_float64
):
    """To every gradient: of rows with one answer, with several, one whose answer was cut off,
    padded and packed. Columns are read in any order, one also twice."""
    model, g = method.model, torch.Generator().manual_seed(0)
    shown = [replace(e, images=[k % 4 for k in range(len(e.images))]) for e in dialogues]
    rows = [*method.rows(shown), *method.rows(shown[:1], 0)]
    for some in (rows, first_fit(rows, 70)):
        batch = method.batch(some)
        expected = loss_and_gradients(model, full_loss, model, **batch, mask=kind)
        assert_same(loss_and_gradients(model, model.loss, **batch, mask=kind), expected)
        read_at = torch.randint(batch["ids"].shape[1], (len(some), 5), generator=g)
        with torch.no_grad():
            read = model(**batch, mask=kind, read_at=read_at)
        full = hidden_of(model, batch, kind)
        torch.testing.assert_close(read, torch.stack([x[at] for x, at in zip(full, read_at)]))


def test_the_last_layer_alone_is_computed_at_them(model, batch_of, dialogues):
    """And of it the keys and values everywhere."""
    (B, T), seen = (batch := batch_of(dialogues))["ids"].shape, []
    for block in model.blocks:
        for part in (block.attention.k, block.attention.v, block.attention.out, block.down):
            part.register_forward_hook(lambda m, x, y: seen.append(y.shape[1]))
    model(**batch, read_at=torch.zeros(B, 2, dtype=torch.int64))
    assert seen == [T] * 4 * (len(model.blocks) - 1) + [T, T, 2, 2]


@pytest.mark.parametrize("again,at_once", [(True, 4096), (False, 3), (True, 1)])
def test_what_saves_memory_changes_nothing(
    model, batch_of, dialogues, monkeypatch, losses_in_float64, again, at_once
):
    """Layers computed again in backward; logits in parts; the sum over another number of tokens."""
    batch, heads, calls = batch_of(dialogues), [], []
    expected = loss_and_gradients(model, full_loss, model, num_targets=7, **batch)
    monkeypatch.setattr(model_file, "LOGITS_AT_ONCE", at_once)
    model.checkpointing, head = again, MLLM.head
    monkeypatch.setattr(MLLM, "head", lambda self, x: heads.append(len(x)) or head(self, x))
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    seven = torch.tensor(7.0)
    assert_same(loss_and_gradients(model, model.loss, num_targets=seven, **batch), expected)
    assert len(calls) == len(model.blocks) * (1 + again)
    tokens = int((batch["role"] == Role.ANSWER).sum())
    assert max(heads) == min(at_once, tokens) and sum(heads) == tokens * (1 + (at_once < tokens))
    calls.clear()
    hidden_of(model, batch, "mma")
    assert len(calls) == len(model.blocks)  # nothing is computed again where nothing is learned
