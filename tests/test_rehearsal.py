"""A rehearsal for a GPU, on a machine without one. Fake tensors have a device and a shape and no
values: a forward pass, a loss and a prefill over them, as if on "cuda", stop at any tensor that is
made or left on the CPU, and at any value that the host waits for. A backward pass cannot be
rehearsed (torch aborts), nor can kernels."""

import json

import pytest
import torch
from helpers import KINDS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
from bridge.pretrained import PretrainedMLLM, config_of
from data.packing import first_fit
from engine.last_layer import answer_loss, find_loss_positions
from lab.variants import VARIANTS, find
from mma import PAD
from model import MLLM, KVCache

FakeTensorMode = pytest.importorskip("torch._subclasses.fake_tensor").FakeTensorMode


class OnlyOnGpu(TorchDispatchMode):
    """AssertionError for an operation that reads or makes a tensor elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            elsewhere = isinstance(x, torch.Tensor) and x.device.type != "cuda"
            assert not elsewhere, f"{func} has a tensor {list(x.shape)} on {x.device}"
        return out


@pytest.fixture
def gpu():
    """Every tensor that is made meanwhile is fake."""
    with FakeTensorMode() as mode:
        try:
            torch.ones(2, device="cuda") + torch.arange(2, device="cuda")
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            pytest.skip(f"this torch has no fake CUDA: {str(error).splitlines()[0]}")
        yield mode


def placed(model):
    """The model, its parameters and buffers fake ones on the GPU. (.to cannot do it.)"""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(placed_tensor(p))
        for name, x in module.named_buffers(recurse=False):
            module._buffers[name] = placed_tensor(x)
    return model


def placed_tensor(x):
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


# --- What is rehearsed


def of_variant(name, config, tokenizer):
    variant = find(None if name == "plain" else name)
    return variant.model_class(config), variant.tokenizer_class(tokenizer.model)


SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, vocab_size=90,
)  # fmt: skip
LONG = dict(short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.0, 2.0, 3.0, 5.0], type="longrope")
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
DECODERS = {  # as their config.json has it
    "llama": dict(model_type="llama", num_key_value_heads=2, rope_theta=5e5),
    "tied": dict(model_type="llama", tie_word_embeddings=True),
    "mistral": dict(model_type="mistral", num_key_value_heads=1, sliding_window=512),
    "phi3": dict(model_type="phi3", num_key_value_heads=2),
    "llama3": dict(model_type="llama", rope_scaling=LLAMA3),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=2),
    "qwen3": dict(model_type="qwen3", num_key_value_heads=2, head_dim=12),
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
        common = dict(hidden_act="silu") if part == "decoder" else {}
        (folder / part / "config.json").write_text(json.dumps(config | common))
    parts, size = (folder / "vision", folder / "decoder"), len(tokenizer)
    return PretrainedMLLM(config_of(*parts, pool=2, vocab_size=size)), tokenizer


CLASSES = {(MLLM, data.Tokenizer): "plain"}  # of the variants: one name for each pair
for name, variant in VARIANTS.items():
    CLASSES.setdefault((variant.model_class, variant.tokenizer_class), name)


@pytest.fixture(params=[*CLASSES.values(), *DECODERS])
def rehearsed(request, model, tokenizer, tmp_path):
    """A model and its tokenizer, both real."""
    if request.param in DECODERS:
        return of_bridge(request.param, tokenizer, tmp_path)
    return of_variant(request.param, model.config, tokenizer)


def batches_of(model, tokenizer, examples) -> list[dict]:
    """Padded and packed, with what the loader adds."""
    rows, made = [data.encode(e, tokenizer, model.config.n_image_tokens) for e in examples], []
    for some in (rows, first_fit(rows, 80)):
        batch = data.collate(some, tokenizer.pad, model.config.image_size)
        found = find_loss_positions(batch["role"], batch.get("document"))
        made.append({**batch, "rows": found[0], "valid_index": found[1]})
    assert "document" in made[1]
    return made


def sized(examples, size: int):
    """Their pictures in the model's size."""
    for example in examples:
        example.images = [torch.zeros(3, size, size, dtype=torch.uint8) for _ in example.images]
    return examples


def prefill_and_decode(model, ids, role, turn, images, image_index):
    """As MLLM.generate does it, whose end alone depends on values."""
    (B, T), column = ids.shape, torch.arange(ids.shape[1] + 4, device=ids.device)
    length, cache = (role != PAD).sum(1, keepdim=True), KVCache(model, *ids.shape)
    hidden = model(ids, role, images, image_index, turn, rows=length - 1, cache=cache)
    _, position = model.mask_and_positions(model.config.mask, role, turn)
    position = position.expand(B, T).gather(1, length - 1)
    token = model.head(hidden[:, 0]).argmax(-1)
    mask = (column[:T] <= length)[:, None, None]
    x = model.embed(token[:, None])
    return model.decode(x, mask, position + 1, length < 0, cache, length)


def lost(model, batch: dict, kind: str) -> None:
    """Masks, positions and loss."""
    batch = dict(batch)
    rows, valid_index = batch.pop("rows"), batch.pop("valid_index")
    roles = (batch.get(name) for name in ("role", "turn", "document"))
    assert all(x.is_cuda for x in model.mask_and_positions(kind, *roles))
    assert answer_loss(model, rows, valid_index, **batch, mask=kind).is_cuda


def test_a_step_and_an_answer_stay_on_the_gpu(rehearsed, dialogues, request):
    model, tokenizer = rehearsed
    padded, packed = batches_of(model, tokenizer, sized(dialogues, model.config.image_size))
    request.getfixturevalue("gpu")  # from here on
    placed(model)
    padded, packed = ({n: placed_tensor(x) for n, x in some.items()} for some in (padded, packed))
    with OnlyOnGpu():
        lost(model, padded, "causal")
        lost(model, packed, "mma")
        del padded["rows"], padded["valid_index"]
        with torch.no_grad():
            assert prefill_and_decode(model, **padded).is_cuda


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_under_every_mask_stays_on_the_gpu(kind, model, tokenizer, dialogues, request):
    packed = batches_of(model, tokenizer, dialogues)[1]
    request.getfixturevalue("gpu")
    placed(model)
    with OnlyOnGpu():
        lost(model, {n: placed_tensor(x) for n, x in packed.items()}, kind)


PLANTED = {
    "made on the CPU": ("on cpu", lambda: torch.arange(3)),
    "copied from the host": ("on cpu", lambda: torch.tensor([1.0, 2.0], device="cuda")),
    "moved": ("on cpu", lambda: torch.ones(2).to("cuda")),
    "left there": ("on cpu", lambda: torch.ones(2, device="cuda") * torch.tensor(2.0)),
    "waited for": ("_local_scalar_dense", lambda: torch.ones(2, device="cuda").sum().item()),
    "counted by the host": ("nonzero", lambda: torch.ones(2, device="cuda").nonzero()),
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_rehearsal_can_fail(what, model, batch_of, dialogues, monkeypatch, request):
    """Of a forward pass that is otherwise right."""
    batch, (says, fault) = batch_of(dialogues[:1]), PLANTED[what]
    request.getfixturevalue("gpu")
    placed(model)
    batch = {name: placed_tensor(x) for name, x in batch.items()}
    plain = type(model).frequencies
    planted = lambda self, position: (fault(), plain(self, position))[1]
    monkeypatch.setattr(type(model), "frequencies", planted)
    with pytest.raises((AssertionError, RuntimeError), match=says), OnlyOnGpu():
        model(**batch)
