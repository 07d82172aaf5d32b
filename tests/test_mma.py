"""The mask against a slow double loop, and the leaks against the closure of a mask."""

import itertools
import runpy

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention
from helpers import KINDS, OPENS, ROOT, opens, opens_answers, row
from hypothesis import strategies as st
from properties import for_all, tries

import mma
from mma import EXTRA_PAIRS, Role, attention_mask, leaks, positions

PAD, TEXT, IMAGE, QUESTION, ANSWER = Role


def random_rows(g, B: int, T: int):
    """role, turn, document, int64 [B, T]: anything next to anything."""
    role, turn = (torch.randint(n, (B, T), generator=g) for n in (5, 3))
    return role, turn, torch.randint(3, (B, T), generator=g).sort(1).values


@st.composite
def layouts(draw, most: int = 14):
    """role, turn, document, int64 [2, T]: anything next to anything, pads with whatever numbers;
    often pads on the left, on the right, or both, and documents one after the other."""
    T = draw(st.integers(1, most))
    roles, numbers = st.sampled_from([int(role) for role in Role]), st.integers(0, 2)
    rows = []
    for _ in range(2):
        role, turn, document = (
            draw(st.lists(cell, min_size=T, max_size=T)) for cell in (roles, numbers, numbers)
        )
        left, right = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        for t in [*range(left), *range(T - right, T)]:
            role[t % T] = int(Role.PAD)
        rows.append((role, turn, sorted(document) if draw(st.booleans()) else document))
    return tuple(torch.tensor(x) for x in zip(*rows))


def slow_mask(kind, role, turn, document, order) -> list[list[bool]]:
    """May i read j? Itself always; a pad or another document never; else what came before, and of
    what comes later what the kind opens, within one turn. All but the kind: lists."""

    def may(i, j):
        if i == j:
            return True
        if role[j] == PAD or document[i] != document[j]:
            return False
        return order[j] < order[i] or (turn[i] == turn[j] and opens(kind, role[i], role[j]))

    return [[may(i, j) for j in range(len(role))] for i in range(len(role))]


@tries(60, 3000)
def test_the_mask_is_the_double_loop(n):
    """Of any integers, in any order, with turns and documents told apart and as one."""
    dtypes = st.sampled_from((torch.int64, torch.int32, torch.uint8))

    def check(layout, dtype, one_turn, one_document, seed):
        role, turn, document = (x.to(dtype) for x in layout)
        turn, document = turn * (not one_turn), document * (not one_document)
        g, (B, T) = torch.Generator().manual_seed(seed), role.shape
        column, mixed = (
            torch.arange(T).expand(B, T),
            torch.stack([torch.randperm(T, generator=g) for _ in role]),
        )
        for kind, order in itertools.product(KINDS, (column, mixed)):
            mask = attention_mask(kind, role, turn, document, order)
            rows = zip(*(x.tolist() for x in (role, turn, document, order)))
            slow = [[slow_mask(kind, *row)] for row in rows]
            assert mask.dtype == torch.bool and mask.tolist() == slow, kind
            if order is column:
                assert attention_mask(kind, role, turn, document).equal(mask)
                assert not one_document or attention_mask(kind, role, turn).equal(mask)

    for_all(
        check, n, layout=layouts(), dtype=dtypes, one_turn=st.booleans(),
        one_document=st.booleans(), seed=st.integers(0, 2**32),
    )  # fmt: skip


def test_positions_restart_at_each_document():
    role, _, document = random_rows(torch.Generator().manual_seed(4), 8, 30)
    slow = [[row[:t].count(d) for t, d in enumerate(row)] for row in document.tolist()]
    assert positions(role, document).tolist() == slow
    assert positions(role).tolist() == [list(range(30))]


