"""The model: the mask reaches attention, labels do not leak, batches equal single rows, the cache equals no cache."""

from dataclasses import replace

import pytest
import torch

import data
from attention import GATES
from mma import OPENS, Role, attention_mask
from model import MLLM, Config, at_columns, load, sample, save
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
@pytest.mark.parametrize("gate", GATES)
def test_the_rows_that_are_read_are_those_of_the_full_pass(gated, batch_of, dialogues, kind, gate):
    model, batch = gated(gate), batch_of(dialogues)
    g = torch.Generator().manual_seed(0)
    read = torch.randint(batch["ids"].shape[1], (len(dialogues), 5), generator=g)
    full, weights, some = hidden_of(model, batch, kind), [], []
    model(**batch, kind=kind, weights=weights)
    assert torch.equal(model(**batch, kind=kind, read=read, weights=some), model(**batch, kind=kind, read=read))
    assert torch.allclose(at_columns(full, read), model(**batch, kind=kind, read=read), atol=1e-9)
    assert torch.allclose(at_columns(weights[-1].transpose(1, 2), read).transpose(1, 2), some[-1])


@pytest.fixture
def gated(model):
    """gated(gate) -> the model with that gate, its parameters away from their start."""
    def make(gate, moved=True):
        torch.manual_seed(0)
        other = MLLM(replace(model.config, gate=gate)).double().eval()
        if moved:
            with torch.no_grad():
                for p in other.parameters():
                    p.mul_(2)
                for name, p in other.named_parameters():
                    if "attention.gate" in name:
                        p.normal_(generator=torch.Generator().manual_seed(len(name)))
        return other
    return make


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_plain_attention_at_the_first_step_and_learns(gated, batch_of, dialogues, gate):
    plain, model, batch = gated("none", False), gated(gate, False), batch_of(dialogues)
    assert torch.allclose(hidden_of(plain, batch, "mma"), hidden_of(model, batch, "mma"), atol=1e-12)
    model.loss(**batch).backward()
    learning = {name.split(".")[-1] for name, p in model.named_parameters() if "attention.gate" in name and p.grad.abs().max() > 1e-8}
    assert learning == {"none": set(), "rave": {"wk"}, "lora": {"up_q", "up_k"}, "scalar": {"bias"}}[gate]
    plain, model = gated("none"), gated(gate)
    assert (gate == "none") == torch.allclose(hidden_of(plain, batch, "mma"), hidden_of(model, batch, "mma"), atol=1e-3)


def test_the_gate_and_its_control_have_as_many_parameters():
    from train import PRESETS
    for preset in (PRESETS["tiny"], PRESETS["small"]):  # n_head = 2 n_kv_head
        sizes = {g: sum(p.numel() for p in MLLM(Config(vocab_size=99, gate=g, **preset["model"])).parameters()) for g in GATES}
        assert sizes["rave"] == sizes["lora"] > sizes["scalar"] > sizes["none"]


