"""Hugging Face folders: every tensor and every setting is accounted for; what is damaged, or would
compute something else, is one error that names the file and the setting."""

import json
import shutil
import warnings

import pytest
import torch

from bridge.chat import read_tokenizer
from bridge.decoders import decoder_sizes
from bridge.pretrained import load
from bridge.siglip import vision_sizes
from data import DataError
from mma import TEXT

hf = pytest.importorskip("transformers", "5.6")
safetensors = pytest.importorskip("safetensors.torch")

LLAMA = dict(
    model_type="llama", vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4,
)  # fmt: skip
SIGLIP = dict(model_type="siglip_vision_model")
HEAD = "lm_head.weight is not the embedding: it is used"


def rope(kind: str, **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


def long_rope(short: object, long: object) -> dict:
    scaling = dict(type="longrope", short_factor=short, long_factor=long)
    return dict(LLAMA, model_type="phi3", original_max_position_embeddings=32, rope_scaling=scaling)


DECODERS = [
    ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),  # by transformers
    ({"rope_scaling": "yarn"}, "yarn"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' can be loaded"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ({"model_type": "no such"}, "no such"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'.* cannot be"),
    (rope("dynamic", factor=2.0), "positions of the kind .*dynamic.* cannot be loaded"),
    (rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4), "cannot be loaded"),
    (rope("default", partial_rotary_factor=0.5), "positions of the kind .*0.5"),
    (rope("llama3"), "factor"),
    # one factor would be spread over all frequencies, without a word
    (long_rope([2.0], [1.0] * 4), "short_factor field must have length 4, got 1"),
    (long_rope([1.0] * 4, [1.0, 0, 1.0, 1.0]), "gives no frequencies"),
]
EYES = [
    ({"hidden_act": "gelu"}, "only 'gelu_pytorch_tanh'"), ({"num_channels": 1}, "num_channels"),
    ({"model_type": "siglip2_vision_model"}, "model_type"),
]  # fmt: skip


@pytest.mark.parametrize("read,config,change,says", [
    *((decoder_sizes, LLAMA, *damage) for damage in DECODERS),
    *((vision_sizes, SIGLIP, *damage) for damage in EYES),
    *((read, "{", None, "JSON") for read in (vision_sizes, decoder_sizes, read_tokenizer)),
    (read_tokenizer, None, None, "no such file"),
])  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named(tmp_path, read, config, change, says):
    """A broken config.json is not called a broken tokenizer."""
    file = tmp_path / "config.json"
    (tmp_path / "tokenizer.json").write_text("{}")
    if config is not None:
        file.write_text(config if change is None else json.dumps(config))
    if change is not None:
        read(tmp_path)
        file.write_text(json.dumps({**config, **change}))
    with pytest.raises(DataError, match=says) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


# --- Tensors


def changed(folder, file="model.safetensors", **change):
    """The folder with other tensors, ends of names written with __ for points; None: without
    one."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name, new in change.items():
        name = name.replace("__", ".") + ".weight"
        name = next((known for known in tensors if known.endswith(name)), name)
        tensors.pop(name, None)
        if new is not None:
            tensors[name] = torch.zeros(new) if isinstance(new, tuple) else new
    safetensors.save_file(tensors, folder / file, {"format": "pt"})
    return folder


EIGHT_BITS = torch.zeros(48, 32).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("kind,change,says", [
    ("llama", dict(layers__1__mlp__up_proj=None), 'Missing key.* "blocks.1.up.weight"'),
    ("llama", dict(model__side=(2,)), 'Unexpected key.* "model.side.weight"'),
    ("llama", dict(layers__7__mlp__up_proj=(48, 32)), 'Unexpected key.* "blocks.7.up.weight"'),
    ("llama", dict(model__norm=(33,)), "size mismatch for norm.weight"),
    ("llama", dict(embed_tokens=torch.zeros(9, 32, dtype=torch.int8)), "embed.* quantised .*int8"),
    ("llama", dict(layers__0__mlp__up_proj=EIGHT_BITS), "up_proj.* is quantised .*float8_e4m3fn"),
    ("phi3", dict(layers__0__mlp__gate_up_proj=(95, 32)), "gate_up_proj.weight .95, 32. does not"),
    ("phi3", dict(layers__0__mlp__gate_up_proj=()), "gate_up_proj.weight .. does not fit"),
    ("siglip", dict(layers__0__self_attn__v_proj=None), 'Missing .*blocks.0.v.weight"'),
    ("siglip", dict(embeddings__patch_embedding=()), "mismatch for encoder.patch.weight"),
])  # fmt: skip
def test_every_tensor_is_accounted_for(vision, saved, tmp_path, kind, change, says):
    eyes = shutil.copytree(vision[0], tmp_path / "vision")
    folder = saved("llama" if kind == "siglip" else kind)[0]
    changed(eyes if kind == "siglip" else folder, **change)
    with pytest.raises(DataError, match=says) as error:
        load(eyes, folder)
    assert "\n" not in str(error.value)


def test_shards_and_dtype(vision, saved):
    folder, theirs = saved("llama", max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = load(vision[0], folder, dtype=torch.bfloat16, pool=4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    expected = theirs.model.layers[2].mlp.down_proj.weight.bfloat16()
    torch.testing.assert_close(model.blocks[2].down.weight, expected)
    images = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    ids, role = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 2, 3, 4]])
    hidden = model(ids, role, images, torch.tensor([0]))
    assert hidden.dtype == torch.bfloat16 and hidden.isfinite().all()
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(DataError, match="not readable as safetensors: .*[Nn]o such file"):
        load(vision[0], folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DataError, match="index.json: not readable as an index of files"):
        load(vision[0], folder)


def test_a_head_of_its_own_is_used_where_the_settings_tie_it(vision, saved):
    """As transformers does; a head that is the embedding, written down twice, is one."""
    ids = torch.tensor([[5, 6, 7, 8]])

    def close(model, theirs):
        logits = model.head(model(ids, torch.full_like(ids, TEXT)))[..., :90]
        torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)

    folder, theirs = saved("tied")
    same = safetensors.load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(vision[0], changed(folder, lm_head=same.clone()))
    assert model.config.tied
    close(model, theirs)
    with pytest.warns(UserWarning, match=HEAD):
        model = load(vision[0], changed(folder, lm_head=same + 1), vocab_size=91)
    assert not model.config.tied and len(model.unembed.weight) == 91
    close(model, type(theirs).from_pretrained(folder))
    weights = safetensors.load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): w for name, w in weights.items()}  # of a decoder alone
    safetensors.save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=HEAD):
        assert not load(vision[0], folder).config.tied


def test_which_file_of_the_weights_is_read(vision, saved):
    """model.safetensors, as transformers does; in it each tensor may be there once."""
    folder, theirs = saved("llama")
    changed(folder, "consolidated.safetensors", model__norm=(32,))
    assert torch.equal(load(vision[0], folder).norm.weight, theirs.model.norm.weight)
    weights = safetensors.load_file(folder / "model.safetensors")
    twice = {**weights, "norm.weight": torch.zeros(32)}
    safetensors.save_file(twice, folder / "model.safetensors")
    with pytest.raises(DataError, match="norm.weight .32. is there twice"):
        load(vision[0], folder)
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="model.safetensors: not readable"):
        load(vision[0], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no model.safetensors"):
        load(vision[0], folder)
