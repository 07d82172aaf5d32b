"""Number formats: float16 with a scaled loss, where a step that overflows changes nothing; devices;
compiled layers."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, TINY, at_steps, lines_of, train_tiny

import data
import train
from engine.distributed import Distributed
from engine.optimizers import make_optimizers
from engine.options import arguments
from engine.precision import FORMATS, autocast_of, check_device, scaler_of, usual_format
from model import MLLM


def format_args(precision: str):
    return arguments(["--device", "cpu", "--precision", precision, "--lr", "0.01"])


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
    with autocast_of(format_args("bfloat16")):
        found = F.scaled_dot_product_attention(*qkv, mask)
    exact = F.scaled_dot_product_attention(*(x.float() for x in qkv), mask)
    assert found.dtype == torch.float32 and torch.equal(found, exact)


def test_a_step_in_bfloat16_is_that_of_float32_up_to_rounding(model, batch_of, dialogues):
    torch.manual_seed(0)
    model, found = MLLM(model.config), []  # weights as training begins
    for precision in ("float32", "bfloat16"):
        model.zero_grad()
        loss = autocast_of(format_args(precision))(model.loss)(**batch_of(dialogues))
        loss.backward()
        found += [loss, torch.cat([p.grad.flatten() for p in model.parameters()])]
    loss, gradient, half_loss, half_gradient = found
    assert 0 < abs(loss - half_loss) < 0.01 * loss
    assert half_gradient.dtype == torch.float32
    assert (half_gradient - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("name, bad", [
    ("blocks.1.up.weight", torch.inf), ("norm.weight", torch.nan),  # Muon's, AdamW's
])  # fmt: skip
def test_a_float16_overflow_in_one_optimizer_changes_no_parameter_of_either(
    model, batch_of, dialogues, name, bad
):
    """On a GPU without bfloat16; here the same code on the CPU. Before and after it is learned."""
    model.float().train()
    args, batch = format_args("float16"), batch_of(dialogues)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = make_optimizers(model, args, "sft")

    def step() -> list[float]:
        loss = train.forward_backward(model.loss, [batch], "mma", autocast_of(args), scaler)
        return [loss.item(), train.clip_and_step(model, optimizers, scaler).item()]

    def state() -> list:
        return copy.deepcopy([model.state_dict(), *(o.state_dict()["state"] for o in optimizers)])

    losses, before = [step()[0] for _ in range(3)], state()
    with_bad = dict(model.named_parameters())[name].register_hook(lambda gradient: gradient * bad)
    loss, norm = step()
    with_bad.remove()
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 2.0**9
    assert loss < 100 and norm == 0  # it is no reason to stop: the run goes on with a smaller scale
    step()
    assert step()[0] < losses[-1] < losses[0]
    assert [scaler_of(format_args(name)).is_enabled() for name in FORMATS] == [False, False, True]


@pytest.mark.usefixtures("small")
def test_gradients_that_are_never_finite_end_the_run(tmp_path, monkeypatch):
    """Not hundreds of steps that learn nothing: the scale is halved 17 times, then this is said."""
    poison = lambda model: model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    steps = []
    at_steps(monkeypatch, lambda step: steps.append(step) or step == 1, poison)
    message = r"^error: float16: up to step 20 of stage pt .*not finite.*--precision bfloat16"
    with pytest.raises(SystemExit, match=message):
        train_tiny(tmp_path, *"--precision float16 --pt-steps 300 --n-layer 1".split())
    assert len(steps) == 20


# --- Devices


def test_a_gpu_is_looked_for_without_being_used(monkeypatch):
    """Every process of a job checks "cuda", which is GPU 0, and then uses another. More processes
    than GPUs are one clear error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda", "cuda:0", "cuda:1", "cpu"):
        check_device(name)
    for wrong in ("cuda:2", "cudda", "cuda:x", "cpu:"):
        with pytest.raises(data.DataError, match=f"--device {wrong} cannot be used here"):
            check_device(wrong)
    for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(data.DataError, match="--device cuda:2 cannot .* sees 2 GPUs, counted"):
        Distributed("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(data.DataError, match="--device cuda cannot be used here: .* sees 0 GPUs"):
        check_device("cuda")


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path):
    """In a process of its own: what the compiler keeps would stay."""
    command = [sys.executable, "train.py", *TINY, "--compile", "--out", str(tmp_path / "compiled")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "No C++ compiler" in done.stderr or "InvalidCxxCompiler" in done.stderr:
        pytest.skip("no C++ compiler")
    assert done.returncode == 0, done.stderr
    train_tiny(tmp_path / "plain")
    compiled, plain = (
        [line["loss"] for line in lines_of(tmp_path / name)] for name in ("compiled", "plain")
    )
    assert compiled == pytest.approx(plain, abs=1e-4)
