"""The model: the mask reaches attention, labels do not leak, batches equal single rows, the cache
equals no cache."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    KINDS,
    LEAK_TABLE,
    OPENS,
    ROOT,
    hidden_of,
    leak_layout,
    leaks_by_gradient,
    loss_and_gradients,
    opens_answers,
    without_cache,
)  # fmt: skip

import data
from mma import Role, attention_mask
from model import MLLM, Config, DecoderBlock, attention, sample


@pytest.mark.parametrize("kind,reach", list(LEAK_TABLE))
def test_leak_table_through_the_real_model(model, pictures, kind, reach, monkeypatch):
    role, turn = leak_layout(kind, reach, monkeypatch)
    assert leaks_by_gradient(model, pictures, kind, role, turn) == LEAK_TABLE[kind, reach]


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_mask_changes_the_images_hidden_states(model, batch_of, dialogues, kind):
    """Of the pictures that read more themselves, or read what reads more: of no others."""
    batch = batch_of(dialogues)
    role, turn = batch["role"], batch["turn"]
    mask = attention_mask(kind, role, turn)[:, 0]
    opened = (mask != attention_mask("causal", role, turn)[:, 0]).any(2)
    here = ((mask & opened[:, None]).any(2) & (role == Role.IMAGE)).any(1)
    moved = hidden_of(model, batch, kind) - hidden_of(model, batch, "causal")
    moved = moved.masked_fill(role[..., None] != Role.IMAGE, 0).abs().amax((1, 2))
    assert (moved > 1e-9).tolist() == here.tolist()
    assert kind not in OPENS or here.any() == (kind != "causal")


def test_mma_without_a_question_is_causal(model, batch_of, dialogues):
    batch = batch_of([dialogues[1], dialogues[3]])  # a caption, a talk without a picture
    assert not (batch["role"] == Role.QUESTION).any()
    assert torch.equal(hidden_of(model, batch, "mma"), hidden_of(model, batch, "causal"))


def test_mma_lets_the_image_know_the_question_of_its_own_turn_only(model, batch_of, pictures):
    def image_states(first, later, kind="mma"):
        turns = [("<image>" + first, "yes"), (later, "no")]
        batch = batch_of([data.Example([pictures[0]], turns)])
        return hidden_of(model, batch, kind)[batch["role"] == Role.IMAGE]

    base = image_states("is there a red circle?", "more?")
    assert (image_states("is there a red square?", "more?") - base).abs().max() > 1e-4
    later = image_states("is there a red circle?", "how many squares?")
    torch.testing.assert_close(later, base, rtol=0, atol=1e-12)
    one, other = (image_states(first, "more?", "causal") for first in ("red?", "are there?"))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_parameters_do_not_depend_on_the_mask():
    models = (MLLM(Config(vocab_size=64, mask=kind)) for kind in KINDS)
    assert len({sum(p.numel() for p in model.parameters()) for model in models}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_equals_single_rows(model, batch_of, dialogues, kind):
    together = hidden_of(model, batch_of(dialogues), kind)
    for b, dialogue in enumerate(dialogues):
        alone = hidden_of(model, batch_of([dialogue]), kind)[0]
        torch.testing.assert_close(together[b, : len(alone)], alone, rtol=0, atol=1e-9)


def test_loss_of_a_batch_is_the_mean_over_all_its_answer_tokens(model, batch_of, dialogues):
    total = count = 0
    for dialogue in dialogues:
        batch = batch_of([dialogue])
        n = int((batch["role"] == Role.ANSWER).sum())
        total, count = total + model.loss(**batch) * n, count + n
    assert torch.allclose(model.loss(**batch_of(dialogues)), total / count)


def test_loss_equals_plain_cross_entropy_over_every_position(model, batch_of, dialogues):
    batch = batch_of(dialogues)
    labels = batch["ids"].masked_fill(batch["role"] != Role.ANSWER, -100)
    logits = model.head(model(**batch))[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    assert torch.allclose(model.loss(**batch).double(), expected, atol=1e-6)


def written_out(q, k, v, mask):
    """attention(q, k, v, mask), its weights written out."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def test_attention_is_the_softmax_of_what_the_mask_allows(model, batch_of, dialogues):
    """The function, and the seam: each layer calls the one that it is given."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=g).double() for heads in (4, 2, 2))
    mask = torch.rand(2, 1, 9, 9, generator=g) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(attention(q, k, v, mask), written_out(q, k, v, mask))
    batch, calls = batch_of(dialogues), []
    plain = hidden_of(model, batch, "mma")

    def recorder(q, k, v, mask):
        calls.append(mask)
        return written_out(q, k, v, mask)

    for block in model.blocks:
        block.attention.attend = recorder
    torch.testing.assert_close(hidden_of(model, batch, "mma"), plain, rtol=0, atol=1e-9)
    assert len(calls) == len(model.blocks)


def test_an_all_ignored_batch_gives_a_finite_loss(model, batch_of, dialogues):
    batch = batch_of(dialogues[:1], upto=0)
    assert not (batch["role"] == Role.ANSWER).any()
    loss, *gradients = loss_and_gradients(model, model.loss, **batch)
    assert loss == 0 and all(g.isfinite().all() for g in gradients)


# --- Generation


@pytest.mark.parametrize("kind", [k for k in KINDS if not opens_answers(k)])
def test_generation_cached_equals_uncached_equals_one_by_one(model, batch_of, dialogues, kind):
    model.config.mask = kind
    prompts = [(d, len(d.turns) - 1) for d in dialogues]
    rows = [batch_of([d], upto=t) for d, t in prompts]
    # A token that the model does say: some rows stop early, others do not
    eos = without_cache(model, rows[0], kind, 6, -1)[3]
    expected = [without_cache(model, row, kind, 8, eos) for row in rows]
    assert {len(answer) for answer in expected} != {8} and max(map(len, expected)) > 4
    alone = [model.generate(**row, eos=eos, max_new_tokens=8)[0] for row in rows]
    assert alone == expected
    for turn in {t for _, t in prompts}:  # batches of prompts of different lengths
        here = [i for i, (_, t) in enumerate(prompts) if t == turn]
        batch = batch_of([dialogues[i] for i in here], upto=turn)
        together = model.generate(**batch, eos=eos, max_new_tokens=8)
        assert together == [expected[i] for i in here]


def test_each_row_may_have_a_limit_of_its_own(model, batch_of, dialogues):
    batch = batch_of(dialogues[:3], upto=0)
    longest = model.generate(**batch, eos=-1, max_new_tokens=7)
    limited = model.generate(**batch, eos=-1, max_new_tokens=[7, 0, 3])
    assert limited == [longest[0], [], longest[2][:3]]


@pytest.mark.parametrize("roles", [
    [0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [],
])  # fmt: skip
def test_generate_refuses_padding_anywhere_but_on_the_right(model, roles):
    role = torch.tensor([roles], dtype=torch.int64)
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(torch.zeros_like(role), role, eos=3)


def test_sampling():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)
    assert set(sample(logits, 0, 1.0, None).tolist()) == {0}
    share = torch.bincount(sample(logits, 1.0, 1.0, g), minlength=4) / 4000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.03)
    assert set(sample(logits, 1.0, 0.7, g).tolist()) == {0, 1}  # 0.64 + 0.24
    assert set(sample(logits, 0.2, 0.7, g).tolist()) == {0}  # temperature first: 0 holds 0.99 now
    assert set(sample(logits, 1.0, 0.0, g).tolist()) == {0}
    with pytest.raises(ValueError, match="temperature"):
        sample(logits, -1.0, 1.0, g)


# --- What is read is what runs


def test_a_block_that_is_changed_is_changed_in_every_layer(model, batch_of, dialogues, monkeypatch):
    """In training and in answering; nothing replaces it, of no layer."""
    batch, calls = batch_of(dialogues), []
    loss, prompts = model.loss(**batch), batch_of(dialogues, upto=0)
    answers = model.generate(**prompts, eos=-1, max_new_tokens=4)
    forward = DecoderBlock.forward

    def changed_in(layers):
        def changed(self, x, *rest):
            calls.append(self.attention.layer)
            return forward(self, x, *rest) + (self.attention.layer in layers) * torch.arange(32)

        calls.clear()
        monkeypatch.setattr(DecoderBlock, "forward", changed)

    changed_in([])
    assert model.loss(**batch) == loss and calls == [0, 1, 2]
    calls.clear()
    assert model.generate(**prompts, eos=-1, max_new_tokens=4) == answers
    assert calls == 4 * [0, 1, 2]
    for layer in range(3):
        changed_in([layer])
        assert (model.loss(**batch) - loss).abs() > 0.01
        assert model.generate(**prompts, eos=-1, max_new_tokens=4) != answers


ALONE = """
import sys, torch, model
from pathlib import Path
from model import MLLM, Config
files = {Path(m.__file__) for m in [*sys.modules.values()] if getattr(m, "__file__", None)}
ours = {file for file in files if file.parent == Path.cwd()}
assert ours == {Path.cwd() / "model.py", Path.cwd() / "mma.py"}, ours

