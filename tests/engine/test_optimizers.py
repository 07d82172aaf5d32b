"""Muon and AdamW: who trains what, and that Muon is torch's without the rounding."""

import pytest
import torch
from torch.optim import AdamW

from data import DataError
from engine.optimizers import Muon, describe_optimizers, freeze, make_optimizers
from engine.options import arguments
from model import MLLM, Config

SHAPES = ((24, 16), (16, 40), (24, 16), (8, 8))


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]


@pytest.mark.parametrize("dtype, near", [(torch.float32, 0.02), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("at_once", [2**26, 24 * 16])  # a batch that does not fit: in parts
def test_muon_is_torchs_muon_without_the_rounding(monkeypatch, dtype, near, at_once):
    """Theirs runs in bfloat16. The momentum and the parameters are float32 always."""
    monkeypatch.setattr(Muon, "NUMBERS_AT_ONCE", at_once)
    a, b = parameters(), parameters()
    ours, theirs = Muon(a, lr=0.1, dtype=dtype), torch.optim.Muon(b, lr=0.1, weight_decay=0.0)
    for step in range(3):
        for p, q in zip(a, b):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in a]
        ours.step(), theirs.step()
        for p, q, old in zip(a, b, before):
            assert p.dtype == ours.state[p]["momentum"].dtype == torch.float32
            assert (p - q).norm() < near * (step + 1) * (p - old).norm()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_muon_is_in_bfloat16_where_training_is(model, precision):
    args = arguments(["--device", "cpu", "--precision", precision])
    expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert make_optimizers(model, args, "sft")[0].dtype == expected


@pytest.mark.parametrize("stage,rates", [("pt", [0.4, 0.3]), ("sft", [0.1, 0.2])])
def test_who_trains_what(stage, rates):
    args = arguments(["--preset", "tiny", "--device", "cpu", "--lr", "0.1", "--adam-lr", "0.2"])
    args.pt_adam_lr, args.pt_lr_times = 0.3, 4
    model = MLLM(Config(vocab_size=300, n_layer=1, tied=False))
    freeze(model, ["encoder"])
    trained = {p: name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("encoder") for name in trained.values())

    def made(kind) -> list[set]:
        optimizers = make_optimizers(model, args, stage)
        assert [type(o) for o in optimizers] == [kind, AdamW]
        decay = 1e-4 if kind is AdamW else 0
        for o in (o.defaults for o in optimizers if type(o) is AdamW):
            assert (o["betas"], o["weight_decay"]) == ((0.9, 0.95), decay)
        assert [o.param_groups[0]["lr"] for o in optimizers] == rates
        return [{trained[p] for p in o.param_groups[0]["params"]} for o in optimizers]

    muon, rest = made(Muon)
    small = {n for n in trained.values() if n.endswith("bias") or "norm" in n}
    assert rest == small | {"embed.weight", "unembed.weight"}
    assert muon == {*trained.values()} - rest
    matrices, others = describe_optimizers(args).split(";")
    assert "Muon" in matrices and "0.1 (0.4 in stage 1)" in matrices
    assert "AdamW" in others and "0.2 (0.3 in stage 1)" in others
    args.optimizer = "adamw"
    others, projector = made(AdamW)
    assert projector == {n for n in trained.values() if n.startswith("projector")}
    assert others == {*trained.values()} - projector
    assert "projector 0.2" in describe_optimizers(args) and "Muon" not in describe_optimizers(args)
    with pytest.raises(DataError, match="--freeze '': no parameter's name begins so"):
        freeze(model, [""])
