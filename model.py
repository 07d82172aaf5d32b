"""A small multimodal LLM in one file: ViT encoder -> MLP projector -> Llama-style decoder.

    python model.py         print the parts of the default model and their parameter counts

Papers: ViT (arXiv 2010.11929), LLaVA's projector (2310.03744), Llama (2302.13971), grouped-query
attention (2305.13245), RoPE (2104.09864) and, for the mask, MMA (2503.02597; mma.py).

Shapes:  B rows of text   T tokens of a row   s new ones in a pass   t of them that ask
         D decoder width   H query heads   G key/value heads   d head width   E encoder width
         N pictures of a batch   P places of pictures   n image tokens of a picture   V vocabulary
"""

import engine.terminal  # noqa: F401 - first: then Ctrl-C while torch loads is no traceback

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checks import check_image, check_pictures, check_sizes
from engine.last_layer import compute_only_rows
from engine.precision import scaled_dot_product_attention
from engine.sampling import drop_finished, sample
from mma import IMAGE, PAD, attention_mask, positions, supervised


@dataclass
class Config:
    """Every size of the model. `mask`, a kind of mma.py, is that of stage 2 and of generation."""

    vocab_size: int
    image_size: int = 64  # pixels; pictures are square
    patch_size: int = 16  # pixels; a patch becomes one image token
    encoder_width: int = 128
    encoder_layers: int = 2
    encoder_heads: int = 4
    d_model: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 2
    d_ff: int = 256  # hidden width of the decoder's SwiGLU
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    mask: str = "mma"
    tied: bool = True  # the vocabulary head is the token embedding

    def __post_init__(self):
        check_sizes(self)

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_head

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size  # image tokens along one side of a picture

    @property
    def n_image_tokens(self) -> int:
        return self.grid**2


# --- Vision encoder


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; every patch reads every patch."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, n, E = x.shape
        qkv = self.qkv(self.norm1(x)).view(N, n, 3, self.heads, E // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, n, E / heads]
        y = scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(N, n, E))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionEncoder(nn.Module):
    """ViT: uint8 pictures [N, 3, size, size] -> features [N, n, E] in reading order."""

    def __init__(self, config: Config):
        super().__init__()
        self.size, self.patch_size, self.grid = config.image_size, config.patch_size, config.grid
        E = self.width = config.encoder_width
        for name in ("pixel_mean", "pixel_std"):  # of training pictures; train.py measures them
            self.register_buffer(name, torch.full((3,), 127.5))
        self.patch = nn.Linear(3 * self.patch_size**2, E)
        self.row, self.column = (nn.Parameter(torch.empty(self.grid, E)) for _ in range(2))
        blocks = (EncoderBlock(E, config.encoder_heads) for _ in range(config.encoder_layers))
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(E)

    def init_positions(self) -> None:
        for p in (self.row, self.column):  # at 0.02 hardly a place reaches the decoder
            nn.init.normal_(p, std=1.0)

    def forward(self, images: Tensor) -> Tensor:
        size, p, g = self.size, self.patch_size, self.grid
        check_image(images, size)
        x = images.to(self.pixel_mean.dtype) - self.pixel_mean[:, None, None]
        x = x / self.pixel_std[:, None, None]
        x = x.view(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, g * g, 3 * p * p)
        x = self.patch(x.to(self.patch.weight.dtype))  # [N, n, E]
        x = x + (self.row[:, None] + self.column[None, :]).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# --- Decoder


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, H, t, d], k, v [B, G, T, d], mask bool [B, 1, t, T], True = may attend -> [B, H, t, d].
    G query heads share a key/value head."""
    if q.is_cuda:  # there the kernels that do not store all scores want equal numbers of heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    grouped, scale = q.shape[1] > k.shape[1], v.shape[-1] ** -0.5
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped, scale=scale)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, heads, T, d]; cos, sin [B or 1, 1, T, d/2]; i is paired with i + d/2."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class KVCache:
    """Preallocated keys and values of every layer. Row b's token at column t is stored at t, so a
    batch of prompts has no gaps: a shorter prompt's pads are overwritten as its answer grows."""

    def __init__(self, model: "MLLM", B: int, T_max: int):
        a, like = model.blocks[0].attention, model.embed.weight
        shape = (len(model.blocks), B, a.n_kv_head, T_max)
        self.k = torch.zeros(*shape, a.key_width, dtype=like.dtype, device=like.device)
        self.v = torch.zeros(*shape, a.head_width, dtype=like.dtype, device=like.device)

    def write(self, layer: int, k: Tensor, v: Tensor, column: Tensor, T: int):
        """Store k, v [B, G, s, d] at column [B, s]; return the first T keys and values."""
        at = column[:, None, :, None]
        self.k[layer].scatter_(2, at.expand_as(k), k.to(self.k.dtype))
        self.v[layer].scatter_(2, at.expand_as(v), v.to(self.v.dtype))
        return self.k[layer, :, :, :T], self.v[layer, :, :, :T]


