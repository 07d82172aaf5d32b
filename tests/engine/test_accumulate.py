"""--accumulate: a step that is computed in parts is the step, in its loss and in every gradient."""

import contextlib
import itertools
import json

import pytest
import torch
from helpers import own_data

import data
import train
from data.pictures import reader
from engine.batches import StepBatches
from engine.options import arguments
from model import MLLM, Config

OFF = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("stage, rows", [("pt", 7), ("sft", 4)])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_step_in_parts_is_the_step(llava, tokenizer, losses_in_float64, damaged, stage, rows):
    """Of one process or several. Rows have two turns, and answers of many lengths."""
    entries = json.loads(llava.read_text())
    for i, entry in enumerate(entries):
        entry["conversations"][1]["value"] = "It is " + "very " * (i % 7) + "blue."
    llava.write_text(json.dumps(entries))
    if damaged:  # half of the pictures cannot be read
        for file in llava.parent.glob("*.png"):
            file.write_bytes(file.read_bytes()[:60])
        reader.cache_clear()
    sizes = "--pictures 4 --questions 2 --pt-pictures 7 --device cpu".split()
    args, source = arguments([*own_data(llava), *sizes]), data.load("llava", llava)
    torch.manual_seed(0)
    config = Config(vocab_size=len(tokenizer), image_size=32, n_layer=2)
    model = MLLM(config).double()

    def step(parts=1, world_size=1):
        """Loss and gradients, the mean over processes, and the answer tokens of each batch."""
        model.zero_grad()
        total, tokens = 0, []
        for rank in range(world_size):
            share = rank, world_size, parts
            batches = StepBatches(source, tokenizer, config, stage, args, *share).batches(0)
            assert len(batches) == min(parts, rows // world_size)  # all processes have as many
            batches[0].pop("unread", None)
            tokens += [int((batch["role"] == 4).sum()) for batch in batches]
            nothing = contextlib.nullcontext()
            total += train.forward_backward(model.loss, batches, "mma", nothing, OFF)
        return [x / world_size for x in (total, *(p.grad for p in model.parameters()))], tokens

    whole, tokens = step()
    assert tokens[0] > 10 and all(x.any() for x in whole)
    for parts, world_size in itertools.product((2, 3, 1000), (1, 2, 4)):  # a float32 divides by it
        found, tokens = step(parts, world_size)
        assert len(set(tokens)) > 1
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
    with pytest.raises(data.DataError, match=f"step 1 of stage {stage} has {rows} rows for 8"):
        step(1, 8)
