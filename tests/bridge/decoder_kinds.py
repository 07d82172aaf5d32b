"""Tiny decoders of the families that are read."""

SIZES = dict(
    vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=256, pad_token_id=0,
)  # fmt: skip
LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
LONG = dict(short_factor=[1.0, 1.1, 1.3, 1.4], long_factor=[1.0, 2.0, 3.0, 5.0])


LLAMA = dict(num_key_value_heads=2)
DECODERS = {  # kind -> its name in transformers, and what its configuration has beside SIZES
    "llama": ("Llama", dict(LLAMA, rope_theta=50_000.0, rms_norm_eps=1e-5)),
    "tied": ("Llama", dict(num_key_value_heads=4, tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(num_key_value_heads=1, sliding_window=8, head_dim=8)),
    "phi3": ("Phi3", LLAMA),
    "phi3-window": ("Phi3", dict(LLAMA, sliding_window=7)),
    "long-rope": ("Phi3", dict(
        num_key_value_heads=4, original_max_position_embeddings=32,
        rope_scaling=dict(type="longrope", **LONG),
    )),
    # Of a base so small that all three cases of llama3 occur
    "llama3": ("Llama", dict(
        LLAMA, rope_parameters=dict(LLAMA3, rope_type="llama3", rope_theta=100.0),
    )),
    "linear": ("Llama", dict(LLAMA, rope_parameters=dict(
        rope_type="linear", rope_theta=1e4, factor=4.0,
    ))),
    "yarn": ("Llama", dict(LLAMA, rope_parameters=dict(
        rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32,
    ))),
    "qwen2": ("Qwen2", dict(LLAMA, tie_word_embeddings=True, sliding_window=8)),
    "qwen2-window": ("Qwen2", dict(
        LLAMA, sliding_window=8, use_sliding_window=True, max_window_layers=1,
    )),
    "qwen3": ("Qwen3", dict(LLAMA, head_dim=12)),
}  # fmt: skip
