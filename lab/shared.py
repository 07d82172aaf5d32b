"""One encoded picture for several questions: what a causal mask allows, and mma does not.

Under a causal mask a picture's keys and values are the same whatever is asked. They can be computed
once: for answers in a cache that begins with the picture (`prefill`), in training in a row that
goes on with each question in turn (`join`, BranchingMLLM). Under mma, prefix and f they depend on
the question from the second layer on. `python -m lab.bench shared` measures what that costs.

Shapes:  Q questions about the same pictures   P tokens that they share   t tokens of the rest
         T tokens of a row   L layers   G key/value heads   D width   d head width
"""

import torch
from torch import Tensor

from data import Row, picture_key
from mma import IMAGE, PAD, positions
from model import MLLM, AttentionContext, KVCache

PARTS = ("ids", "role", "turn")


def shared_length(rows: list[Row]) -> int:
    """P: the tokens of a row up to the last one of its last picture. Raises ValueError unless all
    rows begin with the same of them, and the same pictures."""
    first = rows[0]
    P = max((i + 1 for i, role in enumerate(first.role) if role == IMAGE), default=0)

    def beginning(row: Row):
        return [getattr(row, name)[:P] for name in PARTS], list(map(picture_key, row.images))

    for row in rows:
        if P == 0 or beginning(row) != beginning(first) or IMAGE in row.role[P:]:
            raise ValueError("rows can share a picture only if they begin alike, up to its end")
    return P


def split(rows: list[Row]) -> tuple[Row, list[Row]]:
    """What the rows share, with the pictures, and the rest of each."""
    P = shared_length(rows)
    rest = [Row(*(getattr(row, name)[P:] for name in PARTS)) for row in rows]
    return Row(*(getattr(rows[0], name)[:P] for name in PARTS), rows[0].images), rest


def join(rows: list[Row]) -> Row:
    """One row for a BranchingMLLM: what the rows share, then the rest of each, a branch. `document`
    is 0 in what they share, and counts the branches from 1."""
    shared, rest = split(rows)
    shared.document = [0] * len(shared.ids)
    for b, branch in enumerate(rest, 1):
        for name in PARTS:
            getattr(shared, name).extend(getattr(branch, name))
        shared.document += [b] * len(branch.ids)
    return shared


class BranchingMLLM(MLLM):
    """Reads rows that `join` made as it would read the rows one by one: a branch reads what is
    shared and its own past, and counts its positions on from what is shared."""

    def context_of(self, mask: str, role, turn=None, document=None) -> AttentionContext:
        context = super().context_of(mask, role, turn)
        if document is None:  # no branches
            return context
        i, j = document[:, None, :, None], document[:, None, None, :]
        if (context.attention_mask & (i == 0) & (j > 0)).any():
            raise ValueError(f"under {mask!r} a picture reads the question: it cannot be shared")
        P = (document == 0).sum(1, keepdim=True)  # [B, 1]
        context.position = positions(role, document) + P * (document > 0)
        context.attention_mask &= (i == j) | (j == 0)
        return context


@torch.inference_mode()
def prefill(model: MLLM, shared: dict, rest: dict, room: int = 0) -> tuple[Tensor, KVCache]:
    """The last hidden state of each prompt [Q, D], and the cache [L, Q, G, P + t + room, d], as a
    causal pass over the Q whole rows gives them; what they share is computed once. shared, rest:
    batches of what `split` returns, [1, P] and [Q, t]."""
    (_, P), (Q, t), role = shared["ids"].shape, rest["ids"].shape, rest["role"]
    one, cache = KVCache(model, 1, P), KVCache(model, Q, P + t + room)
    first = model.context_of("causal", shared["role"], shared["turn"])
    first.cache, first.column = one, torch.arange(P, device=role.device)[None]
    model(**shared, context=first, read_at=torch.full_like(shared["ids"][:, :1], P - 1))
    cache.k[..., :P, :], cache.v[..., :P, :] = one.k, one.v
    context = model.context_of("causal", role, rest["turn"])
    past = torch.ones(Q, 1, t, P, dtype=torch.bool, device=role.device)  # is read by all
    context.attention_mask = torch.cat([past, context.attention_mask], -1)
    context.position = context.position + P
    context.cache, context.column = cache, P + torch.arange(t, device=role.device).expand(Q, t)
    last = (role != PAD).sum(1, keepdim=True) - 1
    return model(rest["ids"], role, context=context, read_at=last)[:, 0], cache