@pytest.mark.parametrize("gate", ["rave", "scalar"])
def test_a_gate_is_the_formula(gated, batch_of, dialogues, gate):
    """Against scores with the bias written out: it is added on visual keys alone, from features before RoPE."""
    from model import rotate
    model, batch = gated(gate), batch_of(dialogues)
    a, weights = model.blocks[0].attention, []
    model(**batch, weights=weights)
    x = model.blocks[0].norm1(model.embed_row(batch["ids"], batch["role"], batch["images"], batch["picture"]))
    T, d = x.shape[1], a.d
    q, k = (f(x).unflatten(-1, (-1, d)).transpose(1, 2) for f in (a.q, a.k))
    k = k.repeat_interleave(2, 1)
    angle = torch.arange(T)[:, None] * model.config.rope_theta ** (-torch.arange(0, d, 2) / d)
    cos, sin = angle.cos().double(), angle.sin().double()
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).mT / d ** 0.5
    visual = (batch["role"] == Role.IMAGE)[:, None, None, :]
    if gate == "rave":
        bias = (q @ a.gate.wq) @ (k @ a.gate.wk.repeat_interleave(2, 0)).mT / a.gate.RANK ** 0.5
    else:
        bias = a.gate.bias.expand(-1, T, T)
    mask = attention_mask("mma", batch["role"], batch["turn"])
    expected = (scores + bias * visual).masked_fill(~mask, -torch.inf).softmax(-1)
    assert torch.allclose(weights[0].double(), expected, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_decodes_as_it_is_prefilled(gated, batch_of, dialogues, gate):
    model, row = gated(gate), batch_of(dialogues[:1], upto=0)
    assert model.generate(**row, eos=-1, max_new_tokens=8)[0] == without_cache(model, row, "mma", 8, -1)


def test_attention_weights_are_those_attention_uses(model, batch_of, dialogues):
    """Recomputed by hand from the weights, the layer's output is that of SDPA."""
    batch, weights, seen = batch_of(dialogues), [], []
    a = model.blocks[0].attention
    hooks = [a.v.register_forward_hook(lambda module, args, out: seen.append(out)),
             a.out.register_forward_hook(lambda module, args, out: seen.append(args[0]))]
    model(**batch, weights=weights)
    for hook in hooks:
        hook.remove()
    v = seen[0].unflatten(-1, (-1, a.d)).transpose(1, 2).repeat_interleave(2, 1)
    assert torch.allclose((weights[0].double() @ v).transpose(1, 2).flatten(2), seen[1], atol=1e-5)
    assert len(weights) == len(model.blocks) and torch.allclose(weights[1].sum(-1), torch.tensor(1.0), atol=1e-5)


def test_blocked_columns_reach_no_text_neither_now_nor_while_decoding(model, batch_of, dialogues):
    """With the whole picture blocked, text says the same whatever the picture shows; image rows still see it."""
    batch = batch_of(dialogues[:1], upto=0)
    other = {**batch, "images": 255 - batch["images"]}
    image = batch["role"] == Role.IMAGE
    states = [model(**b, kind="mma", blocked=image) for b in (batch, other)]
    assert torch.equal(states[0][~image], states[1][~image]) and not torch.allclose(states[0][image], states[1][image])
    said = [model.generate(**b, blocked=image, eos=-1, max_new_tokens=8) for b in (batch, other)]
    assert said[0] == said[1]
    assert model.generate(**batch, blocked=image & False, eos=-1) == model.generate(**batch, eos=-1) != model.generate(**other, eos=-1)


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


@pytest.fixture
def ringed(model):
    """The model with pictures of 3 x 3 tokens, which have an inside."""
    config = replace(model.config, image_size=24)
    torch.manual_seed(1)
    other = MLLM(config).double().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    return other


@pytest.mark.parametrize("kind", ["cca", "mma+cca"])
def test_rings_are_decoded_as_they_are_prefilled(ringed, tokenizer, dialogues, kind):
    """The decode position goes on where the prompt's ended, not at the cache's length; in every row of a ragged batch."""
    ringed.config.mask = kind
    prompts = [(d, len(d.turns) - 1) for d in dialogues]
    rows = [data.collate([data.encode(d, tokenizer, 9, upto=t)], tokenizer.pad, 24) for d, t in prompts]
    expected = [without_cache(ringed, row, kind, 8, -1) for row in rows]
    causal = [without_cache(ringed, row, "causal", 8, -1) for row in rows]
    assert expected != causal and len({tuple(answer) for answer in expected}) > 1
    assert [ringed.generate(**row, eos=-1, max_new_tokens=8)[0] for row in rows] == expected
    some = [i for i, p in enumerate(prompts) if p[1] == 0]
    together = data.collate([data.encode(dialogues[i], tokenizer, 9, upto=0) for i in some], tokenizer.pad, 24)
    assert ringed.generate(**together, eos=-1, max_new_tokens=8) == [expected[i] for i in some]


def test_rings_change_the_states_of_every_row_with_a_picture(ringed, tokenizer, dialogues):
    batch = data.collate([data.encode(d, tokenizer, 9) for d in dialogues], tokenizer.pad, 24)
    moved = (hidden_of(ringed, batch, "cca") - hidden_of(ringed, batch, "causal")).abs().amax((1, 2)) > 1e-4
    assert moved.tolist() == (batch["role"] == Role.IMAGE).any(1).tolist()


@pytest.mark.parametrize("kind", [k for k in OPENS if k != "leaky"])  # that one reads answers, so a cache cannot keep up with it
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


# ------------------------------------------------------------------------------------------------------------ large models

@pytest.mark.parametrize("change", [dict(checkpointing=True), dict(chunk=3), dict(checkpointing=True, chunk=1)])
def test_what_saves_memory_changes_nothing(model, batch_of, dialogues, change):
    batch, both = batch_of(dialogues), []
    for some in ({}, change):
        for name, value in some.items():
            setattr(model, name, value)
        model.zero_grad()
        loss = model.loss(**batch)
        loss.backward()
        both.append([loss.detach(), *(p.grad for p in model.parameters())])
    for plain, saving in zip(*both):
        torch.testing.assert_close(saving, plain, rtol=1e-6, atol=1e-6)  # the loss is taken in float32


def test_neighbouring_patches_are_pooled(pictures):
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, image_size=16, patch_size=4, encoder_width=16, encoder_heads=2)
    plain, pooled = (MLLM(Config(**sizes, pool=pool)).encoder for pool in (1, 2))
    pooled.load_state_dict(plain.state_dict())
    one, four = pooled(pictures), plain(pictures).view(-1, 4, 4, 16)
    assert one.shape == (4, 4, 16)
    torch.testing.assert_close(one[:, 1], four[:, :2, 2:].mean((1, 2)))  # the second token: rows 0 and 1, columns 2 and 3
    torch.testing.assert_close(one[:, 2], four[:, 2:, :2].mean((1, 2)))
    with pytest.raises(ValueError, match="patches=4 must be a multiple of pool=3"):
        Config(**sizes, pool=3)


def test_an_untied_head_is_its_own(tmp_path):
    model = MLLM(Config(vocab_size=50, tied=False))
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in MLLM(Config(vocab_size=50)).parameters()) == 50 * 128
    hidden = torch.randn(3, 128)
    torch.testing.assert_close(model.head(hidden), hidden @ model.unembed.weight.T)
    save(tmp_path / "m.pt", model)
    assert torch.equal(load(tmp_path / "m.pt").unembed.weight, model.unembed.weight)
