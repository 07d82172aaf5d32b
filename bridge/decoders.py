"""Decoders' Hugging Face folders: Llama and what has its architecture (Llama-2, TinyLlama, Vicuna,
SmolLM2; Llama-3.1 and 3.2 with their rope), Mistral up to its window, Phi-3 and Phi-3.5-mini (fused
projections, long-rope), Qwen2 and Qwen2.5 (biases of q, k and v), Qwen3 (normed q and k).

What config.json says as fields of pretrained.PretrainedConfig, and which parameter a tensor fills.
"""

import math
from functools import partial
from pathlib import Path

from bridge.folders import demand, is_number, number, read_config, section
from data import DataError


def decoder_sizes(folder: Path, max_tokens: int | None = None) -> dict:
    """Fields of PretrainedConfig. max_tokens: the longest row that will be used, if it is known.
    Raises DataError for what is damaged, or would load and compute something else."""
    config = read_config(folder)
    demand(
        folder, config, model_type=["llama", "mistral", "phi3", "qwen2", "qwen3"],
        hidden_act=["silu"], attention_bias=[False], mlp_bias=[False], rope_interleaved=[False],
        tie_word_embeddings=[False, True],
    )  # fmt: skip
    if "model_type" not in config:  # no guess: what another kind computes would not be known
        raise DataError(f"{folder / 'config.json'}: 'model_type' is missing")
    of = partial(number, folder, config)
    kind, width, heads = config["model_type"], of("hidden_size"), of("num_attention_heads")
    d_head = of("head_dim", 128 if kind == "qwen3" else 0)
    qwen = kind.startswith("qwen")
    check_window(folder, config, not qwen or config.get("use_sliding_window"), max_tokens)
    return dict(
        vocab_size=of("vocab_size"),
        d_model=width,
        n_layer=of("num_hidden_layers"),
        n_head=heads,
        n_kv_head=of("num_key_value_heads", heads),
        d_head=d_head,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        d_ff=of("intermediate_size"),
        norm_eps=of("rms_norm_eps", 1e-6, whole=False),
        tied=config.get("tie_word_embeddings", False),
        **rope_of(folder, config, (d_head or width // heads) // 2),
    )


def check_window(folder: Path, config: dict, used: bool, max_tokens: int | None) -> None:
    """DataError for rows longer than a sliding window that is used, and for layers of other kinds
    of attention."""
    kinds = config.get("layer_types") or []
    kinds = kinds if isinstance(kinds, list) else [kinds]
    others = {*map(str, kinds)} - {"full_attention", "sliding_attention"}
    if others:
        raise DataError(f"{folder / 'config.json'}: layer_types {sorted(others)} cannot be loaded")
    if not (used and config.get("sliding_window")):
        return
    window = number(folder, config, "sliding_window")
    if (max_tokens or 0) > window:
        raise DataError(
            f"{folder / 'config.json'}: rows of {max_tokens} tokens are longer than its sliding "
            f"window of {window}"
        )


def rope_of(folder: Path, config: dict, n: int) -> dict:
    """The fields of rotary positions: plain ones, Llama-3.1's, or long-rope (LongRoPE, arXiv
    2402.13753). n: frequencies of a head, d/2."""
    rope = section(folder, config, "rope_scaling") | section(folder, config, "rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if kind not in ("default", "llama3", "longrope", "su") or share != 1:
        said = rope or config.get("partial_rotary_factor")
        raise DataError(f"{folder / 'config.json'}: positions of the kind {said} cannot be loaded")
    theta = number(folder, config, "rope_theta", 10_000.0, whole=False)
    fields = {"rope_theta": float(number(folder, rope, "rope_theta", theta, whole=False))}
    if kind == "default":
        return fields
    if kind == "llama3":
        of_llama3 = (float(number(folder, rope, name, whole=False)) for name in LLAMA3)
        return fields | {"rope_llama3": tuple(of_llama3)}
    name = "original_max_position_embeddings"
    short = number(folder, rope if rope.get(name) else config, name)
    stretch = number(folder, config, "max_position_embeddings") / short
    scale = math.sqrt(1 + math.log(stretch) / math.log(short)) if stretch > 1 else 1.0
    return fields | dict(
        rope_factors=tuple(factors(folder, rope, f"{of}_factor", n) for of in ("short", "long")),
        rope_short=short,
        rope_scale=number(folder, rope, "attention_factor", scale, whole=False),
    )


def factors(folder: Path, rope: dict, name: str, n: int) -> tuple:
    """Long-rope's divisors, one a frequency. Another number of them could be spread over all
    frequencies, and would compute another model."""
    values = rope.get(name)
    if not isinstance(values, list) or len(values) != n or not all(map(is_number, values)):
        raise DataError(
            f"{folder / 'config.json'}: {name} is {str(values)[:60]}; a list of {n} numbers above "
            "0 was expected, one for each of RoPE's frequencies"
        )
    return tuple(values)


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
