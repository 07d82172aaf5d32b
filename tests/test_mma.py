"""The mask against a slow double loop, golden pictures, and the leak table."""

import itertools

import pytest
import torch

import mma
from mma import CONCENTRIC, OPENS, Role, attention_mask, leaks, positions, rings, supervised

PAD, TEXT, IMAGE, QUESTION, ANSWER = Role
LETTERS = dict(zip("-tVQA", Role))


def row(letters, turns=None):
    role = torch.tensor([[int(LETTERS[c]) for c in letters]])
    return role, None if turns is None else torch.tensor([[int(c) for c in turns]])


def slow(kind, role, turn, document, i, j):
    """May i read j? Plain words, written without looking at mma.OPENS."""
    a, b = role[i], role[j]
    if i == j:
        return True
    if b == PAD or document[i] != document[j]:
        return False
    if j < i:
        return True
    if turn[i] != turn[j]:
        return False
    if kind in ("causal", "cca"):
        return False
    if kind == "leaky":
        return a == IMAGE and b != IMAGE
    if kind in ("mma", "v2t", "mma+cca"):
        return a == IMAGE and b == QUESTION
    if kind == "prefix":
        return a in (IMAGE, QUESTION) and b in (IMAGE, QUESTION)
    if kind == "v2v":
        return a == IMAGE and b == IMAGE
    if kind == "f":
        return a == IMAGE and b in (IMAGE, QUESTION)
    if kind == "mutual":
        return PAD not in (a, b) and ANSWER not in (a, b) and (a == IMAGE) != (b == IMAGE)
    raise AssertionError(kind)


PLAIN = [kind for kind in OPENS if kind not in CONCENTRIC]
GRID = (3, 4)  # of the pictures in the tests of CONCENTRIC kinds: rings 0000 0110 0000


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("given", ["neither", "turn", "document", "both"])
def test_mask_equals_a_slow_double_loop(kind, given):
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        B, T = 6, 17
        role = torch.randint(5, (B, T), generator=g).to(dtype)
        turn = torch.randint(3, (B, T), generator=g).to(dtype) if given in ("turn", "both") else None
        document = torch.randint(2, (B, T), generator=g).sort(1).values.to(dtype) if given in ("document", "both") else None
        mask = attention_mask(kind, role, turn, document)
        assert mask.shape == (B, 1, T, T) and mask.dtype == torch.bool
        zeros = [[0] * T] * B
        turns, documents = (zeros if x is None else x.tolist() for x in (turn, document))
        for b, i, j in itertools.product(range(B), range(T), range(T)):
            assert mask[b, 0, i, j] == slow(kind, role[b].tolist(), turns[b], documents[b], i, j), (kind, b, i, j)


def with_pictures(g, B):
    """Random rows with whole pictures in random places: role, turn, document, each [B, T], pads on the right."""
    rows = []
    for _ in range(B):
        role, turn, document = [], [], []
        for _ in range(int(torch.randint(2, 7, (1,), generator=g))):
            some = [IMAGE] * 12 if torch.rand(1, generator=g) < .4 else [int(torch.randint(1, 5, (1,), generator=g))]
            some = [TEXT] if some[0] == IMAGE and len(some) == 1 else some
            role += some
            turn += [int(torch.randint(3, (1,), generator=g))] * len(some)
            document += [int(torch.rand(1, generator=g) < .5) + (document[-1] if document else 0)] * len(some)
        rows.append((role, turn, document))
    T = max(len(role) for role, *_ in rows) + 1
    return [torch.tensor([row[k] + [fill] * (T - len(row[k])) for row in rows]) for k, fill in ((0, PAD), (1, 0), (2, 99))]


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
    assert rings(grid).tolist() == slow_rings(*grid)
    assert rings((24, 24)).max() + 1 == 12


@pytest.mark.parametrize("kind", sorted(CONCENTRIC))
def test_concentric_kinds_equal_a_slow_double_loop_in_every_row_of_the_batch(kind):
    g, ring = torch.Generator().manual_seed(2), slow_rings(*GRID)
    role, turn, document = with_pictures(g, 12)
    assert (role == IMAGE).any(1).sum() > 5
    mask, position = attention_mask(kind, role, turn, document, GRID), positions(kind, role, document, GRID)
    for b, T in enumerate([role.shape[1]] * len(role)):
        picture, nth, place, expected = [], [], 0, []
        for t in range(T):
            if t and document[b, t] != document[b, t - 1]:
                place = 0
            inside = role[b, t] == IMAGE
            nth.append((nth[-1] + 1) % 12 if inside and t and role[b, t - 1] == IMAGE else 0)
            picture.append((picture[-1] if picture else 0) + (inside and nth[-1] == 0))
            expected.append(place + (ring[nth[-1]] if inside else 0))
            place += (2 if nth[-1] == 11 else 0) if inside else 1
        assert position[b].tolist() == expected
        for i, j in itertools.product(range(T), range(T)):
            same_picture = role[b, i] == role[b, j] == IMAGE and picture[i] == picture[j]
            if same_picture and document[b, i] == document[b, j]:
                may = ring[nth[j]] <= ring[nth[i]]
            else:
                may = slow(kind, role[b].tolist(), turn[b].tolist(), document[b].tolist(), i, j)
            assert mask[b, 0, i, j] == may, (b, i, j)


