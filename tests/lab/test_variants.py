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
from mma import IMAGE, TEXT, Role, attention_mask
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


# Three rows of three pictures, P: beside each other, first, behind a question; their turns, their
# documents, two of them packed
LAYOUTS = (
    ("tPPQAtPQA-", "0111122220", "0000011119"),
    ("PtQAPQAPtA", "1111222333", "0000000000"),
    ("tQPAPPQA--", "0111222200", "0000111199"),
)


def with_pictures(n):
    """role, turn, document, int64 [3, T], of LAYOUTS with pictures of n tokens."""
    found = []
    for letters, *others in LAYOUTS:
        times = [n if letter == "P" else 1 for letter in letters]
        wide = ("".join(map(str.__mul__, text, times)) for text in (letters, *others))
        roles, turns, documents = wide
        role, turn = row(roles.replace("P", "V"), turns)
        found.append((role[0], turn[0], torch.tensor([*map(int, documents)])))
    return map(torch.stack, zip(*found))


def walk(role, document, ring):
    """Of each token: its position, the number of its picture, its place in it; one by one."""
    place, position, picture, nth, n = 0, [], [], [], len(ring)
    for t in range(len(role)):
        if t and document[t] != document[t - 1]:
            place = 0
        inside = role[t] == IMAGE
        goes_on = inside and t and role[t - 1] == IMAGE
        nth.append((nth[-1] + 1) % n if goes_on else 0)
        picture.append((picture[-1] if picture else 0) + (inside and nth[-1] == 0))
        position.append(place + (ring[nth[-1]] if inside else 0))
        place += (max(ring) + 1 if nth[-1] == n - 1 else 0) if inside else 1
    return position, picture, nth


@pytest.mark.parametrize("grid", [3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_rings_equal_a_slow_double_loop_in_every_row_of_the_batch(kind, grid):
    """Within a picture a token reads its own ring and those outside of it, and what the kind opens;
    between any other two tokens the mask is the plain one."""
    ring = slow_rings(grid, grid)
    role, turn, document = with_pictures(grid * grid)
    order = ring_positions(role, document, grid)
    mask = attention_mask(kind, role, turn, document, order=order)[:, 0]
    plain = attention_mask(kind, role, turn, document)[:, 0]
    opens_images = opens(kind, IMAGE, IMAGE)
    rows = (x.tolist() for x in (role, document, order, mask, plain))
    for roles, documents, places, found, before in zip(*rows):
        position, picture, nth = walk(roles, documents, ring)
        assert places == position
        for i, j in itertools.product(range(len(roles)), repeat=2):
            may = before[i][j]
            if roles[i] == roles[j] == IMAGE and picture[i] == picture[j]:
                may = ring[nth[j]] <= ring[nth[i]] or opens_images
                may = may and documents[i] == documents[j]
            assert found[i][j] == may, (i, j)


def test_positions_are_those_of_the_paper_and_a_grid_must_fit():
    """24 x 24 image tokens take 12 positions: text goes on 12 after the picture's start."""
    role = torch.tensor([[TEXT] * 3 + [IMAGE] * 576 + [Role.QUESTION] * 2 + [Role.ANSWER]])
    at = ring_positions(role, None, 24)[0]
    assert at[:3].tolist() == [0, 1, 2] and at[-3:].tolist() == [15, 16, 17]
    assert at[3:579].min() == 3 and at[3:579].max() == 14
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
