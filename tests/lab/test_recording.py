"""Recorded attention weights are those that the layers used; recording leaves no trace."""

import pytest
import torch
from helpers import enlarge

from lab.recording import recorded
from lab.variants import VARIANTS


@pytest.mark.parametrize("name", [None, "cca", "rave", "scalar", "lora"])
def test_they_are_what_each_layer_used(model, batch_of, dialogues, name):
    """Weights times values is what attention returned, for shared heads and wider keys too."""
    if name:
        model = enlarge(VARIANTS[name].model_class(model.config))
    used, batch = [], batch_of(dialogues)
    for block in model.blocks:
        attend = block.attention.attend

        def noting(q, k, v, mask, attend=attend):
            used.append((v.repeat_interleave(q.shape[1] // v.shape[1], 1), attend(q, k, v, mask)))
            return used[-1][1]

        block.attention.attend = noting
    with torch.no_grad(), recorded(model) as weights:
        model(**batch)
    B, T = batch["role"].shape
    assert len(weights) == len(used) == 3
    for w, (values, out) in zip(weights, used):
        assert w.dtype == torch.float32 and w.shape == (B, 4, T, T)
        assert torch.allclose(w.to(values) @ values, out, atol=1e-5)


def test_nothing_changes(model, batch_of, dialogues):
    batch, before = batch_of(dialogues), [block.attention.attend for block in model.blocks]
    with torch.no_grad():
        plain = model(**batch)
        with recorded(model):
            assert torch.equal(model(**batch), plain)
    assert [block.attention.attend for block in model.blocks] == before
    with pytest.raises(RuntimeError), recorded(model):
        raise RuntimeError
    assert [block.attention.attend for block in model.blocks] == before
