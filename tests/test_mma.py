"""The mask against a slow double loop, golden pictures, and the leak table."""

import itertools
import runpy

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention
from helpers import (
    A1,
    A2,
    KINDS,
    LEAK_TABLE,
    OPENS,
    Q1,
    ROOT,
    assert_slow,
    leak_layout,
    row,
)

import mma
from mma import EXTRA_PAIRS, Role, attention_mask, leaks, positions, supervised

PAD, TEXT, IMAGE, QUESTION, ANSWER = Role


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["neither", "turn", "document", "both"])
def test_mask_equals_a_slow_double_loop(kind, given):
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        B, T = 6, 17
        role = torch.randint(5, (B, T), generator=g).to(dtype)
        turn = torch.randint(3, (B, T), generator=g).to(dtype)
        document = torch.randint(2, (B, T), generator=g).sort(1).values.to(dtype)
        turn = turn if given in ("turn", "both") else None
        assert_slow(kind, role, turn, document if given in ("document", "both") else None)


def random_layout(g, T: int):
    """role, turn, document, lists of T: documents of dialogues of turns, each with pictures and
    text in any order, and pads anywhere that carry the number of the document they stand in."""

    def upto(n):
        return int(torch.randint(n, (1,), generator=g))

    role, turn, document = [], [], []
    while len(role) < T:
        d, t = len(set(document)), 0
        for _ in range(1 + upto(3)):
            t += upto(2)
            for _ in range(1 + upto(4)):
                kind = (PAD, TEXT, IMAGE, IMAGE, QUESTION, ANSWER)[upto(6)]
                n = 3 if kind == IMAGE else 1 + upto(3)
                role, turn, document = role + [kind] * n, turn + [t] * n, document + [d] * n
    return role[:T], turn[:T], document[:T]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_of_dialogues_equals_a_slow_double_loop(kind):
    g, met = torch.Generator().manual_seed(7), 0
    for _ in range(12):
        layouts = [random_layout(g, 23) for _ in range(4)]
        role, turn, document = (torch.tensor(x) for x in zip(*layouts))
        pads = (role == PAD) & (document > 0) & (document < document[:, -1:])
        met += int(pads.sum())
        assert_slow(kind, role, turn, document)
    assert met > 20  # pads in the middle of a row, with a document's number


def test_a_pad_that_carries_a_documents_number_is_nobodys_key():
    role = torch.tensor([[TEXT, PAD, IMAGE, PAD, QUESTION, PAD, TEXT, PAD]])
    document = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1]])
    for kind in KINDS:
        mask = attention_mask(kind, role, document=document)[0, 0]
        keys = mask[:, role[0] == PAD].nonzero()
        assert keys.tolist() == [[1, 0], [3, 1], [5, 2], [7, 3]]  # but its own


def test_another_order_decides_what_is_later():
    g = torch.Generator().manual_seed(3)
    role, turn = torch.randint(5, (3, 11), generator=g), torch.zeros(3, 11, dtype=torch.int64)
    order = torch.stack([torch.randperm(11, generator=g) for _ in range(3)])
    sorted_roles = role.gather(1, order.argsort(1))
    for kind in KINDS:
        mask = attention_mask(kind, role, turn, order=order)
        plain = attention_mask(kind, sorted_roles, turn)
        at = order[:, None, :, None].expand(-1, 1, -1, 11)
        expected = plain.gather(2, at).gather(3, order[:, None, None].expand(-1, 1, 11, -1))
        assert torch.equal(mask, expected)


def test_positions_restart_at_each_document():
    g = torch.Generator().manual_seed(4)
    role = torch.ones(8, 30, dtype=torch.int64)
    document = torch.randint(4, (8, 30), generator=g).sort(1).values
    slow = [[row[:t].count(d) for t, d in enumerate(row)] for row in document.tolist()]
    assert positions(role, document).tolist() == slow
    assert positions(role).tolist() == [list(range(30))]


# --- The rule as a closure


