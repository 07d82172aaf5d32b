"""--accumulate: a step that is computed in parts is the step, in its loss and in every gradient."""

import contextlib
import json

import pytest
import torch

import data
import train
from data.pictures import reader
from engine.batches import StepBatches
from engine.options import arguments
from model import MLLM, Config

OFF = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def step(llava, tokenizer, losses_in_float64):
    """step(stage, parts, world_size) -> loss and gradients of the first step, summed over its
    parts, the mean over processes; the numbers of parts; and the answer tokens of each batch. The
    rows have two turns, and answers of many lengths."""
    entries = json.loads(llava.read_text())
    for i, entry in enumerate(entries):
        entry["conversations"][1]["value"] = "It is " + "very " * (i % 7) + "blue."
    llava.write_text(json.dumps(entries))
    options = "--pictures 4 --questions 2 --pt-pictures 7 --image-size 32 --device cpu".split()
    args = arguments(["--data", "llava", "--source", str(llava), *options])
    torch.manual_seed(0)
    config = Config(vocab_size=len(tokenizer), image_size=32, n_layer=2)
    model, source = MLLM(config).double(), data.load("llava", llava)

    def make(stage, parts=1, world_size=1):
        model.zero_grad()
        total, n, tokens = 0, set(), []
        for rank in range(world_size):
            share = rank, world_size, parts
            batches = StepBatches(source, tokenizer, config, stage, args, *share).batches(0)
            n.add(len(batches))
            batches[0].pop("unread", None)
            tokens += [int((batch["role"] == 4).sum()) for batch in batches]
            nothing = contextlib.nullcontext()
            total += train.forward_backward(model.loss, batches, "mma", nothing, OFF)
        found = [total, *(p.grad for p in model.parameters())]
        return [x / world_size for x in found], n, tokens

    return make


def assert_close(a, b):
    assert all(x.any() for x in b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stage", ["pt", "sft"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_step_in_parts_is_the_step(step, llava, damaged, stage):
    if damaged:  # half of the pictures cannot be read
        for file in [*llava.parent.glob("*.png")]:
            file.write_bytes(file.read_bytes()[:60])
        reader.cache_clear()
    whole, n, tokens = step(stage)
    assert n == {1} and tokens[0] > 10
    for parts in (2, 3, 5, 1000):
        for world_size in (1, 2, 4):  # what a float32 can divide by
            found, n, tokens = step(stage, parts, world_size)
            rows = 7 if stage == "pt" else 4
            assert n == {min(parts, rows // world_size)}  # all processes have as many
            assert len(set(tokens)) > 1
            assert_close(found, whole)
    with pytest.raises(data.DataError, match=f"step 1 of stage {stage} has {rows} rows for 8"):
        step(stage, 1, 8)
