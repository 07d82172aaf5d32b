"""Pretrained weights from local Hugging Face folders (config.json beside *.safetensors), into the model of model.py.

    from pretrained import load
    model = load("siglip-so400m-patch14-384", "Phi-3.5-mini-instruct", pool=3, dtype=torch.bfloat16)

Vision: SigLIP and SigLIP 2 of a fixed resolution. Decoders: Llama and what has its architecture (Llama-2, TinyLlama, Vicuna), Mistral
up to its window, Phi-3 and Phi-3.5-mini (fused projections, long-rope). The projector between them is new. Every tensor is accounted for:
one that is missing, unexpected or of another shape is an error. Files are read tensor by tensor, so that memory holds the model once.

Needs `pip install safetensors`. Facts about names and formats are from transformers' configurations; the code is our own.
"""

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from data import DataError
from model import MLLM, Config

# A tensor of the file, as a pattern -> the parameters it fills, as (name, piece, pieces): several tensors may fill one parameter, piece by
# piece along its rows; and one tensor may fill several ("q k v": its rows, cut).
BLOCK = r"(?:model\.)?layers\.(\d+)\."
DECODER = {
    r"(?:model\.)?embed_tokens\.weight": "embed.weight",
    r"(?:model\.)?norm\.weight": "norm.weight",
    r"lm_head\.weight": "unembed.weight",
    BLOCK + r"input_layernorm\.weight": r"blocks.\1.norm1.weight",
    BLOCK + r"post_attention_layernorm\.weight": r"blocks.\1.norm2.weight",
    BLOCK + r"self_attn\.([qkv])_proj\.weight": r"blocks.\1.attention.\2.weight",
    BLOCK + r"self_attn\.qkv_proj\.weight": r"blocks.\1.attention.q.weight blocks.\1.attention.k.weight blocks.\1.attention.v.weight",
    BLOCK + r"self_attn\.o_proj\.weight": r"blocks.\1.attention.out.weight",
    BLOCK + r"mlp\.(gate|up|down)_proj\.weight": r"blocks.\1.\2.weight",
    BLOCK + r"mlp\.gate_up_proj\.weight": r"blocks.\1.gate.weight blocks.\1.up.weight",
    BLOCK + r"self_attn\.rotary_emb\.inv_freq": "",  # old files keep what the configuration says
}
ROOT = r"(?:vision_model\.)?"
LAYER = ROOT + r"encoder\.layers\.(\d+)\."
VISION = {
    ROOT + r"embeddings\.patch_embedding\.(weight|bias)": r"encoder.patch.\1",
    ROOT + r"embeddings\.position_embedding\.weight": "encoder.position",
    ROOT + r"post_layernorm\.(weight|bias)": r"encoder.norm.\1",
    LAYER + r"layer_norm([12])\.(weight|bias)": r"encoder.blocks.\1.norm\2.\3",
    LAYER + r"self_attn\.q_proj\.(weight|bias)": r"encoder.blocks.\1.qkv.\2#0/3",
    LAYER + r"self_attn\.k_proj\.(weight|bias)": r"encoder.blocks.\1.qkv.\2#1/3",
    LAYER + r"self_attn\.v_proj\.(weight|bias)": r"encoder.blocks.\1.qkv.\2#2/3",
    LAYER + r"self_attn\.out_proj\.(weight|bias)": r"encoder.blocks.\1.out.\2",
    LAYER + r"mlp\.fc1\.(weight|bias)": r"encoder.blocks.\1.up.\2",
    LAYER + r"mlp\.fc2\.(weight|bias)": r"encoder.blocks.\1.down.\2",
    ROOT + r"(?:head\..*|embeddings\.position_ids)|text_model\..*|logit_scale|logit_bias": "",  # SigLIP's other half
}


def read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder / 'config.json'}: no such file; a Hugging Face folder holds config.json and *.safetensors") from None
    except ValueError as error:
        raise DataError(f"{folder / 'config.json'}: not readable as JSON ({error})") from None


def demand(folder: Path, config: dict, **allowed) -> None:
    """Refuse what would load and compute something else."""
    for name, values in allowed.items():
        value = config.get(name, values[0])
        if value not in values:
            raise DataError(f"{folder / 'config.json'}: {name} is {value!r}; only {', '.join(map(repr, values))} can be loaded")


def vision_sizes(folder: Path) -> dict:
    """Of a SigLIP's config.json, the fields of model.Config."""
    c = read_config(folder)
    demand(folder, c, model_type=["siglip", "siglip_vision_model", "siglip2"])
    c = c.get("vision_config", c)
    demand(folder, c, hidden_act=["gelu_pytorch_tanh"], num_channels=[3], layer_norm_eps=[1e-6])
    default = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224, patch_size=16)
    c = {**default, **c}
    return dict(siglip=True, encoder_width=c["hidden_size"], encoder_d_ff=c["intermediate_size"], encoder_layers=c["num_hidden_layers"],
                encoder_heads=c["num_attention_heads"], image_size=c["image_size"], patch_size=c["patch_size"])