@pytest.mark.parametrize("kind", KINDS)
def test_mask_mod_is_the_rule_for_flex_attention(kind):
    """One query and one key at a time, as FlexAttention calls it; and its blocks, on the CPU."""
    g, (B, T, size) = torch.Generator().manual_seed(5), (3, 32, 8)
    role, turn, document = map(torch.tensor, zip(*(random_layout(g, T) for _ in range(B))))
    order = torch.stack([torch.randperm(T, generator=g) for _ in range(B)])
    for given in ((turn,), (turn, document), (turn, document, order)):
        mask, may_read = attention_mask(kind, role, *given), mma.mask_mod(kind, role, *given)
        one_by_one = flex_attention.create_mask(may_read, B, 1, T, T, "cpu")
        assert torch.equal(one_by_one, mask)
        assert [may_read(1, 0, i, T - 5) for i in range(T)] == mask[1, 0, :, T - 5].tolist()
        blocks = flex_attention.create_block_mask(may_read, B, None, T, T, "cpu", size)
        expected = mask.view(B, 1, T // size, size, T // size, size).any(-1).any(3)
        assert torch.equal(blocks.to_dense().bool(), expected)


def test_several_questions_need_turns():
    """Else a picture would read a later turn's question. Packed dialogues of one question each do
    not, nor does one whose question goes on after a picture."""
    fine = ["tVVQQA-", "tVQVQA-", "tttVQA-", "-------"]
    several = torch.cat([row(letters)[0] for letters in (*fine, "tVQAQA-")])
    packed = torch.cat([several[:3], several[[1, 0, 2]]], 1)
    document = torch.arange(14).expand(3, 14) // 7
    zeros = torch.zeros_like(packed)
    for kind, rule in itertools.product(KINDS, (attention_mask, mma.mask_mod)):
        with pytest.raises(ValueError, match="a row has several questions"):
            rule(kind, several)
        with pytest.raises(ValueError, match="a row has several questions"):
            rule(kind, packed)
        rule(kind, several, turn=torch.zeros_like(several))
        rule(kind, several[:4])
        rule(kind, packed, document=document)
    for kind in KINDS:
        mask = attention_mask(kind, packed, document=document)
        assert torch.equal(mask, attention_mask(kind, packed, zeros, document))
        mask = attention_mask(kind, several[:4])
        assert torch.equal(mask, attention_mask(kind, several[:4], torch.zeros(4, 7).long()))


GOLDEN = {  # rows = queries; two pictures in two turns: t V V Q A V Q A -
    "causal": """100000000 110000000 111000000 111100000 111110000
                 111111000 111111100 111111110 111111111""",
    "mma": """100000000 110100000 111100000 111100000 111110000
              111111100 111111100 111111110 111111111""",
    "prefix": """100000000 111100000 111100000 111100000 111110000
                 111111100 111111100 111111110 111111111""",
    "v2v": """100000000 111000000 111000000 111100000 111110000
              111111000 111111100 111111110 111111111""",
    "f": """100000000 111100000 111100000 111100000 111110000
            111111100 111111100 111111110 111111111""",
    "mutual": """100000000 110100000 111100000 111100000 111110000
                 111111100 111111100 111111110 111111111""",
    "leaky": """100000000 110110000 111110000 111100000 111110000
                111111110 111111100 111111110 111111111""",
}


def test_every_kind_of_the_project_is_drawn():
    assert GOLDEN.keys() == OPENS.keys() <= set(KINDS)


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_picture(kind):
    mask = attention_mask(kind, *row("tVVQAVQA-", "011112220"))[0, 0]
    lines = ["".join(str(int(x)) for x in line) for line in mask]
    assert lines == GOLDEN[kind].split()


def test_kinds_differ_where_they_should():
    """f and prefix, mma and mutual agree on the golden row; these rows tell them apart."""
    role, _ = row("tVQQA")  # a question row reads the later question
    assert (attention_mask("f", role) != attention_mask("prefix", role)).any()
    role, turn = row("tQVQA", "01111")  # text before the picture reads it
    assert (attention_mask("mma", role, turn) != attention_mask("mutual", role, turn)).any()


def test_only_the_rectangle_is_opened_and_pads_are_nobodys_key():
    role, turn = row("tVVVQQAA--", "0111111100")
    mask = attention_mask("mma", role, turn)[0, 0]
    opened = mask & ~attention_mask("causal", role, turn)[0, 0]
    assert opened.nonzero().tolist() == [[i, j] for i in (1, 2, 3) for j in (4, 5)]
    assert mask[:8, 8:].sum() == 0 and mask[9, 8] == 0 and mask[8, 8] and mask[9, 9]


def test_a_document_never_reads_another_not_even_through_the_rectangle():
    role = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4]])
    document = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    for kind in KINDS:
        mask = attention_mask(kind, role, document=document)[0, 0]
        assert not mask[:4, 4:].any() and not mask[4:, :4].any()
        assert torch.equal(mask[:4, :4], mask[4:, 4:])
        assert torch.equal(mask[:4, :4], attention_mask(kind, role[:, :4])[0, 0])


def test_the_mask_is_bool_and_one_for_all_heads(batch_of, dialogues):
    batch = batch_of(dialogues)
    mask = attention_mask("mma", batch["role"], batch["turn"])
    assert mask.dtype == torch.bool and mask.shape[1] == 1


def test_bad_input_says_what_is_allowed():
    role = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="causal.*mma"):
        attention_mask("mmma", role)
    with pytest.raises(ValueError, match=r"unknown mask \['mma'\]"):
        attention_mask(["mma"], role)
    for bad in (role.float(), role.bool(), role[0], role[None], role.tolist(), None):
        with pytest.raises(ValueError, match=r"integer tensor of shape \[B, T\]"):
            attention_mask("mma", bad)
    with pytest.raises(ValueError, match="turn must have role's shape"):
        attention_mask("mma", role, turn=role[:, :4])
    with pytest.raises(ValueError, match="document must be an integer"):
        attention_mask("mma", role, document=role.float())
    with pytest.raises(ValueError, match="order must have role's shape"):
        attention_mask("mma", role, order=role[:, :4])
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        leaks(attention_mask("mma", role).long(), role)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        leaks(attention_mask("mma", role)[:, :, :4], role)


