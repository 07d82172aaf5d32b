"""The model: the mask reaches attention, labels do not leak, batches equal single rows, the cache equals no cache."""

import pytest
import torch

import data
from mma import OPENS, Role, attention_mask
from model import MLLM, Config, load, sample, save
from test_mma import A1, A2, LEAK_TABLE, Q1, Q2, layout


def hidden_of(model, batch, kind):
    with torch.no_grad():
        return model(**batch, kind=kind)


@pytest.mark.parametrize("kind,reach", list(LEAK_TABLE))
def test_leak_table_through_the_real_model(model, pictures, kind, reach, monkeypatch):
    """METHODS section 6, by gradients: what an answer's loss does to later tokens is exactly zero, or is not."""
    role, turn = layout(kind, reach, monkeypatch)
    role = torch.cat([role[:, :1], torch.full((1, 2), int(Role.IMAGE)), role[:, 1:]], 1)  # the picture has 4 tokens here, not 2
    turn = None if turn is None else torch.cat([turn[:, :1], turn[:, 1:2].repeat(1, 2), turn[:, 1:]], 1)
    q1, a1, q2, a2 = ([t + 2 for t in group] for group in (Q1, A1, Q2, A2))
    ids = torch.randint(300, (1, role.shape[1]), generator=torch.Generator().manual_seed(0))
    kept = []
    model.embed.register_forward_hook(lambda module, args, out: (out.retain_grad(), kept.append(out))[0])

    def learns(targets, later):
        """Does predicting `targets` from the rows before them depend on the tokens `later`?"""
        kept.clear()
        hidden = model(ids, role, pictures[:1], torch.tensor([0]), turn, kind=kind)
        rows = [t - 1 for t in targets]
        torch.nn.functional.cross_entropy(model.head(hidden[0, rows]), ids[0, targets], reduction="sum").backward()
        return bool((kept[0].grad[0, later] != 0).any())

    found = (learns(q1[:1], q1[1:]), learns(a1[:1], q2), learns(a1[:1], a1[1:]), learns(a2[:1], a2[1:]))
    assert found == LEAK_TABLE[kind, reach]
    assert learns(a1[1:], q1)  # the check itself can fail: an answer does learn its question


@pytest.mark.parametrize("kind", [k for k in OPENS if k != "causal"])
def test_an_opened_mask_changes_the_images_hidden_states(model, batch_of, dialogues, kind):
    several = [d for d in dialogues if len(d.images) > 1] if kind in ("v2v", "f", "prefix") else dialogues
    batch = batch_of(several[:1] + several[-1:])
    here = batch["role"] == Role.IMAGE
    assert (hidden_of(model, batch, kind)[here] - hidden_of(model, batch, "causal")[here]).abs().max() > 1e-3


def test_mma_without_a_question_is_causal(model, batch_of, dialogues):
    batch = batch_of([dialogues[1], dialogues[3]])  # a caption, a talk without a picture
    assert not (batch["role"] == Role.QUESTION).any()
    assert torch.equal(hidden_of(model, batch, "mma"), hidden_of(model, batch, "causal"))


def test_mma_lets_the_image_know_the_question_of_its_own_turn_only(model, batch_of, pictures):
    def image_states(first, later, kind):
        batch = batch_of([data.Example([pictures[0]], [("<image>" + first, "yes"), (later, "no")])])
        return hidden_of(model, batch, kind)[batch["role"] == Role.IMAGE]
    base = image_states("is there a red circle?", "more?", "mma")
    assert (image_states("is there a red square?", "more?", "mma") - base).abs().max() > 1e-4
    assert torch.allclose(image_states("is there a red circle?", "how many squares?", "mma"), base, atol=1e-12)
    assert torch.allclose(image_states("red?", "more?", "causal"), image_states("are there?", "more?", "causal"), atol=1e-12)


def test_parameters_do_not_depend_on_the_mask():
    sizes = {sum(p.numel() for p in MLLM(Config(vocab_size=64, mask=kind)).parameters()) for kind in OPENS}
    assert len(sizes) == 1


