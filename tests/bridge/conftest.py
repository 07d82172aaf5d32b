"""Tiny random checkpoints that transformers writes: SigLIP, decoders, one with a tokenizer."""

import pytest
import torch
from decoder_kinds import DECODERS, SIZES


def scramble(model):
    """Weights large enough that every input matters; norms that are not one."""
    for p in model.parameters():
        torch.nn.init.normal_(p, *((0.0, 0.3) if p.dim() > 1 else (1.0, 0.2)))
    return model.eval()


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """(folder, model): pictures of 33 pixels, patches of 8: four along a side, and a pixel over."""
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        image_size=33, patch_size=8,
    )  # fmt: skip
    model, folder = scramble(hf.SiglipVisionModel(config)), tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(kind, **options of save_pretrained) -> (folder, model) of a decoder."""
    hf = pytest.importorskip("transformers")

    def make(kind, **options):
        (name, more), folder = DECODERS[kind], tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        config = getattr(hf, f"{name}Config")(**SIZES, **more)
        model = scramble(getattr(hf, f"{name}ForCausalLM")(config))
        model.save_pretrained(folder, **options)
        return folder, model

    return make


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A Llama's folder with a tokenizer and a template."""
    hf = pytest.importorskip("transformers")
    from families import write_folder

    folder = tmp_path_factory.mktemp("chat")
    size = write_folder(folder, "vicuna")
    torch.manual_seed(2)
    config = hf.LlamaConfig(**{**SIZES, "vocab_size": size}, num_key_value_heads=2)
    scramble(hf.LlamaForCausalLM(config)).save_pretrained(folder)
    return folder