# --- Leaks


def slow_leaks(mask, role, document):
    """By the transitive closure of the mask: it is squared until it has as many hops as tokens."""
    T = role.shape[1]
    reached = mask[:, 0] | torch.eye(T, dtype=torch.bool)
    for _ in range(T.bit_length()):
        reached = (reached.float() @ reached.float()) > 0
    out = torch.zeros_like(role, dtype=torch.bool)
    for b, t in itertools.product(range(len(role)), range(1, T)):
        if role[b, t] == ANSWER and document[b, t] == document[b, t - 1]:
            out[b, t] = reached[b, t - 1, t:].any()
    return out


def test_leaks_is_the_transitive_closure():
    g, found = torch.Generator().manual_seed(1), 0
    for T in [1, 2, 13] + 20 * [23]:
        layouts = [random_layout(g, T) for _ in range(4)]
        role, turn, document = (torch.tensor(x) for x in zip(*layouts))
        one, p = torch.zeros_like(role), torch.rand(4, 1, T, T, generator=g)
        kinds = (attention_mask(kind, role, turn, document) for kind in KINDS)
        more = attention_mask("f", role, one), attention_mask("mma", role, one, document)
        for mask in (p < 0.06, (p < 0.12).tril(), *more, *kinds):
            expected = slow_leaks(mask, role, document)
            found += int(expected.sum())
            assert torch.equal(leaks(mask, role, document), expected)
    assert found > 400


def test_leaks_stops_soon(monkeypatch):
    """A round for each layer that is needed, and one to see that nothing has changed."""
    rounds, where, T = [], torch.where, 400
    monkeypatch.setattr(torch, "where", lambda *args: rounds.append(1) or where(*args))
    role, turn = row("tVVVQQQVVVQQAAAAAAAA" * 20)[0], torch.arange(T)[None] // 20
    for kind in OPENS:
        mask = attention_mask(kind, role, turn)
        rounds.clear()
        assert leaks(mask, role).any() == (kind == "leaky") and len(rounds) <= 4
    rounds.clear()  # the longest way there is: each token reads the next one
    next_one = torch.eye(T, dtype=torch.bool).roll(1, 1)[None, None]
    assert leaks(next_one, role)[0, role[0] == ANSWER].all() and len(rounds) <= T + 1


@pytest.mark.parametrize("kind,reach", list(LEAK_TABLE))
def test_leak_table(kind, reach, monkeypatch):
    q1, a1_q2, a1_a1, a2 = LEAK_TABLE[kind, reach]
    role, turn = leak_layout(kind, reach, monkeypatch)
    mask = attention_mask(kind, role, turn)
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
    for kind in KINDS:
        alone = leaks(attention_mask(kind, role, turn), role)
        mask = attention_mask(kind, packed, torch.cat([turn, turn], 1), document)
        together = leaks(mask, packed, document)
        expected = slow_leaks(mask, packed, document)
        assert torch.equal(together, expected) and alone.any() == together.any(), kind
        assert kind not in OPENS or alone.any() == (kind == "leaky"), kind


@pytest.mark.parametrize("shape", [(2, 1), (0, 5), (2, 0)])
def test_the_smallest_shapes(shape):
    role = torch.full(shape, int(ANSWER))
    for kind in KINDS:
        mask = attention_mask(kind, role)
        assert mask.shape == (shape[0], 1, shape[1], shape[1])
        assert leaks(mask, role).shape == shape


def test_the_first_token_of_a_document_is_not_supervised():
    role, document = torch.tensor([[4, 4, 4, 4]]), torch.tensor([[0, 0, 1, 1]])
    assert supervised(role).tolist() == [[False, True, True, True]]
    assert supervised(role, document).tolist() == [[False, True, False, True]]


# --- Drawing


def test_drawing(monkeypatch):
    def drawn(kind):
        return mma.draw(attention_mask(kind, *mma.example()))

    assert "V # # . . . . . . . . O O . ." in drawn("mma") and "O" not in drawn("causal")
    assert [kind for kind in OPENS if "LEAKS" in mma.verdict(kind)] == ["leaky"]
    needs_turns = {kind for kind in OPENS if "as one turn it would" in mma.verdict(kind)}
    assert needs_turns == set(OPENS) - {"causal", "leaky"}
    monkeypatch.setitem(EXTRA_PAIRS, "mine", lambda q, k: (q == IMAGE) & (k == ANSWER))
    assert "LEAKS" in mma.verdict("mine") and "O" in drawn("mine")


def test_the_command_draws_every_mask(capsys):
    runpy.run_path(str(ROOT / "mma.py"), run_name="__main__")
    out = capsys.readouterr().out
    for kind in KINDS:
        assert f"\n{kind}: {mma.verdict(kind)}\n" in out
