"""The mask against a slow double loop, and the leaks against the closure of a mask."""

import itertools
import runpy

import pytest
import torch
from helpers import KINDS, OPENS, ROOT, opens, opens_answers, reach, row
from torch.nn.attention.flex_attention import create_mask

import mma
from mma import ANSWER, EXTRA_PAIRS, IMAGE, PAD, attention_mask, leaks, positions


def random_rows(g, B: int, T: int):
    """role, turn, document, int64 [B, T]: anything next to anything, but documents in a row."""
    role, turn = (torch.randint(n, (B, T), generator=g) for n in (5, 3))
    return role, turn, torch.randint(3, (B, T), generator=g).sort(1).values


def may_read(kind, i, j) -> bool:
    """May a token read another one? Each is its role, turn, document and place in the order. Itself
    always; a pad or another document never; else what came before, and of what comes later what the
    kind opens, within one turn."""
    if i == j:
        return True
    if j[0] == PAD or i[2] != j[2]:
        return False
    return j[3] < i[3] or (i[1] == j[1] and opens(kind, i[0], j[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_the_double_loop(kind):
    """Of any integers, in any order, with turns and documents told apart and as one; and so is the
    rule, one query and one key at a time, as FlexAttention calls it."""
    g, B = torch.Generator().manual_seed(5), 3
    for T, dtype in ((1, torch.int64), (2, torch.int32), (14, torch.uint8), (20, torch.int64)):
        role, turn, document = (x.to(dtype) for x in random_rows(g, B, T))
        document = document[:, torch.randperm(T, generator=g)]
        mixed = torch.stack([torch.randperm(T, generator=g) for _ in range(B)])
        one, column = torch.zeros_like(role), torch.arange(T).expand(B, T)
        for given in ((one, one, column), (one, document, mixed), (turn, document, mixed)):
            mask = attention_mask(kind, role, *given)
            rows = zip(*(x.tolist() for x in (role, *given)))
            tokens = ([*zip(*row)] for row in rows)
            slow = [[[[may_read(kind, i, j) for j in row] for i in row]] for row in tokens]
            assert mask.dtype == torch.bool and mask.tolist() == slow
        assert create_mask(mma.mask_mod(kind, role, *given), B, 1, T, T, "cpu").equal(mask)
        default = attention_mask(kind, role, one)  # one document, in the order of the columns
        assert default.equal(attention_mask(kind, role, one, one, column))


def test_positions_restart_at_each_document():
    role, _, document = random_rows(torch.Generator().manual_seed(4), 8, 30)
    slow = [[row[:t].count(d) for t, d in enumerate(row)] for row in document.tolist()]
    assert positions(role, document).tolist() == slow
    assert positions(role).tolist() == [list(range(30))]


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


ROLE = torch.ones(2, 5, dtype=torch.int64)


@pytest.mark.parametrize("given, message", [
    *((dict(mask=bad), "unknown mask .*mma.*; allowed: causal, mma") for bad in ("mmma", ["mma"])),
    *((dict(role=bad), r"integer tensor of shape \[B, T\]")
      for bad in (ROLE.float(), ROLE.bool(), ROLE[0], ROLE[None], ROLE.tolist(), None)),
    *(({name: bad}, f"{name} must ") for name in ("turn", "document", "order")
      for bad in (ROLE[:, :4], ROLE.float())),
])  # fmt: skip
def test_bad_input_says_what_is_allowed(given, message):
    with pytest.raises(ValueError, match=message):
        attention_mask(**{"mask": "mma", "role": ROLE, **given})


# --- Leaks


def slow_leaks(mask, role, document):
    """By the transitive closure of the mask."""
    B, T = role.shape
    reached, out = reach(mask, T), torch.zeros(B, T, dtype=torch.bool)
    for b, t in itertools.product(range(B), range(1, T)):
        if role[b, t] == ANSWER and document[b, t] == document[b, t - 1]:
            out[b, t] = reached[b, t - 1, t:].any()
    return out


def test_leaks_is_the_transitive_closure():
    g, found = torch.Generator().manual_seed(1), 0
    for B, T in [(2, 0), (0, 5), (4, 1), (4, 2), (4, 13)] + 20 * [(4, 23)]:
        role, turn, document = random_rows(g, B, T)
        one, p = torch.zeros_like(role), torch.rand(B, 1, T, T, generator=g)
        kinds = (attention_mask(kind, role, turn, document) for kind in KINDS)
        more = attention_mask("f", role, one), attention_mask("mma", role, one, document)
        for mask in (p < 0.06, (p < 0.12).tril(), *more, *kinds):
            expected = slow_leaks(mask, role, document)
            found += int(expected.sum())
            assert torch.equal(leaks(mask, role, document), expected)
    assert found > 400
    for bad in (mask.long(), mask[:, :, :4]):
        with pytest.raises(ValueError, match="mask must be a bool tensor"):
            leaks(bad, role)


def test_leaks_ends_soon(monkeypatch):
    """A round for each layer that is needed, and one to see that nothing has changed."""
    rounds, where = [], torch.where
    monkeypatch.setattr(torch, "where", lambda *args: rounds.append(1) or where(*args))
    role = row("tVVVQQQVVVQQAAAAAAAA")[0]
    for kind in OPENS:
        rounds.clear()
        assert leaks(attention_mask(kind, role), role).any() == opens_answers(kind)
        assert len(rounds) <= 4


# --- Drawing


def test_the_command_draws_every_mask_and_says_which_leaks(capsys, monkeypatch):
    needs_turns = {kind for kind in OPENS if "as one turn it would" in mma.verdict(kind)}
    assert [kind for kind in OPENS if "LEAKS" in mma.verdict(kind)] == ["leaky"]
    assert needs_turns == set(OPENS) - {"causal", "leaky"}
    monkeypatch.setitem(EXTRA_PAIRS, "mine", lambda q, k: (q == IMAGE) & (k == ANSWER))
    assert "LEAKS" in mma.verdict("mine")
    runpy.run_path(str(ROOT / "mma.py"), run_name="__main__")
    drawn = dict(zip(KINDS, capsys.readouterr().out.split("\n\n")[1:]))
    assert "V # # . . . . . . . . O O . ." in drawn["mma"] and "O" not in drawn["causal"]
    for kind, text in drawn.items():
        assert text.startswith(f"{kind}: {mma.verdict(kind)}\n")
