"""AIF blocks image tokens for text rows alone, while decoding too."""

import json

import pytest
import torch

import data
from lab import aif
from lab.recording import recorded
from mma import IMAGE

pytestmark = pytest.mark.usefixtures("nothing_drawn")


@pytest.fixture
def prompts(dialogues, tokenizer, model):
    """The prompts of dialogues with a picture, as a batch of ragged rows."""
    shown = [d for d in dialogues if d.images]
    n = model.config.n_image_tokens
    rows = [data.encode(d, tokenizer, n, upto=len(d.turns) - 1) for d in shown]
    return data.collate(rows, tokenizer.pad, model.config.image_size)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_each_rows_image_tokens(model, prompts, share):
    blocked = aif.blocked_tokens(model, prompts, share)
    is_image = prompts["role"] == IMAGE
    assert not (blocked & ~is_image).any()
    assert torch.equal(blocked.sum(1), (share * is_image.sum(1)).round().long())


def test_the_most_even_tokens_are_blocked(model, prompts):
    """By hand, for one row: entropy over the layers of the largest attention from a text row."""
    blocked = aif.blocked_tokens(model, prompts, 0.5)
    with torch.no_grad(), recorded(model) as weights:
        model(**prompts)
    role = prompts["role"][0]
    text = [i for i, r in enumerate(role.tolist()) if r in (1, 3)]
    entropies = {}
    for j in (role == IMAGE).nonzero().flatten().tolist():
        most = torch.tensor([float(w[0].mean(0)[text, j].max()) for w in weights])
        p = most / most.sum()
        entropies[j] = float(-(p * p.log()).sum())
    expected = sorted(entropies, key=entropies.get)[len(entropies) // 2 :]
    assert blocked[0].nonzero().flatten().tolist() == sorted(expected)


def test_nothing_blocked_is_the_models_own_answer(model, tokenizer, prompts):
    nothing = torch.zeros_like(prompts["role"], dtype=torch.bool)
    answers = aif.generate(model, prompts, nothing, tokenizer.eos, 5)
    assert answers == model.generate(**prompts, eos=tokenizer.eos, max_new_tokens=5)


def test_text_rows_never_read_what_is_blocked(model, tokenizer, prompts):
    blocked = aif.blocked_tokens(model, prompts, 0.5)
    with recorded(model) as weights:
        aif.generate(model, prompts, blocked, tokenizer.eos, 3)
    T = blocked.shape[1]
    for w in weights:
        if w.shape[2] < T:  # the last layer computes the row of the answer alone: a text row
            assert (w[..., :T].amax((1, 2))[blocked] == 0).all()
        else:
            is_text = (prompts["role"] != IMAGE)[:, None, :, None]
            read = w[:, :, :T, :T].masked_fill(~is_text, 0).amax((1, 2))
            assert (read[blocked] == 0).all()
    with recorded(model) as weights:  # and the check can fail
        aif.generate(model, prompts, torch.zeros_like(blocked), tokenizer.eos, 3)
    assert (weights[0].amax((1, 2))[:, :T][blocked] > 0).all()


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_is_between_0_and_1(share, capsys):
    with pytest.raises(SystemExit):
        aif.arguments(["run", "--share", share])
    assert "0 to 1" in capsys.readouterr().err


def test_the_command_writes_what_eval_writes_and_its_table_says_aif(tmp_path, capsys):
    from helpers import TINY

    import train

    train.main([*TINY, "--out", str(tmp_path / "run")])
    file = tmp_path / "new" / "aif.json"
    aif.main([str(tmp_path / "run"), "--share", "0.5", "--limit", "20", "--json", str(file)])
    (record,) = json.loads(file.read_text())["runs"]
    assert record["aif"] == 0.5 and record["n"] == 20 and 0 <= record["accuracy"] <= 1
    assert "| mma, aif 0.5 |" in capsys.readouterr().out
