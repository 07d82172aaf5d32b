"""Recorded attention weights are those that the layers used, and leave no trace; AIF blocks image
tokens for text rows alone, while decoding too."""

import json

import pytest
import torch
from helpers import TINY, enlarge

import data
import train
from lab import aif
from lab.recording import attended, recorded
from lab.variants import VARIANTS
from mma import IMAGE, Role

pytestmark = pytest.mark.usefixtures("nothing_drawn")


@pytest.mark.parametrize("name", [None, "cca", "rave", "scalar", "lora"])
def test_weights_are_what_each_layer_used(model, batch_of, dialogues, name):
    """Weights times values is what attention put out, for shared heads and wider keys too."""
    if name:
        model = enlarge(VARIANTS[name].model_class(model.config))
    batch, used = batch_of(dialogues), []

    def values_and_output(layer, inputs, output):
        v = layer.queries_keys_values(*inputs[:2])[2]
        used.append((layer, v.repeat_interleave(2, 1), output))

    with torch.no_grad():
        plain = model(**batch)
        for block in model.blocks:
            block.attention.register_forward_hook(values_and_output)
        with recorded(model) as weights:
            assert torch.equal(model(**batch), plain)
        model(**batch)
    assert len(weights) == 3 and len(used) == 6  # outside of it nothing is recorded
    for w, (layer, values, output) in zip(weights, used):
        assert w.dtype == torch.float32 and w.shape == (*w.shape[:2], *batch["role"].shape[1:] * 2)
        mixed = layer.out((w.to(values) @ values).transpose(1, 2).flatten(2))
        assert torch.allclose(mixed, output, atol=1e-5)


def test_the_patches_that_are_framed(model, tokenizer, dialogues):
    """Those that get twice the mean share of the first picture, by hand; none without a picture."""
    for example, turn in ((dialogues[k], turn) for k, turn in ((0, 0), (1, 0), (2, 1), (4, 1))):
        row = data.encode(example, tokenizer, 4, upto=turn)
        with torch.no_grad(), recorded(model) as weights:
            model(**data.collate([row], tokenizer.pad, 16))
        first = [t for t, role in enumerate(row.role) if role == IMAGE][:4]
        shares = torch.stack(weights).mean((0, 1, 2))[-1, first]
        expected = [(2, k) for k, share in enumerate(shares.tolist()) if share >= shares.sum() / 2]
        assert attended(model, tokenizer, example, turn) == expected
    assert attended(model, tokenizer, dialogues[3], 1) == []


@pytest.fixture
def prompts(dialogues, tokenizer, model):
    """The prompts of dialogues with a picture, as a batch of ragged rows."""
    shown = [d for d in dialogues if d.images]
    n = model.config.n_image_tokens
    rows = [data.encode(d, tokenizer, n, upto=len(d.turns) - 1) for d in shown]
    return data.collate(rows, tokenizer.pad, model.config.image_size)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_each_row_that_is_looked_for_most_evenly_is_blocked(model, prompts, share):
    """By hand: entropy over the layers of the largest attention from a text row."""
    blocked = aif.blocked_tokens(model, prompts, share)
    with torch.no_grad(), recorded(model) as weights:
        model(**prompts)
    for b, roles in enumerate(prompts["role"].tolist()):
        text = [i for i, role in enumerate(roles) if role in (Role.QUESTION, Role.TEXT)]
        entropies = {}
        for j in (i for i, role in enumerate(roles) if role == IMAGE):
            most = torch.stack([w[b].mean(0)[text, j].max() for w in weights])
            entropies[j] = float(torch.distributions.Categorical(most).entropy())
        n = round(share * len(entropies))
        expected = sorted(entropies, key=entropies.get)[len(entropies) - n :]
        assert blocked[b].nonzero().flatten().tolist() == sorted(expected)


def test_text_rows_never_read_what_is_blocked(model, tokenizer, prompts):
    """Those of the prompt in every layer, and generated tokens; image rows do, as before. Nothing
    blocked is the model's own answer."""
    blocked, T = aif.blocked_tokens(model, prompts, 0.5), prompts["role"].shape[1]
    is_text = (prompts["role"] != IMAGE)[:, None, :, None]
    for share in (0.5, 0):
        with recorded(model) as weights:
            aif.Adaptive(model, share).generate(**prompts, eos=-1, max_new_tokens=3)
        read = [w[..., :T].masked_fill(~is_text[:, :, : w.shape[2]], 0) for w in weights[3:]]
        assert [w.shape[2] for w in read] == [T] * 3 + [1] * 6  # prefill, then two tokens
        for w in read:
            assert (w.amax((1, 2))[blocked] == 0).all() == (share == 0.5)
        seen = weights[3][..., :T].masked_fill(is_text, 0).amax((1, 2))[blocked]
        assert (seen > 0).any()
    options = dict(eos=tokenizer.eos, max_new_tokens=5)
    answers = aif.Adaptive(model, 0).generate(**prompts, **options)
    assert answers == model.generate(**prompts, **options)


def test_the_command_writes_what_eval_writes_and_its_table_says_aif(tmp_path, capsys):
    run, file = str(tmp_path / "run"), tmp_path / "new" / "aif.json"
    with pytest.raises(SystemExit):
        aif.main([run, "--share", "1.5"])
    assert "0 to 1" in capsys.readouterr().err
    train.main([*TINY, "--out", run])
    aif.main([run, "--share", "0.5", "--limit", "20", "--json", str(file)])
    (record,) = json.loads(file.read_text())["runs"]
    assert record["aif"] == 0.5 and record["n"] == 20 and 0 <= record["accuracy"] <= 1
    assert "mma, aif 0.5 |" in capsys.readouterr().out