def decoder_sizes(folder: Path, max_tokens: int | None = None) -> dict:
    """Of a decoder's config.json, the fields of model.Config. max_tokens: the longest row that will be used, if it is known."""
    c = read_config(folder)
    demand(folder, c, model_type=["llama", "mistral", "phi3"], hidden_act=["silu"], attention_bias=[False], mlp_bias=[False])
    heads, width = c["num_attention_heads"], c["hidden_size"]
    demand(folder, c, head_dim=[width // heads, None])
    window = c.get("sliding_window")
    if window and (max_tokens or 0) > window:
        raise DataError(f"{folder / 'config.json'}: rows of {max_tokens} tokens are longer than its sliding window of {window}")
    rope = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "longrope", "su") or rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1)) != 1:
        raise DataError(f"{folder / 'config.json'}: positions of the kind {rope or c.get('partial_rotary_factor')} cannot be loaded")
    long = {}
    if kind != "default":
        short = rope.get("original_max_position_embeddings") or c["original_max_position_embeddings"]
        factor = c["max_position_embeddings"] / short
        scale = rope.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(short)) if factor > 1 else 1.0)
        long = dict(rope_factors=(tuple(rope["short_factor"]), tuple(rope["long_factor"])), rope_short=short, rope_scale=scale)
    return dict(vocab_size=c["vocab_size"], d_model=width, n_layer=c["num_hidden_layers"], n_head=heads,
                n_kv_head=c.get("num_key_value_heads") or heads, d_ff=c["intermediate_size"], norm_eps=c.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta", c.get("rope_theta", 10_000.0))), tied=c.get("tie_word_embeddings", False), **long)


def tensors(folder: Path):
    """(file, name, tensor) of every tensor of a folder, read one after the other."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise DataError("pretrained weights need the package safetensors: pip install safetensors") from None
    index = folder / "model.safetensors.index.json"
    files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()}) if index.exists() else sorted(
        folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder}: no *.safetensors; other formats are not read, because loading them can run code")
    for file in files:
        try:
            with safe_open(file, framework="pt") as f:
                for name in f.keys():
                    yield file, name, f.get_tensor(name)
        except FileNotFoundError:
            raise DataError(f"{file}: no such file, but {index.name} names it") from None
        except Exception as error:  # safetensors raises a class of its own that it does not export everywhere
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file}: not readable as safetensors ({error})") from None


def fill(model: MLLM, folder: Path, names: dict[str, str], wanted: set[str], dtype: torch.dtype) -> None:
    """Give the parameters `wanted` of a model on the meta device their values from a folder."""
    shapes, wrong, waiting = {name: p.shape for name, p in model.named_parameters()}, [], {}
    wanted, tokens = set(wanted), ("embed.weight", "unembed.weight")
    for file, name, tensor in tensors(folder):
        target = next((match.expand(to) for pattern, to in names.items() if (match := re.fullmatch(pattern, name))), None)
        if target == "unembed.weight" and target not in shapes:  # tied: some files hold the embedding twice
            continue
        if target is None or not all(t.split("#")[0] in wanted for t in target.split()):
            wrong.append(f"{name} {list(tensor.shape)} in {file.name} is not expected")
            continue
        parts = target.split()
        if not parts:
            continue
        rows = [shapes[part][0] for part in parts] if len(parts) > 1 else [len(tensor)]
        if sum(rows) != len(tensor):
            wrong.append(f"{name} has the shape {list(tensor.shape)}, and {sum(rows)} rows were expected")
            wanted -= set(parts)
            continue
        for part, values in zip(parts, tensor.split(rows)):
            to, _, piece = part.partition("#")
            if piece:
                k, n = map(int, piece.split("/"))
                pieces = waiting.setdefault(to, {})
                pieces[k] = values
                if len(pieces) < n:
                    continue
                values = torch.cat([waiting[to][k] for k in range(n)])
                del waiting[to]
            if to == "encoder.patch.weight":
                values = values.flatten(1)
            wanted.discard(to)
            if to in tokens and len(values) + 1 == shapes[to][0]:  # room for a new token: the mean of the others
                values = torch.cat([values, values.mean(0, keepdim=True)])
            if values.shape != shapes[to]:
                wrong.append(f"{name} has the shape {list(tensor.shape)}: {to} would be {list(values.shape)}, not {list(shapes[to])}")
                continue
            put(model, to, values.to(dtype, copy=True))
    wrong += [f"{name} {list(shapes[name])} is missing" for name in sorted(wanted)]
    if wrong:
        raise DataError(f"{folder}: {len(wrong)} tensors do not fit: {'; '.join(wrong[:8])}{'; ...' if len(wrong) > 8 else ''}")


def put(model: nn.Module, name: str, values: Tensor) -> None:
    *path, leaf = name.split(".")
    setattr(model.get_submodule(".".join(path)), leaf, nn.Parameter(values))


def config_of(vision: Path, decoder: Path, max_tokens: int | None = None, **changes) -> Config:
    """The sizes of both folders. changes: fields of model.Config, such as pool=3, or vocab_size one larger, for a new token."""
    return Config(**{**vision_sizes(vision), **decoder_sizes(decoder, max_tokens), **changes})


def load(vision, decoder, config: Config | None = None, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> MLLM:
    """The model with a SigLIP from the folder `vision`, a decoder from the folder `decoder`, and a new projector; config: as config_of
    gives it (default: with the changes given). Raises DataError if a file is damaged or a tensor missing, unexpected or misshaped."""
    vision, decoder = Path(vision), Path(decoder)
    config = config or config_of(vision, decoder, **changes)
    with torch.device("meta"):
        model = MLLM(config)
    own = {name for name, _ in model.named_parameters() if name.startswith("projector.")}
    encoder = {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    fill(model, vision, VISION, encoder, dtype)
    fill(model, decoder, DECODER, {name for name, _ in model.named_parameters()} - own - encoder, dtype)
    torch.manual_seed(seed)
    model.projector.to_empty(device="cpu").to(dtype).apply(MLLM._init)
    for name in ("pixel_mean", "pixel_std"):  # SigLIP's pixels lie between -1 and 1
        setattr(model.encoder, name, torch.full((3,), 127.5))
    return model
