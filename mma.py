"""Modality-Mutual Attention (MMA, arXiv 2503.02597): the rule, the mask, the leak check.

    python mma.py       draw every mask in the terminal, with whether it leaks labels

In a decoder-only multimodal LLM the picture comes before the question, so under a causal mask the
image tokens never learn what was asked. MMA opens one rectangle of the mask: image rows may read
the question's columns. No parameters, no new positions; this file is the whole method.

Shapes:  B rows of a batch   T tokens of a row   i, j query (row) and key (column), 0 <= i, j < T
"""

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


def attention_mask(kind, role, turn=None, document=None, order=None) -> Tensor:
    """Who may read whom: a bool mask [B, 1, T, T] for scaled_dot_product_attention, True = may.

    kind: a name in EXTRA_PAIRS. role, turn, document: integer tensors [B, T]. `role` holds `Role`
    values; `turn` counts the user messages of a dialogue (default: one turn); `document` tells
    packed dialogues apart (default: one). order: what "later" compares (default: the column).
    Raises ValueError on an unknown kind, a wrong dtype or a wrong shape.
    """
    _check(kind, role=role, turn=turn, document=document, order=order)
    column = torch.arange(role.shape[1], device=role.device)[None]
    i, j = _pairs(column if order is None else order)
    role_i, role_j = _pairs(role)
    turn_i, turn_j = _pairs(torch.zeros_like(role) if turn is None else turn)
    document_i, document_j = _pairs(torch.zeros_like(role) if document is None else document)

    opened = EXTRA_PAIRS[kind](role_i, role_j) & (turn_i == turn_j)
    readable = ((j <= i) | opened) & (document_i == document_j) & (role_j != PAD)

    itself = column[:, :, None] == column[:, None, :]  # so that no row of a softmax is empty
    return (readable | itself)[:, None]


# What each kind opens beyond the causal mask, elementwise over the roles of query (q) and key (k)
# and within one turn: a KV cache encodes a picture before the later turns exist. A mask of your own
# is one line here; one that opens answers leaks their labels, which `leaks` finds out.
EXTRA_PAIRS = {
    "causal": lambda q, k: torch.zeros_like(q == k),  # nothing
    "mma": mma,  # Modality-Mutual Attention; FutureMask's v2t (2505.18605), limited to questions
    "prefix": lambda q, k: _prompt(q) & _prompt(k),  # PaliGemma
    "v2v": lambda q, k: (q == IMAGE) & (k == IMAGE),  # Gemma-3-like; FutureMask's v2v
    "f": lambda q, k: (q == IMAGE) & _prompt(k),  # FutureMask's f, the union of v2v and mma
    "mutual": lambda q, k: ((q == IMAGE) != (k == IMAGE)) & _may_open(q) & _may_open(k),  # two-way
}


def _prompt(role):
    return (role == IMAGE) | (role == QUESTION)


def _may_open(role):
    return (role != ANSWER) & (role != PAD)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T] -> the value of the query [B, T, 1] and of the key [B, 1, T] of every pair."""
    return x[:, :, None], x[:, None, :]


def _check(kind, **tensors) -> None:
    if not isinstance(kind, str) or kind not in EXTRA_PAIRS:
        raise ValueError(f"unknown mask kind {kind!r}; allowed: {', '.join(EXTRA_PAIRS)}")
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
    first = F.pad(document[:, 1:] != document[:, :-1], (1, 0))
    return column - (column * first).cummax(1).values


def supervised(role: Tensor, document: Tensor | None = None) -> Tensor:
    """bool [B, T]: the tokens the loss is taken on. An answer token t is predicted from row t-1,
    so it needs a predecessor in its own document."""
    has_predecessor = torch.zeros_like(role, dtype=torch.bool)
    has_predecessor[:, 1:] = True if document is None else document[:, 1:] == document[:, :-1]
    return (role == ANSWER) & has_predecessor


def leaks(mask: Tensor, role: Tensor, document: Tensor | None = None) -> Tensor:
    """Which labels can be read instead of predicted? bool [B, T]: True at every supervised token t
    whose predicting row t-1 reaches a column >= t. Over many layers information flows along the
    transitive closure of the mask.

    mask: bool [B, 1, T, T], as `attention_mask` returns it; role, document: integer [B, T].
    Raises ValueError on a wrong dtype or shape.
    """
    _check("causal", role=role, document=document)
    B, T = role.shape
    got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    if got != f"torch.bool {[B, 1, T, T]}":
        raise ValueError(f"mask must be a bool tensor [B, 1, T, T] = {[B, 1, T, T]}, got {got}")
    reach = mask[:, 0] | torch.eye(T, dtype=torch.bool, device=mask.device)  # residual stream
    hops = 1
    while hops < T:  # squaring doubles the number of layers covered
        reach = (reach.float() @ reach.float()) > 0
        hops *= 2
    ahead = reach[:, :-1].triu(1).any(-1)  # [B, T-1]: row t-1 reaches some column >= t
    return supervised(role, document) & F.pad(ahead, (min(1, T), 0))


# --- Drawing in the terminal

LETTER = {PAD: "-", TEXT: "t", IMAGE: "V", QUESTION: "Q", ANSWER: "A"}
# A picture with its question and answer, another one, a turn without a picture, a pad
EXAMPLE = "tVVVVVVVVVQQAAVVVVVVVVVQAttA-"
EXAMPLE_TURN = "01111111111111222222222223330"


def example() -> tuple[Tensor, Tensor]:
    """The row that is drawn: role and turn, int64 [1, T]."""
    role = [list(LETTER.values()).index(letter) for letter in EXAMPLE]
    return torch.tensor([role]), torch.tensor([[int(turn) for turn in EXAMPLE_TURN]])


def verdict(kind: str) -> str:
    """One line: whether `kind` leaks labels on the example, with turns told apart and without."""
    role, turn = example()
    if leaks(attention_mask(kind, role, turn), role).any():
        return "LEAKS labels"
    if leaks(attention_mask(kind, role), role).any():
        return "leaks no label, if `turn` tells the turns apart (as one turn it would)"
    return "leaks no label"


def draw(mask: Tensor) -> str:
    """A mask [1, 1, T, T] of the example as text: '#' reads the past, 'O' opened, '.' blocked."""
    lines = ["  " + " ".join(EXAMPLE)]
    for i, row in enumerate(mask[0, 0].tolist()):
        cells = ("#O"[j > i] if may else "." for j, may in enumerate(row))
        lines.append(" ".join([EXAMPLE[i], *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    import engine.terminal  # noqa: F401 - so that `| head` ends it without a traceback

    print("rows = queries, columns = keys    t text  V image  Q question  A answer  - pad")
    print("# reads the past    O opened: reads a later token    . blocked\n")
    for kind in EXTRA_PAIRS:
        print(f"{kind}: {verdict(kind)}\n{draw(attention_mask(kind, *example()))}\n")
