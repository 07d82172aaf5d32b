"""Modality-Mutual Attention (MMA, arXiv 2503.02597): the rule, the mask, the leak check.

    python mma.py       draw every mask in the terminal, with whether it leaks labels

In a decoder-only multimodal LLM the picture comes before the question, so under a causal mask the
image tokens never learn what was asked. MMA opens one rectangle of the mask: image rows may read
the question's columns. No parameters, no new positions; this file is the whole method.

Shapes:  B rows of a batch   T tokens of a row   i, j query (row) and key (column), 0 <= i, j < T
"""

import signal
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor


class Role(IntEnum):
    """What a token is. The roles of a row decide its mask and its labels."""

    PAD = 0  # fills a row up to the length of its batch
    TEXT = 1  # anything not below: begin-of-sequence, system text, messages without a picture
    IMAGE = 2  # one token of a picture
    QUESTION = 3  # user text of the turn a picture arrived in, with the token that opens the answer
    ANSWER = 4  # what the model has to produce, with end-of-sequence: the supervised tokens


PAD, TEXT, IMAGE, QUESTION, ANSWER = map(int, Role)


def mma(role_i: Tensor, role_j: Tensor) -> Tensor:
    """The rectangle that MMA opens: may a query of role_i read a later key of role_j?"""
    return (role_i == IMAGE) & (role_j == QUESTION)


def attention_mask(mask, role, turn=None, document=None, order=None) -> Tensor:
    """Who may read whom: bool [B, 1, T, T] for scaled_dot_product_attention, True = may.

    mask: a name in EXTRA_PAIRS. role, turn, document: integer tensors [B, T]. `role` holds `Role`
    values; `turn` counts the user messages of a dialogue (default: one turn); `document` tells
    packed dialogues apart (default: one). order: what "later" compares (default: the column).
    Raises ValueError on an unknown mask, a wrong dtype or shape, or several turns without `turn`.
    """
    may_read = mask_mod(mask, role, turn, document, order)
    B, T = role.shape
    row, column = (torch.arange(n, device=role.device) for n in (B, T))
    return may_read(row[:, None, None, None], 0, column[:, None], column)


def mask_mod(mask, role, turn=None, document=None, order=None):
    """The rule of attention_mask as a closure for torch.nn.attention.flex_attention: may the query
    at column q of row b read the key at column k? Head h does not matter. For long rows on a GPU:
    block_mask = create_block_mask(mask_mod("mma", role, turn), B, None, T, T)"""
    _check(mask, role=role, turn=turn, document=document, order=order)
    if turn is None and _answered_before(role, document)[role == QUESTION].any():
        raise ValueError("a row has several questions, and no `turn` that tells them apart: its "
                         "picture would read a later turn's question")  # fmt: skip
    turn, document = (torch.zeros_like(role) if x is None else x for x in (turn, document))

    def may_read(b, h, q, k):
        i, j = (q, k) if order is None else (order[b, q], order[b, k])
        opened = EXTRA_PAIRS[mask](role[b, q], role[b, k]) & (turn[b, q] == turn[b, k])
        readable = ((j <= i) | opened) & (document[b, q] == document[b, k]) & (role[b, k] != PAD)
        return readable | (q == k)  # so that no row of a softmax is empty

    return may_read


_prompt = lambda role: (role == IMAGE) | (role == QUESTION)
_may_open = lambda role: (role != ANSWER) & (role != PAD)

# What each mask opens beyond the causal one, elementwise over the roles of query (q) and key (k)
# and within one turn: a KV cache encodes a picture before the later turns exist. A mask of your own
# is one line here; one that opens answers leaks their labels, which `leaks` finds out.
EXTRA_PAIRS = {
    "causal": lambda q, k: torch.zeros_like(q == k),  # nothing
    "mma": mma,  # Modality-Mutual Attention; FutureMask's v2t (2505.18605), limited to questions
    "prefix": lambda q, k: _prompt(q) & _prompt(k),  # PaliGemma
    "v2v": lambda q, k: (q == IMAGE) & (k == IMAGE),  # Gemma-3-like; FutureMask's v2v
    "f": lambda q, k: (q == IMAGE) & _prompt(k),  # FutureMask's f, the union of v2v and mma
    "mutual": lambda q, k: ((q == IMAGE) != (k == IMAGE)) & _may_open(q) & _may_open(k),  # two-way
    "leaky": lambda q, k: (q == IMAGE) & (k != IMAGE),  # a lesson, no method: reads the answer, too
}


def _starts(role: Tensor, document: Tensor | None) -> Tensor:
    """bool [B or 1, T]: the first token of each document, whose tokens stand together."""
    if document is None:
        return torch.arange(role.shape[1], device=role.device)[None] == 0
    return F.pad(document[:, 1:] != document[:, :-1], (1, 0), value=True)


