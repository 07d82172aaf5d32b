"""Damaged folders of pretrained weights: one error that names the file and the setting."""

import json
import re
from functools import partial

import pytest
import torch
from torch import nn

from bridge.chat import read_tokenizer
from bridge.decoders import decoder_sizes
from bridge.pretrained import Filling
from bridge.siglip import vision_sizes
from data import DataError

LLAMA = dict(
    model_type="llama", vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4,
)  # fmt: skip
LONG = dict(max_position_embeddings=256, original_max_position_embeddings=32)


def long_rope(short: object, long: object) -> dict:
    return {**LONG, "rope_scaling": dict(type="longrope", short_factor=short, long_factor=long)}


def write(folder, config) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("sizes,change,says", [
    (decoder_sizes, {"hidden_size": "32"}, "'hidden_size' is \"32\"; a whole number"),
    (decoder_sizes, {"num_hidden_layers": None}, "'num_hidden_layers' is null"),
    (decoder_sizes, {"num_attention_heads": 4.0}, "'num_attention_heads' is 4.0"),
    (decoder_sizes, {"num_key_value_heads": True}, "'num_key_value_heads' is true"),
    (decoder_sizes, {"rms_norm_eps": "1e-5"}, "'rms_norm_eps' is .*; a number"),
    (decoder_sizes, {"rope_theta": float("inf")}, "'rope_theta' is Infinity"),
    (decoder_sizes, {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    (decoder_sizes, {"sliding_window": "64"}, "'sliding_window' is \"64\""),
    (decoder_sizes, {"layer_types": 5}, "layer_types .'5'. cannot be loaded"),
    (decoder_sizes, {"rope_scaling": "yarn"}, "rope_scaling is \"yarn\", and an object"),
    # one factor would be spread over all frequencies, without a word
    (decoder_sizes, long_rope([2.0], [1.0] * 4), "short_factor is .2.0.; a list of 4 numbers"),
    (decoder_sizes, long_rope([1.0] * 4, [1.0] * 5), "long_factor is .* a list of 4 numbers"),
    (decoder_sizes, long_rope([1.0] * 4, [1.0, 0, 1.0, 1.0]), "long_factor is .* above 0"),
    (decoder_sizes, long_rope(2.0, None), "short_factor is 2.0; a list"),
    (vision_sizes, {"hidden_size": "32"}, "'hidden_size' is \"32\""),
    (vision_sizes, {"num_hidden_layers": None}, "'num_hidden_layers' is null"),
    (vision_sizes, {"vision_config": []}, "vision_config is .., and an object"),
])  # fmt: skip
def test_a_damaged_setting_is_named(tmp_path, sizes, change, says):
    write(tmp_path, {**LLAMA, "model_type": "siglip"} if sizes is vision_sizes else LLAMA)
    sizes(tmp_path)
    write(tmp_path, {**json.loads((tmp_path / "config.json").read_text()), **change})
    with pytest.raises(DataError, match=says) as error:
        sizes(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")


@pytest.mark.parametrize("name", LLAMA)
def test_a_missing_setting_is_named(tmp_path, name):
    write(tmp_path, {key: value for key, value in LLAMA.items() if key != name})
    with pytest.raises(DataError, match=f"config.json: '{name}' is missing"):
        decoder_sizes(tmp_path)


def test_long_rope_of_the_right_length_is_read(tmp_path):
    write(tmp_path, {**LLAMA, **long_rope([1, 1.1, 1.3, 1.4], [1.0, 2.0, 3.0, 5.0])})
    got = decoder_sizes(tmp_path)
    assert got["rope_factors"] == ((1, 1.1, 1.3, 1.4), (1.0, 2.0, 3.0, 5.0))
    assert got["rope_short"] == 32 and got["rope_scale"] == pytest.approx(1.6**0.5)


@pytest.mark.parametrize("text,says", [("[]", "an object"), ("{", "JSON"), (None, "not readable")])
def test_a_broken_config_is_not_called_a_broken_tokenizer(tmp_path, text, says):
    file = tmp_path / "config.json"
    file.mkdir() if text is None else file.write_text(text)
    (tmp_path / "tokenizer.json").write_text("{}")
    for read in (vision_sizes, decoder_sizes, lambda folder: read_tokenizer(folder, "chatml")):
        with pytest.raises(DataError, match=f"config.json: .*{says}"):
            read(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    for read in (vision_sizes, decoder_sizes, lambda folder: read_tokenizer(folder, "vicuna")):
        with pytest.raises(DataError, match=r"model.safetensors/\w+.\w+: no such file"):
            read(file)


@pytest.mark.parametrize("name,shape,says", [
    ("norm", (), "norm has the shape ..: norm.weight would be .1., not .4."),
    ("patch", (), "patch has the shape ..: encoder.patch.weight would be .1., not .4, 12."),
    ("gate_up", (), "gate_up has the shape .., and 8 rows were expected"),
    ("q", (4,), "q has the shape .4.: qkv.weight would be .4., not .12, 4."),
])  # fmt: skip
def test_a_tensor_of_other_dimensions_is_named(name, shape, says):
    """Also where k is there already, to which q would be joined."""
    linear = partial(nn.Linear, bias=False)
    parts = {"norm": nn.RMSNorm(4), "qkv": linear(4, 12), "gate": linear(4, 4), "up": linear(4, 4)}
    model = nn.ModuleDict({**parts, "encoder": nn.ModuleDict({"patch": linear(12, 4)})})
    names = {"norm": "norm.weight", "patch": "encoder.patch.weight", "q": "qkv.weight#0/3"}
    names |= {"k": "qkv.weight#1/3", "gate_up": "gate.weight up.weight"}
    wanted = {parameter for parameter, _ in model.named_parameters()}
    filling = Filling(model, names, wanted, torch.float32)
    filling.take("file", "k", torch.ones(4, 4))
    filling.take("file", name, torch.ones(shape))
    (wrong,) = filling.wrong
    assert re.search(says, wrong)