@pytest.mark.parametrize("kind", list(OPENS))
def test_a_padded_batch_equals_single_rows(model, batch_of, dialogues, kind):
    batch = batch_of(dialogues)
    together = hidden_of(model, batch, kind)
    for b, dialogue in enumerate(dialogues):
        alone = hidden_of(model, batch_of([dialogue]), kind)[0]
        assert torch.allclose(together[b, :len(alone)], alone, atol=1e-9)


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
    logits = model.head(model(**batch))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert torch.allclose(model.loss(**batch).double(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", list(OPENS))
def test_packed_documents_equal_separate_rows(model, batch_of, dialogues, kind):
    singles = [batch_of([d]) for d in dialogues[:3]]
    packed = {name: torch.cat([s[name] for s in singles], 1) for name in ("ids", "role", "turn")}
    document = torch.cat([torch.full_like(s["ids"], d) for d, s in enumerate(singles)], 1)
    picture = torch.cat([s["picture"] + sum(len(x["images"]) for x in singles[:d]) for d, s in enumerate(singles)])
    images = torch.cat([s["images"] for s in singles])
    with torch.no_grad():
        out = model(**packed, images=images, picture=picture, document=document, kind=kind)
    assert torch.allclose(out[0], torch.cat([hidden_of(model, s, kind)[0] for s in singles]), atol=1e-9)


def test_an_all_ignored_batch_gives_a_finite_loss(model, batch_of, dialogues):
    batch = batch_of(dialogues[:1], upto=0)
    assert not (batch["role"] == Role.ANSWER).any()
    loss = model.loss(**batch)
    loss.backward()
    assert loss == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def without_cache(model, batch, kind, n, eos):
    """Greedy answers by full forward passes over the growing row, one row at a time."""
    ids, role, turn = (batch[name] for name in ("ids", "role", "turn"))
    out = []
    for _ in range(n):
        with torch.no_grad():
            hidden = model(ids, role, batch.get("images"), batch.get("picture"), turn, kind=kind)
        out.append(int(model.head(hidden[0, -1]).argmax()))
        if out[-1] == eos:
            break
        ids = torch.cat([ids, torch.tensor([[out[-1]]])], 1)
        role = torch.cat([role, torch.tensor([[int(Role.ANSWER)]])], 1)
        turn = torch.cat([turn, turn[:, -1:]], 1)
    return out


@pytest.mark.parametrize("kind", list(OPENS))
def test_generation_cached_equals_uncached_equals_one_by_one(model, batch_of, dialogues, kind):
    model.config.mask = kind
    prompts = [(d, len(d.turns) - 1) for d in dialogues]
    rows = [batch_of([d], upto=t) for d, t in prompts]
    eos = without_cache(model, rows[0], kind, 6, -1)[3]  # a token the model does say: some rows stop early, others do not
    expected = [without_cache(model, row, kind, 8, eos) for row in rows]
    assert {len(answer) for answer in expected} != {8} and max(map(len, expected)) > 4
    assert [model.generate(**row, eos=eos, max_new_tokens=8)[0] for row in rows] == expected
    turns = {t for _, t in prompts}
    for t in turns:  # batches of prompts of different lengths
        some = [i for i, p in enumerate(prompts) if p[1] == t]
        together = model.generate(**batch_of([dialogues[i] for i in some], upto=t), eos=eos, max_new_tokens=8)
        assert together == [expected[i] for i in some]


@pytest.mark.parametrize("roles", [[0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], []])
def test_generate_refuses_padding_anywhere_but_on_the_right(model, roles):
    role = torch.tensor([roles], dtype=torch.int64)
    with pytest.raises(ValueError, match="padded on the right"):
        model.generate(torch.zeros_like(role), role, eos=3)


def test_pictures_that_do_not_fit_are_refused(model, batch_of, dialogues):
    batch = batch_of(dialogues[:2])
    for change in ({"picture": torch.tensor([0])}, {"picture": torch.tensor([0, 1, 1])}, {"images": None, "picture": None}):
        with pytest.raises(ValueError, match=r"pictures of 4 image tokens each do not fit"):
            model(**{**batch, **change})
    role = batch["role"].clone()
    role[0, 1], role[1, -1] = int(Role.TEXT), int(Role.IMAGE)  # the sum is right, the rows are not
    with pytest.raises(ValueError, match=r"\[3, 5\]"):
        model(**{**batch, "role": role})
    for change in ({"images": None}, {"picture": torch.tensor([0, 2])}, {"picture": torch.tensor([0, -1])}):
        with pytest.raises(ValueError, match="picture names the images .* but . are given"):
            model(**{**batch, **change})
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, 16, 16\]"):
        model(**{**batch, "images": batch["images"].float()})


def test_features_stand_where_their_picture_is_named(model, batch_of, dialogues):
    batch = batch_of(dialogues)
    with torch.no_grad():
        x = model.embed_row(batch["ids"], batch["role"], batch["images"], batch["picture"])
        features = model.projector(model.encoder(batch["images"]))
    assert len(batch["images"]) == 4 and batch["picture"].tolist() == [0, 1, 0, 2, 3, 1]
    order = iter(batch["picture"].tolist())
    for b in range(len(x)):
        at = (batch["role"][b] == Role.IMAGE).nonzero()[:, 0]
        for run in at.view(-1, 4):
            assert torch.allclose(x[b, run], features[next(order)], atol=1e-12)


def test_bfloat16_autocast_trains_and_answers(model, batch_of, dialogues):
    model = model.float()
    exact = model.loss(**batch_of(dialogues))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(**batch_of(dialogues))
        answers = model.generate(**batch_of(dialogues, upto=0), eos=3, max_new_tokens=4)
    loss.backward()
    assert abs(loss - exact) < 0.05 * exact and len(answers) == len(dialogues)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_sampling():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)
    assert set(sample(logits, 0, 1.0, None).tolist()) == {0}
    share = torch.bincount(sample(logits, 1.0, 1.0, g), minlength=4) / 4000
    assert torch.allclose(share, logits[0].softmax(-1), atol=.03)
    assert set(sample(logits, 1.0, 0.7, g).tolist()) == {0, 1}    # 0.64 + 0.24
    assert set(sample(logits, 0.2, 0.7, g).tolist()) == {0}       # temperature first: now 0 holds 0.99
    assert set(sample(logits, 1.0, 0.0, g).tolist()) == {0}


def test_save_and_load(model, batch_of, dialogues, tmp_path):
    save(tmp_path / "model.pt", model)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["config"]["n_layer"] == 3
    again = load(tmp_path / "model.pt").double()
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.allclose(a, b.to(a.dtype), atol=1e-6), name


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size=60 must be a multiple of patch_size=16"):
        Config(vocab_size=10, image_size=60)
    with pytest.raises(ValueError, match="unknown mask kind 'nope'"):
        Config(vocab_size=10, mask="nope")


def test_dense_mask_is_bool_and_one_for_all_heads(batch_of, dialogues):
    batch = batch_of(dialogues)
    mask = attention_mask("mma", batch["role"], batch["turn"])
    assert mask.dtype == torch.bool and mask.shape[1] == 1