def test_positions_are_those_of_the_paper():
    """24 x 24 image tokens take 12 positions: text goes on 12 after the picture's start."""
    role = torch.tensor([[TEXT] * 3 + [IMAGE] * 576 + [QUESTION] * 2 + [ANSWER]])
    at = positions("cca", role, grid=(24, 24))[0]
    assert at[:3].tolist() == [0, 1, 2] and at[-3:].tolist() == [15, 16, 17]
    assert at[3:579].min() == 3 and at[3:579].max() == 14
    for kind in PLAIN:
        assert positions(kind, role).tolist() == [list(range(582))]


def test_a_grid_that_does_not_fit_is_refused():
    role, _ = row("tVVVQ")
    for grid in (None, (2, 2)):
        with pytest.raises(ValueError, match="'cca' needs grid="):
            attention_mask("cca", role, grid=grid)


GOLDEN = {  # rows = queries; two pictures in two turns: t V V Q A V Q A -
    "causal": "100000000 110000000 111000000 111100000 111110000 111111000 111111100 111111110 111111111",
    "mma":    "100000000 110100000 111100000 111100000 111110000 111111100 111111100 111111110 111111111",
    "prefix": "100000000 111100000 111100000 111100000 111110000 111111100 111111100 111111110 111111111",
    "v2v":    "100000000 111000000 111000000 111100000 111110000 111111000 111111100 111111110 111111111",
    "f":      "100000000 111100000 111100000 111100000 111110000 111111100 111111100 111111110 111111111",
    "mutual": "100000000 110100000 111100000 111100000 111110000 111111100 111111100 111111110 111111111",
}
GOLDEN["v2t"] = GOLDEN["mma"]
GOLDEN["leaky"] = "100000000 110110000 111110000 111100000 111110000 111111110 111111100 111111110 111111111"


@pytest.mark.parametrize("kind", PLAIN)
def test_golden_picture(kind):
    role, turn = row("tVVQAVQA-", "011112220")
    assert " ".join("".join(str(int(x)) for x in r) for r in attention_mask(kind, role, turn)[0, 0]) == GOLDEN[kind]


def test_kinds_differ_where_they_should():
    """f and prefix, mma and mutual agree on the golden row; these rows tell them apart."""
    role, _ = row("tVQQA")
    assert (attention_mask("f", role) != attention_mask("prefix", role)).any()       # a question row reads the later question
    role, turn = row("tQVQA", "01111")
    assert (attention_mask("mma", role, turn) != attention_mask("mutual", role, turn)).any()  # text before the picture reads it


def test_only_the_rectangle_is_opened_and_pads_are_nobodys_key():
    role, turn = row("tVVVQQAA--", "0111111100")
    mask = attention_mask("mma", role, turn)[0, 0]
    opened = mask & ~attention_mask("causal", role, turn)[0, 0]
    assert opened.nonzero().tolist() == [[i, j] for i in (1, 2, 3) for j in (4, 5)]
    assert mask[:8, 8:].sum() == 0 and mask[9, 8] == 0 and mask[8, 8] and mask[9, 9]


def test_a_document_never_reads_another_not_even_through_the_rectangle():
    role = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4]])
    document = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    for kind in OPENS:
        grid = (1, 1)
        mask = attention_mask(kind, role, document=document, grid=grid)[0, 0]
        assert not mask[:4, 4:].any() and not mask[4:, :4].any()
        assert torch.equal(mask[:4, :4], mask[4:, 4:])
        assert torch.equal(mask[:4, :4], attention_mask(kind, role[:, :4], grid=grid)[0, 0])


def test_bad_input_says_what_is_allowed():
    role = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="causal.*mma"):
        attention_mask("mmma", role)
    with pytest.raises(ValueError, match="unknown mask kind"):
        attention_mask(["mma"], role)
    for bad in (role.float(), role.bool(), role[0], role[None], role.tolist(), None):
        with pytest.raises(ValueError, match=r"integer tensor of shape \[B, T\]"):
            attention_mask("mma", bad)
    with pytest.raises(ValueError, match="turn must have role's shape"):
        attention_mask("mma", role, turn=role[:, :4])
    with pytest.raises(ValueError, match="document must be an integer"):
        attention_mask("mma", role, document=role.float())
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        leaks(attention_mask("mma", role).long(), role)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        leaks(attention_mask("mma", role)[:, :, :4], role)


def slow_leaks(mask, role, document):
    B, T = role.shape
    out = torch.zeros(B, T, dtype=torch.bool)
    for b in range(B):
        for t in range(1, T):
            if role[b, t] != ANSWER or document[b, t] != document[b, t - 1]:
                continue
            seen, todo = set(), [t - 1]
            while todo:
                i = todo.pop()
                if i not in seen:
                    seen.add(i)
                    todo += mask[b, 0, i].nonzero()[:, 0].tolist()
            out[b, t] = max(seen) >= t
    return out