@pytest.mark.parametrize("kind", KINDS)
def test_mask_mod_is_the_rule_one_query_and_one_key_at_a_time(kind):
    """As FlexAttention calls it."""
    g, (B, T) = torch.Generator().manual_seed(5), (3, 32)
    role, turn, document = random_rows(g, B, T)
    order = torch.stack([torch.randperm(T, generator=g) for _ in range(B)])
    for given in ((turn,), (turn, document), (turn, document, order)):
        mask, may_read = attention_mask(kind, role, *given), mma.mask_mod(kind, role, *given)
        assert torch.equal(flex_attention.create_mask(may_read, B, 1, T, T, "cpu"), mask)
        assert [may_read(1, 0, i, T - 5) for i in range(T)] == mask[1, 0, :, T - 5].tolist()


def test_several_questions_need_turns():
    """Else a picture would read a later turn's question. Packed dialogues of one question each do
    not, nor does one whose question goes on after a picture."""
    fine = ["tVVQQA-", "tVQVQA-", "tttVQA-", "-------"]
    several = torch.cat([row(letters)[0] for letters in (*fine, "tVQAQA-")])
    packed = torch.cat([several[:3], several[[1, 0, 2]]], 1)
    document = torch.arange(14).expand(3, 14) // 7
    for kind, rule in itertools.product(KINDS, (attention_mask, mma.mask_mod)):
        for rows in (several, packed):
            with pytest.raises(ValueError, match="a row has several questions"):
                rule(kind, rows)
        rule(kind, several, turn=torch.zeros_like(several))
        rule(kind, several[:4])
        rule(kind, packed, document=document)


def test_bad_input_says_what_is_allowed():
    role = torch.ones(2, 5, dtype=torch.int64)
    for name in ("mmma", ["mma"]):
        with pytest.raises(ValueError, match="unknown mask .*mma.*; allowed: causal, mma"):
            attention_mask(name, role)
    for bad in (role.float(), role.bool(), role[0], role[None], role.tolist(), None):
        with pytest.raises(ValueError, match=r"integer tensor of shape \[B, T\]"):
            attention_mask("mma", bad)
    for name, bad in (("turn", role[:, :4]), ("document", role.float()), ("order", role[:, :4])):
        with pytest.raises(ValueError, match=f"{name} must "):
            attention_mask("mma", role, **{name: bad})
    mask = attention_mask("mma", role)
    for bad in (mask.long(), mask[:, :, :4]):
        with pytest.raises(ValueError, match="mask must be a bool tensor"):
            leaks(bad, role)


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
        role, turn, document = random_rows(g, 4, T)
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
        assert leaks(mask, role).any() == opens_answers(kind) and len(rounds) <= 4
    rounds.clear()  # the longest way there is: each token reads the next one
    next_one = torch.eye(T, dtype=torch.bool).roll(1, 1)[None, None]
    assert leaks(next_one, role)[0, role[0] == ANSWER].all() and len(rounds) <= T + 1


@pytest.mark.parametrize("shape", [(2, 1), (0, 5), (2, 0)])
def test_the_smallest_shapes(shape):
    role = torch.full(shape, int(ANSWER))
    for kind in KINDS:
        mask = attention_mask(kind, role)
        assert mask.shape == (shape[0], 1, shape[1], shape[1])
        assert leaks(mask, role).shape == shape


# --- Drawing


def test_the_command_draws_every_mask_and_says_which_leaks(capsys, monkeypatch):
    needs_turns = {kind for kind in OPENS if "as one turn it would" in mma.verdict(kind)}
    assert [kind for kind in OPENS if "LEAKS" in mma.verdict(kind)] == ["leaky"]
    assert needs_turns == set(OPENS) - {"causal", "leaky"}
    monkeypatch.setitem(EXTRA_PAIRS, "mine", lambda q, k: (q == IMAGE) & (k == ANSWER))
    assert "LEAKS" in mma.verdict("mine")
    runpy.run_path(str(ROOT / "mma.py"), run_name="__main__")
    drawn = dict(zip(KINDS, capsys.readouterr().out.split("\n\n")[1:]))
    for kind, text in drawn.items():
        assert text.startswith(f"{kind}: {mma.verdict(kind)}\n")
    assert "V # # . . . . . . . . O O . ." in drawn["mma"] and "O" not in drawn["causal"]
