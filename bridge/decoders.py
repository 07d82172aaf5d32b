"""Decoders' Hugging Face folders: Llama and what has its architecture (Llama-2, TinyLlama, Vicuna,
SmolLM2; Llama-3.1 and 3.2 with their rope), Mistral up to its window, Phi-3 and Phi-3.5-mini (fused
projections, long-rope), Qwen2 and Qwen2.5 (biases of q, k and v), Qwen3 (normed q and k).

What config.json says as fields of pretrained.PretrainedConfig, and which parameter a tensor fills.
"""

import math
from pathlib import Path

from bridge.folders import demand, read_config
from data import DataError


def decoder_sizes(folder: Path, max_tokens: int | None = None) -> dict:
    """Fields of PretrainedConfig. max_tokens: the longest row that will be used, if it is known.
    Raises DataError for what would load and compute something else."""
    config = read_config(folder)
    demand(
        folder, config, model_type=["llama", "mistral", "phi3", "qwen2", "qwen3"],
        hidden_act=["silu"], attention_bias=[False], mlp_bias=[False], rope_interleaved=[False],
    )  # fmt: skip
    kind, heads = config["model_type"], config["num_attention_heads"]
    qwen = kind.startswith("qwen")
    check_window(folder, config, not qwen or config.get("use_sliding_window"), max_tokens)
    return dict(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layer=config["num_hidden_layers"],
        n_head=heads,
        n_kv_head=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or (128 if kind == "qwen3" else 0),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        d_ff=config["intermediate_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
        **rope_of(folder, config),
    )


def check_window(folder: Path, config: dict, used: bool, max_tokens: int | None) -> None:
    """DataError for rows longer than a sliding window that is used, and for layers of other kinds
    of attention."""
    others = {*(config.get("layer_types") or [])} - {"full_attention", "sliding_attention"}
    if others:
        raise DataError(f"{folder / 'config.json'}: layer_types {sorted(others)} cannot be loaded")
    window = config.get("sliding_window")
    if used and window and (max_tokens or 0) > window:
        raise DataError(
            f"{folder / 'config.json'}: rows of {max_tokens} tokens are longer than its sliding "
            f"window of {window}"
        )


def rope_of(folder: Path, config: dict) -> dict:
    """The fields of rotary positions: plain ones, Llama-3.1's, or long-rope (LongRoPE, arXiv
    2402.13753)."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if kind not in ("default", "llama3", "longrope", "su") or partial != 1:
        said = rope or config.get("partial_rotary_factor")
        raise DataError(f"{folder / 'config.json'}: positions of the kind {said} cannot be loaded")
    fields = {"rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))}
    if kind == "default":
        return fields
    if kind == "llama3":
        return fields | {"rope_llama3": tuple(float(rope[name]) for name in LLAMA3)}
    name = "original_max_position_embeddings"
    short = rope.get(name) or config[name]
    stretch = config["max_position_embeddings"] / short
    scale = math.sqrt(1 + math.log(stretch) / math.log(short)) if stretch > 1 else 1.0
    return fields | dict(
        rope_factors=(tuple(rope["short_factor"]), tuple(rope["long_factor"])),
        rope_short=short,
        rope_scale=rope.get("attention_factor") or scale,
    )


LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

# A tensor of the files, as a pattern -> the parameters it fills; see pretrained.Filling
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
