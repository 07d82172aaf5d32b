"""Muon and AdamW: who trains what, and that Muon is torch's without the rounding."""

import copy

import pytest
import torch
from torch.optim import AdamW

from data import DataError
from engine.optimizers import Muon, describe_optimizers, freeze, make_optimizers
from engine.options import arguments
from model import MLLM, Config

SHAPES = ((24, 16), (16, 40), (24, 16), (8, 8))


@pytest.mark.parametrize("dtype, near", [(torch.float32, 0.02), (torch.bfloat16, 0.04)])
@pytest.mark.parametrize("at_once", [2**26, 24 * 16])  # a batch that does not fit: in parts
def test_muon_is_torchs_muon_without_the_rounding(monkeypatch, dtype, near, at_once):
    """Theirs runs in bfloat16. The momentum and the parameters are float32 always."""
    monkeypatch.setattr(Muon, "NUMBERS_AT_ONCE", at_once)
    torch.manual_seed(0)
    a = [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
    b = copy.deepcopy(a)
    ours, theirs = Muon(a, lr=0.1, dtype=dtype), torch.optim.Muon(b, lr=0.1, weight_decay=0.0)
    for step in range(1, 4):
        before = copy.deepcopy(a)
        for p, q in zip(a, b):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step(), theirs.step()
        for p, q, old in zip(a, b, before):
            assert p.dtype == ours.state[p]["momentum"].dtype == torch.float32
            assert (p - q).norm() < near * step * (p - old).norm()


@pytest.mark.parametrize("stage, rates, precision, dtype", [
    ("pt", [0.4, 0.3], "float16", torch.float32), ("sft", [0.1, 0.2], "bfloat16", torch.bfloat16),
])  # fmt: skip
def test_who_trains_what(stage, rates, precision, dtype):
    """At which rates; and Muon is in bfloat16 where training is."""
    args = arguments(["--device", "cpu", "--lr", "0.1", "--adam-lr", "0.2"])
    args.pt_adam_lr, args.pt_lr_times, args.precision = 0.3, 4, precision
    model = MLLM(Config(vocab_size=300, n_layer=1, tied=False))
    freeze(model, ["encoder"])
    trained = {p: name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("encoder") for name in trained.values())

    def made(kind) -> list[set]:
        optimizers = make_optimizers(model, args, stage)
        assert [type(o) for o in optimizers] == [kind, AdamW]
        adamw = dict(betas=(0.9, 0.95), weight_decay=1e-4 if kind is AdamW else 0)
        expected = {Muon: dict(dtype=dtype), AdamW: adamw}
        for o in optimizers:
            found = {**o.defaults, "dtype": getattr(o, "dtype", None)}
            assert expected[type(o)].items() <= found.items()
        assert [o.param_groups[0]["lr"] for o in optimizers] == rates
        return [{trained[p] for p in o.param_groups[0]["params"]} for o in optimizers]

    muon, rest = made(Muon)
    small = {n for n in trained.values() if n.endswith("bias") or "norm" in n}
    assert rest == small | {"embed.weight", "unembed.weight"}
    assert muon == {*trained.values()} - rest
    args.optimizer = "adamw"
    others, projector = made(AdamW)
    assert projector == {n for n in trained.values() if n.startswith("projector")}
    assert others == {*trained.values()} - projector
    said = "AdamW, peak rate 0.1 (0.4 in stage 1); of the projector 0.2 (0.3 in stage 1)"
    assert describe_optimizers(args) == said
    with pytest.raises(DataError, match="--freeze '': no parameter's name begins so"):
        freeze(model, [""])
