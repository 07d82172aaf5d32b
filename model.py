"""A small multimodal LLM in one file: ViT encoder -> MLP projector -> Llama-style decoder.

    python model.py         print the parts of the default model and their parameter counts

Papers: ViT (arXiv 2010.11929), LLaVA's projector (2310.03744), Llama (2302.13971), grouped-query
attention (2305.13245), RoPE (2104.09864) and, for the mask, MMA (2503.02597; mma.py).

Shapes:  B rows of text   T tokens of a row   s new ones in a pass   K columns that are read
         D decoder width   H query heads   G key/value heads   d head width   E encoder width
         N pictures of a batch   P places of pictures   n image tokens of a picture   V vocabulary
"""

from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mma import EXTRA_PAIRS, IMAGE, PAD, attention_mask, positions, supervised

LOGITS_AT_ONCE = 4096  # answer tokens; more are computed in parts, to bound memory
DIVISORS = {"image_size": "patch_size", "encoder_width": "encoder_heads", "d_model": "n_head",
            "n_head": "n_kv_head"}  # fmt: skip


@dataclass
class Config:
    """Every size of the model. `mask`, a name of mma.py, is that of stage 2 and of generation."""

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
        """Derived sizes. Raises ValueError for those that no model can have."""
        if self.mask not in EXTRA_PAIRS:
            raise ValueError(f"unknown mask {self.mask!r}; allowed: {', '.join(EXTRA_PAIRS)}")
        for f in fields(Config):
            if f.type in (int, float) and not getattr(self, f.name) > 0:
                raise ValueError(f"{f.name} must be above 0, not {getattr(self, f.name)}")
        for name, divisor in DIVISORS.items():
            if getattr(self, name) % getattr(self, divisor):
                a, b = getattr(self, name), getattr(self, divisor)
                raise ValueError(f"{name}={a} must be a multiple of {divisor}={b}")
        self.grid = self.image_size // self.patch_size  # image tokens along a side of a picture
        self.n_image_tokens = self.grid**2
        self.head_width = self.d_model // self.n_head
        if self.head_width % 2:
            raise ValueError(f"RoPE needs an even width of a head, not {self.head_width}")


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
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))  # [N, heads, n, E / heads]
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
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(E)

    def init_positions(self) -> None:
        for p in (self.row, self.column):  # at 0.02 hardly a place reaches the decoder
            nn.init.normal_(p, std=1.0)

    def forward(self, images: Tensor) -> Tensor:
        S, p, g = self.size, self.patch_size, self.grid
        if images.dtype != torch.uint8 or images.shape[1:] != (3, S, S):
            raise ValueError(f"images {images.dtype} {[*images.shape]}, not uint8 [N, 3, {S}, {S}]")
        x = images.to(self.pixel_mean.dtype) - self.pixel_mean[:, None, None]
        x = x / self.pixel_std[:, None, None]
        x = x.view(-1, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, g * g, 3 * p * p)
        x = self.patch(x.to(self.patch.weight.dtype))  # [N, n, E]
        x = x + (self.row[:, None] + self.column[None, :]).flatten(0, 1)
        return self.norm(self.blocks(x))


def attention(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    """q [B, H, t, d], k, v [B, G, T, d], mask bool [B, 1, t, T], True: may read -> [B, H, t, d]."""
    if q.is_cuda:  # there the kernels that do not store all scores want equal numbers of heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    options = dict(enable_gqa=q.shape[1] > k.shape[1], scale=v.shape[-1] ** -0.5)
    return F.scaled_dot_product_attention(q, k, v, attention_mask, **options)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, heads, T, d]: each pair (a, b) of i and i + d/2 becomes (a cos - b sin, b cos +
    a sin). cos, sin [B or 1, 1, T, d]; the first half of sin has the minus."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class KVCache:
    """Preallocated keys and values of every layer. Row b's token at column t is stored at t, so a
    batch of prompts has no gaps: a shorter prompt's pads are overwritten as its answer grows."""

    def __init__(self, model: "MLLM", B: int, T_max: int):
        a, like, L = model.blocks[0].attention, model.embed.weight, len(model.blocks)
        zeros = partial(torch.zeros, L, B, a.n_kv_head, T_max, dtype=like.dtype, device=like.device)
        self.k, self.v = zeros(a.key_width), zeros(a.head_width)

    def write(self, layer: int, k: Tensor, v: Tensor, column: Tensor, T: int):
        """Store k, v [B, G, s, d] at column [B, s]; return the first T keys and values."""
        at = column[:, None, :, None]
        self.k[layer].scatter_(2, at.expand_as(k), k.to(self.k.dtype))
        self.v[layer].scatter_(2, at.expand_as(v), v.to(self.v.dtype))
        return self.k[layer, :, :, :T], self.v[layer, :, :, :T]


