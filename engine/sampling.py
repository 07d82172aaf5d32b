"""From logits to the next token, for the rows of a batch that go on.

Shapes:  B rows   V vocabulary
"""

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: float, top_p: float, generator=None) -> Tensor:
    """One token id for each row of logits [B, V]: int64 [B]. temperature 0 = greedy. Temperature
    comes first, then the smallest set of tokens whose probability is top_p (arXiv 1904.09751)."""
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    dropped = p.cumsum(-1) - p >= top_p  # the tokens before it already have top_p
    dropped[:, 0] = False
    chosen = torch.multinomial(p.masked_fill(dropped, 0), 1, generator=generator)
    return order.gather(1, chosen)[:, 0]


def drop_finished(going: Tensor, cache, *per_row: Tensor) -> tuple[Tensor, ...]:
    """Of each tensor [B, ...] and of the KV cache, the rows that are still `going`, bool [B]: what
    has finished is not computed any more. docs/speed.md says what this gains."""
    if going.all():
        return per_row
    cache.k, cache.v = cache.k[:, going], cache.v[:, going]
    return tuple(x[going] for x in per_row)
