"""A rehearsal for a GPU, on a machine without one. Tensors say that they are elsewhere, and have
their values on the CPU: whole training steps and answers stop at any tensor that is made or left
there, and what the host waits for is counted. Kernels cannot be rehearsed."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers import KINDS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import data
import train
from bridge.pretrained import PretrainedMLLM, config_of
from data.packing import first_fit
from engine.optimizers import make_optimizers
from engine.options import arguments
from engine.precision import autocast_of, scaler_of
from engine.wings import PLAIN
from lab.variants import VARIANTS
from mma import attention_mask
from model import MLLM

aten = torch.ops.aten
GPU = "lazy"  # autograd knows it, and no driver is needed to make tensors on it
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim}


class GpuTensor(torch.Tensor):
    """A tensor that says it is on a GPU; `values`, on the CPU, are its own."""

    is_cuda = True

    def __new__(cls, values):
        how = dict(dtype=values.dtype, device=GPU, requires_grad=values.requires_grad)
        x = cls._make_wrapper_subclass(cls, values.shape, values.stride(), **how)
        x.values = values
        return x

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor on the GPU, which has been left")


class GpuMode(TorchDispatchMode):
    """Computes with GpuTensors; AssertionError for an operation that reads a tensor of the CPU,
    too. waits: how often the host had to wait."""

    waits = 0

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) is then seen
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = dict(kwargs or {}), func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(isinstance(x, GpuTensor) for x in tensors)
        left = [x for x in tensors if not isinstance(x, GpuTensor)] if on_gpu else []
        if left:  # it is sent there, or it is a fault
            known = op is aten.copy_ or op is aten.index and isinstance(args[0], GpuTensor)
            assert known, f"{func} has a tensor {list(left[0].shape)} on {left[0].device}"
        by_mask = op is aten.index and any(x is not None and x.dtype == torch.bool for x in args[1])
        stays, device = on_gpu, kwargs.get("device")
        if device is not None:
            stays, kwargs["device"] = torch.device(device).type == GPU, "cpu"
        moved = tensors and stays != on_gpu
        self.waits += on_gpu and (op in WAITS or by_mask) or bool(moved or left)
        inner = tree_map_only(GpuTensor, lambda x: x.values, (args, kwargs))
        out = func(*inner[0], **inner[1])
        if out is not None and op.__name__.endswith("_"):
            return args[0]  # in place
        return tree_map_only(torch.Tensor, GpuTensor, out) if stays else out


def placed(model):
    """A copy of the model, its parameters and buffers on the GPU. (.to would keep the old ones.)"""
    model = copy.deepcopy(model)
    with GpuMode():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                module._parameters[name] = torch.nn.Parameter(GpuTensor(p.detach()))
            for name, x in module.named_buffers(recurse=False):
                module._buffers[name] = GpuTensor(x)
    return model


# --- What is rehearsed


SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, vocab_size=90, hidden_act="silu",
)  # fmt: skip
LONG = dict(short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.0, 2.0, 3.0, 5.0], type="longrope")
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
DECODERS = {  # as their config.json has it
    "llama3-window": dict(
        model_type="mistral", num_key_value_heads=1, head_dim=12, sliding_window=512,
        rope_scaling=LLAMA3,
    ),
    "long-rope": dict(
        model_type="phi3", original_max_position_embeddings=32, rope_scaling=LONG,
    ),
}  # fmt: skip
VISION = dict(
    model_type="siglip_vision_model", hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, image_size=33, patch_size=8,
)  # fmt: skip


def of_bridge(name, tokenizer, folder):
    for part, config in (("vision", VISION), ("decoder", SIZES | DECODERS[name])):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    parts, size = (folder / "vision", folder / "decoder"), len(tokenizer)
    return PretrainedMLLM(config_of(*parts, pool=2, vocab_size=size)).double()


CLASSES = {None: "plain"} | {v.model_class: name for name, v in VARIANTS.items() if v.model_class}


@pytest.fixture(params=[*CLASSES.values(), *DECODERS])
def rehearsed(request, model, tokenizer, tmp_path):
    """A model on the CPU; float64, so that equal means equal to 1e-6."""
    torch.manual_seed(0)
    if request.param in DECODERS:
        return of_bridge(request.param, tokenizer, tmp_path)
    return (VARIANTS.get(request.param, PLAIN).model_class or MLLM)(model.config).double()


def batches_of(model, tokenizer, examples) -> list[dict]:
    """Padded and packed; their pictures in the model's size."""
    size, n = model.config.image_size, model.config.n_image_tokens
    images = {id(image): torch.full((3, size, size), 9 * k, dtype=torch.uint8)
              for k, image in enumerate(image for e in examples for image in e.images)}  # fmt: skip
    shown = [replace(e, images=[images[id(image)] for image in e.images]) for e in examples]
    rows = [data.encode(e, tokenizer, n) for e in shown]
    some = rows, first_fit(rows, 80)
    padded, packed = (data.collate(x, tokenizer.pad, size) for x in some)
    assert "document" in packed
    return [padded, packed]