@dataclass
class AttentionContext:
    """What every layer needs besides x [B, s, D]; T = number of keys."""

    attention_mask: Tensor  # bool [B, 1, s, T], True = may attend
    position: Tensor  # int64 [B or 1, s]
    cache: KVCache | None = None
    column: Tensor | None = None  # int64 [B, s]: where the cache stores the tokens
    rotation: tuple = ()  # RoPE's cos and sin of position, each [B or 1, 1, s, d]; set by decode


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

    def queries_keys_values(self, x: Tensor, context: AttentionContext):
        """q [B, H, s, d], k and v [B, G, s, d] of x; q and k with their positions."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in (q, k, v))
        return rotate(q, *context.rotation), rotate(k, *context.rotation), v

    def forward(self, x: Tensor, context: AttentionContext, read_at: Tensor | None = None):
        """x [B, s, D] -> [B, s, D], or [B, K, D]: what the columns read_at read."""
        q, k, v = self.queries_keys_values(x, context)
        mask = context.attention_mask
        if read_at is not None:
            q, mask = (y.take_along_dim(read_at[:, None, :, None], 2) for y in (q, mask))
        if context.cache is not None:
            k, v = context.cache.write(self.layer, k, v, context.column, mask.shape[-1])
        return self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then SwiGLU."""

    def __init__(self, config: Config, attention: nn.Module):
        super().__init__()
        D, hidden = config.d_model, config.d_ff
        self.norm1, self.norm2 = (nn.RMSNorm(D, config.norm_eps) for _ in range(2))
        self.attention = attention
        self.gate, self.up = (nn.Linear(D, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, D, bias=False)

    def forward(self, x: Tensor, context: AttentionContext, read_at: Tensor | None = None):
        """x [B, s, D] -> [B, s, D]. In the last layer only what is read needs to be computed, but
        for keys and values: the columns read_at, int64 [B, K] -> [B, K, D]."""
        y = self.attention(self.norm1(x), context, read_at)
        x = y + (x if read_at is None else x.take_along_dim(read_at[..., None], 1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


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
        self.norm = nn.RMSNorm(D, config.norm_eps)
        self.checkpointing = False  # of a layer only the input is kept; backward computes the rest
        if not config.tied:
            self.unembed = nn.Linear(D, config.vocab_size, bias=False)
        self.apply(init_weights)
        self.encoder.init_positions()
        for blocks, out in ((self.encoder.blocks, "out"), (self.blocks, "attention.out")):
            for block in blocks:  # what is added to the residual stream starts small
                block.down.weight.data /= (2 * len(blocks)) ** 0.5
                block.get_submodule(out).weight.data /= (2 * len(blocks)) ** 0.5

    def context_of(self, mask: str, role, turn=None, document=None) -> AttentionContext:
        """What the layers are told of a batch: who may read whom, and positions."""
        allowed = attention_mask(mask, role, turn, document)
        return AttentionContext(allowed, positions(role, document))

    def frequencies(self, position: Tensor) -> Tensor:
        """RoPE's angle per position: float32 [d/2]; long-rope's reads position: [B, 1, s, d/2]."""
        d = self.config.head_width
        return self.config.rope_theta ** (-torch.arange(0, d, 2, device=position.device) / d)

    def embed_inputs(self, ids, role, images=None, image_index=None) -> Tensor:
        """Token embeddings [B, T, D], with the features of images[image_index[p]] in the p-th run
        of image tokens. Raises ValueError if pictures and image tokens do not fit."""
        x, is_image = self.embed(ids), role == IMAGE
        n, found = self.config.n_image_tokens, is_image.sum(1).tolist()
        index = [] if images is None else image_index.tolist()
        fits = all(tokens % n == 0 for tokens in found) and sum(found) == n * len(index)
        if not (fits and all(0 <= i < len(images) for i in index)):
            raise ValueError(f"image_index {index} does not fit the pictures, or the rows' image "
                             f"tokens, {found} by row: {n} a picture")  # fmt: skip
        if images is None:
            return x
        features = self.projector(self.encoder(images)).to(x.dtype)  # [N, n, D]
        return x.masked_scatter(is_image[..., None], features[image_index])

    def forward(self, ids, role, images=None, image_index=None, turn=None, document=None,
                mask=None, read_at=None, context=None) -> Tensor:  # fmt: skip
        """The decoder's last hidden states [B, T, D]; `head` turns them into logits.
        ids, role, turn, document: int64 [B, T], as in mma.py. images: uint8 [N, 3, size, size].
        image_index: int64 [P], the image of each run of image tokens. mask: a name of mma.py, else
        config.mask. read_at: int64 [B, K], columns -> [B, K, D]. context: else context_of's."""
        context = context or self.context_of(mask or self.config.mask, role, turn, document)
        return self.decode(self.embed_inputs(ids, role, images, image_index), context, read_at)

    def decode(self, x: Tensor, context: AttentionContext, read_at: Tensor | None = None) -> Tensor:
        """Embeddings x [B, s, D] -> last hidden states [B, s, D], or [B, K, D] at read_at."""
        angle = context.position[:, None, :, None] * self.frequencies(context.position)
        angle = torch.cat([-angle, angle], -1)  # [B or 1, 1, s, d]; the minus: see rotate
        context.rotation = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for block in self.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            layer = partial(checkpoint, block, use_reentrant=False) if again else block
            x = layer(x, context, read_at if block is self.blocks[-1] else None)
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(hidden, self.embed.weight if self.config.tied else self.unembed.weight)

    def loss(self, ids, role, images=None, image_index=None, turn=None, document=None,
             mask=None, num_targets=None) -> Tensor:  # fmt: skip
        """Mean cross-entropy of the answer tokens, 0 of none: what training minimises. Arguments
        are those of forward. num_targets: divides the sum, if this is a part of a larger batch."""
        target = supervised(role, document)[:, 1:]  # bool [B, T-1]: column t predicts token t + 1
        K = max(1, int(target.sum(1).max()))  # rows with fewer are filled up with other columns
        read_at = target.int().argsort(dim=1, descending=True, stable=True)[:, :K]
        wanted = target.gather(1, read_at).nonzero(as_tuple=True)
        label = ids[:, 1:].gather(1, read_at)[wanted]
        hidden = self(ids, role, images, image_index, turn, document, mask, read_at)[wanted]
        loss_of = lambda h, y: F.cross_entropy(self.head(h).float(), y, reduction="sum")
        if len(label) > LOGITS_AT_ONCE:
            loss_of = partial(checkpoint, loss_of, use_reentrant=False)
        parts = map(loss_of, hidden.split(LOGITS_AT_ONCE), label.split(LOGITS_AT_ONCE))
        return sum(parts) / (max(1, len(label)) if num_targets is None else num_targets)

    def generate(self, ids, role, images=None, image_index=None, turn=None, **options):
        """Continue prompts: the new ids of each, list[list[int]]. options: see generate_steps."""
        answers = [[] for _ in ids]
        for row, token in self.generate_steps(ids, role, images, image_index, turn, **options):
            answers[row].append(token)
        return answers

    @torch.no_grad()
    def generate_steps(self, ids, role, images=None, image_index=None, turn=None, *, eos,
                       max_new_tokens=32, context=None, **sampling):  # fmt: skip
        """Yields (row, new id), a token a step over the KV cache, of prompts padded on the right,
        else ValueError; it reads what its prompt's last one reads, and what follows. eos: one id or
        more; max_new_tokens: one or B. context: else context_of's. sampling: see sample."""
        (B, T), ends = ids.shape, torch.as_tensor(eos).flatten().tolist()
        limit = torch.as_tensor(max_new_tokens).expand(B).tolist()
        last, column = (role != PAD).sum(1, keepdim=True) - 1, positions(role)  # [B, 1], [1, T]
        if (last < 0).any() or ((role != PAD) != (column <= last)).any():
            raise ValueError("generate needs prompts of one token or more, padded on the right")
        context = context or self.context_of(self.config.mask, role, turn)
        if context.cache is None:
            context.cache, context.column = KVCache(self, B, T + max(limit)), column.expand(B, T)
        hidden = self(ids, role, images, image_index, context=context, read_at=last)
        mask = context.attention_mask[:, 0].take_along_dim(last[..., None], 1)  # [B, 1, keys]
        position, cache = context.position.expand(B, T).gather(1, last), context.cache
        column, running = context.column.gather(1, last), list(range(B))  # rows that go on
        for step in range(max(limit)):
            token = sample(self.head(hidden[:, 0]).float(), **sampling)
            new = dict(zip(running, token.tolist()))  # the one wait for a GPU
            yield from ((row, new[row]) for row in running if step < limit[row])
            going = [k for k, r in enumerate(running) if new[r] not in ends and step + 1 < limit[r]]
            if not going:
                return
            if len(going) < len(running):  # what has finished is not computed any more
                running, going = [running[k] for k in going], torch.tensor(going, device=ids.device)
                token, position, column, mask = (x[going] for x in (token, position, column, mask))
                cache.k, cache.v = cache.k[:, going], cache.v[:, going]
            position, column = position + 1, column + 1
            mask = F.pad(mask, (0, 1)).scatter(2, column[..., None], True)
            context = AttentionContext(mask[:, None], position, cache, column)
            hidden = self.decode(self.embed(token[:, None]), context)


def sample(logits: Tensor, temperature: float = 0.0, top_p: float = 1.0, generator=None) -> Tensor:
    """A token id for each row of logits [B, V], int64 [B]. temperature 0: greedy; else it comes
    first, then the smallest set of tokens whose probability is top_p (arXiv 1904.09751)."""
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if temperature == 0:
        return logits.argmax(-1)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    dropped = p.cumsum(-1) - p >= top_p  # the tokens before it already have top_p
    dropped[:, 0] = False
    chosen = torch.multinomial(p.masked_fill(dropped, 0), 1, generator=generator)
    return order.gather(1, chosen)[:, 0]


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


if __name__ == "__main__":
    model = MLLM(Config(vocab_size=512))
    for name, part in [*model.named_children(), ("in all", model)]:
        print(f"{name:>10} {sum(p.numel() for p in part.parameters()):>10,} parameters")
