"""Decoders' Hugging Face folders: Llama and what has its architecture (Llama-2, TinyLlama, Vicuna,
SmolLM2; Llama-3.1 and 3.2 with their rope), Mistral, Phi-3 and Phi-3.5-mini (fused projections,
long-rope), Qwen2 and Qwen2.5 (biases of q, k and v), Qwen3 (normed q and k).

What the configuration says as fields of pretrained.PretrainedConfig, and which parameter a tensor
fills.
"""

import math
import warnings
from pathlib import Path

import torch

from bridge.folders import demand, needed, read_config, tensors
from data import DataError

KINDS = ["llama", "mistral", "phi3", "qwen2", "qwen3"]
# Positions that depend on nothing but the position; of longrope, on whether the row is long
ROPES = {**dict.fromkeys(["default", "linear", "yarn", "llama3"], KINDS), "longrope": ["phi3"]}


def decoder_sizes(folder: Path) -> dict:
    """Fields of PretrainedConfig. Raises DataError for what is damaged, or would load and compute
    something else."""
    config = read_config(folder)
    demand(
        folder, config, model_type=KINDS, hidden_act=["silu"], attention_bias=[False],
        mlp_bias=[False],
    )  # fmt: skip
    return dict(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_kv_head=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", None) or 0,
        qkv_bias=config.model_type == "qwen2",
        qk_norm=config.model_type == "qwen3",
        d_ff=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings and not has_other_head(folder),
        windows=windows_of(folder, config),
        **rope_of(folder, config),
    )


def has_other_head(folder: Path) -> bool:
    """Whether the files hold a head that is not the embedding, although the configuration says that
    they are one: of some that were fine-tuned. transformers computes with the file's, too."""
    names = "model.embed_tokens.weight", "embed_tokens.weight", "lm_head.weight"
    everything = tensors(folder) if any(folder.glob("*.safetensors")) else ()
    found = [tensor for name, tensor in everything if name in names]
    if len(found) < 2 or torch.equal(*found):
        return False
    said = "tie_word_embeddings is true, but lm_head.weight is not the embedding: it is used"
    warnings.warn(f"{folder}: {said}", stacklevel=2)
    return True


def windows_of(folder: Path, config) -> tuple[int, ...]:
    """The sliding window of each layer, 0 for none; () where no layer has one."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if others := {*(kinds or ())} - {"full_attention", "sliding_attention"}:
        raise DataError(f"{folder / 'config.json'}: layer_types {sorted(others)} cannot be loaded")
    if not window or config.model_type == "llama":  # which knows none
        return ()
    kinds = kinds or ["sliding_attention"] * config.num_hidden_layers
    windows = tuple(window * (kind == "sliding_attention") for kind in kinds)
    return windows if any(windows) else ()


def rope_of(folder: Path, config) -> dict:
    """The fields of rotary positions, as transformers computes their frequencies. Of long-rope
    (LongRoPE, arXiv 2402.13753) those of short rows and those of long ones."""
    rope, kind = config.rope_parameters, config.rope_parameters["rope_type"]
    if config.model_type not in ROPES.get(kind, ()) or rope.get("partial_rotary_factor", 1) != 1:
        said = f"positions of the kind {str(rope)[:100]} cannot be loaded"
        raise DataError(f"{folder / 'config.json'}: {said}")
    theta = dict(rope_theta=float(rope["rope_theta"]))
    if kind == "default":
        return theta
    short = rope["original_max_position_embeddings"] if kind == "longrope" else 0
    functions = needed("transformers.modeling_rope_utils", "transformers").ROPE_INIT_FUNCTIONS
    lengths = (short, short + 1) if short else (None,)
    found = [functions[kind](config, "cpu", seq_len=length) for length in lengths]
    frequencies = tuple(tuple(of_length.tolist()) for of_length, _ in found)
    if not all(0 < f < math.inf for of_length in frequencies for f in of_length):
        said = f"{str(rope)[:100]} gives no frequencies of positions"
        raise DataError(f"{folder / 'config.json'}: {said}")
    return theta | dict(rope=frequencies, rope_short=short, rope_scale=float(found[0][1]))


# A tensor of the files, as a pattern -> the parameters it fills; see folders.values_of
BLOCK = r"(?:model\.)?layers\.(\d+)\."
QKV = r"blocks.\1.attention.q.weight blocks.\1.attention.k.weight blocks.\1.attention.v.weight"
DECODER = {
    r"(?:model\.)?embed_tokens\.weight": "embed.weight",
    r"(?:model\.)?norm\.weight": "norm.weight",
    r"lm_head\.weight": "unembed.weight",
    BLOCK + r"input_layernorm\.weight": r"blocks.\1.norm1.weight",
    BLOCK + r"post_attention_layernorm\.weight": r"blocks.\1.norm2.weight",
    BLOCK + r"self_attn\.([qkv])_proj\.(weight|bias)": r"blocks.\1.attention.\2.\3",
    BLOCK + r"self_attn\.([qk])_norm\.weight": r"blocks.\1.attention.\2.norm.weight",
    BLOCK + r"self_attn\.qkv_proj\.weight": QKV,
    BLOCK + r"self_attn\.o_proj\.weight": r"blocks.\1.attention.out.weight",
    BLOCK + r"mlp\.(gate|up|down)_proj\.weight": r"blocks.\1.\2.weight",
    BLOCK + r"mlp\.gate_up_proj\.weight": r"blocks.\1.gate.weight blocks.\1.up.weight",
    BLOCK + r"self_attn\.rotary_emb\.inv_freq": "",  # old files keep what the configuration says
}
