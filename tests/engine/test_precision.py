"""Number formats: float16 with a scaled loss, where a step that overflows changes nothing; steps
that never wait for a GPU; compiled layers."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers import ROOT, TINY, lines_of

import data
import train
from engine.batches import StepBatches
from engine.distributed import Distributed
from engine.last_layer import answer_loss, find_loss_positions
from engine.optimizers import make_optimizers
from engine.options import arguments
from engine.precision import (
    FORMATS,
    autocast_of,
    check_device,
    scaled_dot_product_attention,
    scaler_of,
    usual_format,
)
from lab import variants
from model import MLLM, Config


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
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = scaled_dot_product_attention(*inputs, mask)
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
    loss_function = autocast_of(args)(partial(answer_loss, model))
    batch = batch_of(dialogues)
    batch["rows"], batch["valid_index"] = find_loss_positions(batch["role"])

    class Half:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizers = make_optimizers(model, args, "sft")

        def __call__(self, steps):
            seen = []

            def record(step, loss, norm):
                seen.append((loss.item(), norm.item()))

            train.train_stage(
                model, loss_function, self.optimizers, self.scaler, [batch] * steps,
                0, steps, "mma", record,
                schedule=lambda step, steps: 1.0,
            )  # fmt: skip
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


@pytest.mark.parametrize("options", [
    ["--mask", "mma"], ["--mask", "causal"], ["--mask", "causal", "--variant", "cca"],
    ["--mask", "mma", "--variant", "rave"],
])  # fmt: skip
def test_the_host_never_waits_for_a_step(tokenizer, options):
    """Meta tensors have no values: whatever would fetch one from a GPU fails on them."""
    args = arguments([*TINY, *options])
    config = Config(vocab_size=len(tokenizer), mask=args.mask)
    batch = StepBatches(data.load("shapes"), tokenizer, config, "sft", args)[0]
    with torch.device("meta"):
        model = variants.get(args).model_class(config)
    with pytest.raises(RuntimeError):
        torch.ones(1, device="meta").item()
    seen = []
    train.train_stage(
        model, partial(answer_loss, model), make_optimizers(model, args, "sft"), scaler_of(args),
        [{name: x.to("meta") for name, x in batch.items()}], 0, 1, args.mask,
        lambda step, loss, norm: seen.append(loss.device.type),
    )  # fmt: skip
    assert seen == ["meta"]


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