def _answered_before(role: Tensor, document: Tensor | None) -> Tensor:
    """bool [B, T]: does an answer of the same document come before the token?"""
    before = (role == ANSWER).cumsum(1) - (role == ANSWER).long()  # in the row
    return before > (before * _starts(role, document)).cummax(1).values


def _check(mask, **tensors) -> None:
    if not isinstance(mask, str) or mask not in EXTRA_PAIRS:
        raise ValueError(f"unknown mask {mask!r}; allowed: {', '.join(EXTRA_PAIRS)}")
    for name, t in tensors.items():
        if t is None and name != "role":
            continue
        got = f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        if not got.startswith(("torch.int", "torch.uint")) or t.dim() != 2:
            raise ValueError(f"{name} must be an integer tensor of shape [B, T], got {got}")
        if t.shape != tensors["role"].shape:
            raise ValueError(f"{name} must have role's shape {[*tensors['role'].shape]}, got {got}")


# --- Positions and labels


def positions(role: Tensor, document: Tensor | None = None) -> Tensor:
    """Position of each token, int64, for RoPE: 0, 1, 2, ..., from 0 again at each document, whose
    tokens stand together. [1, T] without `document`, else [B, T]. MMA does not move them."""
    column = torch.arange(role.shape[1], device=role.device)[None]
    if document is None:
        return column
    return column - (column * _starts(role, document)).cummax(1).values


def supervised(role: Tensor, document: Tensor | None = None) -> Tensor:
    """bool [B, T]: the tokens the loss is taken on. An answer token t is predicted from row t-1,
    so it needs a predecessor in its own document."""
    return (role == ANSWER) & ~_starts(role, document)


def leaks(mask: Tensor, role: Tensor, document: Tensor | None = None) -> Tensor:
    """Which labels can be read instead of predicted? bool [B, T]: True at every supervised token t
    whose predicting row t-1 reaches a column >= t, by one layer of the mask after the other.
    mask: bool [B, 1, T, T], as `attention_mask` returns it; else ValueError."""
    _check("causal", role=role, document=document)
    B, T = role.shape
    got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    if got != f"torch.bool {[B, 1, T, T]}":
        raise ValueError(f"mask must be a bool tensor [B, 1, T, T] = {[B, 1, T, T]}, got {got}")
    column = torch.arange(T, device=mask.device)
    reached, reaches = None, column.expand(B, T)  # the last column that each row reaches, so far
    while T and (reached is None or not torch.equal(reached, reaches)):
        reached = reaches  # one layer more: what any row that it reads reaches
        reaches = torch.where(mask[:, 0], reached[:, None, :], column[:, None]).amax(-1)
    ahead = reaches > column  # [B, T]: row t reaches a column > t
    return supervised(role, document) & ahead.roll(1, 1)  # what row t-1 predicts is token t


# --- Drawing in the terminal

LETTER = {PAD: "-", TEXT: "t", IMAGE: "V", QUESTION: "Q", ANSWER: "A"}
# A picture with its question and answer, another one, a turn without a picture, a pad
EXAMPLE = "tVVVVVVVVVQQAAVVVVVVVVVQAttA-"
EXAMPLE_TURN = "01111111111111222222222223330"


def example() -> tuple[Tensor, Tensor]:
    """The row that is drawn: role and turn, int64 [1, T]."""
    role = [list(LETTER.values()).index(letter) for letter in EXAMPLE]
    return torch.tensor([role]), torch.tensor([[int(turn) for turn in EXAMPLE_TURN]])


def verdict(mask: str) -> str:
    """One line: whether `mask` leaks labels on the example, with turns told apart and without."""
    role, turn = example()
    if leaks(attention_mask(mask, role, turn), role).any():
        return "LEAKS labels"
    if leaks(attention_mask(mask, role, torch.zeros_like(turn)), role).any():
        return "leaks no label, if `turn` tells the turns apart (as one turn it would)"
    return "leaks no label"


def draw(attention_mask: Tensor) -> str:
    """A mask [1, 1, T, T] of the example: '#' reads the past, 'O' opened, '.' blocked."""
    lines = ["  " + " ".join(EXAMPLE)]
    for i, row in enumerate(attention_mask[0, 0].tolist()):
        cells = ("#O"[j > i] if may else "." for j, may in enumerate(row))
        lines.append(" ".join([EXAMPLE[i], *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # so that `| head` ends it without a traceback
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print("rows = queries, columns = keys    t text  V image  Q question  A answer  - pad")
    print("# reads the past    O opened: reads a later token    . blocked\n")
    for mask in EXTRA_PAIRS:
        print(f"{mask}: {verdict(mask)}\n{draw(attention_mask(mask, *example()))}\n")
