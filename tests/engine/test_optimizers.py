"""Muon and AdamW: who trains what, and that Muon is torch's without the rounding."""

import pytest
import torch

from engine.optimizers import (
    Muon,
    describe_optimizers,
    make_optimizers,
    orthogonalise,
    set_rates,
)
from engine.options import arguments

SHAPES = ((24, 16), (16, 40), (24, 16), (8, 8))


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]


def test_muon_is_torchs_muon_without_the_rounding():
    a = parameters()
    b = [torch.nn.Parameter(p.detach().clone()) for p in a]
    ours, theirs = Muon(a, lr=0.1), torch.optim.Muon(b, lr=0.1, weight_decay=0.0)
    for step in range(3):
        for p, q in zip(a, b):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in a]
        ours.step(), theirs.step()
        for p, q, old in zip(a, b, before):  # theirs runs in bfloat16
            assert (p - q).norm() < 0.02 * (step + 1) * (p - old).norm()


def test_orthogonalise():
    m = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(m))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_in_bfloat16_is_close_to_torchs_and_to_float32():
    """The path of GPUs, on a CPU; the momentum and the parameters stay float32."""
    a, b, c = parameters(), parameters(), parameters()
    half, plain = Muon(a, lr=0.1, dtype=torch.bfloat16), Muon(b, lr=0.1)
    theirs = torch.optim.Muon(c, lr=0.1, weight_decay=0.0)
    before = [p.detach().clone() for p in a]
    for params in (a, b, c):
        torch.manual_seed(1)
        for p in params:
            p.grad = torch.randn_like(p)
    half.step(), plain.step(), theirs.step()
    for p, q, r, old in zip(a, b, c, before):
        assert p.dtype == half.state[p]["momentum"].dtype == torch.float32
        assert 0 < (p - q).norm() < 0.04 * (q - old).norm()
        assert (p - r).norm() < 0.04 * (q - old).norm()
    assert torch.equal(half.state[a[0]]["momentum"], plain.state[b[0]]["momentum"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_muon_is_in_bfloat16_where_training_is(model, precision):
    args = arguments(["--device", "cpu", "--precision", precision])
    expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert make_optimizers(model, args, "sft")[0].dtype == expected


def test_a_batch_of_matrices_that_does_not_fit_is_taken_in_parts(monkeypatch):
    whole, parts = parameters(), parameters()
    for params, at_once in ((whole, 2**26), (parts, 24 * 16)):
        monkeypatch.setattr(Muon, "NUMBERS_AT_ONCE", at_once)
        muon = Muon(params, lr=0.1)
        for p in params:
            p.grad = p.detach().clone()
        muon.step()
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def names_of(model, optimizer):
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in trained}


@pytest.mark.parametrize("stage,rates", [("pt", [0.4, 0.3]), ("sft", [0.1, 0.2])])
def test_who_trains_what(model, stage, rates):
    args = arguments(["--preset", "tiny", "--device", "cpu", "--lr", "0.1", "--adam-lr", "0.2"])
    args.pt_adam_lr, args.pt_lr_times = 0.3, 4
    model.encoder.requires_grad_(False)
    muon, adam = make_optimizers(model, args, stage)
    assert isinstance(muon, Muon) and isinstance(adam, torch.optim.AdamW)
    assert [o.param_groups[0]["lr"] for o in (muon, adam)] == rates
    first, second = names_of(model, muon), names_of(model, adam)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert first | second == trained and not first & second
    shape = dict(model.named_parameters())
    assert all(shape[name].dim() == 2 for name in first)
    assert "embed.weight" in second and "blocks.0.attention.q.weight" in first
    matrices, rest = describe_optimizers(args).split(";")
    assert "Muon" in matrices and "0.1 (0.4 in stage 1)" in matrices
    assert "AdamW" in rest and "0.2 (0.3 in stage 1)" in rest
    args.optimizer = "adamw"
    others, projector = make_optimizers(model, args, stage)
    assert names_of(model, projector) == {n for n in trained if n.startswith("projector")}
    assert names_of(model, others) == trained - names_of(model, projector)
    assert "projector 0.2" in describe_optimizers(args) and "Muon" not in describe_optimizers(args)


def test_every_group_has_its_share_of_the_rate():
    p, q = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
    both = [
        torch.optim.SGD([{"params": [p]}, {"params": [q]}], lr=2.0), torch.optim.AdamW([p], lr=0.5)
    ]  # fmt: skip
    for share in (0.5, 0.25):  # of the peak, not of the rate before
        set_rates(both, share)
        rates = [group["lr"] for optimizer in both for group in optimizer.param_groups]
        assert rates == [2 * share, 2 * share, 0.5 * share]