def step(model, batch: dict, mask: str) -> list:
    """One of train.py's: its loss, its gradients' norm, and the parameters after it."""
    args = arguments(["--preset", "tiny", "--device", "cpu"])
    scaler, autocast = scaler_of(args), autocast_of(args)
    args.device = GPU  # of both sides the same optimizers
    optimizers = make_optimizers(model, args, "sft")
    loss = train.forward_backward(model.loss, [batch], mask, autocast, scaler)
    norm = train.clip_and_step(model, optimizers, scaler)
    return [loss, norm, *(p.detach() for p in model.parameters())]


MOST_WAITS = 6  # of a step: for shapes and checks that depend on values; none for each layer


def on_gpu(batch: dict) -> dict:
    return {name: GpuTensor(x) for name, x in batch.items()}


def test_a_step_and_an_answer_are_those_of_the_cpu(rehearsed, tokenizer, dialogues):
    padded, packed = batches_of(rehearsed, tokenizer, dialogues)
    model, gpu_model, waits = rehearsed, placed(rehearsed), []
    for n in (2, 5, 8):  # with the last long-rope's rows grow long, and are prefilled anew
        with GpuMode() as gpu:
            answers = gpu_model.generate(**on_gpu(padded), eos=-1, max_new_tokens=n)
        assert answers == model.generate(**padded, eos=-1, max_new_tokens=n)
        waits.append(gpu.waits)
    assert 0 < waits[1] - waits[0] <= 3  # at most once a token
    with GpuMode() as gpu:
        found = step(gpu_model, on_gpu(packed), "mma")
    assert all(isinstance(x, GpuTensor) for x in found) and gpu.waits <= MOST_WAITS
    for a, b in zip(found, step(model, packed, "mma"), strict=True):
        torch.testing.assert_close(a.values, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mask_is_that_of_the_cpu(kind, batch_of, dialogues):
    batch = batch_of(dialogues)
    role, turn = batch["role"], batch["turn"]
    with GpuMode():
        found = attention_mask(kind, GpuTensor(role), GpuTensor(turn))
    assert torch.equal(found.values, attention_mask(kind, role, turn))


@pytest.mark.parametrize("fault, waits", [
    (lambda: torch.ones(2, device=GPU).sum(), 0), (lambda: torch.ones(2).to(GPU), 1),
    (lambda: torch.tensor([1.0, 2.0], device=GPU), 1),
    (lambda: torch.ones(2, device=GPU).tolist(), 1),
    (lambda: 1 if torch.ones((), device=GPU) else 0, 1),
    (lambda: (x := torch.ones(2, device=GPU))[x > 0], 1),
])  # fmt: skip
def test_the_rehearsal_counts_what_the_host_waits_for(fault, waits):
    with GpuMode() as gpu:
        fault()
    assert gpu.waits == waits
    with pytest.raises(AssertionError, match="on cpu"), GpuMode():
        torch.ones(2, device=GPU) + torch.ones(2)