torch.manual_seed(0)
role = torch.tensor([[1, *[2] * 16, 3, 3, 4, 4, 4, 4, 4]] * 4)
batch = dict(ids=torch.randint(60, role.shape), role=role, image_index=torch.arange(4))
batch["images"] = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
model, losses = MLLM(Config(vocab_size=60, n_layer=2)), []
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
for _ in range(12):
    losses.append(model.loss(**batch))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < losses[0] / 4, losses
prompt = {name: x[:, :19] if name in ("ids", "role") else x for name, x in batch.items()}
answers = model.generate(**prompt, eos=-1, max_new_tokens=5)
right = sum(torch.tensor(answers).eq(batch["ids"][:, 19:]).flatten().tolist())
assert right > 15, right
"""


def test_two_files_are_all_that_is_needed(tmp_path):
    """Copied into a folder of their own, they train and answer."""
    for name in ("mma.py", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    env = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- What goes in


def test_pictures_that_do_not_fit_are_refused(model, batch_of, dialogues):
    batch = batch_of(dialogues[:2])

    def refused(change, message):
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **change})

    one, three = torch.tensor([0]), torch.tensor([0, 1, 1])
    for change in (
        {"image_index": one},
        {"image_index": three},
        {"images": None, "image_index": None},
    ):
        refused(change, "does not fit .*: 4 a picture")
    role = batch["role"].clone()  # the sum is right, the rows are not
    role[0, 1], role[1, -1] = int(Role.TEXT), int(Role.IMAGE)
    refused({"role": role}, r"\[3, 5\]")
    wrong = [{"image_index": torch.tensor([0, k])} for k in (2, -1)]
    for change in ({"images": None}, *wrong):
        refused(change, r"image_index \[.*\] .*does not fit")
    refused({"images": batch["images"].float()}, r"uint8 \[N, 3, 16, 16\]")


def test_features_stand_where_their_picture_is_named(model, batch_of, dialogues):
    batch = batch_of(dialogues)
    names = ("ids", "role", "images", "image_index")
    with torch.no_grad():
        x = model.embed_inputs(*(batch[name] for name in names))
        features = model.projector(model.encoder(batch["images"]))
    assert len(batch["images"]) == 4 and batch["image_index"].tolist() == [0, 1, 0, 2, 3, 1]
    order = iter(batch["image_index"].tolist())
    for b in range(len(x)):
        at = (batch["role"][b] == Role.IMAGE).nonzero()[:, 0]
        for run in at.view(-1, 4):
            torch.testing.assert_close(x[b, run], features[next(order)], rtol=0, atol=1e-12)


def test_bfloat16_autocast_trains_and_answers(model, batch_of, dialogues):
    model = model.float()
    exact = model.loss(**batch_of(dialogues))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(**batch_of(dialogues))
        answers = model.generate(**batch_of(dialogues, upto=0), eos=3, max_new_tokens=4)
    loss.backward()
    assert abs(loss - exact) < 0.05 * exact and len(answers) == len(dialogues)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "sizes,message",
    [
        (dict(image_size=60), "image_size=60 must be a multiple of patch_size=16"),
        (dict(encoder_width=30), "encoder_width=30 must be a multiple of encoder_heads=4"),
        (dict(d_model=130), "d_model=130 must be a multiple of n_head=4"),
        (dict(n_kv_head=3), "n_head=4 must be a multiple of n_kv_head=3"),
        (dict(d_model=132), "RoPE needs an even width of a head, not 33"),
        (dict(mask="nope"), "unknown mask 'nope'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Config(vocab_size=10, **sizes)


NUMBERS = [f.name for f in fields(Config) if f.type in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_size_that_is_not_above_0_is_refused(name):
    for wrong in (0, -1, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be above 0, not {wrong}"):
            Config(**{"vocab_size": 10, name: wrong})
    assert {"vocab_size", "n_layer", "rope_theta"} <= set(NUMBERS)


def test_an_untied_head_is_its_own():
    model, tied = MLLM(Config(vocab_size=50, tied=False)), MLLM(Config(vocab_size=50))
    sizes = [sum(p.numel() for p in some.parameters()) for some in (model, tied)]
    assert sizes[0] - sizes[1] == 50 * 128
    hidden = torch.randn(3, 128)
    torch.testing.assert_close(model.head(hidden), hidden @ model.unembed.weight.T)
    torch.testing.assert_close(tied.head(hidden), hidden @ tied.embed.weight.T)