def test_leaks_equals_a_walk_over_the_graph():
    g = torch.Generator().manual_seed(1)
    found = 0
    for trial in range(20):
        role = torch.randint(5, (4, 13), generator=g)
        document = torch.randint(2, (4, 13), generator=g).sort(1).values
        sparse = torch.rand(4, 1, 13, 13, generator=g) < .12
        for mask in (sparse, sparse.tril(), attention_mask("f", role), attention_mask("mma", role, document=document)):
            expected = slow_leaks(mask, role, document)
            found += int(expected.sum())
            assert torch.equal(leaks(mask, role, document), expected)
    assert found > 100


# [BOS, image, q1, a1, q2, a2], METHODS section 6. The last two ways are no kinds: what goes wrong without turns.
DIALOGUE, TURNS = "tVVQQAAttAA", "01111112222"
Q1, A1, Q2, A2 = (3, 4), (5, 6), (7, 8), (9, 10)
NO_LEAK = {"causal": (False,) * 4, "cca": (False,) * 4, "v2v": (False,) * 4,
           "mma+cca": (True, False, False, False), "mma": (True, False, False, False), "f": (True, False, False, False),
           "prefix": (True, False, False, False), "mutual": (True, False, False, False)}
LEAK_TABLE = {**{(kind, "own turn"): v for kind, v in NO_LEAK.items()},
              ("mma", "every user turn"): (True, True, True, False),
              ("all later text", "every user turn"): (True, True, True, True)}


def layout(kind, reach, monkeypatch):
    """role, turn and kind of a row of the leak table."""
    role, turn = row(DIALOGUE, TURNS)
    if reach == "every user turn":
        turn = None
        role[:, list(Q2)] = int(QUESTION)
    if kind == "all later text":
        monkeypatch.setitem(OPENS, kind, lambda q, k: (q == IMAGE) & (k != IMAGE) & (k != PAD))
    return role, turn


@pytest.mark.parametrize("kind,reach", list(LEAK_TABLE))
def test_leak_table(kind, reach, monkeypatch):
    q1, a1_q2, a1_a1, a2 = LEAK_TABLE[kind, reach]
    role, turn = layout(kind, reach, monkeypatch)
    mask = attention_mask(kind, role, turn, grid=(1, 2))
    assert leaks(mask, role)[0, list(A1)].any() == (a1_q2 or a1_a1)
    assert leaks(mask, role)[0, list(A2)].any() == a2
    question_supervised = role.clone()
    question_supervised[:, list(Q1)] = int(ANSWER)
    assert leaks(mask, question_supervised)[0, Q1[-1]] == q1
    assert not leaks(mask, role)[role != ANSWER].any()


def test_no_kind_leaks_on_dialogues_of_several_turns_pictures_and_documents():
    role, turn = row("tVVQQAAttAVVQVVQAA--", "01111112223333333300")
    packed = torch.cat([role, role], 1)
    document = torch.tensor([[0] * 18 + [1] * 22])
    for kind in OPENS:
        alone = leaks(attention_mask(kind, role, turn, grid=(1, 2)), role)
        together = leaks(attention_mask(kind, packed, torch.cat([turn, turn], 1), document, (1, 2)), packed, document)
        assert alone.any() == together.any() == (kind == "leaky"), kind


@pytest.mark.parametrize("shape", [(2, 1), (0, 5), (2, 0)])
def test_the_smallest_shapes(shape):
    role = torch.full(shape, int(ANSWER))
    for kind in OPENS:
        mask = attention_mask(kind, role, grid=(1, 1))
        assert mask.shape == (shape[0], 1, shape[1], shape[1]) and leaks(mask, role).shape == shape


def test_the_first_token_of_a_document_is_not_supervised():
    role, document = torch.tensor([[4, 4, 4, 4]]), torch.tensor([[0, 0, 1, 1]])
    assert supervised(role).tolist() == [[False, True, True, True]]
    assert supervised(role, document).tolist() == [[False, True, False, True]]


def test_drawing(tmp_path, monkeypatch):
    assert "V # # . . . . . . . . O O . ." in mma.draw("mma") and "O" not in mma.draw("causal")
    mma.write_png(tmp_path / "masks.png")
    from PIL import Image
    image = Image.open(tmp_path / "masks.png")
    assert image.width >= image.height and len(image.getcolors()) > 3
    assert [kind for kind in OPENS if "LEAKS" in mma.verdict(kind)] == ["leaky"]
    needs_turns = {kind for kind in OPENS if "as one turn it would" in mma.verdict(kind)}
    assert needs_turns == set(OPENS) - {"causal", "cca", "leaky"}
    monkeypatch.setitem(OPENS, "mine", lambda q, k: (q == IMAGE) & (k == ANSWER))
    assert "LEAKS" in mma.verdict("mine") and "O" in mma.draw("mine")
