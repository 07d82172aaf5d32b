"""The attention weights of a forward pass, seen from outside.

Shapes:  B rows   t queries   T keys   H query heads   G key/value heads   d head width
"""

from contextlib import contextmanager

import torch
from torch import Tensor

from engine.precision import uncompiled
from model import MLLM


@contextmanager
def recorded(model: MLLM):
    """A list to which every decoder layer adds its attention weights, float32 [B, H, t, T], while
    the model runs. The function `attend` of each layer is replaced meanwhile. Compiled layers run
    as they are: to compile them anew would take longer than the few passes."""
    weights: list[Tensor] = []
    layers = [block.attention for block in model.blocks]
    before = [layer.attend for layer in layers]

    def recording(attend):
        def attention(q, k, v, mask):
            keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            scores = q @ keys.mT * v.shape[-1] ** -0.5  # [B, H, t, T]
            weights.append(scores.float().masked_fill(~mask, -torch.inf).softmax(-1))
            return attend(q, k, v, mask)

        return attention

    try:
        for layer in layers:
            layer.attend = recording(layer.attend)
        compiled = any(block._compiled_call_impl is not None for block in model.blocks)
        with uncompiled(compiled):
            yield weights
    finally:
        for layer, attend in zip(layers, before):
            layer.attend = attend
