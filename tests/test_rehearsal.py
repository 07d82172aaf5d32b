"""A rehearsal for a GPU, on a machine without one. Tensors say that they are elsewhere, and have
their values on the CPU: whole training steps and answers stop at any tensor that is made or left
there, and what the host waits for is counted. Kernels cannot be rehearsed."""

import copy
from dataclasses import asdict, replace

import pytest
import torch
from helpers import KINDS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import data
import train
from bridge.pretrained import PretrainedConfig, PretrainedMLLM
from data.packing import first_fit
from engine.optimizers import make_optimizers
from engine.options import arguments
from engine.precision import autocast_of, scaler_of
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


PRETRAINED = dict(
    image_size=33, pool=2, qkv_bias=True, qk_norm=True, windows=(512, 0, 512), rope_short=32,
    rope=((1.0, 0.09, 0.008, 0.0007), (1.0, 0.05, 0.003, 0.0002)),
)  # fmt: skip
CLASSES = {"none": MLLM, "pretrained": PretrainedMLLM}
CLASSES |= {name: v.model_class for name, v in VARIANTS.items() if v.model_class}


@pytest.fixture(params=CLASSES)
def rehearsed(request, model):
    """A model on the CPU; float64, so that equal means equal to 1e-6."""
    torch.manual_seed(0)
    config = model.config
    if request.param == "pretrained":
        config = PretrainedConfig(**asdict(config) | PRETRAINED)
    return CLASSES[request.param](config).double()


def batches_of(model, tokenizer, examples) -> list[dict]:
    """Padded and packed; their pictures in the model's size."""
    size, n = model.config.image_size, model.config.n_image_tokens
    picture = lambda image: image.repeat(1, 3, 3)[:, :size, :size]
    shown = [replace(e, images=[*map(picture, e.images)]) for e in examples]
    rows = [data.encode(e, tokenizer, n) for e in shown]
    return [data.collate(some, tokenizer.pad, size) for some in (rows, first_fit(rows, 80))]


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
    for n in (2, 5, 8):  # pretrained: rows grow long with the last, and are prefilled anew
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


def test_the_rehearsal_can_fail():
    with GpuMode() as gpu:
        x = torch.ones(2, device=GPU)
        x.sum()
        assert gpu.waits == 0
        for waits in (
            lambda: torch.ones(2).to(GPU), lambda: torch.tensor([1.0, 2.0], device=GPU), x.tolist,
            lambda: bool(x[0]), lambda: x[x > 0],
        ):  # fmt: skip
            gpu.waits = 0
            waits()
            assert gpu.waits == 1
        with pytest.raises(AssertionError, match="on cpu"):
            x + torch.ones(2)
