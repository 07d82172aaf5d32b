"""SigLIP's vision tower (arXiv 2303.15343; SigLIP and SigLIP 2 of a fixed resolution), as the
encoder of model.py's MLLM.

It differs from model.VisionEncoder in that each patch has a position of its own, GELU is the tanh
approximation, LayerNorm adds 1e-6, the MLP has a width of its own, and what is less than a patch at
the right and lower edge is left out. Neighbouring patches may be pooled into one image token.

Shapes:  N pictures   g patches along a side   n image tokens of a picture   E encoder width
         p pixels along a patch's side
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bridge.folders import demand, read_config

EPS = 1e-6


class SiglipBlock(nn.Module):
    """Pre-norm transformer block; every patch reads every patch."""

    def __init__(self, width: int, heads: int, d_ff: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, d_ff), nn.Linear(d_ff, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        qkv = (of(y).unflatten(-1, (self.heads, -1)) for of in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in qkv))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class SiglipEncoder(nn.Module):
    """uint8 pictures [N, 3, size, size] -> features [N, n, E] of the image tokens in reading order,
    each the mean of pool x pool patches. config: a bridge.pretrained.PretrainedConfig."""

    pretrained = True  # it knows its pixels' scale, which train.py would else measure

    def __init__(self, config):
        super().__init__()
        self.size, self.patch_size = config.image_size, config.patch_size
        self.patches, self.pool = config.patches, config.pool
        E = self.width = config.encoder_width
        # SigLIP's pixels lie between -1 and 1
        self.register_buffer("pixel_mean", torch.full((3,), 127.5))
        self.register_buffer("pixel_std", torch.full((3,), 127.5))
        self.patch = nn.Linear(3 * self.patch_size**2, E)
        self.position = nn.Parameter(torch.empty(self.patches**2, E))
        sizes = config.encoder_heads, config.encoder_d_ff or 4 * E
        self.blocks = nn.ModuleList(SiglipBlock(E, *sizes) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(E, EPS)

    def init_positions(self) -> None:
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        p, g, pool = self.patch_size, self.patches, self.pool
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.size, self.size):
            got = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images must be uint8 [N, 3, {self.size}, {self.size}], got {got}")
        x = images.to(self.pixel_mean.dtype) - self.pixel_mean[:, None, None]
        x = x / self.pixel_std[:, None, None]
        x = x[..., : g * p, : g * p]  # whole patches
        x = x.reshape(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, g * g, 3 * p * p)
        x = self.patch(x.to(self.patch.weight.dtype)) + self.position  # [N, g * g, E]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if pool == 1:
            return x
        side = g // pool
        return x.view(-1, side, pool, side, pool, self.width).mean((2, 4)).flatten(1, 2)


# --- A SigLIP's Hugging Face folder


def vision_sizes(folder: Path) -> dict:
    """Fields of PretrainedConfig, from config.json of a vision tower or of a whole SigLIP."""
    config = read_config(folder)
    demand(folder, config, model_type=["siglip", "siglip_vision_model"])
    config = getattr(config, "vision_config", config)
    demand(folder, config, hidden_act=["gelu_pytorch_tanh"], num_channels=[3], layer_norm_eps=[EPS])
    return dict(
        encoder_width=config.hidden_size,
        encoder_d_ff=config.intermediate_size,
        encoder_layers=config.num_hidden_layers,
        encoder_heads=config.num_attention_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )


# A tensor of the files, as a pattern -> the parameter it fills; see folders.values_of
ROOT = r"(?:vision_model\.)?"
LAYER = ROOT + r"encoder\.layers\.(\d+)\."
VISION = {
    ROOT + r"embeddings\.patch_embedding\.(weight|bias)": r"encoder.patch.\1",
    ROOT + r"embeddings\.position_embedding\.weight": "encoder.position",
    ROOT + r"post_layernorm\.(weight|bias)": r"encoder.norm.\1",
    LAYER + r"layer_norm([12])\.(weight|bias)": r"encoder.blocks.\1.norm\2.\3",
    LAYER + r"self_attn\.([qkv]|out)_proj\.(weight|bias)": r"encoder.blocks.\1.\2.\3",
    LAYER + r"mlp\.fc1\.(weight|bias)": r"encoder.blocks.\1.up.\2",
    LAYER + r"mlp\.fc2\.(weight|bias)": r"encoder.blocks.\1.down.\2",
    ROOT + r"(?:head\..*|embeddings\.position_ids)": "",  # SigLIP's pooling head, and
    r"text_model\..*|logit_scale|logit_bias": "",  # its other half, are not needed
}
