"""Tiny random checkpoints that transformers writes: SigLIP, decoders, one with a tokenizer."""

import io
import json

import pytest
import sentencepiece
import torch

SIZES = dict(
    vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=256, pad_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
LONG = dict(short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.0, 2.0, 3.0, 5.0])


def decoder_of(hf, kind: str):
    torch.manual_seed(1)
    if kind == "llama":
        more = dict(num_key_value_heads=2, rope_theta=50_000.0, rms_norm_eps=1e-5)
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **more))
    if kind == "tied":
        more = dict(num_key_value_heads=4, tie_word_embeddings=True)
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **more))
    if kind == "mistral":
        more = dict(num_key_value_heads=1, sliding_window=64, head_dim=8)
        return hf.MistralForCausalLM(hf.MistralConfig(**SIZES, **more))
    if kind.startswith("llama3"):  # of a base so small that all three cases of llama3 occur
        rope = dict(LLAMA3, rope_type="llama3", rope_theta=100.0)
        more = dict(num_key_value_heads=2, rope_parameters=rope)
        tied = kind.endswith("tied")
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **more, tie_word_embeddings=tied))
    if kind == "qwen2":
        more = dict(num_key_value_heads=2, tie_word_embeddings=True, sliding_window=8)
        return hf.Qwen2ForCausalLM(hf.Qwen2Config(**SIZES, **more))
    if kind == "qwen3":
        more = dict(num_key_value_heads=2, head_dim=12)
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, **more))
    if kind == "phi3":
        return hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, num_key_value_heads=2))
    rope = dict(type="longrope", **LONG)
    more = dict(num_key_value_heads=4, original_max_position_embeddings=32, rope_scaling=rope)
    return hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, **more))


def scramble(model):
    """Weights large enough that every input matters; norms that are not one."""
    with torch.no_grad():
        for p in model.parameters():
            matrix = p.dim() > 1
            p.copy_(torch.randn_like(p) * (0.3 if matrix else 0.2) + (0.0 if matrix else 1.0))
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
        model, folder = scramble(decoder_of(hf, kind)), tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder, **options)
        return folder, model

    return make


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A Llama's folder with a tokenizer: sentencepiece as Llama's (unk 0, bos 1, eos 2), and
    Phi-3's added tokens behind it."""
    from bridge.chat import TEMPLATES

    hf = pytest.importorskip("transformers")
    folder, model = tmp_path_factory.mktemp("chat"), io.BytesIO()
    words = [
        "which colour is this?", "it is red.", "it is green.", "it is blue.", "really?", "yes.",
        "USER: ASSISTANT: [INST] [/INST] < | >", TEMPLATES["vicuna"].start,
    ]  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 3), model_writer=model, vocab_size=400,
        hard_vocab_limit=False, model_type="bpe", byte_fallback=True, character_coverage=1.0,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    added = {"<|user|>": size, "<|assistant|>": size + 1, "<|end|>": size + 2}
    listed = {str(i): {"content": text} for text, i in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    torch.manual_seed(2)
    config = hf.LlamaConfig(**{**SIZES, "vocab_size": size + 5}, num_key_value_heads=2)
    scramble(hf.LlamaForCausalLM(config)).save_pretrained(folder)
    return folder
