"""Number formats: float16 with a scaled loss, where a step that overflows changes nothing; devices;
compiled layers."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, TINY, at_steps, lines_of

import data
import train
from engine.distributed import Distributed
from engine.optimizers import make_optimizers
from engine.options import arguments
from engine.precision import (
    FORMATS,
    autocast_of,
    check_device,
    scaler_of,
    usual_format,
)
from model import MLLM


def format_args(precision: str):
    return arguments(["--device", "cpu", "--precision", precision])


@pytest.mark.parametrize("units", [True, False])
def test_the_usual_format_is_bfloat16_where_a_gpu_has_units_for_it(monkeypatch, units):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: units)
    assert usual_format("cuda:1") == ("bfloat16" if units else "float16")
    assert usual_format("cpu") == usual_format("mps") == "float32"
    assert arguments(["--device", "cpu"]).precision == "float32"
    assert arguments(["--device", "cpu", "--precision", "bfloat16"]).precision == "bfloat16"


def test_attention_under_autocast_on_a_cpu_is_that_of_float32():
    g = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 4, 8, 16, generator=g).bfloat16() for _ in range(3)]
    mask = torch.ones(8, 8, dtype=torch.bool).tril()

    def outcome(autocast: bool, inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        with autocast_of(format_args("bfloat16" if autocast else "float32")):
            y = F.scaled_dot_product_attention(*inputs, mask)
        y.square().sum().backward()
        return y, *(x.grad.float() for x in inputs)

    plain = outcome(False, [x.float() for x in qkv])
    for a, b in zip(outcome(True, qkv), plain):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 2**-8 * b.norm()  # the gradients are rounded to bfloat16
    assert torch.equal(outcome(True, qkv)[0], plain[0])


@pytest.mark.parametrize("mask", ["causal", "mma"])
def test_a_step_in_bfloat16_is_that_of_float32_up_to_rounding(model, batch_of, dialogues, mask):
    torch.manual_seed(0)
    model, batch, found = MLLM(model.config), batch_of(dialogues), {}  # weights as training begins
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        loss = autocast_of(format_args(precision))(model.loss)(**batch, mask=mask)
        loss.backward()
        found[precision] = loss, torch.cat([p.grad.flatten() for p in model.parameters()])
    (loss, gradient), (half_loss, half_gradient) = found["float32"], found["bfloat16"]
    assert 0 < abs(loss - half_loss) < 0.01 * loss
    assert half_gradient.dtype == torch.float32
    assert (half_gradient - gradient).norm() < 0.1 * gradient.norm()


@pytest.fixture
def half(model, batch_of, dialogues):
    """A float16 training of the small model on one batch: half(steps) -> its losses and norms."""
    model.float().train()
    args = arguments([*TINY, "--precision", "float16", "--lr", "0.01", "--adam-lr", "0.01"])
    batch = batch_of(dialogues)

    class Half:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizers = make_optimizers(model, args, "sft")

        def __call__(self, steps):
            seen, autocast = [], autocast_of(args)
            for _ in range(steps):
                loss = train.forward_backward(model.loss, [batch], "mma", autocast, self.scaler)
                norm = train.clip_and_step(model, self.optimizers, self.scaler)
                seen.append((loss.item(), norm.item()))
            return seen

    return Half()


def test_float16_gradients_are_scaled(half, model):
    """On a GPU without bfloat16; here the same code on the CPU."""
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = [loss for loss, _ in half(5)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [scaler_of(format_args(name)).is_enabled() for name in FORMATS] == [False, False, True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["blocks.1.up.weight", "norm.weight"])  # Muon's, AdamW's
def test_a_float16_overflow_in_one_optimizer_changes_no_parameter_of_either(half, model, name, bad):
    def state():
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        for n, optimizer in enumerate(half.optimizers):
            for p, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{n}.{p}.{k}": v for k, v in values.items()}
        return {k: v.clone() for k, v in tensors.items()}

    half(2)
    parameter, before = dict(model.named_parameters())[name], state()
    scale = half.scaler.get_scale()
    hook = parameter.register_hook(lambda gradient: gradient * bad)
    [(loss, norm)] = half(1)
    hook.remove()
    after = state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert half.scaler.get_scale() == scale / 2
    assert loss < 100 and norm == 0  # it is no reason to stop: the run goes on with a smaller scale
    half(1)
    moved = [k for k, v in state().items() if k.startswith("model.") and not v.equal(before[k])]
    assert len(moved) > len(list(model.parameters())) - 3


@pytest.mark.usefixtures("small")
def test_gradients_that_are_never_finite_end_the_run(tmp_path, monkeypatch):
    """Not hundreds of steps that learn nothing: the scale is halved 17 times, then this is said."""
    poison = lambda model: model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    steps = []
    at_steps(monkeypatch, lambda step: steps.append(step) or step == 1, poison)
    message = (
        r"^error: float16: up to step 20 of stage pt the gradients .* were not finite.*"
        r"--precision bfloat16"
    )
    with pytest.raises(SystemExit, match=message):
        options = "--precision float16 --pt-steps 300 --n-layer 1 --pt-pictures 2".split()
        train.main([*TINY, *options, "--out", str(tmp_path)])
    assert len(steps) == 20


# --- Devices


def gpus(monkeypatch, n: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


def test_a_gpu_is_looked_for_without_being_used(monkeypatch):
    """Every process of a job checks "cuda", which is GPU 0, and then uses another."""
    gpus(monkeypatch, 2)
    for name in ("cuda", "cuda:0", "cuda:1"):
        check_device(name)
    with pytest.raises(data.DataError, match="--device cuda:2 cannot .* sees 2 GPUs, counted"):
        check_device("cuda:2")
    gpus(monkeypatch, 0)
    with pytest.raises(data.DataError, match="--device cuda cannot be used here: .* sees 0 GPUs"):
        check_device("cuda")
    check_device("cpu")
    for wrong in ("cudda", "cuda:x", "cpu:"):
        with pytest.raises(data.DataError, match=f"--device {wrong} cannot be used here"):
            check_device(wrong)


def test_more_processes_than_gpus_is_one_clear_error(monkeypatch):
    gpus(monkeypatch, 2)
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(data.DataError, match="--device cuda:2 cannot .* sees 2 GPUs, counted"):
        Distributed("cuda")


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path):
    """In a process of its own: what the compiler keeps would stay."""
    command = [sys.executable, "train.py", *TINY, "--compile", "--out", str(tmp_path / "compiled")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "No C++ compiler" in done.stderr or "InvalidCxxCompiler" in done.stderr:
        pytest.skip("no C++ compiler")
    assert done.returncode == 0, done.stderr
    train.main([*TINY, "--out", str(tmp_path / "plain")])
    compiled, plain = (
        [line["loss"] for line in lines_of(tmp_path / name)] for name in ("compiled", "plain")
    )
    assert compiled == pytest.approx(plain, abs=1e-4)