@dataclass
class AttentionContext:
    """What every layer of a forward pass needs besides x [B, s, D]; T = number of keys."""

    mask: Tensor  # bool [B, 1, t, T], True = may attend
    q_rotation: tuple[Tensor, Tensor]  # RoPE's cos and sin, each [B or 1, 1, t, d/2]
    k_rotation: tuple[Tensor, Tensor]  # the same, each [B or 1, 1, s, d/2]
    is_image: Tensor  # bool [B, s]
    cache: KVCache | None = None
    column: Tensor | None = None  # int64 [B, s]: where the cache stores the tokens
    rows: Tensor | None = None  # int64 [B, K]: the last layer computes these alone (engine)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.n_kv_head = layer, config.n_kv_head
        self.head_width = self.key_width = d = config.head_width
        H, G, D = config.n_head, config.n_kv_head, config.d_model
        self.q, self.k, self.v = (nn.Linear(D, heads * d, bias=False) for heads in (H, G, G))
        self.out = nn.Linear(H * d, D, bias=False)
        self.attend = attention

    def queries_keys_values(self, x_q: Tensor, x: Tensor, context: AttentionContext):
        """q of x_q [B, H, t, d]; k and v of x [B, G, s, d]; q and k with their positions."""
        q, k, v = self.q(x_q), self.k(x), self.v(x)
        q, k, v = (y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in (q, k, v))
        return rotate(q, *context.q_rotation), rotate(k, *context.k_rotation), v

    def forward(self, x_q: Tensor, x: Tensor, context: AttentionContext) -> Tensor:
        """x_q [B, t, D], the tokens that ask (usually all of x [B, s, D]) -> [B, t, D]."""
        q, k, v = self.queries_keys_values(x_q, x, context)
        if context.cache is not None:
            k, v = context.cache.write(self.layer, k, v, context.column, context.mask.shape[-1])
        return self.out(self.attend(q, k, v, context.mask).transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then SwiGLU."""

    def __init__(self, config: Config, attention: nn.Module):
        super().__init__()
        D, hidden = config.d_model, config.d_ff
        self.norm1, self.norm2 = (nn.RMSNorm(D, config.norm_eps) for _ in range(2))
        self.attention = attention
        self.gate, self.up = (nn.Linear(D, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, D, bias=False)

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, context)
        return x + self.mlp(self.norm2(x))


# --- The whole


class MLLM(nn.Module):
    """Pictures and text in, text out. A variant overrides one class or method (lab/variants.py)."""

    config_class, encoder_class, attention_class = Config, VisionEncoder, Attention

    def __init__(self, config: Config):
        super().__init__()
        self.config, D = config, config.d_model
        self.encoder = self.encoder_class(config)
        self.projector = nn.Sequential(nn.Linear(self.encoder.width, D), nn.GELU(), nn.Linear(D, D))
        self.embed = nn.Embedding(config.vocab_size, D)
        attentions = (self.attention_class(config, layer) for layer in range(config.n_layer))
        self.blocks = nn.ModuleList(DecoderBlock(config, attention) for attention in attentions)
        compute_only_rows(self.blocks[-1])  # where only some rows are read
        self.norm = nn.RMSNorm(D, config.norm_eps)
        if not config.tied:
            self.unembed = nn.Linear(D, config.vocab_size, bias=False)
        self.apply(init_weights)
        self.encoder.init_positions()
        for blocks, out in ((self.encoder.blocks, "out"), (self.blocks, "attention.out")):
            for block in blocks:  # what is added to the residual stream starts small
                block.down.weight.data /= (2 * len(blocks)) ** 0.5
                block.get_submodule(out).weight.data /= (2 * len(blocks)) ** 0.5

    def mask_and_positions(self, kind: str, role, turn=None, document=None):
        """The mask bool [B, 1, T, T] and RoPE's positions int64 [B or 1, T] of a batch."""
        return attention_mask(kind, role, turn, document), positions(role, document)

    def frequencies(self, position: Tensor) -> Tensor:
        """RoPE's angle per position: float32 [d/2]; long-rope's reads position: [B, 1, s, d/2]."""
        d = self.config.head_width
        return self.config.rope_theta ** (-torch.arange(0, d, 2, device=position.device) / d)

    def embed_inputs(self, ids, role, images=None, image_index=None) -> Tensor:
        """Token embeddings [B, T, D], with the features of images[image_index[p]] in the p-th run
        of image tokens. Raises ValueError if pictures and image tokens do not fit."""
        x, is_image = self.embed(ids), role == IMAGE
        check_pictures(is_image, self.config.n_image_tokens, images, image_index)
        if images is None:
            return x
        features = self.projector(self.encoder(images)).to(x.dtype)  # [N, n, D]
        return x.masked_scatter(is_image[..., None], features[image_index])

    def forward(
        self, ids, role, images=None, image_index=None, turn=None, document=None, kind=None,
        rows=None, cache=None,
    ) -> Tensor:  # fmt: skip
        """The decoder's last hidden states [B, T, D]; `head` turns them into logits.

        ids, role, turn, document: int64 [B, T], as in mma.py. images: uint8 [N, 3, size, size].
        image_index: int64 [P], the image of each run of image tokens. kind: a mask of mma.py, else
        config.mask. rows: int64 [B, K], columns wanted -> [B, K, D]. cache: takes keys and values.
        """
        mask, position = self.mask_and_positions(kind or self.config.mask, role, turn, document)
        x = self.embed_inputs(ids, role, images, image_index)
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.decode(x, mask, position, role == IMAGE, cache, column, rows)

    def decode(self, x, mask, position, is_image, cache=None, column=None, rows=None) -> Tensor:
        """Embeddings x [B, s, D] -> hidden states; position int64 [B or 1, s]."""
        angle = position[:, None, :, None] * self.frequencies(position)  # [B or 1, 1, s, d/2]
        rotation = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        context = AttentionContext(mask, rotation, rotation, is_image, cache, column, rows)
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.embed.weight if self.config.tied else self.unembed.weight)

    def loss(self, ids, role, images=None, image_index=None, turn=None, document=None, kind=None):
        """Mean cross-entropy of the answer tokens, 0 of none; in training see engine/last_layer."""
        target = supervised(role, document)[:, 1:]  # bool [B, T-1]: row t predicts token t+1
        hidden = self(ids, role, images, image_index, turn, document, kind)[:, :-1][target]
        loss = F.cross_entropy(self.head(hidden).float(), ids[:, 1:][target], reduction="sum")
        return loss / max(1, len(hidden))

    @torch.inference_mode()
    def generate(
        self, ids, role, images=None, image_index=None, turn=None, *, eos: int, max_new_tokens=32,
        temperature: float = 0.0, top_p: float = 1.0, generator: torch.Generator | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Continue prompts padded on the right, else ValueError: prefill under the run's mask, then
        causal decoding over the KV cache, image keys as prefilled. Temperature 0 is greedy.

        max_new_tokens: one number, or a list. Returns each row's new ids; `eos` ends what finished.
        """
        B, T = ids.shape
        limit = torch.as_tensor(max_new_tokens, device=ids.device).expand(B)
        column = torch.arange(T + int(limit.max()), device=ids.device)
        length = (role != PAD).sum(1, keepdim=True)  # [B, 1]
        if not ((role != PAD) == (column[:T] < length)).all() or not length.all():
            raise ValueError("generate needs prompts of one token or more, padded on the right")
        cache = KVCache(self, B, len(column))
        hidden = self(ids, role, images, image_index, turn, rows=length - 1, cache=cache)
        _, position = self.mask_and_positions(self.config.mask, role, turn)
        position = position.expand(B, T).gather(1, length - 1)  # of each row's last token
        answers, running = [[] for _ in range(B)], torch.arange(B, device=ids.device)
        for step in range(int(limit.max())):
            token = sample(self.head(hidden[:, 0]).float(), temperature, top_p, generator)
            for row, new, most in zip(running.tolist(), token.tolist(), limit.tolist()):
                answers[row] += [new][:most]
            going = (token != eos) & (step + 1 < limit)
            state = drop_finished(going, cache, running, token, limit, length, position)
            running, token, limit, length, position = state
            if len(running) == 0:
                break
            mask = (column[: T + step + 1] <= length + step)[:, None, None]  # [B, 1, 1, columns]
            x, position, no_image = self.embed(token[:, None]), position + 1, length < 0
            hidden = self.decode(x, mask, position, no_image, cache, length + step)
        return answers


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


if __name__ == "__main__":
    model = MLLM(Config(vocab_size=512))
    print(model.config)
    for name, part in [*model.named_children(), ("in all", model)]:
        print(f"{name:>10} {sum(p.numel() for p in part.parameters()):>10,} parameters")
