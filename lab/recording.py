"""The attention weights of a forward pass, seen from outside.

Shapes:  B rows   t queries   T keys   H query heads   L layers   n image tokens of a picture
"""

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

import data
from engine.precision import uncompiled
from mma import IMAGE, PAD
from model import MLLM


@contextmanager
def recorded(model: MLLM):
    """A list to which every decoder layer adds its attention weights, float32 [B, H, t, T], while
    the model runs: computed beside it, from the layer's input and the mask of its context. Compiled
    layers run as they are: to compile them anew would take longer than the few passes."""
    weights: list[Tensor] = []

    def record(layer, inputs, output):
        x, context, *_ = inputs
        q, k, _ = layer.queries_keys_values(x, context)
        if context.cache is not None:
            k = context.cache.k[layer.layer, :, :, : context.attention_mask.shape[-1]]
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = (q @ k.mT * layer.head_width**-0.5).float()
        weights.append(scores.masked_fill(~context.attention_mask, -torch.inf).softmax(-1))

    compiled = any(block._compiled_call_impl is not None for block in model.blocks)
    with ExitStack() as hooks, uncompiled(compiled):
        for block in model.blocks:
            hooks.enter_context(block.attention.register_forward_hook(record))
        yield weights


@torch.no_grad()
def attended(model, tokenizer, example: data.Example, turn: int) -> list[tuple[int, int]]:
    """[(grid, patch)]: the patches of the example's first picture that get at least twice the mean
    share of what the row that produces the answer gives to it; mean over layers and heads."""
    if not example.images:
        return []
    config, device = model.config, model.embed.weight.device
    row = data.encode(example, tokenizer, config.n_image_tokens, upto=turn)
    batch = data.collate([row], tokenizer.pad, config.image_size)
    with recorded(model) as weights:
        model(**{name: x.to(device) for name, x in batch.items()})
    last = (batch["role"] != PAD).sum() - 1  # the token that opens the answer
    shares = torch.stack(weights).cpu()[:, 0, :, last].mean((0, 1))[batch["role"][0] == IMAGE]
    shares = shares[: config.n_image_tokens]
    patches = (shares >= 2 * shares.mean()).nonzero().flatten().tolist()
    return [(config.grid, patch) for patch in patches]
