"""Methods beside a mask: rings against a slow double loop, gates against their formula. What holds
for every method (padded, packed and cached rows, leaks) is in tests/test_properties.py."""

import itertools
import runpy

import pytest
import torch
from helpers import KINDS, ROOT, enlarge, hidden_of, opens, row

import data
from engine import wings
from engine.wings import PLAIN, VARIANTS
from lab.recording import recorded
from lab.variants import ConcentricMLLM, TextFirstTokenizer, ring_positions, rings
from mma import IMAGE, attention_mask
from model import MLLM, Config, rotate

GATES = {"none": PLAIN, **{name: VARIANTS[name] for name in ("rave", "scalar", "lora")}}


@pytest.fixture
def varied(model):
    """varied(name) -> the model of GATES, every parameter away from its start (moved=False: as it
    starts)."""

    def make(name, moved=True):
        torch.manual_seed(0)
        other = (GATES[name].model_class or MLLM)(model.config).double().eval()
        if not moved:
            return other
        for key, p in enlarge(other).named_parameters():
            if "attention.gate" in key:
                p.data.normal_(generator=torch.Generator().manual_seed(len(key)))
        return other

    return make


# --- Rings


def slow_rings(H, W):
    """Peel the picture: what touches the edge is ring 0, then take it away."""
    left, out, k = {(r, c) for r in range(H) for c in range(W)}, {}, 0
    while left:
        edge = {(r, c) for r, c in left if {(r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)} - left}
        out.update(dict.fromkeys(edge, k))
        left, k = left - edge, k + 1
    return [out[r, c] for r in range(H) for c in range(W)]


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 4), (5, 5), (4, 7), (24, 24)])
def test_rings(grid):
    assert rings(*grid).tolist() == slow_rings(*grid)
    assert rings(24, 24).max() + 1 == 12


def walk(role, document, ring):
    """Of each token its position, the number of its picture, its place in it; one by one."""
    start, picture, nth, found = 0, 0, 0, []
    for t in range(len(role)):
        start = 0 if t and document[t] != document[t - 1] else start
        inside = role[t] == IMAGE
        found.append((start + (ring[nth] if inside else 0), picture, nth))
        nth += inside
        if nth == len(ring):
            start, picture, nth = start + max(ring) + 1, picture + 1, 0
        elif not inside:
            start += 1
    return zip(*found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rings_equal_a_slow_double_loop(tokenizer, dialogues, kind, packed):
    """Within a picture a token reads its own ring and those outside of it, and what the kind opens;
    between any other two tokens the mask is the plain one."""
    ring, opens_images = slow_rings(4, 4), opens(kind, IMAGE, IMAGE)
    beside = data.Example(dialogues[4].images, [("<image><image>is it red?", "no")])
    rows = [data.encode(e, tokenizer, 16) for e in (*dialogues[:3], beside)]
    batch = data.collate(data.pack(rows, 1000) if packed else rows, tokenizer.pad, 16)
    role, turn, document = batch["role"], batch["turn"], batch.get("document")
    order = ring_positions(role, document, 4)
    mask = attention_mask(kind, role, turn, document, order=order)[:, 0].tolist()
    plain = attention_mask(kind, role, turn, document)[:, 0].tolist()
    document = torch.zeros_like(role) if document is None else document
    for b, (roles, documents) in enumerate(zip(role.tolist(), document.tolist())):
        position, picture, nth = walk(roles, documents, ring)
        assert order[b].tolist() == list(position)
        for i, j in itertools.product(range(len(roles)), repeat=2):
            may = plain[b][i][j]
            if roles[i] == roles[j] == IMAGE and picture[i] == picture[j]:
                may = ring[nth[j]] <= ring[nth[i]] or opens_images
            assert mask[b][i][j] == may, (i, j)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"pictures of 4 tokens do not fit .*\[3\]"):
        ring_positions(row("tVVVQ")[0], None, 2)


# --- Gates


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_plain_attention_at_the_first_step_and_learns(varied, batch_of, dialogues, gate):
    plain, model, batch = varied("none", False), varied(gate, False), batch_of(dialogues)
    states = (hidden_of(some, batch, "mma") for some in (plain, model))
    torch.testing.assert_close(*states, rtol=0, atol=1e-12)
    model.loss(**batch).backward()
    learning = {
        name.split(".")[-1]
        for name, p in model.named_parameters()
        if "attention.gate" in name and p.grad.abs().max() > 1e-8
    }
    expected = {"none": set(), "rave": {"wk"}, "lora": {"up_q", "up_k"}, "scalar": {"bias"}}
    assert learning == expected[gate]
    states = [hidden_of(some, batch, "mma") for some in (varied("none"), varied(gate))]
    assert (gate == "none") == torch.allclose(*states, atol=1e-3)


def test_the_gate_and_its_control_have_as_many_parameters():
    config = Config(vocab_size=99, n_head=8, n_kv_head=4)  # where n_head = 2 n_kv_head
    models = {name: (variant.model_class or MLLM)(config) for name, variant in GATES.items()}
    n = {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()}
    assert n["rave"] == n["lora"] > n["scalar"] > n["none"]


@pytest.mark.parametrize("gate", ["rave", "scalar"])
def test_a_gate_is_the_formula(varied, batch_of, dialogues, gate):
    """Against scores with the bias written out: it is added on visual keys alone, from features
    before RoPE."""
    model, batch = varied(gate), batch_of(dialogues)
    a, names = model.blocks[0].attention, ("ids", "role", "images", "image_index")
    with recorded(model) as weights:
        hidden_of(model, batch, "mma")
    x = model.blocks[0].norm1(model.embed_inputs(*(batch[name] for name in names)))
    T, d = x.shape[1], a.head_width
    q, k = (f(x).unflatten(-1, (-1, d)).transpose(1, 2) for f in (a.q, a.k))
    k = k.repeat_interleave(2, 1)
    angle = torch.arange(T)[:, None] * model.config.rope_theta ** (-torch.arange(0, d, 2) / d)
    angle = torch.cat([-angle, angle], -1)
    q_at, k_at = (rotate(y, angle.cos().double(), angle.sin().double()) for y in (q, k))
    if gate == "rave":
        visual_keys = k @ a.gate.wk.repeat_interleave(2, 0)
        bias = (q @ a.gate.wq) @ visual_keys.mT / a.bias_dims**0.5
    else:
        bias = a.gate.bias
    scores = q_at @ k_at.mT / d**0.5 + bias * (batch["role"] == IMAGE)[:, None, None, :]
    mask = attention_mask("mma", batch["role"], batch["turn"])
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights[0], expected.float(), rtol=0, atol=2e-5)


# --- The list


def test_variants_are_found_by_name(monkeypatch, capsys):
    assert wings.find(None) is PLAIN and wings.find("cca").model_class is ConcentricMLLM
    with pytest.raises(data.DataError, match="no variant 'nope'; there are .*cca, rave"):
        wings.find("nope")
    assert wings.variant_of({}) is PLAIN
    assert wings.variant_of({"variant": "text-first"}).tokenizer_class is TextFirstTokenizer
    monkeypatch.setattr(wings, "VARIANTS", {})  # the command registers them anew
    runpy.run_path(str(ROOT / "lab" / "variants.py"), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == list(wings.VARIANTS) and "cca" in wings.VARIANTS
