"""Hugging Face folders: every tensor and every setting is accounted for; what is damaged, or would
compute something else, is one error that names the file and the setting."""

import json
import shutil
import sys
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


def written(folder, config) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def rope(kind: str, **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


def long_rope(short: object, long: object) -> dict:
    scaling = dict(type="longrope", short_factor=short, long_factor=long)
    return dict(LLAMA, model_type="phi3", original_max_position_embeddings=32, rope_scaling=scaling)


DAMAGED = [
    ({"hidden_size": "32"}, "'hidden_size' expected int, got str"),
    ({"num_hidden_layers": None}, "'num_hidden_layers' expected int"),
    ({"num_attention_heads": 4.0}, "'num_attention_heads' expected int"),
    ({"num_key_value_heads": True}, "'num_key_value_heads'"),
    ({"rms_norm_eps": "1e-5"}, "'rms_norm_eps' expected float"),
    ({"tie_word_embeddings": "false"}, "'tie_word_embeddings' expected bool"),
    ({"model_type": "mistral", "sliding_window": "64"}, "'sliding_window'"),
    ({"rope_scaling": "yarn"}, "yarn"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' can be loaded"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ({"model_type": "no such"}, "no such"),
    ({"model_type": None}, "model type"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'.* cannot be"),
    (rope("dynamic", factor=2.0), "positions of the kind .*dynamic.* cannot be loaded"),
    (rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4), "cannot be loaded"),
    (rope("default", partial_rotary_factor=0.5), "positions of the kind .*0.5"),
    (rope("llama3"), "factor"),
    (rope("yarn"), "factor"),
    # one factor would be spread over all frequencies, without a word
    (long_rope([2.0], [1.0] * 4), "short_factor field must have length 4, got 1"),
    (long_rope([1.0] * 4, [1.0] * 5), "long_factor field must have length 4, got 5"),
    (long_rope([1.0] * 4, [1.0, 0, 1.0, 1.0]), "gives no frequencies"),
]


@pytest.mark.parametrize("change,says", DAMAGED)
def test_a_setting_that_cannot_be_used_is_named(tmp_path, change, says):
    written(tmp_path, LLAMA)
    decoder_sizes(tmp_path)
    written(tmp_path, {**LLAMA, **change})
    with pytest.raises(DataError, match=says) as error:
        decoder_sizes(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change,says", [
    ({"hidden_size": "32"}, "'hidden_size'"), ({"hidden_act": "gelu"}, "only 'gelu_pytorch_tanh'"),
    ({"model_type": "siglip2_vision_model"}, "model_type"), ({"num_channels": 1}, "num_channels"),
    ({"model_type": "siglip", "vision_config": []}, "'vision_config'"),
])  # fmt: skip
def test_a_setting_of_an_encoder_that_cannot_be_used_is_named(tmp_path, change, says):
    written(tmp_path, SIGLIP)
    vision_sizes(tmp_path)
    written(tmp_path, {**SIGLIP, **change})
    with pytest.raises(DataError, match=f"config.json: .*{says}"):
        vision_sizes(tmp_path)


@pytest.mark.parametrize("text,says", [("[]", "."), ("{", "JSON"), (None, "no such file")])
def test_a_broken_config_is_not_called_a_broken_tokenizer(tmp_path, text, says):
    file = tmp_path / "config.json"
    file.mkdir() if text is None else file.write_text(text)
    (tmp_path / "tokenizer.json").write_text("{}")
    for read in (vision_sizes, decoder_sizes, read_tokenizer):
        with pytest.raises(DataError, match=f"config.json: .*{says}"):
            read(tmp_path)
        with pytest.raises(DataError, match="config.json/config.json: no such file"):
            read(file)


def test_missing_packages_are_named(vision, saved, monkeypatch):
    folder, _ = saved("llama")
    for package in ("safetensors", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            DataError, match=f"need the package {package}.*: pip install '?{package}"
        ):
            load(vision[0], folder)


# --- Tensors


def changed(folder, file="model.safetensors", **change):
    """The folder with other tensors, names written with __ for points; None: without one."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name, new in change.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if new is not None:
            tensors[name] = torch.zeros(new) if isinstance(new, tuple) else new
    safetensors.save_file(tensors, folder / file)
    return folder


EIGHT_BITS = torch.zeros(48, 32).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("kind,change,says", [
    ("llama", dict(model__layers__1__mlp__up_proj__weight=None), "blocks.1.up.* .48, 32. is miss"),
    (
        "llama", dict(model__layers__1__mlp__side__weight=(2,)),
        "model.layers.1.mlp.side.weight .2. in model.safetensors is not expected",
    ),
    ("llama", dict(model__layers__7__mlp__up_proj__weight=(48, 32)), "layers.7.* is not expected"),
    ("llama", dict(norm__weight=(32,)), "norm.weight .32. in model.safetensors is not expected"),
    (
        "llama", dict(model__norm__weight=(33,)),
        "model.norm.weight: norm.weight would be .33., not .32.",
    ),
    ("llama", dict(model__norm__weight=()), "norm.weight would be .., not .32."),
    (
        "llama", dict(model__embed_tokens__weight=torch.zeros(9, 32, dtype=torch.int8)),
        "1 tensors do not fit: model.embed_tokens.weight in .* is quantised .int8., which is not",
    ),
    (
        "llama", dict(model__layers__0__mlp__up_proj__weight=EIGHT_BITS),
        "1 tensors do not fit: model.layers.0.mlp.up_proj.* is quantised .float8_e4m3fn.",
    ),
    (
        "phi3", dict(model__layers__0__mlp__gate_up_proj__weight=(95, 32)),
        "layers.0.mlp.gate_up_proj.weight: blocks.0.up.weight would be .47, 32., not .48, 32.",
    ),
    ("phi3", dict(model__layers__0__mlp__gate_up_proj__weight=()), "would be .., not .48, 32."),
])  # fmt: skip
def test_every_tensor_of_a_decoder_is_accounted_for(vision, saved, kind, change, says):
    with pytest.raises(DataError, match=says):
        load(vision[0], changed(saved(kind)[0], **change))


@pytest.mark.parametrize("change,says", [
    ({"encoder__layers__0__self_attn__q_proj__weight": (4, 32)}, "qkv.weight would be .68, 32."),
    ({"encoder__layers__0__self_attn__q_proj__weight": (32,)}, "qkv.weight would be .32., not .96"),
    ({"encoder__layers__0__self_attn__q_proj__weight": (32, 9)}, "would be .32, 9., not .96"),
    ({"encoder__layers__0__self_attn__v_proj__bias": None}, "qkv.bias would be .64., not .96."),
    ({"embeddings__patch_embedding__weight": ()}, "patch.weight would be .., not .32, 192."),
])  # fmt: skip
def test_every_tensor_of_an_encoder_is_accounted_for(vision, saved, tmp_path, change, says):
    """q, k and v become one parameter."""
    folder = shutil.copytree(vision[0], tmp_path / "vision")
    names = safetensors.load_file(folder / "model.safetensors").keys()
    root = "vision_model__" * any(name.startswith("vision_model.") for name in names)
    change = {root + name: new for name, new in change.items()}
    with pytest.raises(DataError, match=says):
        load(changed(folder, **change), saved("llama")[0])


@pytest.mark.parametrize("change,says", [
    ({"model_type": "qwen2"}, "blocks.0.attention.k.bias .16. is missing"),
    ({"model_type": "qwen3", "head_dim": 8}, "blocks.0.attention.k.norm.weight .8. is missing"),
    ({"head_dim": 16}, "attention.q.weight would be .32, 32., not .64, 32."),
])  # fmt: skip
def test_settings_of_another_model_are_noticed_by_its_tensors(vision, saved, change, says):
    folder, _ = saved("llama")
    written(folder, {**json.loads((folder / "config.json").read_text()), **change})
    with pytest.raises(DataError, match=says):
        load(vision[0], folder)


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
    with pytest.raises(DataError, match="no such file, but model.safetensors.index.json names it"):
        load(vision[0], folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DataError, match="index.json: not readable as an index of files"):
        load(vision[0], folder)


def logits(model, ids):
    return model.head(model(ids, torch.full_like(ids, TEXT)))


def test_a_head_of_its_own_is_used_where_the_settings_tie_it(vision, saved):
    """As transformers does; a head that is the embedding, written down twice, is one."""
    ids = torch.tensor([[5, 6, 7, 8]])
    folder, theirs = saved("tied")
    same = safetensors.load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(vision[0], changed(folder, lm_head__weight=same.clone()))
    assert model.config.tied
    torch.testing.assert_close(logits(model, ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    changed(folder, lm_head__weight=same + 1)
    with pytest.warns(UserWarning, match="lm_head.weight is not the embedding: it is used"):
        model = load(vision[0], folder, vocab_size=91)
    assert not model.config.tied and len(model.unembed.weight) == 91
    weights = safetensors.load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): w for name, w in weights.items()}  # of a decoder alone
    safetensors.save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="lm_head.weight is not the embedding: it is used"):
        assert not load(vision[0], folder).config.tied
    theirs = type(theirs).from_pretrained(folder)
    got, expected = logits(model, ids)[..., :90], theirs(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - logits(load(vision[0], saved("tied")[0]), ids)).abs().max() > 1


def test_two_copies_of_the_weights(vision, saved):
    """model.safetensors is the one that transformers reads; of other names there may be one."""
    folder, theirs = saved("llama")
    changed(folder, "consolidated.safetensors", model__norm__weight=(32,))
    model = load(vision[0], folder)
    assert torch.equal(model.norm.weight, theirs.model.norm.weight)
    (folder / "model.safetensors").rename(folder / "copy.safetensors")
    says = "stands in consolidated.safetensors and in copy.safetensors: two copies of the weights"
    with pytest.raises(DataError, match=says):
        load(vision[0], folder)


def test_damaged_folders_are_named(vision, saved, tmp_path):
    with pytest.raises(DataError, match="config.json: no such file"):
        load(vision[0], tmp_path)
    folder, _ = saved("llama")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="model.safetensors: not readable"):
        load(vision[0], folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no .*safetensors"):
        load(vision[0], folder)
