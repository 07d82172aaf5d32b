"""The model: the mask reaches attention, answers end where they should, what is read is what runs,
what goes in is checked. See test_properties.py for what holds of every mask and method."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from helpers import KINDS, ROOT, loss_and_gradients

from mma import Role, attention_mask
from model import Config, DecoderBlock, attention, sample


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_reads_what_the_rule_allows(model, batch_of, dialogues, kind):
    """Of rows with several turns; and each calls the attention that it is given."""
    batch, seen = batch_of(dialogues), []
    for block in model.blocks:
        block.attention.attend = lambda q, k, v, mask: seen.append(mask) or attention(q, k, v, mask)
    model(**batch, mask=kind)
    expected = attention_mask(kind, batch["role"], batch["turn"])
    assert len(seen) == 3 and all(torch.equal(mask, expected) for mask in seen)


def test_an_all_ignored_batch_gives_a_finite_loss(model, batch_of, dialogues):
    loss, *gradients = loss_and_gradients(model, model.loss, **batch_of(dialogues[:1], upto=0))
    assert loss == 0 and all(g.isfinite().all() for g in gradients)


# --- Generation


def test_an_answer_in_a_batch_ends_where_it_does_alone(model, batch_of, dialogues):
    """At one of several ends, or at the limit, which each row may have for itself. (That the cache
    changes nothing stands in test_properties.py.)"""
    alone = [model.generate(**batch_of([d], upto=0), eos=-1, max_new_tokens=8) for d in dialogues]
    prompts, ends = batch_of(dialogues, upto=0), [len(model.embed.weight), alone[0][0][3]]
    cut = [row[: row.index(ends[1]) + 1] if ends[1] in row else row for (row,) in alone]
    assert len({len(row) for row in cut}) > 1  # some rows stop early, others do not
    assert model.generate(**prompts, eos=ends, max_new_tokens=8) == cut
    limits = [9, 3, 0, 6, 5]
    found = model.generate(**prompts, eos=ends[1], max_new_tokens=limits)
    assert [row[:8] for row in found] == [row[:n] for row, n in zip(cut, limits)]


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
    share = torch.bincount(sample(logits, 1.0, 1.0, g), minlength=4) / 4000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.03)
    for temperature, top_p, tokens in (
        (0, 1.0, {0}), (1.0, 0.0, {0}), (1.0, 0.7, {0, 1}),  # 0.64 + 0.24
        (0.2, 0.7, {0}),  # temperature first: 0 holds 0.99 now
    ):  # fmt: skip
        assert set(sample(logits, temperature, top_p, g).tolist()) == tokens
    with pytest.raises(ValueError, match="temperature"):
        sample(logits, -1.0, 1.0, g)


# --- What is read is what runs


def test_a_block_that_is_changed_is_changed_in_every_layer(model, batch_of, dialogues, monkeypatch):
    """In training and in answering; nothing replaces it, of no layer."""
    batch, prompts, calls = batch_of(dialogues), batch_of(dialogues, upto=0), []
    forward = DecoderBlock.forward

    def changed(self, x, *rest):
        calls.append(self.attention.layer)
        return forward(self, x, *rest) + (self.attention.layer == layer) * torch.arange(32)

    monkeypatch.setattr(DecoderBlock, "forward", changed)
    losses, answers = [], []
    for layer in range(4):  # noqa: B007 (of the last one there is none)
        losses.append(model.loss(**batch).item())
        answers.append(model.generate(**prompts, eos=-1, max_new_tokens=4))
    assert calls == 4 * 5 * [0, 1, 2]
    for loss, answer in zip(losses[:3], answers[:3]):
        assert abs(loss - losses[3]) > 0.01 and answer != answers[3]


ALONE = """
import torch
from model import MLLM, Config

torch.manual_seed(0)
role = torch.tensor([[1, *[2] * 16, 3, 3, 4, 4, 4, 4, 4]] * 4)
batch = dict(ids=torch.randint(60, role.shape), role=role, image_index=torch.arange(4))
batch["images"] = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
model = MLLM(Config(vocab_size=60, n_layer=2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
for _ in range(12):
    model.loss(**batch).backward()
    optimizer.step()
    optimizer.zero_grad()
prompt = {name: x[:, :19] if name in ("ids", "role") else x for name, x in batch.items()}
answers = model.generate(**prompt, eos=-1, max_new_tokens=5)
assert torch.tensor(answers).eq(batch["ids"][:, 19:]).sum() > 15, answers
"""


def test_two_files_are_all_that_is_needed(tmp_path):
    """Copied into a folder of their own, they train and answer."""
    for name in ("mma.py", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    env = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=env, check=True)


# --- What goes in


def test_pictures_that_do_not_fit_are_refused(model, batch_of, dialogues):
    batch = batch_of(dialogues[:2])
    role, nothing = batch["role"].clone(), {"images": None, "image_index": None}
    # The sum is right, the rows are not
    role[0, 1], role[1, -1] = int(Role.TEXT), int(Role.IMAGE)
    index = lambda *numbers: {"image_index": torch.tensor(numbers)}
    misfit = "image_index .* does not fit"
    for change, message in (
        (index(0), misfit), (index(0, 1, 1), misfit), (index(0, 2), misfit), (index(0, -1), misfit),
        (nothing, misfit), ({"images": None}, misfit), ({"role": role}, r"\[3, 5\]"),
        ({"images": batch["images"].float()}, r"uint8 \[N, 3, 16, 16\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model(**{**batch, **change})


@pytest.mark.parametrize("sizes,message", [
    (dict(image_size=60), "image_size=60 must be a multiple of patch_size=16"),
    (dict(encoder_width=30), "encoder_width=30 must be a multiple of encoder_heads=4"),
    (dict(d_model=130), "d_model=130 must be a multiple of n_head=4"),
    (dict(n_kv_head=3), "n_head=4 must be a multiple of n_kv_head=3"),
    (dict(d_model=132), "RoPE needs an even width of a head, not 33"),
    (dict(mask="nope"), "unknown mask 'nope'"),
    *((({f.name: wrong}), f"{f.name} must be above 0, not {wrong}")
      for f in fields(Config) if f.type in (int, float) for wrong in (0, -0.5, float("nan"))),
])  # fmt: skip
def test_sizes_that_no_model_can_have_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"vocab_size": 10, **sizes})
