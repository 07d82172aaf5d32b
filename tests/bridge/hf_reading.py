"""What the layers of a transformers model read, found by changing one column after the other, and
what mma.py says they should."""

import torch
from tiny_vlms import WINDOW

from mma import IMAGE, PAD, attention_mask


@torch.no_grad()
def reads(model, inputs, dtype=torch.float64) -> list:
    """Who reads whom in each decoder layer, bool [B, T, T]: the layer is called again as the model
    called it, with one column's states changed. float64, so that small shares count;
    eager attention takes its softmax in float32, where float64's lowest number is -inf."""
    calls, layers = [], model.get_decoder().layers
    keep = lambda layer, args, kwargs: calls.append((layer, args, kwargs))
    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    inputs = {k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()}
    model.to(dtype)(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [changed_by_column(*call) for call in calls]


def changed_by_column(layer, args, kwargs):
    args, kwargs = list(args), dict(kwargs)
    holder, key = (args, 0) if args else (kwargs, "hidden_states")
    hidden = holder[key]

    def states(x):
        holder[key] = x
        out = layer(*args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    plain, columns = states(hidden), []
    step = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(1)).to(hidden)
    for column in range(hidden.shape[1]):
        changed = hidden.clone()
        changed[:, column] += step
        columns.append((states(changed) != plain).any(-1))
    return torch.stack(columns, -1)


def expected(tiny, kind, role, turn) -> list:
    """mma.attention_mask of each layer. A window hides the past, never what is opened; Gemma 3
    lets each picture read itself besides."""
    may = attention_mask(kind, role, turn)[:, 0]
    column = torch.arange(role.shape[1])
    if tiny.family == "gemma3":
        block = ((role == IMAGE) & (role.roll(1, 1) != IMAGE)).cumsum(1)
        own = (role == IMAGE)[:, :, None] & (role == IMAGE)[:, None]
        may = may | own & (block[:, :, None] == block[:, None])
    near = may & (column > column[:, None] - WINDOW)
    of_family = {"gemma3": [near, may], "mistral3": [near, near]}
    return of_family.get(tiny.family, [may, may])


def wrong(tiny, kind, inputs, role, turn, dtype=torch.float64) -> list[tuple[int, int, int, int]]:
    """(layer, row, query, key) of what is read otherwise than mma.attention_mask says, by real
    tokens."""
    pairs = zip(reads(tiny.model, inputs, dtype), expected(tiny, kind, role, turn))
    differ = torch.stack([found != wanted for found, wanted in pairs])
    return (differ & (role != PAD)[None, :, :, None]).nonzero().tolist()
