"""What a run is made with, held to numbers: the losses of its first steps, which show how the
parameters are drawn, where a patch stands, how far positions turn and how pixels are measured, and
those parts of the recipe that so few steps do not show. A change of one of these is another recipe:
then the new numbers belong here."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, at_steps
from PIL import Image
from torch import nn

import data
import eval as evaluation
import train
from data.shapes import Shapes
from engine.batches import StepBatches
from engine.options import arguments
from model import MLLM, Config

pytestmark = pytest.mark.usefixtures("no_drawing")

# Of the command below, stage 1 and then stage 2. The rates are large, so that five steps show them
GOLDEN = [6.6501, 5.7904, 4.7977, 3.8311, 3.2330, 7.0347, 6.3711, 5.1824, 3.7813, 2.7870]
FIVE_STEPS = (
    "--preset tiny --device cpu --workers 0 --pt-steps 5 --steps 5 --lr 0.1 --adam-lr 0.02 "
    "--limit 1 --val-limit 1"
).split()


def test_the_first_losses(tmp_path, monkeypatch):
    """Stage 1 is causal; in stage 2 mma reads the question."""
    losses, masks, forward_backward = [], [], train.forward_backward

    def noted(loss_of, batches, mask, *rest):
        masks.append(mask)
        losses.append(forward_backward(loss_of, batches, mask, *rest))
        return losses[-1]

    monkeypatch.setattr(train, "forward_backward", noted)
    train.main([*FIVE_STEPS, "--out", str(tmp_path / "run")])
    assert torch.tensor(losses).tolist() == pytest.approx(GOLDEN, abs=1e-3)
    assert masks == 5 * ["causal"] + 5 * ["mma"]  # a caption asks nothing: its loss does not show


# --- Rates, clipping, optimizers


def test_the_schedule():
    """Warm-up over 30 steps, then the peak, then down to zero over the last 0.4 of the steps."""
    shares = [train.schedule(step, 200) for step in (0, 14, 29, 100, 120, 160, 199)]
    assert shares == pytest.approx([1 / 30, 0.5, 1, 1, 1, 0.5, 1 / 80])


@pytest.mark.parametrize("size, step", [(30.0, 1.0), (0.5, 0.5)])
def test_gradients_are_clipped_to_a_norm_of_one(size, step):
    """All together, once; and the norm that is reported is that of before."""
    model = nn.ParameterList([torch.zeros(3), torch.zeros(2, 2)])
    for p in model:
        p.grad = torch.full_like(p, size / 7**0.5)
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in model]
    norm = train.clip_and_step(model, optimizers, torch.amp.GradScaler("cpu", enabled=False))
    moved = torch.cat([p.detach().flatten() for p in model]).norm()
    assert norm.item() == pytest.approx(size) and moved.item() == pytest.approx(step)
    assert all(p.grad is None for p in model)


# --- The model at its start


def test_norms_add_a_millionth():
    block = MLLM(Config(vocab_size=300)).blocks[0]
    for norm in (block.norm1, block.norm2):
        assert norm(torch.full((1, 128), 1e-3))[0, 0].item() == pytest.approx(0.5**0.5, abs=1e-4)


# --- Pictures and answers


@pytest.mark.parametrize("size", [128, 24])
def test_pictures_are_scaled_bicubically_and_what_is_transparent_shows_grey(size, tmp_path):
    """Down and up; a square one fills the model's picture."""
    noise = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.to(torch.uint8).numpy())
    picture.save(tmp_path / "x.png")
    found = data.pixels_of(tmp_path / "x.png", 64, "").permute(1, 2, 0)
    assert found.flatten().tolist() == [*picture.resize((64, 64), Image.BICUBIC).tobytes()]
    for mode in ("RGBA", "LA", "P"):  # its left half is black, its right half transparent
        picture = Image.new("RGBA", (size, size), (0, 0, 0, 0))
        picture.paste((0, 0, 0, 255), (0, 0, size // 2, size))
        picture.convert(mode).save(tmp_path / f"{mode}.png")
        found = data.pixels_of(tmp_path / f"{mode}.png", 64, "")
        assert found[:, 9, 9].tolist() == [0, 0, 0] and found[:, 9, 60].tolist() == 3 * [128]


def test_an_answer_is_cut_at_twice_the_longest_true_one_and_four_tokens(tokenizer, monkeypatch):
    """A model that never ends answers so many tokens, and not one more."""
    asked = []
    examples = [data.Example([], [("is it red?", word)]) for word in ("yes", "blue circle")]
    longest = max(len(tokenizer.encode(e.turns[0][1])) for e in examples)
    model, decode = MLLM(Config(vocab_size=len(tokenizer))), tokenizer.decode
    model.embed.weight.data[tokenizer.eos] = 0  # its logit is 0, never the largest
    monkeypatch.setattr(tokenizer, "decode", lambda ids: asked.append(len(ids)) or decode(ids))
    evaluation.answer_all(model, tokenizer, examples)
    assert asked == [2 * longest + 4] * 2


def test_what_a_run_reports_is_of_the_test_split(tmp_path):
    """Validation, whose examples are others, is asked at each validation alone."""
    asked, heldout = [], Shapes.heldout
    with pytest.MonkeyPatch.context() as patch:
        spy = lambda self, *which: asked.append(which) or heldout(self, *which)
        patch.setattr(Shapes, "heldout", spy)
        train.main([*TINY, "--limit", "7", "--out", str(tmp_path / "run")])
    assert asked == [("val", 40), ("test", 7)]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["n"] == 7


def test_dialogues_of_very_different_lengths_are_packed(tokenizer):
    """A step has fewer rows than dialogues, and tells these apart."""
    answers = ["yes"] * 7 + ["red circle, blue square, " * 20]
    drawn = [data.Example([], [("is it red?", answer)]) for answer in answers]
    source, config = SimpleNamespace(draw=lambda *key: drawn), Config(vocab_size=len(tokenizer))
    (batch,) = StepBatches(source, tokenizer, config, "sft", arguments(TINY))[0]
    assert len(batch["ids"]) < len(drawn) and batch["document"].max() > 0


def test_a_stage_without_steps_may_freeze_everything(tmp_path, monkeypatch):
    """There is nothing to train in it. And --checkpointing reaches the model."""
    parts, seen = ["encoder", "projector", "embed", "blocks", "norm"], []
    at_steps(monkeypatch, lambda step: True, lambda model: seen.append(model.checkpointing))
    line = [*TINY, "--pt-steps", "0", "--steps", "1", "--limit", "1", "--checkpointing"]
    train.main([*line, "--pt-freeze", *parts, "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "run.json").exists() and seen == [True]


def test_the_default_job():
    """What `python train.py` does on a CPU: README and the published tables say so."""
    job = dict(
        data="shapes", mask="mma", pt_mask="causal", preset="tiny", optimizer="muon", seed=0,
        pt_steps=500, pt_pictures=32, steps=2400, pictures=16, questions=6, freeze=["encoder"],
        pt_freeze=[], image_size=64, patch_size=16, n_layer=4, vocab_size=4096, max_tokens=512,
        eval_every=100, val_limit=500, limit=None, precision="float32", lr=0.004, adam_lr=0.002,
        pt_adam_lr=0.002, pt_lr_times=2,
    )  # fmt: skip
    args = vars(arguments(["--device", "cpu"]))
    assert {name: args[name] for name in job} == job
